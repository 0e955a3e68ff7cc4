"""Runs hold no more from step to step, as far as a few show."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.flat import Held, grow_prediction, grow_training

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")


@pytest.mark.parametrize(("grow", "count"), [(grow_training, 16), (grow_prediction, 60)])
def test_a_run_holds_no_more_at_its_end(grow: Callable[[int], tuple[Held, Held]], count: int) -> None:
    warm, last = grow(count)
    assert (last.files, last.threads) == (warm.files, warm.threads)
    assert last.tensors <= warm.tensors
    assert last.megabytes - warm.megabytes < 60  # the allocator goes on warming up for longer than this

"""A few of the broken files of every kind, the same ones every time."""

import math
import random
import time
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from tests.soak.inputs import WRITERS, fault, mutated_inputs
from tinydet.errors import InputError


def test_no_broken_file_breaks_its_reader(tmp_path: Path) -> None:
    tried = [(kind, fault(read)) for kind, read in islice(mutated_inputs(random.Random(7), tmp_path), 300)]
    assert {kind.split(":")[0] for kind, _ in tried} == {one.__name__.removeprefix("write_") for one in WRITERS}
    assert [one for one in tried if one[1]] == []


def test_what_does_not_hold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.inputs.SECONDS", 0.05)

    def fail(text: str) -> None:
        raise InputError(text)

    assert fault(lambda: "fine") == ""
    assert fault(partial(fail, "a.json: wrong")) == ""
    assert "names no file" in fault(partial(fail, "wrong"))
    assert "an error of 1 lines" in fault(partial(fail, "a.json: " + "x" * 1000))
    assert "KeyError" in fault(lambda: dict[str, int]()["a"])
    assert "AssertionError" in fault(lambda: ({"AP": math.nan}, []))
    assert "TooLong" in fault(partial(time.sleep, 5))

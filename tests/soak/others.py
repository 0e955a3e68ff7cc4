"""Hostile weights, broken inputs and long runs, by the modules that make them."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tests.soak.checkpoints import held, hostile_checkpoints
from tests.soak.flat import grow_prediction, grow_training
from tests.soak.harness import Trial, fresh, last_line, run
from tests.soak.inputs import fault, mutated_inputs

GROWTH = 1.02  # of what is held after a fifth of a run


def checkpoints(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Read hostile files of weights, each in a child."""
    for kind, path in islice(hostile_checkpoints(rng, fresh(folder / "files")), count):
        ended = run(partial(_print, held, path), fresh(folder / "trial"))
        yield kind, None if (ended.status, ended.output) == (0, "None\n") else last_line(ended.output)


def inputs(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Read broken labels, annotations, results and runs."""
    for kind, read in islice(mutated_inputs(rng, folder), count):
        yield kind, fault(read) or None


def flat(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Make steps of training, and predict twice as many images."""
    for grow, number in ((grow_training, count), (grow_prediction, 2 * count)):
        ended = run(partial(_grow, grow, number), fresh(folder / "trial"), number)
        yield f"{grow.__name__} {number:,}", last_line(ended.output) if ended.status else None


def _print(function: Callable[[Any], Any], value: Any) -> None:
    print(function(value))


def _grow(grow: Callable[[int], Any], number: int) -> None:
    warm, end = grow(number)
    print(f"{warm} to {end}")
    raise SystemExit(any(now > GROWTH * before for before, now in zip(warm, end, strict=True)))

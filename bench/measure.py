"""Contestants in turns, and what came of it."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from bench.contestants import Failed, Missing, Worker, ask
from bench.rows import Row

PAUSE = 0.02  # seconds after a turn: OpenMP's threads spin on a little after their work,
LONG_PAUSE = {"ONNX Runtime": 0.1}  # and some for so long that the next contestant would have one core less
PREPARE, CALL = 600.0, 120.0  # seconds after which a contestant is given up
FEWEST = 3  # rounds, of a row that takes too long


class Result(NamedTuple):
    """One contestant's figure in one row; None for the numbers where there is none."""

    row: str
    contestant: str
    unit: str
    median: float | None = None
    low: float | None = None
    """The lower quartile of the rounds."""
    high: float | None = None
    """The upper quartile."""
    rounds: int = 0
    status: str = "measured"
    """Or "not installed", or "failed"."""
    note: str = ""
    """Which of its ways was the contestant's fastest, or why there is no figure."""


def measure(row: Row, hire: Callable[[str], Worker], *, patience: float, say: Callable[[str], object]) -> list[Result]:
    """Prepare and warm up a row's contestants, then time a call of each in turns.

    Args:
        row: what to measure.
        hire: gives a contestant's process by its name; raises Missing where it has none.
        patience: seconds of turns after which the row ends, if every contestant had its three.
        say: told how far it is, in pieces of a line.

    Returns:
        A result of each contestant, and one of its peak memory if the row asks for it.
    """
    seconds: list[list[float]] = [[] for _ in row.entries]
    lost: dict[int, tuple[str, str]] = {}

    def request(number: int, content: Mapping[str, object], *, timeout: float = CALL) -> list[float]:
        """What the entry's process answers; nothing, and the reason noted, if it is lost."""
        entry = row.entries[number]
        try:
            return [ask(hire(entry.worker or entry.contestant), content, timeout=timeout)]
        except (Missing, Failed) as error:
            lost[number] = "not installed" if isinstance(error, Missing) else "failed", str(error)
            return []

    began = time.monotonic()
    say(f"{row.name}: preparing")
    for number, entry in enumerate(row.entries):
        say(f" {entry.contestant} {entry.way}".rstrip() + ",")
        prepare = {"prepare": str(number), "case": entry.case, "options": dict(entry.options)}
        request(number, prepare, timeout=PREPARE)
    say(" in turns")
    end = math.inf
    for turn in range(-row.warmup, row.rounds):
        if turn == 0:
            end = time.monotonic() + patience
        if turn >= FEWEST and time.monotonic() > end:
            break
        for number in range(len(row.entries)):
            if number not in lost:
                took = request(number, {"time": str(number)})
                seconds[number] += took if turn >= 0 else []
                time.sleep(LONG_PAUSE.get(row.entries[number].contestant, PAUSE))
        say(".")
    present = [number for number in range(len(row.entries)) if number not in lost]
    peaks = {number: request(number, {"peak": None}) for number in present if row.peak}
    for number in present:
        request(number, {"forget": None})
    say(f" {time.monotonic() - began:.0f} s\n")
    contestants = dict.fromkeys(entry.contestant for entry in row.entries)
    return [
        *(summary(row, name, seconds, lost) for name in contestants),
        *(peak_memory(row, row.entries[number].contestant, *answer) for number, answer in peaks.items() if answer),
    ]


def summary(row: Row, contestant: str, seconds: list[list[float]], lost: Mapping[int, tuple[str, str]]) -> Result:
    """One contestant's result: of its ways, the fastest."""
    ways = [number for number, entry in enumerate(row.entries) if entry.contestant == contestant]
    present = [number for number in ways if number not in lost]
    if not present:
        return Result(row.name, contestant, row.unit, status=lost[ways[0]][0], note=lost[ways[0]][1])
    best = min(present, key=lambda number: statistics.median(seconds[number]))
    figures = [in_unit(value, row) for value in seconds[best]]
    low, median, high = statistics.quantiles(figures, method="inclusive")
    return Result(row.name, contestant, row.unit, median, low, high, len(figures), note=row.entries[best].way)


def peak_memory(row: Row, contestant: str, gigabytes: float) -> Result:
    """The row beside a row."""
    return Result(f"{row.name}, peak memory", contestant, "GB", gigabytes, gigabytes, gigabytes, 1)


def in_unit(seconds: float, row: Row) -> float:
    """Seconds of one call in the row's unit."""
    return row.pieces / seconds if row.unit.endswith("/s") else seconds * {"ms": 1e3, "s": 1.0}[row.unit]

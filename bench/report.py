"""Results as a table to read, and as data."""

import json
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bench.contestants import OURS
from bench.measure import Result
from bench.rows import PEERS, Row

COLUMNS = (OURS, *PEERS)
LEGEND = """\
Median of the rounds (lower..upper quartile) x tinydet's median divided by this one: below 1, tinydet takes less time
or memory; of what is counted by the second, above 1, it does more. Contestants take turns, a call each, so that a slow
minute slows all alike. The fastest of a contestant's ways counts. For all of them glibc keeps what they free, by
MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_; another C library does not know these."""


def machine(threads: int) -> str:
    """What all of it ran on, and how busy that was, in two lines."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here: not measured"
    busy = f"; load {os.getloadavg()[0]:.1f} beforehand" if hasattr(os, "getloadavg") else ""
    cores = f"{processor()}, {os.cpu_count()} cores{busy}; {gpu}"
    return f"{cores}\n{threads} threads each, Python {platform.python_version()}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def table(results: Sequence[Result]) -> str:
    """A line for each row, a column for each contestant."""
    lines: list[tuple[str, ...]] = [("", "", *COLUMNS)]
    for name, of in by_row(results).items():
        unit = next(iter(of.values())).unit
        lines.append((name, unit, *(cell(of[column], of) if column in of else "-" for column in COLUMNS)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def by_row(results: Sequence[Result]) -> dict[str, dict[str, Result]]:
    """Results by row, and then by contestant."""
    names = dict.fromkeys(result.row for result in results)
    return {name: {result.contestant: result for result in results if result.row == name} for name in names}


def cell(result: Result, row: Mapping[str, Result]) -> str:
    """What one contestant did in one row."""
    if result.median is None or result.low is None or result.high is None:
        return result.status
    spread = f" ({digits(result.low)}..{digits(result.high)})" if result.rounds > 1 else ""
    ours = row[OURS].median if OURS in row and result.contestant != OURS else None
    return f"{digits(result.median)}{spread}" + (f" x {ours / result.median:.2f}" if ours is not None else "")


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def remarks(results: Sequence[Result], plan: Sequence[Row], full: Sequence[Row]) -> str:
    """What the rows are, what --quick left out of the full ones, who has no column, and what went wrong."""
    planned = {row.name: row for row in plan}
    lines = [line for row in full for line in about(row, planned.get(row.name), results)]
    missing = dict.fromkeys((one.contestant, one.note) for one in results if one.status == "not installed")
    lines += [f"{name} is not installed: {reason}" for name, reason in missing]
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="    ") for line in lines)


def about(row: Row, planned: Row | None, results: Sequence[Result]) -> Iterator[str]:
    """The same of one row."""
    found = by_row(results).get(row.name, {})
    rounds = sorted({result.rounds for result in found.values() if result.rounds})
    yield f"{row.name}: {row.about}" + (f"; {', '.join(map(str, rounds))} rounds" if rounds else "")
    if planned is None:
        yield "    left out by --quick"
    elif planned != row:
        also = [f"{entry.contestant} {entry.way}".strip() for entry in row.entries if entry not in planned.entries]
        yield f"    without --quick {row.rounds} rounds" + (f", and {', '.join(also)}" if also else "")
    for one in found.values():
        if one.contestant not in COLUMNS:
            yield f"    {one.contestant}: {cell(one, found)} {one.unit}"
        if one.note and one.status != "not installed":
            yield f"    {one.contestant}: {one.note}"


def as_json(results: Sequence[Result], *, header: str) -> str:
    """The same as data."""
    return json.dumps({"machine": header.splitlines(), "results": [one._asdict() for one in results]}, indent=1)

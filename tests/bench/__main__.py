"""The command behind bin/bench."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import torch

from tests.bench.rows import choose, rows
from tests.bench.runner import Result, Row, measure

TIMEOUT = {True: 10.0, False: 300.0}
"""Seconds of turns after which a row ends, with --quick and without."""
LEGEND = """\
Median of the rounds (lower..upper quartile) x tinydet's median divided by this one: below 1, tinydet takes less time or
memory; of what is counted by the second, above 1, it does more. Implementations take turns, a call each, and the
fastest of their variants counts. For all of them glibc keeps what they free."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[ROW]...", nargs=-1)
@click.option("--peers", metavar="PYTHON", help="Of an environment with effdet, torchvision, onnx and onnxruntime.")
@click.option("--quick", is_flag=True, help="Minutes: at most ten seconds of turns a row, and no compilation.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of each implementation.")
@click.option("--json", "file", type=click.File("w"), help="Write the figures there; - for stdout, without the table.")
def main(names: tuple[str, ...], peers: str | None, quick: bool, threads: int, file: Any) -> None:
    """Measure tinydet on this machine, beside others. ROW: only rows of that name, or whose names begin so."""
    python = shutil.which(peers) if peers else None
    if peers and not python:
        raise click.BadParameter(f"{peers}: no such Python", param_hint="--peers")
    # A virtual environment is known by its link: the path is made absolute, not resolved.
    header, python = machine(threads), python and os.path.abspath(python)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            plan = choose(rows(Path(scratch)), names, quick=quick)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="ROW") from None
        results = [one for row in plan for one in measure(row, python, threads=threads, timeout=TIMEOUT[quick])]
    if file is None or file.name != "<stdout>":
        click.echo("\n\n".join(["\n".join(header), table(results, plan), LEGEND]))
    if file is not None:
        json.dump({"machine": header, "results": [one._asdict() for one in results]}, file, indent=1)


def machine(threads: int) -> list[str]:
    """Describe what all of it runs on, and how busy that is, in two lines."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here: not measured"
    load = f"load {os.getloadavg()[0]:.1f} beforehand; " if hasattr(os, "getloadavg") else ""
    versions = f"{threads} threads each, Python {platform.python_version()}, torch {torch.__version__}"
    return [f"{processor()}; {load}{gpu}", versions]


def processor() -> str:
    """Name the CPU and count its cores."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(": ")[2] for line in cpuinfo if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} cores"


def table(results: Sequence[Result], plan: Sequence[Row]) -> str:
    """Lay out the results, an implementation a line under what its row measures."""
    about = {row.name: f"{row.name}: {row.about}" for row in plan}
    ours = {one.row: one.median for one in results if one.implementation == "tinydet"}
    lines = []
    for row, group in groupby(results, lambda one: one.row):
        lines.append(about.get(row, row))
        for one in group:
            figures, ratio = "-", ""
            if one.median is not None and one.low is not None and one.high is not None:
                figures = f"{digits(one.median)} ({digits(one.low)}..{digits(one.high)}) {one.unit}"
                reference = ours.get(row)
                ratio = f"x {reference / one.median:.2f}" if reference and one.implementation != "tinydet" else ""
            lines.append(f"    {one.implementation:18}{figures:30}{ratio:9}{one.note}".rstrip())
    return "\n".join(lines)


def digits(value: float) -> str:
    """Format three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()

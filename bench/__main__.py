"""The command behind bin/bench."""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from bench import report
from bench.contestants import staff
from bench.gpu import gpu_rows, shares
from bench.measure import Result, measure
from bench.rows import Row, chosen, rows, shortened

PATIENCE = {True: 10.0, False: 300.0}
"""Seconds of turns that a row may take, with --quick and without."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("row", nargs=-1)
@click.option("--peers", metavar="PYTHON", help="Of an environment with effdet, torchvision, onnx and onnxruntime.")
@click.option("--quick", is_flag=True, help="Two minutes: fewer rounds, and only the likely ways of others.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of each contestant.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    help="Write the figures there; - for stdout, in place of the table.",
)
def main(row: tuple[str, ...], peers: str | None, quick: bool, threads: int, file: str | None) -> None:
    """How fast tinydet is on this machine, beside others. ROW: only rows of that name, or whose names begin so."""
    python = shutil.which(peers) if peers else None
    if peers and not python:
        raise click.BadParameter(f"{peers}: no such Python", param_hint="--peers")
    header = report.machine(threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            full = chosen([*rows(Path(scratch)), *gpu_rows()], row)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="ROW") from None
        plan = shortened(full, named=bool(row)) if quick else full
        # A virtual environment is known by its link: the path is made absolute, not resolved.
        results = run(plan, python and os.path.abspath(python), threads=threads, patience=PATIENCE[quick])
    results += shares(results)
    if file != "-":
        print(header, report.table(results), report.LEGEND, report.remarks(results, plan, full), sep="\n\n")
    if file is not None:
        with click.open_file(file, "w") as opened:
            print(report.as_json(results, header=header), file=opened)


def run(plan: Sequence[Row], peers: str | None, *, threads: int, patience: float) -> list[Result]:
    """Measure row after row; contestants' processes serve all but those that need fresh ones."""
    results = []
    with staff(peers, threads=threads) as shared:
        for row in plan:
            if row.peak or row.threads:
                with staff(peers, threads=row.threads or threads) as fresh:
                    results += measure(row, fresh, patience=patience, say=say)
            else:
                results += measure(row, shared, patience=patience, say=say)
    return results


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

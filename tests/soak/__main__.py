"""The command behind bin/soak."""

import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import albumentations  # noqa: F401  # the children find it imported
import click
import torch

from tests.soak import commands, downloads, images, others, training
from tests.soak.harness import NOT_TRIED, Trial

Try = Callable[[random.Random, Path, int], Iterator[Trial]]


class Promise(NamedTuple):
    """What tinydet promises, and how to try it."""

    text: str
    trials: Try
    most: int  # trials in all, if there is time
    quick: int  # trials with --quick; 0 for what has tests of its own
    weight: int  # share of the time


class Report(NamedTuple):
    """What came of trying a promise."""

    tried: int
    failures: list[str]
    skipped: list[str]
    seconds: float


PROMISES = {
    "kill": Promise("a run that is killed leaves whole files and goes on to the same bits", training.kills, 240, 4, 20),
    "signal": Promise("Ctrl-C and SIGTERM end a run that goes on to the same bits", training.signals, 40, 2, 8),
    "double": Promise("two runs at once spoil nothing", training.doubles, 12, 0, 2),
    "damage": Promise("a damaged last.pt is passed over", training.damages, 40, 0, 3),
    "repeat": Promise("the same seed comes to the same bits", training.repeats, 8, 0, 2),
    "command": Promise("a command that is killed leaves the old file or the new one", commands.kills, 300, 2, 10),
    "disk": Promise("a full or read-only disk is one line and spoils nothing", commands.full_disks, 10**6, 3, 10),
    "checkpoint": Promise("hostile weights run no code and are one line", others.checkpoints, 10**6, 0, 8),
    "input": Promise("broken labels, results and runs are one line", others.inputs, 200_000, 0, 20),
    "image": Promise("broken images are one line", images.images, 20_000, 80, 4),
    "flat": Promise(
        "memory, files and threads stay as they are in 5,000 steps and 10,000 images", others.flat, 5000, 0, 14
    ),
    "download": Promise("a download is whole or not there", downloads.downloads, 40, 3, 1),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True), help="At most.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws what is tried.")
@click.option("--only", multiple=True, type=click.Choice([*PROMISES]), help="Try this promise; may be repeated.")
@click.option("--quick", is_flag=True, help="A few trials, in seconds.")
def main(minutes: float, seed: int, only: tuple[str, ...], quick: bool) -> None:
    """Try to break what tinydet promises; the exit status is 1 where something did not hold."""
    torch.set_num_threads(1)
    training.shrink()
    chosen = {name: one for name, one in PROMISES.items() if name in (only or PROMISES) and (one.quick or not quick)}
    cores = min(len(os.sched_getaffinity(0)), len(chosen))
    seconds = 60 * minutes * cores / sum(one.weight for one in chosen.values())
    reports: dict[str, Report] = {}
    with (
        tempfile.TemporaryDirectory(
            prefix="soak-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        ) as place,
        ProcessPoolExecutor(cores, mp_context=get_context("fork")) as pool,
    ):
        futures: dict[Future[Report], str] = {}
        for name, one in sorted(chosen.items(), key=lambda pair: -pair[1].weight):
            share, most = min(seconds * one.weight, 60 * minutes), one.quick if quick else one.most
            futures[pool.submit(attempt, name, Path(place, name), seed=seed, most=most, seconds=share)] = name
        for future in as_completed(futures):
            name, report = futures[future], future.result()
            reports[name] = report
            held = report.tried - len(report.failures)
            click.echo(f"{name}: {held:,} of {report.tried:,} held, in {report.seconds:.0f} s", err=True)
    click.echo(
        "\n".join(lines({name: reports[name] for name in chosen}, again=f"bin/soak --seed {seed}{' --quick' * quick}"))
    )
    sys.exit(any(report.failures for report in reports.values()))


def attempt(name: str, folder: Path, *, seed: int, most: int, seconds: float) -> Report:
    """Try a promise until all trials are made, or the time is over."""
    began, tried, failures, skipped = time.monotonic(), 0, list[str](), list[str]()
    folder.mkdir()
    try:
        for trial, problem in PROMISES[name].trials(random.Random(f"{seed} {name}"), folder, most):
            if trial.startswith(NOT_TRIED):
                skipped.append(trial)
                continue
            tried += 1
            if problem is not None:
                failures.append(f"{trial}: {problem}")
                click.echo(f"{name}: {failures[-1]}", err=True)
            if tried >= most or time.monotonic() - began > seconds:
                break
    except Exception:  # the trial's own, which must not end the others
        tried, failures = tried + 1, [*failures, f"the trial itself failed: {traceback.format_exc()}"]
    return Report(tried, failures, skipped, time.monotonic() - began)


def lines(reports: dict[str, Report], *, again: str) -> Iterator[str]:
    """Write the table, what failed, and what repeats it."""
    yield from ("| promise | tried | held |", "|---|---:|---:|")
    for name, (tried, failures, skipped, _) in reports.items():
        unknown = f", {len(skipped)} not tried" if skipped else ""
        yield f"| {PROMISES[name].text} | {tried:,}{unknown} | {tried - len(failures):,} |"
    for name, report in reports.items():
        if report.failures or report.skipped:
            yield from ("", f"{name}, again by {again} --only {name}:")
            yield from (f"- {one}" for one in [*report.failures, *report.skipped])


if __name__ == "__main__":
    main()

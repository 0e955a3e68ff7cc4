"""The command behind bin/bench accuracy: what settings of training are worth, by several sets and seeds."""

import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from tests.bench.__main__ import processor
from tests.bench.accuracy_runs import MODEL, PEER, Job, code, collect, measure, open_splits, versions, write_fold
from tests.bench.accuracy_stats import DEFAULT, summarize, table
from tinydet.cli import main as tinydet
from tinydet.data.loader import count_batches
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.training.choices import resolve_config
from tinydet.training.settings import TrainSettings

TRAIN = copy(tinydet.commands["train"])  # a command keeps the help option of the context that it is first used in
PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sets", multiple=True, required=True, type=PATH, metavar="DATA", help="What to train on; repeatable.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Of each set and variant.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Of each run, as of tinydet train.")
@click.option("--steps", type=click.IntRange(1), help="Of each run, in whole epochs; instead of --minutes.")
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="A variant beside the default: options of tinydet train; repeatable.",
)
@click.option("--folds", type=click.IntRange(2), help="Score on one of so many parts of train, each seed on the next.")
@click.option("--peers", metavar="PYTHON", help="Of an environment with effdet, which is trained too.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of each run.")
@click.option("--results", default="runs/accuracy.jsonl", show_default=True, type=PATH, help="File of all runs.")
@click.option("--json", "file", type=click.File("w"), help="Write the runs and their summary there too.")
def main(
    sets: Sequence[Path],
    seeds: int,
    minutes: float | None,
    steps: int | None,
    tries: Sequence[str],
    folds: int | None,
    peers: str | None,
    threads: int,
    results: Path,
    file: Any,
) -> None:
    """Train on sets with several seeds; print means, and each variant's difference to the default.

    A run that the file of results has, of this code and machine, is not run again.
    """
    if (minutes is None) == (steps is None):
        raise click.UsageError("--minutes and --steps: give one of them")
    paths = {path.resolve().name: path.resolve() for path in sets}
    if len(paths) < len(sets):
        raise click.UsageError("--sets: two have one name, by which their results are known")
    if peers and not shutil.which(peers):
        raise click.BadParameter(f"{peers}: no such Python", param_hint="--peers")
    python = os.path.abspath(shutil.which(peers) or "") if peers else None  # not resolved: known by its link
    variants = {DEFAULT: list[str](), **{text: options(text) for text in tries}}
    budget = Budget("minutes", minutes) if minutes is not None else Budget("steps", steps or 0)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    results.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=results.parent, prefix="accuracy-") as folder:
            scratch = Path(folder).resolve()
            key: dict[str, Any] = {"budget": str(budget), "threads": threads}
            key |= {"commit": code(), "machine": processor() + gpu, "versions": versions(sys.executable)}
            effdet = {PEER: versions(python, PEER)} if python else {}
            parts = [list(parts_of(name, path, folds, most=seeds, scratch=scratch)) for name, path in paths.items()]
            by_seed = [(some[seed % len(some)], seed) for seed in range(seeds) for some in parts]
            jobs = [job for part, seed in by_seed for job in plan(part, seed, key, budget, variants, effdet)]
            rows, failures = collect(jobs, results, partial(measure, scratch=scratch, peer=python))
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{key['machine']}, {threads} threads, {budget}, commit {key['commit']}\n\n{table(summarize(rows))}")
    if file is not None:
        json.dump({**key, "runs": rows, "summary": summarize(rows), "failures": failures}, file, indent=1)
    sys.exit(bool(failures))


class Budget(NamedTuple):
    """Length of each run."""

    unit: str  # "minutes" or "steps"
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


class Part(NamedTuple):
    """What a run trains on and is scored on: a set, or a fold of one."""

    name: str
    fold: str  # "val", or as "2/5"
    data: Path
    images: int  # to train on
    digest: str  # of the names, sizes and boxes of both splits
    size: tuple[int, int]  # (height, width) of tinydet's input, where no option says another


def options(text: str) -> list[str]:
    """Turn NAME=VALUE,... into options, once tinydet train has taken them; commas within a value stay."""
    parts = [part.partition("=") for part in re.split(r",(?=[^,=]+=)", text)]
    arguments = [f"--{name.strip().replace('_', '-')}{sign}{value}" for name, sign, value in parts]
    try:
        TRAIN.make_context("train", ["DATA", *arguments])
    except click.UsageError as error:
        raise click.BadParameter(error.format_message(), param_hint=f"--try {text}") from None
    return arguments


def parts_of(name: str, path: Path, folds: int | None, *, most: int, scratch: Path) -> Iterator[Part]:
    """Open a set, or write and open the first of its folds."""
    for fold in range(min(folds or 1, most)):
        data = write_fold(path, scratch / f"{name}-{fold + 1}", fold=fold, folds=folds) if folds else path
        images, val = open_splits(data)
        digest = f"{zlib.crc32(f'{images.digest()} {val.digest()}'.encode()):08x}"
        config = resolve_config(TrainSettings(data=str(data)), images, base=model_config(MODEL))
        label = f"{fold + 1}/{folds}" if folds else "val"
        yield Part(name, label, data, len(images), digest, config.image_size)


def plan(
    part: Part,
    seed: int,
    key: Mapping[str, Any],
    budget: Budget,
    variants: Mapping[str, list[str]],
    effdet: Mapping[str, Mapping[str, str]],
) -> Iterator[Job]:
    """List the runs of a part with a seed: the variants, then effdet with its versions, where it is given."""
    key = {"set": part.name, "fold": part.fold, "seed": seed, **key, "data": part.digest}
    for variant, arguments in variants.items():
        length = f"--minutes={budget.amount}"
        if budget.unit == "steps":
            epochs, steps = whole_epochs(budget.amount, part.images, arguments)
            length = f"--epochs={epochs}"
            if not seed:
                text = f"{epochs} epochs of {steps} steps, {epochs * steps} in all"
                click.echo(f"{part.name}, {variant}: {text}", err=True)
        yield Job(key | {"variant": variant}, part.data, [f"--model={MODEL}", f"--seed={seed}", length, *arguments])
    for name, installed in effdet.items():
        epochs, steps = whole_epochs(budget.amount, part.images, [])
        amount = budget.amount if budget.unit == "minutes" else epochs * steps
        arguments = [f"--size={part.size[0]}x{part.size[1]}", f"--seed={seed}", f"--{budget.unit}={amount}"]
        yield Job(key | {"variant": name, "versions": installed}, part.data, arguments)


def whole_epochs(steps: float, images: int, arguments: Sequence[str]) -> tuple[int, int]:
    """Count the epochs that come nearest to so many steps, at least one, and the steps of each."""
    given = TRAIN.make_context("train", ["DATA", *arguments]).params
    epoch = count_batches(images, (given["batch_size"] or 4) * given["grad_accumulation"])
    return max(1, round(steps / epoch)), epoch


if __name__ == "__main__":
    main()

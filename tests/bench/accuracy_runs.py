"""Runs of bin/bench accuracy: each a process of its own, and a row in a file of results, which is not run again."""

import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from filelock import FileLock

from tests.bench.runner import ROOT, Failed, environment
from tinydet.convert import convert_data
from tinydet.data.dataset import DetectionDataset
from tinydet.data.index import write_index
from tinydet.data.kitti import KittiDataset, find_kitti
from tinydet.data.open import open_dataset
from tinydet.errors import InputError
from tinydet.evaluation import evaluate
from tinydet.model.postprocess import Detections
from tinydet.weights.pretrained import find_pretrained

MODEL, PEER = "lite0", "effdet"


class Job(NamedTuple):
    """One run: all that decides its score, the data to train on, and the options of its command line."""

    key: Mapping[str, Any]
    data: Path
    arguments: Sequence[str]


Measured = dict[str, Any]  # "metric", "score" (percent), "ap50", "steps", "seconds"
# What decides a score: a row whose values of these are the same is not measured again.
KEY = ("set", "fold", "seed", "variant", "budget", "data", "threads", "commit", "machine", "versions")


def collect(
    jobs: Sequence[Job], results: Path, measure: Callable[[Job], Measured]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of all runs, and what failed: those in the file as they are, the others measured and added."""
    known = {frozen(row): row for row in read_rows(results)}
    rows, failures = [], []
    for number, job in enumerate(jobs, start=1):
        name = f"{number} of {len(jobs)}: {' '.join(str(job.key[part]) for part in ('set', 'fold', 'seed', 'variant'))}"
        row = known.get(frozen(job.key))
        said = "is there"
        if row is None:
            try:
                row = {**job.key, **measure(job)}
            except Failed as error:
                failures.append(f"{name}: {error}")
                click.echo(f"failed: {failures[-1]}", err=True)
                continue
            append(results, row)
            said = f"{row['seconds']:.0f} s, {row['steps']} steps"
        rows.append(row)
        click.echo(f"{name}: {row['metric']} {row['score']:.2f}, {said}", err=True)
    return rows, failures


def frozen(row: Mapping[str, Any]) -> str:
    """Spell what decides a run, by which its row is found again."""
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Read the file of results, where there is one."""
    rows: list[dict[str, Any]] = []
    try:
        for line in results.read_text().splitlines() if results.exists() else []:
            frozen(row := json.loads(line))
            rows.append(row)
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{results}:{len(rows) + 1}: no row of a run; remove the line") from None
    return rows


def append(results: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the file of results, at once: others may write to it too."""
    with FileLock(f"{results}.lock"), open(results, "a") as file:
        file.write(f"{json.dumps(row)}\n")


def measure(job: Job, *, scratch: Path, peer: str | None) -> Measured:
    """Run a job in a folder of its own, which is removed again; raise Failed if it does, or if the code has changed."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        measured = (run_peer if job.key["variant"] == PEER else run_tinydet)(job, Path(out), peer or sys.executable)
    if code() != job.key["commit"]:
        raise InputError("the code was changed meanwhile; start again, and leave it alone until the end")
    return measured


def run_tinydet(job: Job, out: Path, python: str) -> Measured:
    """Train by the command line; the score is the last epoch's, for the best of many would be too good."""
    seconds, _ = run([sys.executable, "-m", "tinydet", "train", str(job.data), f"--out={out}", *job.arguments], job)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    scores = {"metric": last["metric"], "score": last["ap"], "ap50": last["COCO"]["AP50"]}
    return {**scores, "steps": last["step"], "seconds": seconds}


def run_peer(job: Job, out: Path, python: str) -> Measured:
    """Train effdet on the same images, and score its detections as tinydet's are."""
    convert_data(job.data, out / "coco", to="coco")
    weights, detections = find_pretrained("imagenet", MODEL), out / "detections.json"
    files = [str(path) for path in (out / "coco", weights, detections)]
    seconds, said = run([python, "-m", "tests.bench.train_effdet", *files, *job.arguments], job)
    val = open_splits(job.data)[1]
    categories = json.loads((out / "coco/val.json").read_text())["categories"]
    scores = evaluate(val, detections_of(json.loads(detections.read_text()), categories, val))
    return {
        "metric": scores.metric,
        "score": scores.ap,
        "ap50": scores["COCO"]["AP50"],
        "steps": json.loads(said.splitlines()[-1])["steps"],
        "seconds": seconds,
    }


def detections_of(
    results: Iterable[Mapping[str, Any]], categories: Iterable[Mapping[str, Any]], dataset: DetectionDataset
) -> list[Detections]:
    """Give COCO results, of images numbered from 1 in the order of a data set, as detections of its classes."""
    lower = [name.lower() for name in dataset.classes]
    labels = {one["id"]: lower.index(one["name"].lower()) for one in categories if one["name"].lower() in lower}
    rows: list[list[list[float]]] = [[] for _ in range(len(dataset))]
    for one in results:
        (x, y, width, height), label = one["bbox"], labels.get(one["category_id"])
        if label is not None:
            rows[one["image_id"] - 1].append([x, y, x + width, y + height, one["score"], label])
    tables = [torch.tensor(sorted(some, key=lambda row: -row[4])).reshape(-1, 6) for some in rows]
    return [Detections(one[:, :4], one[:, 4], one[:, 5].long()) for one in tables]


def run(command: Sequence[str], job: Job) -> tuple[float, str]:
    """Run a command in a job's threads; return its seconds and output, or raise Failed with the last line of stderr."""
    start = time.monotonic()
    how: dict[str, Any] = {"cwd": ROOT, "env": environment(job.key["threads"]), "capture_output": True, "text": True}
    done = subprocess.run(command, **how)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return round(time.monotonic() - start, 1), done.stdout


def open_splits(data: Path) -> tuple[DetectionDataset, DetectionDataset]:
    """Open a set's train and val images as a run does."""
    train = open_dataset(data, "train")
    return train, open_dataset(data, "val", classes=train.classes)


def write_fold(data: Path, out: Path, *, fold: int, folds: int) -> Path:
    """Write a folder whose val is one of the parts of a set's train images, and whose train is the others.

    The parts are contiguous in the order of file names: neighbours, as of a video, are on one side but for the seams.
    """
    dataset = open_dataset(data, "train")
    if folds > len(dataset):
        raise InputError(f"{data}: {folds} folds of {len(dataset)} images to train on")
    blocks = np.array_split(np.argsort(dataset.paths, kind="stable"), folds)
    held = blocks.pop(fold)
    splits = {"train": dataset.take(np.concatenate(blocks)), "val": dataset.take(held)}
    if not isinstance(dataset, KittiDataset):
        write_index(out, splits, classes=dataset.classes)
        return out
    folder = find_kitti(data)  # an index would be scored by COCO's AP alone
    for name in ("training", "ImageSets"):
        (out / name).mkdir(parents=True)
    for name, place in (("image_2", folder.images), ("label_2", folder.labels)):
        (out / "training" / name).symlink_to(place.resolve())
    for split, part in splits.items():
        (out / f"ImageSets/{split}.txt").write_text("".join(f"{name}\n" for name in part.names))
    return out


def code() -> str:
    """Name the commit that is checked out; what is changed in tracked files has a checksum at its end."""
    try:
        name, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, check=True).stdout
            for command in (["describe", "--always", "--dirty"], ["diff", "HEAD"])
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{ROOT}: git does not name the code that is measured ({error})") from None
    return name.decode().strip() + (f"-{zlib.crc32(changes):08x}" if changes else "")


def versions(python: str, *packages: str) -> dict[str, str]:
    """Ask a Python for its version, torch's, and those of other packages."""
    text = "import json, platform, sys, importlib.metadata as m; names = sys.argv[1:]"
    text += "; print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in names}}))"
    done = subprocess.run([python, "-c", text, "torch", *packages], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{python}: {(done.stderr.splitlines() or ['does not run'])[-1]}")
    return dict(json.loads(done.stdout))

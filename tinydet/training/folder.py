"""The folder of a run: held by one process, with files that may be behind the last checkpoint, never ahead of it."""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tinydet.errors import InputError, try_call
from tinydet.files import PARTIAL, output_errors, run_files, write_file
from tinydet.model.config import ModelConfig
from tinydet.reading import read_text
from tinydet.training.schedule import best_row
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint

RUNS = Path("runs")
"""Folder of the runs whose folder nobody named."""
LOCK = ".lock"  # holds the id of the process that trains


@contextmanager
def claim_folder(out: Path, *, resume: bool = False) -> Iterator[None]:
    """Make a run's folder where it is missing, and hold it; one that is new and gets no run is removed again.

    Raises:
        InputError: another process holds it, it cannot be written, or there is a run in it that is not resumed.
    """
    made, lock = not out.exists(), FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (out / LOCK).write_text(str(os.getpid()))
    except Timeout:
        process = (out / LOCK).read_text()
        raise InputError(f"{out}: in use by process {process}; stop that first, or choose another folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be the folder of a run ({error.strerror}); choose another") from None
    try:
        if not resume and (files := run_files(out)):
            raise InputError(f"{out}: holds a run already ({files[0].name}); resume it, or choose another folder")
        for partial in out.glob(f"*{PARTIAL}"):  # of a process that was killed
            partial.unlink()
        yield
    finally:
        if not run_files(out):
            (out / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else
                if made:
                    out.rmdir()
        lock.release()


def new_folder(model: str) -> Path:
    """Make the first of runs/MODEL-1, runs/MODEL-2, ... that does not exist yet."""
    for number in count(1):
        with suppress(FileExistsError):
            (out := RUNS / f"{model}-{number}").mkdir(parents=True)
            return out
    raise AssertionError


def check_writable(folder: Path) -> None:
    """Raise InputError where a folder neither can be written to nor made."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(f"{folder}: cannot be written ({place} is {'read-only' if place.is_dir() else 'a file'})")


def load_last(out: Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read the checkpoint that a run goes on from: last.pt, or where that is damaged the newest other one.

    What is damaged is kept as *.damaged, and the other one becomes last.pt, with a warning.

    Raises:
        InputError: there is none that can be read.
    """
    last, errors, steps = out / "last.pt", list[InputError](), dict[Path, int]()
    if (checkpoint := try_call(errors.append, load_checkpoint, last, device=device)) is not None:
        return checkpoint
    others = [path for path in run_files(out) if path.suffix == ".pt" and path != last]
    for path in others:
        if (checkpoint := try_call(errors.append, load_checkpoint, path)) and "step" in checkpoint.training:
            steps[path] = checkpoint.training["step"]
    if not steps:
        raise errors[0]
    for path in {last, *others} - {*steps}:
        with suppress(FileNotFoundError):
            path.replace(f"{path}.damaged")
    newest = max(steps, key=lambda path: steps[path])
    link_file(newest, last)
    warnings.warn(f"{errors[0]}; goes on from {newest.name}, after step {steps[newest]}", stacklevel=1)
    return load_checkpoint(last, device=device)


def write_start(
    out: Path, config: ModelConfig, training: dict[str, Any], *, step: int, command: str | None = None
) -> None:
    """Write config.json once, and what may be behind last.pt; add to command.txt the command that repeats the run."""
    publish(out, training, step=step)
    if not (out / "config.json").exists():
        content = {
            "settings": training["settings"],
            "model": dataclasses.asdict(config),
            "weights": training["weights"],
        }
        write_file(out / "config.json", f"{json.dumps(content, indent=2)}\n")
    if command:
        commands = out / "command.txt"
        before = read_text(commands) if commands.exists() else ""
        write_file(commands, f"{before}{command}\n")


def publish(out: Path, training: dict[str, Any], *, step: int) -> None:
    """Write metrics.jsonl; where last.pt ends an epoch, give it the name best.pt or epoch-N.pt too, if it is one."""
    history, keep = training["history"], training["settings"]["keep"]
    if history and step == history[-1]["step"]:
        if best_row(history) is history[-1] or not (out / "best.pt").exists():
            link_file(out / "last.pt", out / "best.pt")
        if keep is not None and history[-1]["epoch"] % keep == 0:
            link_file(out / "last.pt", out / f"epoch-{history[-1]['epoch']}.pt")
    write_file(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def link_file(path: Path, other: Path) -> None:
    """Give a file another name, which may be taken; where the file system knows no links, copy it."""
    partial = Path(f"{other}{PARTIAL}")
    with output_errors(other):
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            write_file(other, path.read_bytes())
        else:
            partial.replace(other)
            partial.unlink(missing_ok=True)  # it is still there where both were one file


def resumed_settings(out: Path, given: TrainSettings, *, fixed: Iterable[str]) -> TrainSettings:
    """Read the settings that a run started with; the number of workers and the data's path may change.

    Raises:
        InputError: there is no such run, or one of the `fixed` names was given another value than it started with.
    """
    training = load_last(out).training
    try:
        started = TrainSettings(**training["settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{out / 'last.pt'}: holds no run that this version can resume ({error})") from None
    for name in fixed:
        was, now = getattr(started, name), getattr(given, name)
        same = Path(was).resolve() == Path(now).resolve() if name == "data" else was == now
        if not same and name == "augment":
            raise InputError(f"{out}: started with other transforms, those in its config.json; start a new run")
        if not same and name != "workers":
            raise InputError(f"{out}: started with {name} {was!r} and cannot go on with {now!r}; start a new run")
    return dataclasses.replace(started, workers=given.workers, data=given.data)

"""The folder of a run: held by one process, with files that may be behind the last checkpoint, never ahead of it."""

import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tinydet.errors import InputError, try_call
from tinydet.files import PARTIAL, lock_folder, output_errors, run_files, write_file
from tinydet.model.config import ModelConfig
from tinydet.training.schedule import best_row
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint

RUNS = Path("runs")
"""Folder of the runs whose folder nobody named."""


@contextmanager
def claim_folder(out: Path, *, resume: bool = False, new: bool = False) -> Iterator[None]:
    """Make a run's folder where it is missing, and hold it; one that is new and gets no run is removed again.

    Raises:
        InputError: another process holds it, it cannot be written, or there is a run in it that is not resumed.
    """
    made = new or not out.exists()
    try:
        with lock_folder(out):
            if not resume and (files := run_files(out)):
                raise InputError(f"{out}: holds a run already ({files[0].name}); resume it, or choose another folder")
            for partial in run_files(out, suffix=PARTIAL):  # of a process that was killed
                partial.unlink()
            yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                out.rmdir()


def new_folder(model: str) -> Path:
    """Make the first of runs/MODEL-1, runs/MODEL-2, ... that does not exist yet."""
    with output_errors(RUNS):
        RUNS.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            with suppress(FileExistsError):
                (out := RUNS / f"{model}-{number}").mkdir()
                return out
    raise AssertionError


def load_last(out: Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read the checkpoint that a run goes on from: last.pt, or where that is damaged the newest other one.

    What is damaged is kept as NAME.damaged, and the other one gets the name last.pt, with a warning.

    Raises:
        InputError: there is none that can be read.
    """
    last, errors = out / "last.pt", list[InputError]()
    if (checkpoint := try_call(errors.append, load_checkpoint, last)) is not None:  # whatever ails the device
        return checkpoint if torch.device(device).type == "cpu" else load_checkpoint(last, device=device)
    steps, damaged = dict[Path, int](), [last]
    for path in [*out.glob("best.pt"), *out.glob("epoch-*.pt")]:
        if found := try_call(errors.append, load_checkpoint, path):
            steps[path] = found.training.get("step", -1)  # -1: stripped
        else:
            damaged.append(path)
    if max(steps.values(), default=-1) < 0:
        raise errors[0]
    for path in damaged:
        with suppress(FileNotFoundError):
            path.replace(f"{path}.damaged")
    newest = max(steps, key=lambda path: steps[path])
    link_file(newest, last)
    warnings.warn(f"{errors[0]}; goes on from {newest.name}, after step {steps[newest]}", stacklevel=1)
    return load_checkpoint(last, device=device)


def write_start(
    out: Path, config: ModelConfig, training: dict[str, Any], *, step: int, command: str | None = None
) -> None:
    """Write config.json and what may be behind last.pt; add to command.txt the command that starts or resumes it."""
    publish(out, training, step=step)
    content = {"settings": training["settings"], "model": dataclasses.asdict(config), "weights": training["weights"]}
    write_file(out / "config.json", f"{json.dumps(content, indent=2)}\n")
    if command:
        commands = out / "command.txt"
        before = commands.read_bytes() if commands.exists() else b""
        write_file(commands, before + f"{command}\n".encode())


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


def read_settings(out: Path) -> dict[str, Any]:
    """Read the settings that a run started with; raise InputError where there is no such run."""
    with claim_folder(out, resume=True):
        return load_last(out).training.get("settings", {})


def resumed_settings(
    started: Mapping[str, Any], given: TrainSettings, *, fixed: Collection[str], out: Path
) -> TrainSettings:
    """Make the settings of a run in `out` that goes on; workers, compile and the paths of the data may change.

    Raises:
        InputError: one of the `fixed` names was given another value than the run started with.
    """
    try:
        settings = TrainSettings(**started)
    except (TypeError, InputError) as error:
        raise InputError(f"{out / 'last.pt'}: holds no run that this version can resume ({error})") from None
    for name in fixed:
        was, now = getattr(settings, name), getattr(given, name)
        if was == now or name in ("workers", "compile", "data", "val"):
            continue
        if name == "augment":
            raise InputError(f"{out}: started with other transforms, those in its config.json; start a new run")
        raise InputError(f"{out}: started with {name} {was!r} and cannot go on with {now!r}; start a new run")
    val = given.val if "val" in fixed else settings.val
    return dataclasses.replace(settings, workers=given.workers, compile=given.compile, data=given.data, val=val)

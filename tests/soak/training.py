"""Runs that are killed, interrupted, doubled or damaged: files are whole, and they go on as if nothing had been."""

import json
import os
import random
import shlex
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.checkpoints import assert_same
from tests.kitti_folders import write_kitti
from tests.soak.harness import KILLED, Child, Ended, Trial, fresh, killed, last_line, operations, run, spaced, tinydet
from tinydet.errors import InputError, try_call
from tinydet.files import run_files
from tinydet.model import backbone, config
from tinydet.training.loop import train
from tinydet.training.settings import TrainSettings
from tinydet.weights.checkpoint import load_checkpoint

FRAMES = [f"{i:06d}" for i in range(6)]
OPTIONS = "--model lite0 --size 64x64 --weights none --classes Car,Pedestrian --epochs 3 --batch-size 2 --keep 1"
SETTINGS: Any = {"model": "lite0", "image_size": (64, 64), "weights": "none", "classes": ("Car", "Pedestrian")}
SETTINGS |= {"epochs": 3, "batch_size": 2, "keep": 1}
PROMPT = 15.0  # seconds in which a signal ends a run, on a machine that does other things too
ENDS = "ends after this step; again to end at once"
HURTS = ("cut", "emptied", "zeroed", "flipped", "removed")


class Undisturbed(NamedTuple):
    """A run that nothing disturbs."""

    data: Path
    out: Path
    outcome: Any
    seconds: float
    steps: list[str]  # its operations on files


def shrink() -> None:
    """Make Lite0 narrow and shallow, for 64x64 pixels: a run takes a second."""
    backbone.BACKBONES["lite0"] = (0.25, 0.25)
    config._TABLE["lite0"] = ("lite0", 64, 8, 1, 1, config._TABLE["lite0"][-1])


def write_data(folder: Path) -> Path:
    """Write six images, four of them to train on."""
    return write_kitti(folder / "kitti", len(FRAMES), lists={"train": FRAMES[:4], "val": FRAMES[4:]})


def train_in(out: Path, *, data: Path, workers: int = 0) -> None:
    """Train in a folder for three epochs of two steps, or go on with the run that it holds."""
    settings = TrainSettings(str(data), workers=workers, **SETTINGS)
    for _ in train(settings, out, resume=(out / "last.pt").exists()):
        pass


def command(data: Path, *more: str, workers: int = 0) -> partial[None]:
    """The command of the same run."""
    return partial(tinydet, "train", str(data), *OPTIONS.split(), "--workers", str(workers), "--device", "cpu", *more)


def outcome(out: Path) -> Any:
    """Read what a run came to, but for seconds and for settings that may change: weights, moments and rows."""
    found = load_checkpoint(out / "last.pt")
    rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in found.training["history"]]
    kept = {k: v for k, v in found.training.items() if k not in ("elapsed", "settings")}
    return found._replace(training={**kept, "history": rows})


def undisturbed(folder: Path) -> Undisturbed:
    """Write the data, and train in `folder`/trial/run."""
    data, out, began = write_data(folder), folder / "trial" / "run", time.monotonic()
    steps = operations(partial(train_in, out, data=data), fresh(out.parent))
    return Undisturbed(data, out, outcome(out), time.monotonic() - began, steps)


def disturbed(out: Path) -> Iterator[str]:
    """Name what is broken in the folder of a run that was disturbed, or ahead of its last checkpoint."""
    histories: dict[str, Any] = {}
    loaded: dict[int, Any] = {}  # by inode: many names are links
    for path in run_files(out):
        try:
            if path.suffix == ".pt":
                inode = path.stat().st_ino
                histories[path.name] = loaded[inode] = loaded.get(inode) or load_checkpoint(path).training["history"]
            elif path.suffix == ".jsonl":
                histories[path.name] = [json.loads(line) for line in path.read_text().splitlines()]
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (InputError, ValueError) as error:  # noqa: PERF203
            yield f"{path.name} is broken: {error}"
    last = histories.get("last.pt")
    for name, history in histories.items():
        if last is None or history != last[: len(history)]:
            yield f"{name} is ahead of last.pt"


def undone(out: Path, expected: Any) -> Iterator[str]:
    """Name what differs in the folder of a run that went on from what it should have come to."""
    yield from disturbed(out)
    try:
        assert_same(outcome(out), expected)
    except (AssertionError, InputError) as error:
        yield f"other bits than those of a run that nothing disturbed {str(error)[:100]}".rstrip()
    if (epochs := [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").open()]) != [1, 2, 3]:
        yield f"metrics.jsonl holds the epochs {epochs}"
    yield from (f"{path.name} is left over" for path in out.glob("*.partial"))


def goes_on(out: Path, expected: Any, *, data: Path) -> Iterator[str]:
    """Name what is wrong with a run that was disturbed, goes on, and ends."""
    yield from disturbed(out)
    ended = run(partial(train_in, out, data=data), out.parent)
    if ended.status:
        yield f"does not go on, status {ended.status}: {last_line(ended.output)}"
    yield from undone(out, expected)


def kills(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Kill runs before an operation on a file, in the middle of a write, and at any time."""
    data, out, expected, seconds, steps = undisturbed(folder)
    work, size = partial(train_in, out, data=data), (out / "last.pt").stat().st_size
    opens = [at for at, name in enumerate(steps) if name.startswith("open") and ".lock" not in name]
    for number in range(count):
        fresh(out.parent)
        turn, kind = divmod(number, 3)
        at = opens[spaced(turn, len(opens))] if kind == 1 else spaced(turn, len(steps))
        if kind == 2:
            after = rng.uniform(0, seconds)
            name, status = f"after {after:.2f} s", Child(work, out.parent).end(after).status
        else:
            most = rng.choice([0, 100, rng.randrange(size)]) if kind else None
            name = f"{f'after {most} bytes of' if kind else 'before'} operation {at}, {steps[at]}"
            status = run(killed(work, out.parent, at=at, size=most), out.parent).status
        fine = status in (*KILLED, *([0] if kind == 2 else []))
        yield f"killed {name}", next(goes_on(out, expected, data=data), None) if fine else f"status {status}"


def signals(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Send SIGINT or SIGTERM to the command or to its group of processes, once or twice."""
    data, out, expected, seconds, _ = undisturbed(folder)
    for number in range(count):
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        send, to = ((os.kill, "process"), (os.killpg, "group"))[number // 2 % 2]
        twice, after = number % 5 == 4, rng.uniform(0.1, 2 * seconds)
        child = Child(command(data, "--out", str(out), workers=2), fresh(out.parent))
        time.sleep(after)
        send(child.pid, sent)
        if twice:
            time.sleep(rng.uniform(0, 0.3))
            send(child.pid, sent)
        name, began = f"{sent.name} to the {to} after {after:.2f} s{', twice' * twice}", time.monotonic()
        ended = child.end()
        problem = f"took {took:.0f} s to end" if (took := time.monotonic() - began) > PROMPT else None
        yield name, problem or next(signalled(ended, sent, out, expected, twice=twice, data=data), None)


def signalled(
    ended: Ended, sent: signal.Signals, out: Path, expected: Any, *, twice: bool, data: Path
) -> Iterator[str]:
    """Name what is wrong with the end of a command that got a signal."""
    (status, output), line = ended, last_line(ended.output)
    if "Traceback" in output:
        yield f"a traceback: {line}"
    if ENDS not in output:  # it had not begun, or was done
        if status not in (0, 128 + sent, -sent):
            yield f"status {status}: {line}"
    elif status != 128 + sent and not (twice and status == -sent):
        yield f"status {status}: {line}"
    if status != 128 + sent or ENDS not in output:
        yield from goes_on(out, expected, data=data)
        return
    said, _, again = line.partition("tinydet ")
    if said != "stopped; go on with: ":
        yield f"does not say how to go on: {line}"
    if (ended := run(partial(tinydet, *shlex.split(again)), out.parent)).status:
        yield f"does not go on, status {ended.status}: {last_line(ended.output)}"
    yield from undone(out, expected)


def doubles(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Start two runs at once, in one folder or without naming one."""
    data, out, expected, seconds, _ = undisturbed(folder)
    for number in range(count):
        fresh(out.parent)
        later, one = rng.choice([0.0, rng.uniform(0, seconds / 3)]), number % 2 == 0
        pair = []
        for _ in range(2):
            pair.append(Child(command(data, *(["--out", str(out)] if one else [])), out.parent))
            time.sleep(later)
        ends = [child.end() for child in pair]
        problem = None
        if sorted(ended.status for ended in ends) != [0, 2 * one]:
            problem = "; ".join(f"status {ended.status}: {last_line(ended.output)}" for ended in ends)
        for ended, other in zip(ends, reversed(pair), strict=True):
            if ended.status and f"in use by process {other.pid}" not in ended.output:
                problem = problem or last_line(ended.output)
        outs = [out] if one else [out.parent / f"runs/lite0-{i}" for i in (1, 2)]
        wrong = (text for each in outs for text in undone(each, expected))
        yield (
            f"a second run after {later:.2f} s, {'in one folder' if one else 'without --out'}",
            problem or next(wrong, None),
        )


def damages(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Damage the last checkpoint of a run, and maybe others, before it goes on."""
    data, out, expected, *_ = undisturbed(folder)
    whole = fresh(folder / "whole", like=out.parent)
    for number in range(count):
        fresh(out.parent, like=whole)
        names = ["last.pt", *rng.sample(["best.pt", "epoch-1.pt", "epoch-2.pt", "epoch-3.pt"], rng.choice([0, 0, 1]))]
        for name in names:
            damage(out / name, HURTS[number % len(HURTS)], rng)
        errors: list[InputError] = []
        try_call(errors.append, load_checkpoint, out / "last.pt")  # a bit that was flipped may mean nothing
        ended = run(command(data, "--out", str(out), "--resume"), out.parent)
        problem = ended.problem or next(undone(out, expected), None)
        if errors and "; goes on from " not in ended.output:
            problem = problem or "does not say where it goes on from"
        yield f"{', '.join(names)} {HURTS[number % len(HURTS)]}", problem


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Cut, empty, overwrite, change or remove a file, and half of the time all its other names with it."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content)) if content else 0
    if how == "removed" or rng.random() < 0.5:
        path.unlink()
    if how in ("cut", "emptied"):
        content = content[: place * (how == "cut")]
    elif how == "zeroed":
        content[place : place + 5000] = bytes(len(content[place : place + 5000]))
    elif how == "flipped":
        content[place] ^= 1 << rng.randrange(8)
    if how != "removed":
        path.write_bytes(content)


def repeats(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Train with one seed again, without workers and with some."""
    data, out, expected, *_ = undisturbed(folder)
    for number in range(count):
        ended = run(partial(train_in, out, data=data, workers=number % 3), fresh(out.parent))
        yield f"{number % 3} workers", ended.problem or next(undone(out, expected), None)

"""Commands that write, killed or on a full disk: what was there stays as it was, or the new is whole."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2

from tests.soak import harness
from tests.soak.harness import KILLED, NOT_TRIED, Trial, Work, files, fresh, killed, last_line, operations, run, spaced
from tests.soak.outputs import full_disk_cases, write_inputs
from tests.soak.training import disturbed

REFUSING = ("strip", "convert", "train")  # commands that replace nothing
MANY = ("predict", "convert", "train")  # those of many files, of which the earlier ones are removed first
SLOW = ("export",)  # half a minute each
SIZES = (0, 1000, 30_000, 300_000)  # bytes that a file may have, or that a disk has left
LIMITS: list[tuple[str, int]] = [*((kind, size) for kind in ("files", "disk") for size in SIZES), ("read-only", 0)]


class Case(NamedTuple):
    """A command, and what it comes to undisturbed."""

    name: str
    work: Work
    before: Path  # a folder of its inputs, and of its outputs where it replaces those
    after: dict[str, str]  # digests of the files in there afterwards

    def harmed(self, trial: Path) -> Iterator[str]:
        """Name files that are neither as they were before nor as they are afterwards."""
        before, found = files(self.before), files(trial)
        for name in before.keys() | found.keys():
            if ".partial" in name or (self.name == "train" and name.startswith("out/")):
                continue
            if name not in found and not (self.name.startswith(MANY) and name.startswith("out/")):
                yield f"{name} is gone"
            known = (before.get(name), self.after.get(name))
            if name in found and found[name] not in known and not begun(trial / name, whole=self.before / name):
                yield f"{name} is neither the old file nor the new one"
        if self.name == "train":
            yield from disturbed(trial / "out/run")

    def again(self, trial: Path) -> Iterator[str]:
        """Run the command after one that was killed, and name what is wrong."""
        ended = run(self.work, trial)
        others = files(trial).items() ^ self.after.items() if ended.status == 0 else ()
        if problem := ended.problem:
            yield f"run again: {problem}"
        if others or (ended.status and not self.name.startswith(REFUSING)):
            yield f"run again: {', '.join(sorted({name for name, _ in others})[:5])}; {last_line(ended.output)}"

    def refused(self, trial: Path, limit: Work = lambda: None) -> Iterator[str]:
        """Run the command where it cannot write all that it would, and name what is wrong."""

        def work() -> None:
            limit()
            self.work()

        ended = run(work, trial)
        if problem := ended.problem:
            yield problem
        yield from self.harmed(trial)
        if not ended.status and (missing := self.after.keys() - files(trial).keys()):
            yield f"no error, and there is no {min(missing)}"


def begun(path: Path, *, whole: Path) -> bool:
    """Say whether a file is one that grows line by line, or frame by frame, as far as that went."""
    if path.suffix == ".jsonl":
        return whole.read_bytes().startswith(path.read_bytes())
    return path.suffix == ".mp4" and cv2.VideoCapture(str(path)).read()[0]


def cases(folder: Path, left_out: tuple[str, ...] = ()) -> dict[str, partial[Case]]:
    """Write the inputs of the commands; map their names to what runs each undisturbed."""
    write_inputs(fresh(folder / "inputs"))
    known: dict[str, Case] = {}

    def case(name: str, arguments: list[str]) -> Case:
        if name not in known:
            more = ["--weights", "none"] if name == "train" else []
            work, whole = partial(harness.tinydet, *arguments, *more), fresh(folder / name, like=folder / "inputs")
            ended = run(work, whole)
            assert ended.status == 0, f"{name}: {ended.output}"
            known[name] = Case(name, work, folder / "inputs" if name.startswith(REFUSING) else whole, files(whole))
        return known[name]

    listed = [pair for pair in full_disk_cases() if not pair[0].startswith(left_out)]
    return {name: partial(case, name, arguments) for name, arguments in listed}


def kills(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Kill commands before an operation on a file, or in the middle of a write; then run them again."""
    made, steps, trial = cases(folder, (*SLOW, "train")), dict[str, list[str]](), folder / "trial"
    for number in range(count):
        turn, place = divmod(number, len(made))
        case = [*made.values()][place]()
        if case.name not in steps:
            steps[case.name] = operations(case.work, fresh(trial, like=case.before))
        at = spaced(turn, len(steps[case.name]))
        step = steps[case.name][at]
        size = rng.choice([None, 0, 10, 5000]) if step.startswith("open") else None
        ended = run(killed(case.work, fresh(trial, like=case.before), at=at, size=size), trial)
        problem = None if ended.status in (*KILLED, 0) else f"status {ended.status}: {last_line(ended.output)}"
        how = "before" if size is None else f"after {size} bytes of"
        wrong = (text for check in (case.harmed, case.again) for text in check(trial))
        yield f"{case.name} killed {how} operation {at}, {step}", problem or next(wrong, None)


def full_disks(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Run commands where files may not grow beyond a size, on a disk that fills up, and on a read-only one."""
    made = cases(folder)
    slow = LIMITS[1::7]
    pairs = [(name, *limit) for name in made for limit in (slow if name.startswith(SLOW) else LIMITS)]
    if count < len(pairs):
        quick = [pair for pair in pairs if not pair[0].startswith(SLOW)]
        pairs = [quick[spaced(i, len(quick))] for i in range(count)]
    for name, kind, size in pairs:
        case, shown = made[name](), f"{name}, {kind}{f' of {size} bytes' * (kind != 'read-only')}"
        trial = fresh(folder / "trial", like=case.before)
        if kind == "files":
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            yield shown, next(case.refused(trial, limit), None)
            continue
        try:
            with mounted(trial / "out", case.before / "out", left=size if kind == "disk" else None):
                yield shown, next(case.refused(trial), None)
        except PermissionError as error:
            yield f"{NOT_TRIED}{shown}: {error}", None


@contextmanager
def mounted(out: Path, before: Path, *, left: int | None) -> Iterator[None]:
    """Mount a disk on a folder, holding what another does, and so many bytes left; None for a read-only one."""
    out.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", "size=64m", "none", out)
    try:
        if before.exists():
            shutil.copytree(before, out, dirs_exist_ok=True)
        if left is None:
            mount("-o", "remount,ro", out)
        else:
            with open(out / ".filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(out).free - left)
        yield
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def mount(*arguments: str | Path) -> None:
    """Mount a disk; raise PermissionError where that is not allowed."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError(last_line(getattr(error, "stderr", str(error)))) from None

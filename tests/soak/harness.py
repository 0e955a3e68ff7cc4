"""Trials in forked children: torch is imported once, and a child that is killed, hangs or crashes hurts no other."""

import fcntl
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

Trial = tuple[str, str | None]  # what was tried, and in one line what went wrong; None where the promise held
Work = Callable[[], object]
NOT_TRIED = "not tried: "  # begins the name of what this machine does not allow
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.fsync")
UNORDERED = (".html", ".safetensors")  # files whose parts come in any order, or with random names
GOLDEN = 0.6180339887  # the first multiples of it, modulo 1, are evenly spaced, however many
TIMEOUT = 90.0  # seconds, on a machine that does other things too


class Ended(NamedTuple):
    """How a child ended."""

    status: int  # as a shell's, but minus the number of a signal
    output: str

    @property
    def problem(self) -> str | None:
        """Say why this is neither success nor an error of one line."""
        errors = [line for line in self.output.splitlines() if line.startswith(("error: ", "Error: ", "stopped: "))]
        fine = self.status in (0, 1, 2) and len(errors) == (self.status > 0) and "Traceback" not in self.output
        return None if fine else f"status {self.status}: {last_line(self.output)}"


class Child:
    """A forked process with a process group of its own."""

    def __init__(self, work: Work, folder: Path) -> None:
        """Start some work with `folder` as the current one."""
        self.output, output = os.pipe()  # which no limit of file sizes concerns
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.process = multiprocessing.get_context("fork").Process(target=_begin, args=(work, folder, output))
        self.process.start()
        os.close(output)
        assert self.process.pid is not None
        self.pid = self.process.pid

    def end(self, seconds: float = TIMEOUT) -> Ended:
        """Wait for it; what does not end in time is killed."""
        self.process.join(seconds)
        late = f"\ndid not end in {seconds:g} s" if self.process.is_alive() else ""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers that it left, too
        self.process.join()
        with open(self.output, errors="replace") as file:
            return Ended(int(self.process.exitcode or 0), file.read() + late)


def _begin(work: Work, folder: Path, output: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.chdir(folder)
    work()


def run(work: Work, folder: Path, seconds: float = TIMEOUT) -> Ended:
    """Do some work in a child."""
    return Child(work, folder).end(seconds)


def tinydet(*arguments: str) -> None:
    """Run the command line in this process; `train` without what draws curves, which takes a second to import."""
    from tinydet.cli import main

    os.environ["SOURCE_DATE_EPOCH"] = "0"  # the date that matplotlib writes
    if arguments[0] == "train":
        sys.modules |= {"matplotlib": None, "tensorboard": None}  # type: ignore[dict-item]
    sys.argv = ["tinydet", *arguments]
    main()


def watch(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call a function with number and name of each operation of this process on files in a folder, before it."""
    numbers, own, fsync = count(), os.getpid(), os.fsync

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or os.getpid() != own or (event == "open" and not arguments[2] & os.O_ACCMODE):
            return
        paths = [os.path.abspath(os.fsdecode(one)) for one in arguments[:2] if isinstance(one, str | bytes | Path)]
        inside = [path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")]
        if inside or event == "os.fsync":
            act(next(numbers), " ".join([event, *inside]))

    def synced(fd: Any) -> None:
        hook("os.fsync", ())
        fsync(fd)

    os.fsync = synced
    sys.addaudithook(hook)


def operations(work: Work, folder: Path) -> list[str]:
    """Do some work undisturbed, and list its operations on files in the folder."""

    def watched() -> None:
        watch(folder, lambda number, name: print(f"\t{name}"))
        work()

    ended = run(watched, folder)
    assert ended.status == 0, ended.output
    return [line[1:] for line in ended.output.splitlines() if line.startswith("\t")]


def killed(work: Work, folder: Path, *, at: int, size: int | None = None) -> Work:
    """Make work that is killed before its operation `at`, or once the file that this opens has so many bytes."""

    def act(number: int, name: str) -> None:
        if number == at and size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        elif number >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    def doomed() -> None:
        watch(folder, act)
        work()

    return doomed


def spaced(number: int, length: int) -> int:
    """Choose a place in a list, over which a sequence of numbers spreads evenly."""
    return int(length * (GOLDEN * (number + 0.5) % 1))


def files(folder: Path) -> dict[str, str]:
    """Map the files in a folder, but for hidden ones, to their digests; of what is in any order, to their sizes."""
    contents = {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    return {
        str(path.relative_to(folder)): f"{len(content)} bytes"
        if path.suffix in UNORDERED
        else hashlib.sha256(content).hexdigest()
        for path, content in contents.items()
    }


def fresh(folder: Path, *, like: Path | None = None) -> Path:
    """Make a folder anew, empty or like another; links between files stay links."""
    shutil.rmtree(folder, ignore_errors=True)
    if like is None:
        folder.mkdir(parents=True)
    else:
        subprocess.run(["cp", "-a", like, folder], check=True)
    return folder


def last_line(text: str) -> str:
    """Return the last line of a text, or what there is instead."""
    return (text.strip().splitlines() or ["no output"])[-1][:300]

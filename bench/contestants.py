"""The parent's side: contestants' processes, and what is asked of them."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OURS = "tinydet"


class Missing(Exception):
    """The contestant is not installed."""


class Failed(Exception):
    """The contestant raised, died, or took too long."""


class Worker(NamedTuple):
    """A process that runs `bench.worker`, and what it writes to stderr."""

    process: subprocess.Popen[str]
    log: IO[str]


def environment(threads: int) -> dict[str, str]:
    """What contestants find in their environment: threads, and an allocator that keeps what is freed.

    The allocator's settings are those that tinydet's command line makes for itself, here for all alike; they are
    glibc's, and others do not know them.
    """
    number, inherited = str(threads), dict(os.environ)
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)  # or each import of sources would be their first
    return {
        **inherited,
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "OPENBLAS_NUM_THREADS": number,
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def start(python: str, *, environment: Mapping[str, str]) -> Worker:
    """Start a contestant in a process group of its own.

    Raises:
        Missing: there is no such Python.
    """
    log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  the worker's, while it lives
    command = [python, "-m", "bench.worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
    try:
        return Worker(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes), log)
    except OSError as error:
        log.close()
        raise Missing(f"{python}: {error.strerror}") from None


def ask(worker: Worker, request: Mapping[str, Any], *, timeout: float) -> Any:
    """One request, and its answer.

    Raises:
        Missing: an import failed.
        Failed: with what went wrong in one line. A worker that died or did not answer in `timeout` seconds is no more.
    """
    process = worker.process
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):  # it died, which the end of its answers says too
        print(json.dumps(request), file=process.stdin, flush=True)
    if not select.select([process.stdout], [], [], timeout)[0]:
        stop(worker)
        raise Failed(f"no answer in {timeout:g} s")
    line = process.stdout.readline()
    if not line:
        status, said = process.wait(), last_line(worker.log)
        raise Failed(f"died with status {status}" + (f": {said}" if said else ""))
    answer = json.loads(line)
    if "missing" in answer:
        raise Missing(answer["missing"])
    if "failed" in answer:
        raise Failed(answer["failed"])
    return answer["ok"]


def last_line(log: IO[str]) -> str:
    """The last thing that a worker wrote to stderr."""
    log.seek(0)
    return next((line.strip() for line in reversed(log.readlines()) if line.strip()), "")


def stop(worker: Worker) -> None:
    """End a worker and whatever it started."""
    process = worker.process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for file in (process.stdin, process.stdout, worker.log):
        with suppress(OSError):  # what it died too early to read
            if file is not None:
                file.close()


@contextmanager
def staff(peers: str | None, *, threads: int) -> Iterator[Callable[[str], Worker]]:
    """What gives each contestant's process by its name, starting it if need be; all of them end with the context.

    Args:
        peers: the Python that everybody but tinydet is installed in, if there is one.
        threads: of each of them.
    """
    workers: dict[str, Worker] = {}

    def hire(name: str) -> Worker:
        if name in workers and workers[name].process.poll() is not None:
            stop(workers.pop(name))
        if name not in workers:
            python = sys.executable if name == OURS else peers
            if python is None:
                raise Missing("no --peers PYTHON was given")
            workers[name] = start(python, environment=environment(threads))
        return workers[name]

    try:
        yield hire
    finally:
        for worker in workers.values():
            stop(worker)

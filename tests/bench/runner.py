"""Implementations measured in turns, each in a worker process of its own, in the Python where it is installed.

A case is a function "MODULE:NAME" that prepares, and returns the function to time. A worker prepares cases and times
them: a JSON request a line on stdin, an answer a line on stdout. This file uses the standard library only.
"""

import importlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).resolve().parents[2]
PREPARE_TIMEOUT, CALL_TIMEOUT = 600.0, 120.0  # seconds
FEWEST_ROUNDS = 3  # of a row that takes too long


class Entry(NamedTuple):
    """One implementation at one case; of its variants, the fastest counts."""

    implementation: str
    case: str
    options: Mapping[str, Any]
    variant: str = ""
    worker: str = ""  # whose Python runs it, where that is not the implementation's own


class Row(NamedTuple):
    """A measurement of entries in turns."""

    name: str
    about: str
    entries: list[Entry]
    unit: str = "ms"  # "ms" or "s" of one call, or something "/s" of which one call does `pieces`
    pieces: int = 1
    rounds: int = 15
    warmup: int = 3
    pause: float = 0.02  # seconds after a call, in which OpenMP's threads spin on; ONNX Runtime's spin for longer
    threads: int | None = None  # where it is not what --threads says
    peak: bool = False  # whether peak memory is another row
    slow: bool = False  # whether --quick leaves it out, unless it is asked for by name


class Result(NamedTuple):
    """The figures of one implementation in one row: median and quartiles, None where there are none."""

    row: str
    implementation: str
    unit: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    note: str = ""  # the fastest variant, or why there are no figures


class Failed(Exception):
    """The implementation is not installed, raised, died, or took too long."""


def environment(threads: int) -> dict[str, str]:
    """Set the variables of a process that is measured: its threads, and what keeps it quiet.

    glibc keeps what is freed, as in tinydet's command line; other C libraries do not know how.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
    return variables | {"MALLOC_TOP_PAD_": str(64 << 20), "NO_ALBUMENTATIONS_UPDATE": "1"}


class Worker:
    """A process that serves requests."""

    def __init__(self, python: str, *, threads: int) -> None:
        """Start it."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [python, "-m", "tests.bench.runner"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment(threads), text=True, **pipes)

    def ask(self, timeout: float = CALL_TIMEOUT, **request: Any) -> float:
        """Send a request and wait for its answer; raises Failed, with the reason in one line."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(OSError):  # it died, which the end of its answers says too
            print(json.dumps(request), file=stdin, flush=True)
        if not select.select([stdout], [], [], timeout)[0]:
            self.stop()
            raise Failed(f"no answer in {timeout:g} s")
        if not (line := stdout.readline()):
            raise Failed(f"died with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return float(answer["value"])

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what it died too early to read
                if file is not None:
                    file.close()


def measure(row: Row, peers: str | None, *, threads: int, timeout: float) -> list[Result]:
    """Prepare and warm up a row's entries, then time a call of each in turns, so that a slow minute slows all alike.

    Args:
        row: what to measure.
        peers: the Python in which all implementations but tinydet are installed.
        threads: of each worker.
        timeout: seconds after which the row ends, once every entry had three rounds.

    Returns:
        A result of each implementation, and of its peak memory if the row asks for it.
    """
    times: dict[int, list[float]] = {number: [] for number in range(len(row.entries))}
    failures: dict[int, str] = {}
    workers: dict[str, Worker] = {}

    def ask(number: int, **request: Any) -> list[float]:
        entry = row.entries[number]
        name = entry.worker or entry.implementation
        try:
            if (python := sys.executable if name == "tinydet" else peers) is None:
                raise Failed("not measured: no --peers PYTHON was given")
            if name not in workers or workers[name].process.poll() is not None:
                workers[name] = Worker(python, threads=row.threads or threads)
                stack.callback(workers[name].stop)
            return [workers[name].ask(**request)]
        except Failed as error:
            failures[number] = str(error)
            return []

    with ExitStack() as stack:
        tell(f"{row.name}: preparing")
        for number, entry in enumerate(row.entries):
            tell(f" {entry.implementation} {entry.variant}".rstrip() + ",")
            case = {"case": entry.case, "options": dict(entry.options), "timeout": PREPARE_TIMEOUT}
            ask(number, do="prepare", key=str(number), **case)
        tell(" in turns")
        end = time.monotonic()
        for turn in range(-row.warmup, row.rounds):
            end = time.monotonic() + timeout if turn <= 0 else end
            if turn >= FEWEST_ROUNDS and time.monotonic() > end:
                break
            for number in sorted(times.keys() - failures.keys()):
                seconds = ask(number, do="time", key=str(number))
                times[number] += seconds if turn >= 0 else []
                time.sleep(row.pause)
            tell(".")
        peaks = {number: ask(number, do="peak") for number in sorted(times.keys() - failures.keys()) if row.peak}
        tell("\n")
    results = [summary(row, name, times, failures) for name in dict.fromkeys(e.implementation for e in row.entries)]
    for number, figures in peaks.items():
        for peak in figures:
            name = row.entries[number].implementation
            results.append(Result(f"{row.name}, peak memory", name, "GB", peak, peak, peak, 1))
    return results


def summary(row: Row, name: str, times: Mapping[int, list[float]], failures: Mapping[int, str]) -> Result:
    """Summarise the rounds of an implementation's fastest variant in the row's unit."""
    variants = [number for number, entry in enumerate(row.entries) if entry.implementation == name]
    measured = [number for number in variants if number not in failures]
    if not measured:
        return Result(row.name, name, row.unit, note=failures[variants[0]])
    best = min(measured, key=lambda number: statistics.median(times[number]))
    scale = {"ms": 1e3, "s": 1.0}.get(row.unit)
    figures = [row.pieces / seconds if scale is None else scale * seconds for seconds in times[best]]
    low, median, high = statistics.quantiles(figures, method="inclusive")
    return Result(row.name, name, row.unit, median, low, high, len(figures), row.entries[best].variant)


def tell(text: str) -> None:
    """Report progress on stderr."""
    print(text, end="", file=sys.stderr, flush=True)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests in the worker process: prepare a case, time a call in seconds, peak memory in gigabytes."""
    ready: dict[str, Callable[[], object]] = {}
    resident, value = 0.0, 0.0
    for line in requests:
        try:
            match json.loads(line):
                case {"do": "prepare", "key": key, "case": case, "options": options}:
                    module, _, name = case.partition(":")
                    ready[key] = getattr(importlib.import_module(module), name)(**options)
                    resident = memory("VmRSS")
                case {"do": "time", "key": key}:
                    start = time.perf_counter()
                    ready[key]()
                    value = time.perf_counter() - start
                case {"do": "peak"}:
                    value = memory("VmHWM") - resident
            answer: dict[str, Any] = {"value": value}
        except Exception as error:  # whatever goes wrong in an implementation is the result of its row
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


def memory(kind: str) -> float:
    """Read resident memory in gigabytes: VmRSS now, VmHWM at its peak; nan where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1e6
    except FileNotFoundError:
        return float("nan")


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin, channel)

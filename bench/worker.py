"""A contestant's process: makes cases ready and times them, a request a line, an answer a line.

It runs in whatever Python its contestant is installed in, and so knows the standard library only. A case is a function
MODULE:NAME that prepares, and returns the function to time.

    {"prepare": KEY, "case": "bench.ours:predict", "options": {...}}   -> {"ok": seconds that took}
    {"time": KEY}                              -> {"ok": seconds of one call}
    {"peak": null}                             -> {"ok": gigabytes, the most resident above what was after preparing}
    {"forget": null}                           -> {"ok": null}, and nothing is prepared any more
    {"versions": [PACKAGE, ...]}               -> {"ok": {PACKAGE: version}}

In place of "ok" stands "missing" where an import fails, or "failed"; either says why in one line. A call that returns a
float has measured itself, as is done on a GPU.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TextIO


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    ready: dict[str, Callable[[], object]] = {}
    resident = 0.0
    ok: Any
    for line in requests:
        try:
            match json.loads(line):
                case {"prepare": key, "case": case, "options": options}:
                    start = time.perf_counter()
                    ready[key] = find(case)(**options)
                    ok, resident = time.perf_counter() - start, memory("VmRSS")
                case {"time": key}:
                    ok = timed(ready[key])
                case {"peak": _}:
                    ok = memory("VmHWM") - resident
                case {"forget": _}:
                    ready, ok = {}, None
                    gc.collect()
                case {"versions": names}:
                    ok = {name: metadata.version(name) for name in names}
                case unknown:
                    raise ValueError(f"no such request: {unknown}")
            answer = {"ok": ok}
        except ImportError as error:
            answer = {"missing": one_line(error)}
        except Exception as error:  # whatever goes wrong in a contestant is the result of its row
            answer = {"failed": f"{type(error).__name__}: {one_line(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


def find(case: str) -> Callable[..., Callable[[], object]]:
    """The function that "module:name" names."""
    module, _, name = case.partition(":")
    found: Callable[..., Callable[[], object]] = getattr(importlib.import_module(module), name)
    return found


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    result = call()
    return result if isinstance(result, float) else time.perf_counter() - start


def memory(kind: str) -> float:
    """Resident memory of this process in gigabytes: VmRSS now, VmHWM at its most; nan where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1e6
    except FileNotFoundError:
        return float("nan")


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin, answers)

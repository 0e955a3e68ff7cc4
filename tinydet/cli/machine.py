"""What a command that computes does first on a machine: load torch, tune the allocator, look whether it is in use."""

import gc
import os
import sys
import time
from math import nan


def start_computing() -> str | None:
    """Load torch and tune the allocator -> a note where other programs keep the cores busy that this one would use."""
    if first := "torch" not in sys.modules:
        gc.disable()  # all that torch brings stays; to look through it takes a fifth of a short command
    began, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
    import torch

    from tinydet.training.memory import keep_freed_memory

    keep_freed_memory()
    if not first:
        return None
    gc.freeze()
    gc.enable()
    others = (busy_seconds() - busy - time.process_time() + own) / (time.perf_counter() - began)
    return None if "LOCAL_RANK" in os.environ else busy_note(others, torch.get_num_threads(), os.cpu_count() or 1)


def busy_note(others: float, threads: int, cores: int) -> str | None:
    """Say which number of threads is faster, where other programs keep so many of the cores busy.

    Beside one busy process a training step with two threads took 3.2 times as long as on two quiet cores.
    """
    free = cores - others
    if not (threads > 1 and free < threads - 0.5):
        return None
    return (
        f"other programs keep {others:.1f} of {cores} cores busy, and threads that share a layer wait for the slowest; "
        f"OMP_NUM_THREADS={max(1, round(free))} is faster while they run"
    )


def busy_seconds() -> float:
    """Read the seconds that the cores of this machine have been busy, in all; NaN where the system does not say."""
    try:
        with open("/proc/stat") as file:
            user, _nice, system, _idle, _wait, interrupts, soft = map(int, file.readline().split()[1:8])
    except (OSError, ValueError):
        return nan
    return (user + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

"""How the process of a command gets its memory; importing this changes nothing."""

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of returning them to the system.

    Each step of training frees and allocates the same gigabytes; page-faulting them in again costs more than computing
    with them. TINYDET_MALLOC=default leaves the allocator alone; so does another C library.
    """
    if os.environ.get("TINYDET_MALLOC") == "default" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names and numbers from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never
        mallopt(top_pad, 64 << 20)

"""How the process of a command gets its memory; importing this changes nothing."""

import ctypes
import os
import sys
from collections.abc import Callable


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of returning them to the system.

    Each step of training frees and allocates the same gigabytes; page-faulting them in again costs more than computing
    with them. TINYDET_MALLOC=default leaves the allocator alone; so does another C library.
    """
    if os.environ.get("TINYDET_MALLOC") == "default":
        return
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names and numbers from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never
        mallopt(top_pad, 64 << 20)


def return_freed_memory() -> None:
    """Have glibc return all of it to the system after all, once; another C library is left alone."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, where it has one by that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None

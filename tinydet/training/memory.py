"""Memory of a training step: the allocator, and the largest batch that fits."""

import ctypes
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinydet.data.loader import Batch
from tinydet.distributed import processes_here
from tinydet.errors import InputError

BOXES, SIDE = 32, 40  # of a random image: more boxes than most images have, and their pixels
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks, unless TINYDET_MALLOC is "default".

    Each step of training frees and allocates the same gigabytes; page-faulting them in again costs more than computing
    with them.
    """
    if os.environ.get("TINYDET_MALLOC") != "default" and (mallopt := _glibc("mallopt")):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names and numbers from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never
        mallopt(top_pad, 64 << 20)


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory: on a CPU only the text of the error says so."""
    return isinstance(error, torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def largest_batch(try_step: Callable[[int], int], *, limit: int, most: int) -> int:
    """Find the largest batch, at most `most`, whose step stays within `limit` bytes.

    Memory grows linearly with the batch: the line through two and four images is followed to the limit, the batch there
    is tried, and lowered by a tenth until it fits.

    Args:
        try_step: makes a step of so many images; returns the bytes it took, or raises what `out_of_memory` knows.

    Raises:
        InputError: not even one image fits.
    """

    def step_bytes(images: int) -> float:
        try:
            return try_step(images)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return float("inf")

    tried = {images: step_bytes(images) for images in sorted({1, min(2, most), min(4, most)})}
    fitting = [images for images, needed in tried.items() if needed <= limit]
    if not fitting:
        raise InputError(
            f"--batch-size auto: a step of one image takes {tried[1] / 1e9:.1f} GB and there are {limit / 1e9:.1f}; "
            "try a smaller --size, --crop or --model"
        )
    if fitting[-1] < 4:
        return fitting[-1]
    per_image = max(1, (tried[4] - tried[2]) / 2)
    batch = min(most, int(4 + (limit - tried[4]) / per_image))
    while batch > 4 and step_bytes(batch) > limit:
        batch = max(4, int(0.9 * batch))
    return batch


def memory_limit(device: torch.device) -> int:
    """Return the bytes that this process may hold: nine tenths of its own and its share of the free ones."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        free, own = _proc_bytes("meminfo", "MemAvailable", device), _proc_bytes("self/status", "VmRSS", device)
        available = free // processes_here() + own
    return int(0.9 * available)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that this process holds while a function runs."""
    if device.type == "cuda":  # here and below, what was freed before is returned first: it would count as held
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_reserved(device)
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    function()
    return _proc_bytes("self/status", "VmHWM", device)


def random_batch(count: int, size: tuple[int, int], device: torch.device) -> Batch:
    """Make a batch of noise of (height, width), always the same, to try a step on."""
    generator, (height, width) = torch.Generator().manual_seed(0), size
    room = torch.tensor([width - SIDE, height - SIDE]).clamp(min=0)
    corners = torch.rand(count, BOXES, 2, generator=generator) * room
    return Batch(
        images=torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator),
        boxes=torch.cat([corners, corners + SIDE], dim=-1),
        labels=torch.zeros(count, BOXES, dtype=torch.int64),
        scales=torch.ones(count),
        sizes=torch.tensor([size] * count),
        names=["noise"] * count,
    ).to(device)


def _glibc(name: str) -> Callable[..., int] | None:
    """Look up a function of the C library, None where it has none by that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def _proc_bytes(file: str, name: str, device: torch.device) -> int:
    """Read bytes from a line of /proc, which Linux keeps in kilobytes."""
    try:
        if device.type != "cpu":
            raise OSError
        return 1024 * int((Path("/proc") / file).read_text().split(f"{name}:")[1].split()[0])
    except (OSError, IndexError):
        raise InputError(
            f"--batch-size auto: memory cannot be measured on {device.type} here; give --batch-size a number"
        ) from None


def too_many_images(micro_size: int, grad_accumulation: int) -> str:
    """Say that memory ran out in one of several processes, and what to do."""
    return (
        f"out of memory with {micro_size} images at once; run it in more processes, or start anew with --batch-size "
        f"{math.ceil(micro_size / 2)} --grad-accumulation {2 * grad_accumulation}"
    )


def less_memory(images: int, micro_size: int) -> str:
    """Say that memory ran out, and which settings would have done the same."""
    return (
        f"out of memory: from here on the {images} images of a step go through the network {micro_size} at a time, as "
        f"with --batch-size {micro_size} --grad-accumulation {math.ceil(images / micro_size)}; only batch norms see "
        "the difference"
    )

"""How many pictures a step's memory holds, found out by trying."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.memory import return_freed_memory

SPARE = 0.1
MOST = 64
BOXES = 32  # of a picture that is tried: more than most have
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what torch raises where memory has run out: a class of its own on a GPU, words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def largest_batch(attempt: Callable[[int], int], *, limit: int, most: int) -> int:
    """The largest batch whose step stays within a limit.

    Memory grows with the batch in a line: it is drawn through two pictures and four, and where it meets the limit is
    tried; what does not hold is lowered by a tenth.

    Args:
        attempt: makes a step of so many pictures; returns the bytes it took, or raises what `out_of_memory` knows.
        limit: bytes.
        most: pictures, whatever the memory.

    Returns:
        At least 1.

    Raises:
        InputError: not even one picture fits.
    """

    def bytes_of(pictures: int) -> float:
        try:
            return attempt(pictures)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return float("inf")

    tried = {pictures: bytes_of(pictures) for pictures in sorted({1, min(2, most), min(4, most)})}
    fitting = [pictures for pictures, taken in tried.items() if taken <= limit]
    if not fitting:
        raise InputError(f"batch size auto: one picture takes {tried[1] / 1e9:.1f} GB of {limit / 1e9:.1f}")
    if fitting[-1] < 4:
        return fitting[-1]
    each = max(1, (tried[4] - tried[2]) / 2)
    batch = min(most, int(4 + (limit - tried[4]) / each))
    while batch > 4 and bytes_of(batch) > limit:
        batch = max(4, int(0.9 * batch))
    return batch


def memory_limit(device: torch.device) -> int:
    """Bytes that this process may hold on a device, a tenth of what is there for it left to spare.

    Raises:
        InputError: the device or the system does not say.
    """
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        there = _proc("meminfo", "MemAvailable", device) + _proc("self/status", "VmRSS", device)
    return int((1 - SPARE) * there)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that this process holds on a device while a function runs.

    What was freed before is returned first: an allocator that keeps it would hold as much as it ever did.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_reserved(device)
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    function()
    return _proc("self/status", "VmHWM", device)


def noise(pictures: int, size: tuple[int, int], device: torch.device) -> Batch:
    """A batch of a (height, width) to try a step on."""
    height, width = size
    corners = torch.rand(pictures, BOXES, 2) * torch.tensor([width - 40, height - 40]).clamp(min=0)
    return Batch(
        images=torch.randint(256, (pictures, 3, height, width), dtype=torch.uint8),
        boxes=torch.cat([corners, corners + torch.tensor([40, 40])], dim=-1),
        labels=torch.zeros(pictures, BOXES, dtype=torch.int64),
        scales=torch.ones(pictures),
        sizes=torch.tensor([size] * pictures),
        names=["noise"] * pictures,
    ).to(device)


def _proc(file: str, name: str, device: torch.device) -> int:
    """Bytes, of a line that Linux keeps in kilobytes."""
    try:
        if device.type != "cpu":
            raise OSError
        return 1024 * int((Path("/proc") / file).read_text().split(f"{name}:")[1].split()[0])
    except (OSError, IndexError):
        raise InputError(f"batch size auto: memory cannot be measured on {device.type} here; give a number") from None

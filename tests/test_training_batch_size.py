"""The batch that memory holds is found by trying, and the trying leaves no trace."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinydet.errors import InputError
from tinydet.training.batch_size import BOXES, largest_batch, memory_limit, noise, out_of_memory, peak_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "most", "batch"),
    [(100, 64, 9), (109, 64, 9), (110, 64, 10), (10**6, 64, 64), (10**6, 3, 3), (50, 64, 4), (35, 64, 2), (20, 64, 1)],
)
def test_the_largest_batch_within_a_limit(limit: int, most: int, batch: int) -> None:
    """Ten for the weights, ten a picture."""
    tried = []

    def attempt(pictures: int) -> int:
        tried.append(pictures)
        return 10 + 10 * pictures

    assert largest_batch(attempt, limit=limit, most=most) == batch
    assert len(tried) <= 4
    assert max(tried) <= max(4, batch)


def test_what_does_not_hold_is_lowered() -> None:
    """From seven pictures on a step takes more than the line says, and from nine on all there is."""

    def attempt(pictures: int) -> int:
        if pictures >= 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 10 * pictures + (100 if pictures >= 7 else 0)

    assert largest_batch(attempt, limit=120, most=64) == 6


def test_one_picture_must_fit() -> None:
    with pytest.raises(InputError, match=r"batch size auto: one picture takes 2\.0 GB of 1\.0"):
        largest_batch(lambda pictures: 2 * 10**9 * pictures, limit=10**9, most=64)


def test_other_errors_come_through() -> None:
    def attempt(pictures: int) -> int:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(attempt, limit=100, most=64)


def test_what_torch_says_when_memory_runs_out() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)


def test_noise_is_a_batch_of_objects() -> None:
    batch = noise(3, (64, 96), CPU)
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 64, 96), torch.uint8)
    assert batch.boxes.shape == (3, BOXES, 4)
    assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all()
    assert (batch.labels == 0).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process holds at most")
def test_the_peak_is_what_was_held_at_most() -> None:
    size = 200 << 20
    before = peak_bytes(lambda: None, CPU)
    during = peak_bytes(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    assert 0.8 * size < during - before < 1.5 * size
    assert peak_bytes(lambda: None, CPU) < before + 0.5 * size  # the peak begins anew
    machine = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < memory_limit(CPU) < machine


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process holds at most")
def test_the_peak_of_a_small_step_is_small_after_a_large_one() -> None:
    """Also where freed memory is kept, as the command line does."""
    script = """
import torch
from tinydet.memory import keep_freed_memory
from tinydet.training.batch_size import peak_bytes

keep_freed_memory()
for mebibytes in (5, 40, 5):
    print(peak_bytes(lambda: [torch.ones(mebibytes << 20, dtype=torch.uint8) for _ in range(20)], torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    small, large, small_again = map(int, done.stdout.split())
    assert large - small > 500 << 20
    assert small_again < small + (200 << 20)


def test_the_peak_on_a_gpu_begins_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its allocator keeps what was freed, too; here it is played."""
    cached, peak = 7, 7

    def empty() -> None:
        nonlocal cached
        cached = 1

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = cached

    def step() -> None:
        nonlocal peak
        peak = max(peak, 3)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak)
    assert peak_bytes(step, torch.device("cuda")) == 3


def test_where_memory_cannot_be_measured_a_number_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be measured on mps here; give a number"):
        memory_limit(torch.device("mps"))

    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    with pytest.raises(InputError, match="cannot be measured on cpu here"):
        memory_limit(CPU)

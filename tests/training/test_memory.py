"""The largest batch that memory holds is found by trying; freed memory is kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinydet.errors import InputError
from tinydet.training.memory import BOXES, largest_batch, memory_limit, out_of_memory, peak_bytes, random_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "most", "batch"),
    [(100, 64, 9), (109, 64, 9), (110, 64, 10), (10**6, 64, 64), (10**6, 3, 3), (50, 64, 4), (35, 64, 2), (20, 64, 1)],
)
def test_the_largest_batch_within_a_limit(limit: int, most: int, batch: int) -> None:
    """Ten for the weights, ten an image."""
    tried = []

    def try_step(count: int) -> int:
        tried.append(count)
        return 10 + 10 * count

    assert largest_batch(try_step, limit=limit, most=most) == batch
    assert len(tried) <= 4
    assert max(tried) <= max(4, batch)


def test_a_batch_that_does_not_fit_is_lowered() -> None:
    """From seven images on a step takes more than the line says, and from nine on all there is."""

    def try_step(count: int) -> int:
        if count >= 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 10 * count + (100 if count >= 7 else 0)

    assert largest_batch(try_step, limit=120, most=64) == 6


def test_one_image_must_fit() -> None:
    with pytest.raises(InputError, match=r"a step of one image takes 2\.0 GB and there are 1\.0; try a smaller --size"):
        largest_batch(lambda count: 2 * 10**9 * count, limit=10**9, most=64)


def test_other_errors_come_through() -> None:
    def try_step(count: int) -> int:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(try_step, limit=100, most=64)


def test_errors_of_torch_when_memory_runs_out() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)


def test_a_random_batch_holds_objects_and_is_always_the_same() -> None:
    before = torch.get_rng_state()
    batch = random_batch(3, (64, 96), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(random_batch(3, (64, 96), CPU).images, batch.images)
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
from tinydet.training.memory import keep_freed_memory, peak_bytes

keep_freed_memory()
for mebibytes in (5, 40, 5):
    print(peak_bytes(lambda: [torch.ones(mebibytes << 20, dtype=torch.uint8) for _ in range(20)], torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    small, large, small_again = map(int, done.stdout.split())
    assert large - small > 500 << 20
    assert small_again < small + (200 << 20)


def test_the_peak_on_a_gpu_begins_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its allocator keeps freed memory, too; here it is faked."""
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
    with pytest.raises(InputError, match="cannot be measured on mps here; give --batch-size a number"):
        memory_limit(torch.device("mps"))

    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    with pytest.raises(InputError, match="cannot be measured on cpu here"):
        memory_limit(CPU)

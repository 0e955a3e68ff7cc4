"""What a case needs to know of the device that it runs on: torch only."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def finished(call: Callable[[], object], *, device: str) -> Callable[[], object]:
    """A call that returns when the device is done; on a GPU, fp32 is TF32 for convolutions and matmul alike."""
    if device != "cuda":
        return call
    torch.set_float32_matmul_precision("high")

    def whole() -> None:
        call()
        torch.cuda.synchronize()

    return whole


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16, or nothing for fp32."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def matmul(*, device: str, precision: str, size: int) -> Callable[[], object]:
    """A product of two square matrices: the rate that the card reaches."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return finished(lambda: a @ b, device=device)

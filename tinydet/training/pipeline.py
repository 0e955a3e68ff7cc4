"""Steps in a row: the loss of one is read once the next is under way, so that a GPU is never waited for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.data.loader import Batch
from tinydet.ops.losses import Losses
from tinydet.training.events import Message
from tinydet.training.memory import less_memory, out_of_memory
from tinydet.training.replay import save_step
from tinydet.training.start import Run
from tinydet.training.state import State
from tinydet.training.step import StepMetrics, check_step


class Done(NamedTuple):
    """A step whose loss is finite."""

    state: State  # after it
    metrics: StepMetrics  # on the CPU
    lr: float
    waited: float  # seconds for its batch
    micro_size: int  # images that went through the network at once


class Issued(NamedTuple):
    """A step that may still be computed."""

    before: State
    batch: Batch
    lr: float
    micro_size: int
    waited: float
    after: State
    metrics: StepMetrics  # on their way to the CPU
    arrived: Callable[[], object]  # waits for them


def run_steps(
    run: Run,
    state: State,
    batches: Iterator[Batch],
    out: Path,
    *,
    micro_size: int,
    next_lr: Callable[[int], float | None],
    clock: Callable[[], float],
) -> Iterator[Done | Message]:
    """Make steps as long as `next_lr` of the steps done gives a learning rate; an error comes after all that are done.

    Raises:
        FloatingPointError: the loss of a step is not finite; what came of it is in no state that was passed on.
    """
    last: Issued | None = None
    try:
        while (lr := next_lr(state.step)) is not None:
            asked = clock()
            batch = next(batches).to(run.device)
            how: Any = {"lr": lr, "waited": clock() - asked}
            while True:
                try:
                    issued = issue(run, state, batch, micro_size=micro_size, **how)
                    break
                except RuntimeError as error:
                    if not out_of_memory(error) or micro_size == 1 or run.world.size > 1:
                        raise
                micro_size = -(-min(micro_size, run.share) // 2)
                yield Message(less_memory(run.share, micro_size))
            if last is not None:
                yield (done := finish(run, out, last))
                if done.state is not last.after:  # it overflowed, and the next one is made anew without it
                    issued = issue(run, done.state, batch, micro_size=micro_size, **how)
            last, state = issued, issued.after
    except RuntimeError:
        if last is not None:
            yield finish(run, out, last)
        raise
    if last is not None:
        yield finish(run, out, last)


def issue(run: Run, state: State, batch: Batch, *, lr: float, micro_size: int, waited: float) -> Issued:
    """Start a step, and the transfer of what is measured in it."""
    after, metrics = run.step(state, batch, check=False, lr=lr, micro_batches=run.micro_batches(micro_size))
    on_gpu = run.device.type == "cuda"

    def fetch(x: Tensor) -> Tensor:
        return x.to("cpu", non_blocking=on_gpu)

    told = StepMetrics(Losses(*map(fetch, metrics.losses)), *map(fetch, metrics[1:]))
    event = torch.cuda.Event() if on_gpu else None
    if event:
        event.record()
    return Issued(state, batch, lr, micro_size, waited, after, told, event.synchronize if event else lambda: None)


def finish(run: Run, out: Path, issued: Issued) -> Done:
    """Wait for a step, and keep one that failed."""
    before, batch, lr, micro_size, waited, after, metrics, arrived = issued
    arrived()
    try:
        state = check_step(before, after, metrics, names=batch.names)
    except FloatingPointError as error:
        path = save_step(out, run, before, batch, lr=lr, micro_batches=run.micro_batches(micro_size))
        others = f" and those of {run.world.size - 1} other processes" if run.world.size > 1 else ""
        raise FloatingPointError(f"{error}{others}; tinydet train --replay {path} runs it again") from None
    return Done(state, metrics, lr, waited, micro_size)

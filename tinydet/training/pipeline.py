"""Steps in a row: on a GPU the loss of one is read once the next is under way, so that it is never waited for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.data.loader import Batch
from tinydet.errors import InputError
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
    late: bool,
    micro_size: int,
    next_lr: Callable[[int], float | None],
    clock: Callable[[], float],
) -> Iterator[Done | Message]:
    """Make steps as long as `next_lr` of the steps done gives a learning rate; an error comes after all that are done.

    With `late` a step is waited for when the next one is under way, for which a third state is in memory.

    Raises:
        FloatingPointError: the loss of a step is not finite; what came of it is in no state that was passed on.
    """
    last: Issued | None = None
    try:
        while (lr := next_lr(state.step)) is not None:
            asked = clock()
            batch = next(batches).to(run.device)
            waited, issued = clock() - asked, None
            while issued is None:
                try:
                    issued = issue(run, state, batch, lr=lr, micro_size=micro_size, waited=waited)
                except RuntimeError as error:
                    if not out_of_memory(error) or micro_size == 1 or run.world.size > 1:
                        raise
                if issued is None:
                    micro_size = -(-min(micro_size, run.share) // 2)
                    yield Message(less_memory(run.share, micro_size))
                elif last is not None:
                    before, last = last, None
                    yield (done := finish(run, out, before))
                    if done.state is not state:  # it overflowed, and the next one is made anew without it
                        state, issued = done.state, None
            if late:
                last, state = issued, issued.after
            else:
                yield (done := finish(run, out, issued))
                state = done.state
    except (RuntimeError, InputError):
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

"""The steps between two validations, by the clock or by their number."""

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.data.loader import Batch
from tinydet.ops.losses import Losses
from tinydet.training.batch_size import out_of_memory
from tinydet.training.events import Noted, Stepped
from tinydet.training.schedule import Pace, ends_epoch, lr_factor, progress, warmup_share
from tinydet.training.settings import fit_crop
from tinydet.training.start import Run
from tinydet.training.step import Measured, State

SLACK = 3.0  # seconds kept back, besides the last validation, for writing what it came to


class Trained(NamedTuple):
    """What the steps of an epoch came to."""

    state: State
    parts: int
    """Into how many a batch is cut by now."""
    losses: Tensor
    """float64[3], on the CPU: the means of the terms of `Losses`."""
    matches: Tensor
    """int64[K], on the CPU: anchors that took an object of each class."""
    seconds: float
    waited: float
    """Seconds, of these, in which the next batch was not there yet."""


def train_epoch(
    run: Run, now: State, stream: Iterator[Batch], training: dict[str, Any], *, elapsed: Callable[[], float]
) -> Generator[Stepped | Noted, None, Trained]:
    """Steps until it is time to validate, each said as it is done.

    Args:
        run: what does not change.
        now: the state before.
        stream: of batches, this epoch's first.
        training: what the last checkpoint says of the training so far.
        elapsed: says how many seconds the run is old.
    """
    began, first, waited, parts = elapsed(), now.step, 0.0, training["parts"]
    losses = torch.zeros(len(Losses._fields), dtype=torch.float64)
    matches = torch.zeros(len(run.config.classes), dtype=torch.int64)
    pace = run_pace(run, training["history"], step=now.step, elapsed=began)
    torch.manual_seed(run.settings.seed * 1_000_003 + now.step // run.plan.steps)  # from which stochastic depth draws
    while now.step == first or not ends_epoch(run.plan, pace):
        asked = elapsed()
        batch = next(stream).to(run.device)
        waited += elapsed() - asked
        set_lr(run, pace)
        now, seen, parts = yield from _step(run, now, batch, parts)
        losses += torch.stack(seen.losses).cpu()
        matches += seen.matches.cpu()
        yield Stepped(now.step, seen.losses)
        per_step = (elapsed() - began) / (now.step - first)
        pace = run_pace(run, training["history"], step=now.step, elapsed=elapsed(), per_step=per_step)
    return Trained(now, parts, losses / (now.step - first), matches, elapsed() - began, waited)


def _step(run: Run, now: State, batch: Batch, parts: int) -> Generator[Noted, None, tuple[State, Measured, int]]:
    """One step; where memory runs out, the same in twice as many parts."""
    while True:
        try:
            return *run.step(now, batch, parts=parts), parts
        except RuntimeError as error:
            if not out_of_memory(error) or parts >= len(batch.images):
                raise
        parts = min(2 * parts, len(batch.images))
        each = math.ceil(len(batch.images) / parts)
        yield Noted(
            f"out of memory: from here on a step's {len(batch.images)} pictures go through the network {each} at "
            f"a time (--batch-size {each} --grad-accumulation {parts}); only batch norms see the difference"
        )


def run_pace(
    run: Run, history: list[dict[str, Any]], *, step: int, elapsed: float, per_step: float | None = None
) -> Pace:
    """How far a run has come. What its last validation will take is known from those before, or else guessed."""
    if per_step is None:
        per_step = sum(row["train_seconds"] for row in history) / max(1, step)
    if history:
        validation = max(row["val_seconds"] for row in history)
    else:  # to go forward takes about a third of a step
        pixels = math.prod(run.config.image_size) / math.prod(fit_crop(run.settings, run.config))
        validation = per_step / 3 * pixels * len(run.val_set) / run.settings.step_size
    validated = history[-1]["step"] if history else 0
    return Pace(step, elapsed, per_step, reserve=1.1 * validation + SLACK, validated=validated)


def warming_up(run: Run, pace: Pace) -> bool:
    """Whether the next step is one of the warm-up."""
    return progress(run.plan, pace) < warmup_share(run.plan, pace)


def set_lr(run: Run, pace: Pace) -> None:
    """Set the learning rate of the next step; from the second after the warm-up on, a plateau's is its scheduler's."""
    before = pace._replace(step=pace.step - 1, elapsed=pace.elapsed - pace.per_step)
    if run.settings.schedule == "plateau" and not warming_up(run, before):
        return
    share = lr_factor(progress(run.plan, pace), warmup=warmup_share(run.plan, pace), schedule=run.settings.schedule)
    for group in run.optimizer.param_groups:
        group["lr"] = run.settings.peak_lr * share

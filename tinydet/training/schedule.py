"""How far a run is, and what its learning rate is there: pure functions of steps done and seconds gone."""

import math
from typing import NamedTuple

VALIDATION = 0.1  # of the time of a run by the clock


class Plan(NamedTuple):
    """How long a run goes on: so many epochs, or so many seconds."""

    steps: int
    """Of an epoch."""
    epochs: int
    seconds: float | None = None
    """In all, instead of `epochs`."""
    warmup_epochs: float = 0.0


class Pace(NamedTuple):
    """How far a run has come."""

    step: int
    """Steps done."""
    elapsed: float
    """Seconds since it began, validation included."""
    per_step: float
    """Seconds that a step takes; 0 before it is known."""
    reserve: float
    """Seconds that the last validation will take, and writing what it came to."""
    validated: int = 0
    """Steps done at the last validation."""


def progress(plan: Plan, pace: Pace) -> float:
    """Where the middle of the next step lies between the start of the training, 0, and its end, 1."""
    if plan.seconds is None:
        return (pace.step + 0.5) / (plan.epochs * plan.steps)
    return min(1.0, (pace.elapsed + pace.per_step / 2) / _training_seconds(plan, pace))


def is_over(plan: Plan, pace: Pace) -> bool:
    """Whether there is no time for another step, or none was asked for."""
    if plan.seconds is None:
        return pace.step >= plan.epochs * plan.steps
    return pace.step > 0 and pace.elapsed + pace.per_step > _training_seconds(plan, pace)


def ends_epoch(plan: Plan, pace: Pace) -> bool:
    """Whether the run is validated before its next step: after each epoch, and at its end.

    By the clock, epochs are joined until validation takes about a tenth of the time, and with what is left at the end
    if that is less.
    """
    if is_over(plan, pace):
        return True
    if pace.step % plan.steps:
        return False
    if plan.seconds is None:
        return True
    worth = (1 / VALIDATION - 1) * pace.reserve
    left = _training_seconds(plan, pace) - pace.elapsed - pace.reserve
    return (pace.step - pace.validated) * pace.per_step >= worth and left >= worth / 2


def warmup_share(plan: Plan, pace: Pace) -> float:
    """The share of the run that its warm-up epochs are, at most a tenth."""
    epochs = float(plan.epochs)
    if plan.seconds is not None:
        epochs = _training_seconds(plan, pace) / max(plan.steps * pace.per_step, 1e-9)
    return min(0.1, plan.warmup_epochs / epochs)


def lr_factor(progress: float, *, warmup: float, schedule: str) -> float:
    """The learning rate as a share of its peak.

    Args:
        progress: of the run, from 0 to 1.
        warmup: until when the rate goes up in a line.
        schedule: "cosine" goes down in half of one then; the others stay where they are.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) if schedule == "cosine" else 1.0


def _training_seconds(plan: Plan, pace: Pace) -> float:
    """Until when there may be steps."""
    assert plan.seconds is not None
    return max(plan.seconds - pace.reserve, 1e-9)

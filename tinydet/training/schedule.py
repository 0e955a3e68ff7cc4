"""Learning rate and length of a run: pure functions of steps done, seconds gone and losses seen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tinydet.training.settings import TrainSettings

Row = TypeVar("Row", bound=Mapping[str, Any])
VALIDATION = 0.1  # share of a run by the clock that its validations may take


def cosine(progress: float, *, warmup: float = 0.0) -> float:
    """Compute the learning rate as a share of its peak: up from a tenth, then down in half a cosine.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run until which the rate rises in a line.

    >>> [round(cosine(p, warmup=0.1), 2) for p in (0, 0.05, 0.1, 0.55, 1)]
    [0.1, 0.55, 1.0, 0.5, 0.0]

    Reference: google/automl, lr_warmup_init and cosine_lr_schedule.
    """
    if progress < warmup:
        return constant(progress, warmup=warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def constant(progress: float, *, warmup: float = 0.0) -> float:
    """Compute the learning rate as a share of its peak: up from a tenth, then level. Arguments as for `cosine`."""
    return 0.1 + 0.9 * progress / warmup if progress < warmup else 1.0


def plateau(losses: Sequence[float], *, factor: float = 0.1, patience: int = 3, threshold: float = 1e-4) -> float:
    """Compute the learning rate as a share of its peak by what the validation losses did, oldest first.

    Whenever more than `patience` losses in a row are no better than the best by a share of `threshold`, the rate is
    multiplied by `factor`, and the count begins anew. Agrees with `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """
    best, bad, share = math.inf, 0, 1.0
    for loss in losses:
        better = loss < best * (1 - threshold)
        best, bad = (loss, 0) if better else (best, bad + 1)
        if bad > patience:
            share, bad = share * factor, 0
    return share


def learning_rate(
    settings: TrainSettings, history: Sequence[Mapping[str, Any]], progress: float, warmup: float
) -> float:
    """Compute the learning rate of the next step, by the epochs so far and the shares of `cosine`."""
    rate = settings.peak_lr * (cosine if settings.schedule == "cosine" else constant)(progress, warmup=warmup)
    if settings.schedule == "plateau":
        rate *= plateau([row["val"]["total"] for row in history if row["epoch"] >= settings.warmup_epochs])
    return rate


class Budget(NamedTuple):
    """Length of a run: so many epochs, or so many seconds."""

    epoch_steps: int
    epochs: int
    seconds: float | None = None  # in all, the last validation included; instead of `epochs`
    warmup_epochs: float = 0.0


class Spent(NamedTuple):
    """Part of a run's budget that is spent."""

    step: int  # steps done
    elapsed: float = 0.0  # seconds since the run began, validation included
    step_seconds: float = 0.0  # of a step; 0 before they are known
    reserve: float = 0.0  # seconds kept back for the last validation and for writing its results
    validated: int = 0  # steps done at the last validation


def share_done(budget: Budget, spent: Spent) -> float:
    """Compute the share of the training that is done before the next step, 0 to 1."""
    if budget.seconds is None:
        return spent.step / (budget.epochs * budget.epoch_steps)
    return min(1.0, spent.elapsed / _training_seconds(budget, spent))


def finished(budget: Budget, spent: Spent) -> bool:
    """Decide whether there is no time for another step, or none was asked for."""
    if budget.seconds is None:
        return spent.step >= budget.epochs * budget.epoch_steps
    return spent.step > 0 and spent.elapsed + spent.step_seconds > _training_seconds(budget, spent)


def should_validate(budget: Budget, spent: Spent) -> bool:
    """Decide whether to validate before the next step: after each epoch, and at the end.

    By the clock, epochs are joined until validation takes about a tenth of the time, and with what is left at the end
    if that is less.
    """
    if finished(budget, spent):
        return True
    if spent.step % budget.epoch_steps:
        return False
    if budget.seconds is None:
        return True
    worth = (1 / VALIDATION - 1) * spent.reserve
    left = _training_seconds(budget, spent) - spent.elapsed - spent.reserve
    return (spent.step - spent.validated) * spent.step_seconds >= worth and left >= worth / 2


def warmup_share(budget: Budget, spent: Spent) -> float:
    """Compute the share of the run that its warm-up epochs take, at most a tenth."""
    if budget.seconds is None:
        return min(0.1, budget.warmup_epochs / budget.epochs)
    if not spent.step_seconds:  # the first step
        return 0.1
    return min(0.1, budget.warmup_epochs * budget.epoch_steps * spent.step_seconds / _training_seconds(budget, spent))


def _training_seconds(budget: Budget, spent: Spent) -> float:
    """Seconds of a run by the clock in which there may be steps."""
    assert budget.seconds is not None
    return max(budget.seconds - spent.reserve, 1e-9)


def rank_key(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return what epochs are ranked by: the primary metric, then the lower validation loss."""
    return row["ap"], -row["val"]["total"]


def best_row(history: Sequence[Row]) -> Row:
    """Return the row of the best epoch, the one in `best.pt`; the history has at least one."""
    return max(history, key=rank_key)

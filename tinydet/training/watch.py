"""Watch a run: from what it has shown so far to what somebody should be told, in plain words."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tinydet.model.config import ModelConfig
from tinydet.training.history import best_row
from tinydet.training.settings import TrainSettings

History = Sequence[Mapping[str, Any]]
Holds = Callable[[History, TrainSettings], list[str]]  # which causes hold after a history
Line = Callable[[list[str], History, TrainSettings], str]  # about those of them that are new

REACH = 0.8  # of a class's objects; the defaults reach nine in ten of KITTI's
FALL = 0.98  # a loss below this share of another is lower; averages of an epoch waver by about one percent
LEAP = 1.1  # a loss above this share of another need not be waited for
PATIENCE = 3  # epochs
NOTHING = 0.05  # percent AP that a detector of noise gets, by a box that happens to fit; it is printed as 0.0
SOMETHING = 5.0  # percent AP that none gets
OVERFITTED = 1.05
WAITING = 0.05
START_UP = 10.0  # seconds of waiting that may be no more than the workers' start, at which more of them are no help
LOOK = "look at val-sheet.jpg in the run's folder, and try --overfit 4"


def watch(history: History, settings: TrainSettings) -> list[str]:
    """What should be said after the last epoch, a line for each cause.

    A cause is named after the first epoch that shows it, and not again while it lasts.

    Args:
        history: the rows of all epochs so far. What a row does not hold is unknown, and nothing is said about it.
        settings: of the run.
    """
    lines = []
    for holds, line in RULES:
        known = holds(history[:-1], settings)
        if new := [cause for cause in holds(history, settings) if cause not in known]:
            lines.append(line(new, history, settings))
    return lines


def watch_start(coverage: Mapping[str, float], *, config: ModelConfig) -> list[str]:
    """What should be said before the first step.

    Args:
        coverage: by class, the share of the training objects that some anchor overlaps by at least .5, as of
            `tinydet.training.fit.reach`; nan for a class without objects.
        config: of the model that is trained.
    """
    low = [f"{share:.0%} of {name}" for name, share in coverage.items() if share < REACH]
    if not low:
        return []
    scale, (height, width) = config.anchor_scale, config.image_size
    return [
        f"the anchors reach only {_listed(low)} at IoU .5: if these are small, try --anchor-scale {0.75 * scale:g} "
        f"(now {scale:g}), or a larger --size (now {height}x{width})"
    ]


def _listed(names: Iterable[str]) -> str:
    """A, B and C."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _totals(history: History, part: str) -> list[float]:
    """The losses of all epochs, of "train" or "val"."""
    return [row[part]["total"] for row in history]


def _settled(history: History, settings: TrainSettings) -> History:
    """The epochs that lie wholly after the warm-up."""
    epochs = math.inf if settings.minutes else settings.epochs
    warmup = min(settings.warmup_epochs, epochs / 10)
    return [row for row in history if row["epoch"] > math.ceil(warmup)]


def _does_not_fall(history: History, settings: TrainSettings) -> list[str]:
    first, *later = _totals(_settled(history, settings), "train") or [0.0]
    stays = len(later) >= PATIENCE and min(later[-PATIENCE:]) > FALL * first
    leaps = later and later[-1] > LEAP * first
    return ["loss"] if stays or leaps else []


def _does_not_fall_line(_: list[str], history: History, settings: TrainSettings) -> str:
    first, last = _settled(history, settings)[0], history[-1]
    lr, was, now = max(row["lr"] for row in history), first["train"]["total"], last["train"]["total"]
    if now * FALL > was:
        verb, advice = "rises", f"--lr {lr / 10:.2g} (now {lr:.2g}), or a lower --clip (now {settings.clip:g})"
    else:
        verb, advice = "does not fall", f"--lr {lr / 10:.2g} or {lr * 10:.2g} (now {lr:.2g})"
    return (
        f"the training loss {verb}: {was:.3f} in epoch {first['epoch']}, the first after the warm-up, and {now:.3f} in "
        f"epoch {last['epoch']}; try {advice}, and --overfit 4 to see whether it can fall at all"
    )


def _finds_nothing(history: History, settings: TrainSettings) -> list[str]:
    losses = _totals(history, "train")
    if len(history) < PATIENCE or losses[-1] > FALL * losses[0]:
        return []
    aps = history[-1]["ap_by_class"]
    nothing = [name for name in aps if all(_best_ap(row, name) < NOTHING for row in history)]
    others = [ap for name, ap in aps.items() if name not in nothing]
    some = any(ap >= SOMETHING for ap in others)
    return nothing if some or not others else []


def _best_ap(row: Mapping[str, Any], name: str) -> float:
    """The highest AP of a class in an epoch; KITTI's over the levels of either kind: R11 sees what R40 does not."""
    kinds = [row[kind][name].values() for kind in ("R40", "R11") if kind in row]
    return max([row["ap_by_class"].get(name, 0.0), *(ap for kind in kinds for ap in kind)])


def _finds_nothing_line(names: list[str], history: History, settings: TrainSettings) -> str:
    losses, aps = _totals(history, "train"), history[-1]["ap_by_class"]
    falls = f"after {len(history)} epochs, though the training loss fell from {losses[0]:.3f} to {losses[-1]:.3f}"
    if len(names) == len(aps):
        late = "; from random weights it can also just take longer" if settings.weights == "none" else ""
        return f"AP is still 0 {falls}: are the class names and the order of the boxes right? {LOOK}{late}"
    best = max(aps, key=lambda name: aps[name])
    return (
        f"AP of {_listed(names)} is still 0 {falls} and {best} has {aps[best]:.1f}: "
        f"is the name in --classes right, and are there such objects to validate on? {LOOK}"
    )


def _overfits(history: History, settings: TrainSettings) -> list[str]:
    if not history:
        return []
    train, val = _totals(history, "train"), _totals(history, "val")
    lowest = min(val)
    rises = len(val) > PATIENCE and min(val[-PATIENCE:]) > OVERFITTED * lowest
    return ["overfits"] if rises and train[-1] < FALL * train[val.index(lowest)] else []


def _overfits_line(_: list[str], history: History, settings: TrainSettings) -> str:
    train, val = _totals(history, "train"), _totals(history, "val")
    lowest = val.index(min(val))
    best = best_row(history)["epoch"]
    decay = "" if settings.weight_decay is None else f" (now {settings.weight_decay:g})"
    trunk = ", --freeze trunk" if settings.freeze == "none" else ""
    length = "--minutes" if settings.minutes else "--epochs"
    return (
        f"overfitting: since epoch {history[lowest]['epoch']} the validation loss rose from {val[lowest]:.3f} to "
        f"{val[-1]:.3f} while the training loss fell from {train[lowest]:.3f} to {train[-1]:.3f}; best.pt keeps the "
        f"best epoch, {best}; try fewer {length} or --early-stop, a higher --weight-decay{decay}, --weights coco{trunk}"
    )


def _unmatched(history: History, settings: TrainSettings) -> list[str]:
    matches = history[-1].get("matches", {}) if history else {}
    return [name for name, count in matches.items() if count == 0]


def _unmatched_line(names: list[str], history: History, settings: TrainSettings) -> str:
    return (
        f"no anchor was matched to {_listed(names)} in epoch {history[-1]['epoch']}: is the name in --classes right, "
        "are there enough such objects to train on, and are they large enough at this --size?"
    )


def _waits(history: History, settings: TrainSettings) -> list[str]:
    waited, trained = _seconds(history)
    return ["data"] if waited > max(START_UP, WAITING * trained) else []


def _seconds(history: History) -> tuple[float, float]:
    """How long the epochs that know it waited for data, and how long they trained, waiting included."""
    rows = [row for row in history if "wait_seconds" in row]
    return sum(row["wait_seconds"] for row in rows), sum(row["train_seconds"] for row in rows)


def _waits_line(_: list[str], history: History, settings: TrainSettings) -> str:
    waited, trained = _seconds(history)
    return (
        f"{waited / trained:.0%} of the training time went by waiting for data ({waited:.0f} of {trained:.0f} s): "
        f"try more --workers (now {settings.workers}) if there are cores to spare"
    )


RULES: tuple[tuple[Holds, Line], ...] = (
    (_does_not_fall, _does_not_fall_line),
    (_finds_nothing, _finds_nothing_line),
    (_overfits, _overfits_line),
    (_unmatched, _unmatched_line),
    (_waits, _waits_line),
)

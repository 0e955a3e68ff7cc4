"""Diagnostics of a training run: what goes wrong, and which setting to change. They are advice and never stop a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import torch

from tinydet.data.checks import duplicate_boxes, small_objects, train_val_leakage
from tinydet.data.dataset import DetectionDataset
from tinydet.data.images import letterbox_scale
from tinydet.labels import IGNORE
from tinydet.metrics.coco import CocoTruth, crowded_notes
from tinydet.model.config import ModelConfig
from tinydet.model.postprocess import Detections, model_anchors
from tinydet.ops.anchors import max_anchor_iou
from tinydet.ops.boxes import iou
from tinydet.training.schedule import best_row
from tinydet.training.settings import EARLY, TrainSettings

P = ParamSpec("P")
Row = Mapping[str, Any]
History = Sequence[Row]
"""Rows of metrics.jsonl, at least one."""
Finding = tuple[list[str], str]
"""Causes, and one line of advice in which the first {} stands for those of them that are new."""
Rule = Callable[[History, TrainSettings], Finding | None]

LOW_RECALL = 0.8  # of a class's objects; the default anchors cover nine in ten of KITTI's
FALL = 0.98  # a loss below this share of another is lower; averages of an epoch vary by about one percent
LEAP = 1.1  # a loss above this share of another need not be waited for
PATIENCE = 3  # epochs
NOISE_AP = 0.05  # percent that a detector of noise gets, by a box that happens to fit; it is printed as 0.0
SOME_AP = 5.0  # percent that no such detector gets
OVERFITTED = 1.05
WAITING = 0.05
START_UP = 10.0  # seconds of waiting that may be only the start of the workers, which more of them would not shorten
SCORE = 0.3  # below which an overfit run has not detected an object
MAX_IMAGES = 120_000  # that are looked at before a run, in two seconds; COCO's are 118,287
LISTED = 5  # names or objects, after which the rest are counted
LOOK = "look at val-sheet.jpg in the run's folder, and try --overfit 4"


def guarded(advise: Callable[P, list[str]]) -> Callable[P, list[str]]:
    """Turn a failure of a function that gives advice into one more line: no advice is worth a run."""

    @wraps(advise)
    def call(*args: P.args, **kwargs: P.kwargs) -> list[str]:
        try:
            return advise(*args, **kwargs)
        except Exception as error:
            name = type(error).__name__
            return [f"the diagnostics failed ({name}: {error}): please report it; the run is not affected"]

    return call


def diagnose(history: History, settings: TrainSettings) -> list[str]:
    """List advice after the last epoch of a history, one line a rule; a cause is not named again while it lasts."""
    return [line for rule in RULES for line in guarded(new_advice)(rule, history, settings)]


def new_advice(rule: Rule, history: History, settings: TrainSettings) -> list[str]:
    """Apply a rule: one line where the last epoch shows a cause that the one before did not."""
    causes, advice = rule(history, settings) or ([], "")
    before, _ = (rule(history[:-1], settings) if history[1:] else None) or ([], "")
    new = [cause for cause in causes if cause not in before]
    return [advice.replace("{}", enumerated(new), 1)] if new else []


def enumerated(names: list[str]) -> str:
    """Join names: A, B and C; of many, the first and the number of the others."""
    if len(names) > LISTED + 1:
        names = [*names[:LISTED], f"{len(names) - LISTED} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


@guarded
def diagnose_start(recall_by_class: Mapping[str, float], config: ModelConfig) -> list[str]:
    """Name the classes, before the first step, of whose objects the anchors miss many; nan is a class without any."""
    low = [f"{share:.0%} of {name}" for name, share in recall_by_class.items() if share < LOW_RECALL]
    scale, (height, width) = config.anchor_scale, config.image_size
    advice = (
        f"anchor recall is low: at IoU .5 the anchors cover only {enumerated(low)}; if these objects are small, try "
        f"--anchor-scale {0.75 * scale:g} (now {scale:g}), or a larger --size (now {height}x{width})"
    )
    return [advice] if low else []


def loss_is_stuck(history: History, settings: TrainSettings) -> Finding | None:
    """Find a training loss that has not fallen since the warm-up, or leaps up."""
    warmup = settings.warmup_epochs if settings.minutes else min(settings.warmup_epochs, settings.epochs / 10)
    rows = [row for row in history if row["epoch"] > math.ceil(warmup)]  # that lie wholly after it
    losses = [row["train"]["total"] for row in rows]
    stays = len(losses) > PATIENCE and min(losses[-PATIENCE:]) > FALL * losses[0]
    if not stays and not (losses and losses[-1] > LEAP * losses[0]):
        return None
    lr = max(row["lr"] for row in history)
    if FALL * losses[-1] > losses[0]:
        verb, change = "rises", f"--lr {lr / 10:.2g} (now {lr:.2g}), or a lower --clip (now {settings.clip:g})"
    else:
        verb, change = "does not fall", f"--lr {lr / 10:.2g} or {lr * 10:.2g} (now {lr:.2g})"
    return ["loss"], (
        f"the training loss {verb}: it was {losses[0]:.3f} in epoch {rows[0]['epoch']}, the first after the warm-up, "
        f"and is {losses[-1]:.3f} in epoch {rows[-1]['epoch']}; try {change}, and --overfit 4 to see whether it can "
        "fall at all"
    )


def ap_is_zero(history: History, settings: TrainSettings) -> Finding | None:
    """Find classes that are never detected, though the training loss falls."""
    losses = [row["train"]["total"] for row in history]
    if len(history) < PATIENCE or losses[-1] > FALL * losses[0]:
        return None
    aps = {name: ap for name, ap in history[-1]["ap_by_class"].items() if ap is not None}
    zero = [name for name in aps if all(highest_ap(row, name) < NOISE_AP for row in history)]
    falls = (
        f"after epoch {history[-1]['epoch']}, though the training loss fell from {losses[0]:.3f} to {losses[-1]:.3f}"
    )
    if len(zero) == len(aps):
        late = "; from random weights it can also just take longer" if settings.weights == "none" else ""
        return zero, f"AP is still 0 {falls}{late}; check the class names and the order of the boxes' numbers, {LOOK}"
    best = max(aps, key=lambda name: aps[name])
    advice = (
        f"AP of {{}} is still 0 {falls} and {best} has {aps[best]:.1f}; check the names in --classes, and that there "
        f"are such objects to validate on, {LOOK}"
    )
    return (zero, advice) if aps[best] >= SOME_AP else None


def highest_ap(row: Row, name: str) -> float:
    """Return the AP of a class, the primary metric's or COCO's, which counts single objects that KITTI's does not."""
    return max(aps.get(name) or 0.0 for aps in (row["ap_by_class"], row["COCO"]["per_class"]))


def overfitting(history: History, settings: TrainSettings) -> Finding | None:
    """Find a validation loss that rises while the training loss falls."""
    train, val = ([row[split]["total"] for row in history] for split in ("train", "val"))
    lowest = val.index(min(val))
    rises = len(val) > PATIENCE and min(val[-PATIENCE:]) > OVERFITTED * val[lowest]
    if not rises or train[-1] >= FALL * train[lowest]:
        return None
    length = "--minutes" if settings.minutes else "--epochs"
    backbone = ", --freeze backbone" if settings.freeze in ("none", *EARLY) else ""
    return ["overfitting"], (
        f"the model overfits: since epoch {history[lowest]['epoch']} the validation loss rose from {val[lowest]:.3f} "
        f"to {val[-1]:.3f} while the training loss fell from {train[lowest]:.3f} to {train[-1]:.3f}; best.pt keeps the "
        f"best epoch, {best_row(history)['epoch']}; try fewer {length} or --early-stop, a higher --weight-decay "
        f"(now {settings.decay:g}), --weights coco{backbone}"
    )


def no_positives(history: History, settings: TrainSettings) -> Finding | None:
    """Find classes to whose objects no anchor was assigned in the last epoch."""
    return [name for name, count in history[-1]["positives"].items() if count == 0], (
        f"no anchor was positive for {{}} in epoch {history[-1]['epoch']}; check the names in --classes, that there "
        "are enough such objects to train on, and that they are large enough at this --size"
    )


def waiting_for_data(history: History, settings: TrainSettings) -> Finding | None:
    """Find a run that waits for its images."""
    waited, trained = (sum(row[key] for row in history) for key in ("wait_seconds", "train_seconds"))
    if waited <= max(START_UP, WAITING * trained):
        return None
    return ["data"], (
        f"{waited / trained:.0%} of the training time went by waiting for data ({waited:.0f} of {trained:.0f} s); "
        f"try more --workers (now {settings.workers}) if there are cores to spare"
    )


RULES = (loss_is_stuck, ap_is_zero, overfitting, no_positives, waiting_for_data)


def everything_found(row: Row) -> bool:
    """Tell whether AP50 is 100, but for the last digit: AP itself asks for IoUs that small boxes do not get."""
    return (row["COCO"]["AP50"] or 0.0) > 100 - 1e-6


@guarded
def diagnose_overfit(
    dataset: DetectionDataset, detections: Sequence[Detections], config: ModelConfig, history: History
) -> list[str]:
    """Say whether an overfit run found every object of its images, and of those that it did not, why."""
    steps, ap = history[-1]["step"], history[-1]["COCO"]["AP50"]
    images = "1 image" if len(dataset) == 1 else f"{len(dataset)} images"
    if everything_found(history[-1]):
        return [
            f"overfit: every object in {images} is found after {steps} steps (COCO AP50 is 100): the data and "
            "the model go together; now train on all images"
        ]
    faults = overfit_faults(dataset, detections, config)
    return [
        f"overfit: after {steps} steps COCO AP50 is {ap:.1f}, not 100, in the same {images}; see val-sheet.jpg",
        *(faults[:LISTED] or ["every object is found, but so is something else: add missing labels, or train longer"]),
        *([f"... and {len(faults) - LISTED} more"] if faults[LISTED:] else []),
    ]


def overfit_faults(dataset: DetectionDataset, detections: Sequence[Detections], config: ModelConfig) -> list[str]:
    """Say of each object that was not found, why: one line each."""
    faults = []
    for frame, found in zip(dataset.frames(), detections, strict=True):
        objects, sure = frame.labels != IGNORE, found.scores >= SCORE
        boxes, scale = torch.from_numpy(frame.boxes[objects]), letterbox_scale(frame.size, config.image_size)
        overlaps = iou(boxes, found.boxes[sure]) >= 0.5
        anchor_ious = max_anchor_iou(scale * boxes, model_anchors(config)).tolist()
        sizes = (scale * (boxes[:, 2:] - boxes[:, :2])).tolist()
        columns = zip(frame.labels[objects].tolist(), sizes, overlaps, anchor_ious, strict=True)
        for label, (width, height), overlap, anchor_iou in columns:
            near = found.labels[sure][overlap].tolist()
            if label in near:
                continue
            if near:
                fault = f"is detected as {config.classes[near[0]]}: check its label, or train longer"
            elif anchor_iou < 0.5:
                fault = f"fits no anchor (best IoU {anchor_iou:.2f}): try a larger --size, or another --anchor-scale"
            else:
                fault = "is missed: check its box, train longer, or change --lr"
            faults.append(f"{frame.name}: {config.classes[label]} of {width:.0f}x{height:.0f} input pixels {fault}")
    return faults


def data_notes(
    train_set: DetectionDataset, val_set: DetectionDataset, *, image_size: tuple[int, int], overfit: bool
) -> list[str]:
    """Say what is odd about the data; `tinydet check` says more, and of more images than `MAX_IMAGES`."""
    some = train_set.sample(MAX_IMAGES)
    notes = [*train_set.notes, *val_set.notes, *small_objects(some, image_size)]
    notes += crowded_notes(CocoTruth(*val_set.coco_annotations()))
    if found := duplicate_boxes(some):
        notes.append(f"{found[0]}" + (f", and {len(found) - 1} more; tinydet check names them" if found[1:] else ""))
    if len(train_set) > len(some):
        what = (
            f"{len(some)} of the {len(train_set)} training images were looked at for small objects and duplicate boxes"
        )
        return [*notes, f"{what}, and none for leakage into val; tinydet check looks at all"]
    return notes if overfit else [*notes, *train_val_leakage(train_set, val_set)]

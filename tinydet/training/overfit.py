"""The first thing to try on new data: whether a few pictures can be learned by heart, and what is wrong if not."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import fit_scale
from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.model.config import ModelConfig
from tinydet.model.detect import Detections, model_anchors
from tinydet.ops.anchors import coverage
from tinydet.ops.boxes import iou
from tinydet.training.settings import TrainSettings

STEPS = 20  # of an epoch
EPOCHS = 20  # at most
REPEATS = 41  # With fewer than 41 objects no detector gets an R40 of 100: every picture is scored as often as that.
SHOWN = 5


def overfit_settings(settings: TrainSettings) -> TrainSettings:
    """Settings without what keeps a run from learning by heart; augmentation and crops go where `overfit` is set."""
    assert settings.overfit is not None
    return dataclasses.replace(
        settings,
        batch_size=min(settings.batch_size or settings.overfit, settings.overfit),
        grad_accumulation=1,
        epochs=EPOCHS,
        weight_decay=0.0,
        ema_decay=0.0,
    )


def overfit_frames(dataset: DetectionDataset, count: int) -> tuple[DetectionDataset, DetectionDataset]:
    """The first frames that hold an object: often enough for an epoch of `STEPS` steps, and once, to validate on.

    Raises:
        InputError: there are fewer such frames.
    """
    rows = [row for row, labels in enumerate(dataset.labels) if (labels != IGNORE).any()]
    if len(rows) < count:
        raise InputError(f"overfit: asked for {count} pictures with objects, there are {len(rows)}")
    training, validation = dataset.take(rows[:count] * STEPS), dataset.take(rows[:count])
    training.split_note = f"{count} frames, {', '.join(validation.names)}, over and over"
    validation.split_note = "the same frames to validate on"
    return training, validation


def overfit_verdict(
    dataset: DetectionDataset, detections: Sequence[Detections], config: ModelConfig, history: Sequence[dict[str, Any]]
) -> list[str]:
    """Whether the frames were learned by heart, and what is wrong with every object that was not, a line each.

    Args:
        dataset: the frames that were trained on.
        detections: in them, in original pixels.
        config: the model's.
        history: the rows of all epochs.
    """
    count, steps, mean = len(dataset), history[-1]["step"], history[-1]["ap"]
    if mean == 100:
        return [f"overfit: everything in {count} pictures is found after {steps} steps; data and model go together"]
    faults = overfit_faults(dataset, detections, config)
    rest = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return [
        f"overfit: after {steps} steps AP in the same {count} pictures is {mean:.1f}, not 100; see val-sheet.jpg",
        *(faults[:SHOWN] or ["every object is found, but other things too: train longer, or look for missing labels"]),
        *rest,
    ]


def overfit_faults(
    dataset: DetectionDataset, detections: Sequence[Detections], config: ModelConfig, *, score_threshold: float = 0.3
) -> list[str]:
    """What is wrong with each object that was not learned, a line each; lower scores are not taken for an answer."""
    faults = []
    anchors = model_anchors(config)
    for row, found in enumerate(detections):
        labels = torch.from_numpy(dataset.labels[row])
        boxes = torch.from_numpy(dataset.boxes[row])[labels != IGNORE]
        labels, scale = labels[labels != IGNORE], fit_scale(dataset.sizes[row], config.image_size)
        sure = found.scores >= score_threshold
        overlaps = iou(boxes, found.boxes[sure])
        for box, label, reach, overlap in zip(boxes, labels, coverage(boxes * scale, anchors), overlaps, strict=True):
            fault = _fault(overlap, found.labels[sure], label, reach, config.classes)
            if fault:
                width, height = ((box[2:] - box[:2]) * scale).tolist()
                name = config.classes[int(label)]
                faults.append(f"{dataset.names[row]}: {name} of {width:.0f}x{height:.0f} input pixels {fault}")
    return faults


def _fault(
    overlap: torch.Tensor, found: torch.Tensor, label: torch.Tensor, reach: torch.Tensor, classes: Sequence[str]
) -> str:
    """Why an object is not among the detections, nothing if it is.

    Args:
        overlap: float[D], the IoU of each detection with the object.
        found: int64[D], their labels.
        label: the object's.
        reach: the best IoU of an anchor with the object.
        classes: their names.
    """
    near = overlap >= 0.5
    if (near & (found == label)).any():
        return ""
    if near.any():
        return f"was taken for {classes[int(found[near][0])]}: look at its label, or train longer"
    if reach < 0.5:
        return f"is reached by no anchor (best IoU {reach:.2f}): a larger --size, or another --anchor-scale"
    return "was not found: look at its box, train longer, or change --lr"

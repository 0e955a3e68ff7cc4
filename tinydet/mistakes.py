"""Mistakes: which detections are wrong and how, and which objects were not found."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinydet.data.dataset import DetectionDataset
from tinydet.labels import IGNORE
from tinydet.model.detect import Detections
from tinydet.ops.boxes import area, intersection, iou

MATCH, NEAR = 0.5, 0.1
"""IoU from which on a detection is of an object, and from which on it was meant for it."""
KINDS = ("missed", "false", "confused", "badly placed")


class Mistake(NamedTuple):
    """An object that was not found, or a detection that is wrong."""

    kind: str
    """One of `KINDS`: confused is of another class than the object it is on; badly placed overlaps one of its own class
    by less than half; false is all else."""
    row: int
    """Of the picture in the data set."""
    box: Tensor
    """float[4], xyxy, original pixels: of the detection, or of the object that was missed."""
    label: int
    """Of the detection, or of the object that was missed."""
    weight: float
    """How bad it is: the score of a detection, the area of an object in the input, as a share of the picture."""
    truth: int | None = None
    """Of a confused detection, the label of the object."""


def mistakes(
    dataset: DetectionDataset, detections: Sequence[Detections], *, score_threshold: float = 0.3
) -> tuple[list[Mistake], np.ndarray]:
    """What went wrong in a data set, the worst first, and what was taken for what.

    Detections, best first, take the object of their class that they overlap most, if by at least half; those that lie
    in an ignore region by half count neither way.

    Args:
        dataset: of K classes.
        detections: of each picture, in original pixels.
        score_threshold: lower scores are not looked at.

    Returns:
        The mistakes, and int64[K+1 K+1]: rows are true classes and nothing, columns what was found and nothing.
    """
    classes = len(dataset.classes)
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    found: list[Mistake] = []
    for row, one in enumerate(detections):
        sure = one.scores >= score_threshold
        labels = torch.from_numpy(dataset.labels[row])
        boxes = torch.from_numpy(dataset.boxes[row]).to(one.boxes.dtype)
        objects, regions = labels != IGNORE, boxes[labels == IGNORE]
        shown = Detections(*(field[sure] for field in one))
        height, width = dataset.sizes[row]
        for mistake in _frame(shown, boxes[objects], labels[objects], regions, confusion=confusion):
            share = float(area(mistake.box)) / (height * width)
            found.append(mistake._replace(row=row, weight=share if mistake.kind == "missed" else mistake.weight))
    return sorted(found, key=lambda one: -one.weight), confusion


def _frame(
    found: Detections, boxes: Tensor, labels: Tensor, regions: Tensor, *, confusion: np.ndarray
) -> Iterator[Mistake]:
    """The mistakes in one picture; what was taken for what is counted."""
    nothing, free = len(confusion) - 1, torch.ones(len(labels), dtype=torch.bool)
    overlaps = iou(found.boxes, boxes)
    inside = intersection(found.boxes, regions) / area(found.boxes).clamp(min=1e-9)[:, None]
    excused = (inside >= MATCH).any(1)
    wrong = []
    for i, label in enumerate(found.labels.tolist()):
        own = overlaps[i].where(free & (labels == label), 0)
        if len(own) and own.max() >= MATCH:
            free[own.argmax()] = False
            confusion[label, label] += 1
        else:
            wrong.append(i)
    for i in wrong:
        label, score = int(found.labels[i]), float(found.scores[i])
        other = overlaps[i].where(free & (labels != label), 0)
        if len(other) and other.max() >= MATCH:
            taken = int(other.argmax())
            free[taken] = False
            confusion[int(labels[taken]), label] += 1
            yield Mistake("confused", 0, found.boxes[i], label, score, truth=int(labels[taken]))
        elif not excused[i]:
            confusion[nothing, label] += 1
            near = overlaps[i].where(labels == label, 0)
            kind = "badly placed" if len(near) and near.max() >= NEAR else "false"
            yield Mistake(kind, 0, found.boxes[i], label, score)
    for i in free.nonzero()[:, 0].tolist():
        confusion[int(labels[i]), nothing] += 1
        yield Mistake("missed", 0, boxes[i], int(labels[i]), 0.0)

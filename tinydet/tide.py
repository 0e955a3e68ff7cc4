"""Sort detection errors by TIDE's types (Bolya et al., 2020), and count confusions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.postprocess import Detections
from tinydet.ops.boxes import area, intersection, iou

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # a detection from the first on matches an object, below the second has none
ERROR_TYPES = {
    "missed": "Objects without a detection.",
    "background": "Detections where there is no object, TIDE's “both” included: are labels missing?",
    "classification": "Detections of one class on an object of another.",
    "localisation": "Detections that overlap an object of their class by less than half.",
    "duplicate": "Detections of an object that a better detection has taken.",
}


class Outcome(NamedTuple):
    """What became of a detection, or of an object that was missed."""

    kind: str  # "correct", or one of ERROR_TYPES
    row: int  # of the image
    box: Tensor  # float[4], xyxy, original pixels
    label: int  # of the detection; BACKGROUND where an object was missed
    true_label: int  # of the object; BACKGROUND of a detection that has none
    weight: float  # which errors are ranked by: the detection's score; the missed object's share of the image


def detection_errors(data: DetectionDataset, detections: Sequence[Detections]) -> tuple[list[Outcome], np.ndarray]:
    """Find detection errors, the worst first, and the confusion matrix int64[K+1 K+1]: true by detected class.

    Detections, best first, take the object of their class that they overlap most, if by at least half; those that lie
    in an ignore region by half count neither way. The last row is of background, the last column of missed objects.
    """
    confusion = np.zeros((len(data.classes) + 1,) * 2, np.int64)
    outcomes = [one for i, found in enumerate(detections) for one in _outcomes(i, data.frame(i), found)]
    for one in outcomes:
        confusion[one.true_label, one.label] += 1  # BACKGROUND, -1, is the last
    return sorted((one for one in outcomes if one.kind != "correct"), key=lambda error: -error.weight), confusion


def _outcomes(row: int, frame: Frame, found: Detections) -> Iterator[Outcome]:
    """Sort the detections and the missed objects of one image."""
    boxes, labels = torch.from_numpy(frame.boxes), torch.from_numpy(frame.labels)
    inside = intersection(found.boxes, boxes[labels == IGNORE]) / area(found.boxes).clamp(min=1e-9)[:, None]
    boxes, labels = boxes[labels != IGNORE], labels[labels != IGNORE]
    # An object of no class, overlapped by nothing, comes last, so that there is always one that is overlapped most.
    overlaps, labels = pad(iou(found.boxes, boxes), (0, 1)), pad(labels, (0, 1), value=BACKGROUND)
    free, match = torch.ones(len(labels), dtype=torch.bool), torch.full((len(found.labels),), len(boxes))
    for own in (True, False):  # every detection first looks for an object of its own class
        for i, label in enumerate(found.labels):
            overlap, j = overlaps[i].where(free & ((labels == label) == own), 0).max(0)
            if match[i] == len(boxes) and overlap >= FOREGROUND_IOU:
                match[i], free[j] = j, False
    columns = found.boxes, found.scores.tolist(), found.labels.tolist(), labels[match].tolist()
    for i, (box, score, label, true) in enumerate(zip(*columns, strict=True)):
        nearest = overlaps[i].where(labels == label, 0).max()
        kind = "correct" if true == label else "classification"
        if true == BACKGROUND:
            kind = "localisation" if nearest >= BACKGROUND_IOU else "background"
            kind = "duplicate" if nearest >= FOREGROUND_IOU else kind
        if true != BACKGROUND or not (inside[i] >= FOREGROUND_IOU).any():
            yield Outcome(kind, row, box, label, true, score)
    for j in free[:-1].nonzero()[:, 0].tolist():
        share = float(area(boxes[j])) / (frame.size[0] * frame.size[1])
        yield Outcome("missed", row, boxes[j], BACKGROUND, int(labels[j]), share)

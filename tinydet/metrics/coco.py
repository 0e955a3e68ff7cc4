"""COCO mean average precision of boxes, with the numbers of pycocotools.

Boxes are (left, top, width, height) as in COCO's files: left + width - left is seldom width in floating point.

Reference: Lin et al., Microsoft COCO, ECCV 2014; `pycocotools/cocoeval.py` 2.0.11, which never finds an object of id 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinydet.metrics.matching import Bools, Floats, Ints, greedy_match

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Square pixels; both ends belong to each.
AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
MAX_DETECTIONS = (1, 10, 100)  # of the best detections of a class in an image; beyond the last, none counts
STATS = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large"),
)
BLOCK = 2**20  # pairs of boxes whose IoU is computed at a time


class CocoTruth(NamedTuple):
    """The N objects of a data set, in the order of its file."""

    images: Ints  # [N], the image each is in, numbered in the order of their ids
    labels: Ints  # [N]
    boxes: Floats  # [N 4], left, top, width, height
    areas: Floats  # [N], as annotated: of the object's outline, where that is known
    crowd: Bools  # [N], regions that any number of detections may lie in


class CocoResult(NamedTuple):
    """D detections, in the order of their file, by which ties are broken."""

    images: Ints  # [D]
    labels: Ints  # [D]
    boxes: Floats  # [D 4], left, top, width, height
    scores: Floats  # [D], any real numbers, more is better


_Columns = TypeVar("_Columns", CocoTruth, CocoResult)


class CocoScores(NamedTuple):
    """Precision and recall by class and size: fractions, -1 where there is no object."""

    precision: Floats  # [10 101 K 4], by IoU, recall, class, `AREAS`; never rising with recall; of 100 detections
    recall: Floats  # [10 K 4 3], by IoU, class, `AREAS` and `MAX_DETECTIONS`
    n_gt: Ints  # [K 4], objects that count, by class and `AREAS`

    @property
    def stats(self) -> Floats:
        """Average to the twelve numbers that `STATS` names, float64[12]."""
        numbers = [self.precision[..., 0], self.precision[0, ..., 0], self.precision[5, ..., 0]]
        numbers += [self.precision[..., area] for area in (1, 2, 3)]
        numbers += [self.recall[..., 0, count] for count in (0, 1, 2)]
        numbers += [self.recall[..., area, 2] for area in (1, 2, 3)]
        return np.array([_mean(number) for number in numbers])

    @property
    def per_class_ap(self) -> Floats:
        """Average to the AP of each class, float64[K]."""
        return np.array([_mean(self.precision[:, :, k, 0]) for k in range(self.precision.shape[2])])


def coco_scores(truth: CocoTruth, result: CocoResult, *, classes: int) -> CocoScores:
    """Compute COCO's precision and recall of labels 0 .. classes - 1, whose means are the twelve numbers.

    Raises:
        ValueError: lengths or shapes that do not fit, labels out of range, or numbers that are not finite.
    """
    _check(truth, result, classes=classes)
    truth, result, ranks = _in_order(truth, result)
    pairs, iou = _overlapping_pairs(truth, result)
    precision = np.full((len(IOUS), len(RECALLS), classes, len(AREAS)), -1.0)
    recall = np.full((len(IOUS), classes, len(AREAS), len(MAX_DETECTIONS)), -1.0)
    n_gt = np.zeros((classes, len(AREAS)), np.int64)
    bounds = np.searchsorted(result.labels, np.arange(classes + 1))
    order = np.lexsort((-result.scores, result.labels))  # within a class best first, images in their order
    for a, (low, high) in enumerate(AREAS.values()):
        ignored = truth.crowd | (truth.areas < low) | (truth.areas > high)
        n_gt[:, a] = np.bincount(truth.labels[~ignored], minlength=classes)
        sizes = result.boxes[:, 2] * result.boxes[:, 3]
        found, excused = _match(pairs, iou, truth, ranks, ignored)
        tp, fp = found & ~excused, ~found & ~((sizes < low) | (sizes > high))[:, None]
        for k in np.flatnonzero(n_gt[:, a]):
            rows = order[bounds[k] : bounds[k + 1]]
            precision[..., k, a] = _curves(tp[rows], fp[rows], n_gt=n_gt[k, a])
            for m, most in enumerate(MAX_DETECTIONS):
                recall[:, k, a, m] = tp[rows[ranks[rows] < most]].sum(0) / n_gt[k, a]
    return CocoScores(precision, recall, n_gt)


def crowded_notes(truth: CocoTruth) -> list[str]:
    """Say, in a note or none, how many images hold more objects than detections count or are kept in validation."""
    most = MAX_DETECTIONS[-1]
    crowded = int((np.bincount(truth.images[~truth.crowd]) > most).sum())
    if not crowded:
        return []
    limits = f"COCO's AP counts {most} detections an image and class, and validation keeps {most} an image"
    return [f"{crowded} {'images hold' if crowded > 1 else 'image holds'} more than {most} objects; {limits}"]


def _check(truth: CocoTruth, result: CocoResult, *, classes: int) -> None:
    """Raise ValueError for arguments that `coco_scores` cannot take."""
    for what, fields in (("truth", truth), ("result", result)):
        for name, values in zip(fields._fields, fields, strict=True):
            shape = (len(fields.images), 4)[: 1 + (name == "boxes")]
            if values.shape != shape:
                raise ValueError(f"{what}.{name} must have shape {shape}, got {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{what}.{name} must be finite, got {values[~np.isfinite(values)][0]}")
        if ((fields.labels < 0) | (fields.labels >= classes)).any():
            raise ValueError(f"{what}.labels must be 0 .. {classes - 1}, got {fields.labels.tolist()}")


def _in_order(truth: CocoTruth, result: CocoResult) -> tuple[CocoTruth, CocoResult, Ints]:
    """Sort by class and image, best first; and rank the detections of a class in an image, int64[D] from 0."""
    truth = _select(truth, np.lexsort((truth.images, truth.labels)))
    result = _select(result, np.lexsort((-result.scores, result.images, result.labels)))
    new = np.diff(result.labels, prepend=-1).astype(bool) | np.diff(result.images, prepend=-1).astype(bool)
    starts = np.flatnonzero(new)
    ranks = np.arange(len(new)) - np.repeat(starts, np.diff(starts, append=len(new)))
    counts = ranks < MAX_DETECTIONS[-1]
    return truth, _select(result, counts), ranks[counts]


def _select(columns: _Columns, rows: Ints | Bools) -> _Columns:
    """Select rows of all columns."""
    selected: list[Any] = [column[rows] for column in columns]
    return type(columns)(*selected)


def _overlapping_pairs(truth: CocoTruth, result: CocoResult) -> tuple[Ints, Floats]:
    """Find the pairs of one class and image, rows int64[P 2] of truth and result, with an IoU float64[P] >= .5."""
    images = 1 + max(truth.images.max(initial=0), result.images.max(initial=0))
    groups, wanted = truth.labels * images + truth.images, result.labels * images + result.images
    first = np.searchsorted(groups, wanted, "left")
    counts = np.searchsorted(groups, wanted, "right") - first
    ends = np.cumsum(counts)
    blocks = np.searchsorted(ends, np.arange(BLOCK, ends.max(initial=0), BLOCK))
    found = [(np.zeros((0, 2), np.int64), np.zeros(0))]
    for rows in np.split(np.arange(len(counts)), blocks):
        detection = np.repeat(rows, counts[rows])
        start = np.cumsum(counts[rows]) - counts[rows]
        object_ = np.arange(len(detection)) + np.repeat(first[rows] - start, counts[rows])
        iou = _iou(truth.boxes[object_], result.boxes[detection], truth.crowd[object_])
        near = iou >= IOUS[0]
        found.append((np.stack([object_[near], detection[near]], axis=1), iou[near]))
    pairs, ious = zip(*found, strict=True)
    return np.concatenate(pairs), np.concatenate(ious)


def _iou(objects: Floats, detections: Floats, crowd: Bools) -> Floats:
    """Compute the IoU of P pairs, float64[P]; of a crowd, intersection / area of the detection."""
    corner = np.maximum(objects[:, :2], detections[:, :2])
    sides = np.minimum(objects[:, :2] + objects[:, 2:], detections[:, :2] + detections[:, 2:]) - corner
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0)
    area = detections[:, 2] * detections[:, 3]
    union = np.where(crowd, area, area + objects[:, 2] * objects[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _match(pairs: Ints, iou: Floats, truth: CocoTruth, ranks: Ints, ignored: Bools) -> tuple[Bools, Bools]:
    """Match detections, best first, to objects: to those that count before those that are ignored, then by IoU.

    -> bool[D 10] twice: detections that match an object, and that match one that is ignored.
    """
    objects, detections = pairs.T
    matched = greedy_match(
        *(detections, objects),
        ranks=ranks[detections],
        preference=(-objects, -iou, ignored[objects]),
        allowed=iou[:, None] >= np.minimum(IOUS, 1 - 1e-10),
        shared=truth.crowd[objects],
    )
    found, excused = np.zeros((2, len(ranks), len(IOUS)), bool)
    pair, column = np.nonzero(matched)
    found[detections[pair], column] = True
    excused[detections[pair], column] = ignored[objects[pair]]
    return found, excused


def _curves(tp: Bools, fp: Bools, *, n_gt: int) -> Floats:
    """Compute float64[10 101], precision by recall, of a class's detections, bool[D 10], best first."""
    true, false = np.cumsum(tp, axis=0), np.cumsum(fp, axis=0)
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    curves = np.zeros((tp.shape[1], len(RECALLS)))
    for curve, reached, values in zip(curves, (true / n_gt).T, precision.T, strict=True):
        slots = np.searchsorted(reached, RECALLS)
        curve[slots < len(values)] = values[slots[slots < len(values)]]
    return curves


def _mean(values: Floats) -> float:
    """Return the mean of the values that are defined, or -1."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else -1.0

"""COCO mean average precision, number for number what pycocotools computes for boxes.

Boxes are (left, top, width, height) here and nowhere else, as in COCO's files: left + width - left is seldom width in
floating point, and a box of exactly 32 x 32 is both small and medium.

Reference: Lin et al., Microsoft COCO, ECCV 2014; `pycocotools/cocoeval.py` 2.0.11. One difference: there an object
whose annotation has the id 0 is never found.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinydet.metrics.matching import match_in_turns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""Square pixels; both ends belong to each."""
MAX_DETECTIONS = (1, 10, 100)
"""Of a class in a picture, the best; more than the last do not count."""
STATS = tuple(
    [f"AP{suffix}" for suffix in ("", "50", "75", " small", " medium", " large")]
    + [f"AR{suffix}" for suffix in ("@1", "@10", "@100", " small", " medium", " large")]
)
"""What the twelve numbers are, in pycocotools' order."""
BLOCK = 2**20  # pairs of boxes at a time


class CocoTruth(NamedTuple):
    """The N objects of a data set, in the order of its file."""

    images: Ints  # [N], picture each is in, numbered in the order of their ids
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
    """Precision and recall by class and size; fractions, and -1 where there is nothing to be found."""

    precision: Floats
    """[10 101 K 4]: by IoU, recall, class and `AREAS`, never rising with recall; of at most 100 detections."""
    recall: Floats
    """[10 K 4 3]: by IoU, class, `AREAS` and `MAX_DETECTIONS`."""
    n_gt: Ints
    """[K 4]: objects that had to be found, by class and `AREAS`."""

    @property
    def stats(self) -> Floats:
        """The twelve numbers, as `STATS` names them."""
        numbers = [self.precision[..., 0], self.precision[0, ..., 0], self.precision[5, ..., 0]]
        numbers += [self.precision[..., area] for area in (1, 2, 3)]
        numbers += [self.recall[..., 0, count] for count in (0, 1, 2)]
        numbers += [self.recall[..., area, 2] for area in (1, 2, 3)]
        return np.array([_mean(number) for number in numbers])

    @property
    def per_class_ap(self) -> Floats:
        """float64[K]: the first of the twelve numbers for each class."""
        return np.array([_mean(self.precision[:, :, k, 0]) for k in range(self.precision.shape[2])])


def coco_scores(truth: CocoTruth, result: CocoResult, *, classes: int) -> CocoScores:
    """Precision and recall of detections, from which the twelve numbers are means.

    Args:
        truth: the objects; pictures without any need not be named, their detections count as false all the same.
        result: the detections.
        classes: K; labels are 0 .. K-1.

    Raises:
        ValueError: lengths or shapes that do not fit, labels out of range, numbers that are not finite.
    """
    _check(truth, result, classes=classes)
    truth, result, ranks = _in_order(truth, result)
    pairs, iou = _overlapping_pairs(truth, result)
    precision = np.full((len(IOUS), len(RECALLS), classes, len(AREAS)), -1.0)
    recall = np.full((len(IOUS), classes, len(AREAS), len(MAX_DETECTIONS)), -1.0)
    n_gt = np.zeros((classes, len(AREAS)), np.int64)
    bounds = np.searchsorted(result.labels, np.arange(classes + 1))
    order = np.lexsort((-result.scores, result.labels))  # within a class best first, pictures in their order
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


def _check(truth: CocoTruth, result: CocoResult, *, classes: int) -> None:
    """Raise ValueError for what `coco_scores` cannot take."""
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
    """By class, by picture, detections best first and no more than count; and the place of each in its picture."""
    truth = _taken(truth, np.lexsort((truth.images, truth.labels)))
    result = _taken(result, np.lexsort((-result.scores, result.images, result.labels)))
    new = np.diff(result.labels, prepend=-1).astype(bool) | np.diff(result.images, prepend=-1).astype(bool)
    starts = np.flatnonzero(new)
    ranks = np.arange(len(new)) - np.repeat(starts, np.diff(starts, append=len(new)))
    counts = ranks < MAX_DETECTIONS[-1]
    return truth, _taken(result, counts), ranks[counts]


def _taken(columns: _Columns, rows: Ints | Bools) -> _Columns:
    """The same columns, of these rows."""
    taken: list[Any] = [column[rows] for column in columns]
    return type(columns)(*taken)


def _overlapping_pairs(truth: CocoTruth, result: CocoResult) -> tuple[Ints, Floats]:
    """Every pair of an object and a detection of its class and picture with an IoU that may do.

    Returns:
        int64[P 2], rows of truth and of result, and float64[P], their IoU; beside a crowd the share of the detection.
    """
    pictures = 1 + max(truth.images.max(initial=0), result.images.max(initial=0))
    groups, wanted = truth.labels * pictures + truth.images, result.labels * pictures + result.images
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
    """float64[P] of P pairs of boxes; beside a crowd, intersection / area of the detection."""
    corner = np.maximum(objects[:, :2], detections[:, :2])
    sides = np.minimum(objects[:, :2] + objects[:, 2:], detections[:, :2] + detections[:, 2:]) - corner
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0)
    area = detections[:, 2] * detections[:, 3]
    union = np.where(crowd, area, area + objects[:, 2] * objects[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _match(pairs: Ints, iou: Floats, truth: CocoTruth, ranks: Ints, ignored: Bools) -> tuple[Bools, Bools]:
    """The detections, best first, take an object each: one that counts before one that is ignored, then by IoU.

    Returns:
        bool[D 10] twice: detections that took an object, and that took one that is ignored.
    """
    objects, detections = pairs.T
    matched = match_in_turns(
        *(detections, objects),
        turns=ranks[detections],
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
    """float64[10 101]: precision at each recall, of a class's detections best first, bool[D 10]."""
    true, false = np.cumsum(tp, axis=0), np.cumsum(fp, axis=0)
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    curves = np.zeros((tp.shape[1], len(RECALLS)))
    for curve, reached, values in zip(curves, (true / n_gt).T, precision.T, strict=True):
        slots = np.searchsorted(reached, RECALLS)
        curve[slots < len(values)] = values[slots[slots < len(values)]]
    return curves


def _mean(values: Floats) -> float:
    """The mean of what is defined, or -1."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else -1.0

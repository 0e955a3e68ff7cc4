"""KITTI 2D average precision, with the numbers of the official evaluator.

float64 throughout: in float32 ordinary files go wrong, since .15f > .15. Boxes are x2 - x1 wide, with no + 1 anywhere.

Reference: the object devkit's `evaluate_object.cpp` as of October 2019, when R40 replaced R11
(Geiger, Lenz and Urtasun, CVPR 2012; Simonelli et al., ICCV 2019, for R40).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinydet.metrics.matching import Bools, Floats, Ints, greedy_match

CLASSES = ("Car", "Pedestrian", "Cyclist")
RECALL_STEPS = 40  # slot k of a curve is recall k / 40


class Difficulty(NamedTuple):
    """Limits of the objects that count; heights in pixels."""

    min_height: int
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = {"easy": Difficulty(40, 0, 0.15), "moderate": Difficulty(25, 1, 0.30), "hard": Difficulty(25, 2, 0.50)}
MIN_IOU = {"car": 0.7}  # every other class: .5
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # so alike that detecting one is no error


class KittiTruth(NamedTuple):
    """The label file of one frame: N objects in file order, DontCare regions among them."""

    types: Sequence[str] | NDArray[np.str_]
    truncated: Floats  # [N], 0..1
    occluded: Ints  # [N], 0..3
    boxes: Floats  # [N 4], xyxy, original pixels


class KittiResult(NamedTuple):
    """The detections of one frame: D of them in file order."""

    types: Sequence[str] | NDArray[np.str_]
    boxes: Floats  # [D 4], xyxy, original pixels
    scores: Floats  # [D], any real numbers, more is better


class KittiCurve(NamedTuple):
    """Precision over recall for one class at one difficulty, at T <= 41 score thresholds in falling order."""

    n_gt: int  # objects that count
    thresholds: Floats  # [T]
    tp: Ints  # [T]
    fp: Ints  # [T]
    fn: Ints  # [T]
    precision: Floats  # [41] in 0..1, never rising; slot k is recall k / 40

    @property
    def r40(self) -> float:
        """Average over recalls 1/40, 2/40 .. 1, in percent: the official AP."""
        return 100 * float(self.precision[1:].mean())

    @property
    def r11(self) -> float:
        """Average over recalls 0, .1 .. 1, in percent: the AP of papers before 2019."""
        return 100 * float(self.precision[::4].mean())


def kitti_ap(
    truths: Sequence[KittiTruth], results: Sequence[KittiResult], *, classes: Sequence[str] = CLASSES
) -> dict[str, Any]:
    """Compute average precision in percent, with the counts of objects; arguments as for `kitti_curves`.

    With n_gt < 41 even a perfect detector gets only (n_gt - 1) / 40 of R40, so show n_gt beside it. A class without any
    detection has AP 0; the official program prints nothing for it (nor where all of its detections have x1 < 0).

    -> {"R40": {class: {"easy": percent, "moderate": ..., "hard": ...}}, "R11": likewise, "n_gt": counts likewise}
    """
    curves = kitti_curves(truths, results, classes=classes)

    def table(number: Callable[[KittiCurve], float]) -> dict[str, dict[str, float]]:
        return {name: {level: number(curve) for level, curve in levels.items()} for name, levels in curves.items()}

    return {"R40": table(lambda c: c.r40), "R11": table(lambda c: c.r11), "n_gt": table(lambda c: c.n_gt)}


def kitti_curves(
    truths: Sequence[KittiTruth], results: Sequence[KittiResult], *, classes: Sequence[str] = CLASSES
) -> dict[str, dict[str, KittiCurve]]:
    """Compute precision-recall curves by class and difficulty, from one truth and one result for every frame.

    The classes are compared without regard to case. Other names than the official three are an extension: they match
    at IoU .5 and have no neighbour class.

    Raises:
        ValueError: lengths or shapes that do not fit, floats that are not float64, numbers that are not finite.
    """
    if len(truths) != len(results) or not truths:
        raise ValueError(f"one result per frame, at least one frame: got {len(truths)} truths, {len(results)} results")
    truth, result = _join("truths", truths), _join("results", results)
    pairs = _overlapping_pairs([t.boxes for t in truths], [r.boxes for r in results])
    return {
        name: {level: _curve(truth, result, pairs, name.lower(), limits) for level, limits in DIFFICULTIES.items()}
        for name in classes
    }


class _Pairs(NamedTuple):
    """P pairs of an object and a detection of the same frame that overlap, numbered across all frames."""

    rank: Ints  # [P], the object's place in its file
    truth: Ints  # [P]
    detection: Ints  # [P]
    iou: Floats  # [P]
    covered: Floats  # [P], intersection / area of the detection


_Frame = TypeVar("_Frame", KittiTruth, KittiResult)


def _join(what: str, frames: Sequence[_Frame]) -> _Frame:
    """Check frames and join them end to end as one, types in lower case."""
    columns: dict[str, Any] = {"types": np.array([name.lower() for frame in frames for name in frame.types], dtype=str)}
    for field in frames[0]._fields[1:]:
        for i, frame in enumerate(frames):
            values, shape = getattr(frame, field), (len(frame.types), 4)[: 1 + (field == "boxes")]
            if values.shape != shape:
                raise ValueError(f"{what}[{i}].{field} must have shape {shape}, got {values.shape}")
            if field != "occluded" and values.dtype != np.float64:
                raise ValueError(f"{what}[{i}].{field} must be float64, got {values.dtype}")
        columns[field] = np.concatenate([getattr(frame, field) for frame in frames])
        if not np.isfinite(columns[field]).all():
            i = next(i for i, frame in enumerate(frames) if not np.isfinite(getattr(frame, field)).all())
            raise ValueError(f"{what}[{i}].{field} must be finite, got {getattr(frames[i], field).tolist()}")
    return type(frames[0])(**columns)


def _overlapping_pairs(truth_boxes: Sequence[Floats], result_boxes: Sequence[Floats]) -> _Pairs:
    """Find all pairs of boxes in one frame whose intersection is not empty."""
    found = []
    n_truths = n_detections = 0
    for a, b in zip(truth_boxes, result_boxes, strict=True):
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T[..., None], b.T  # float64[N 1] and float64[D]
        width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
        height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
        i, j = np.nonzero((width > 0) & (height > 0))
        found.append((i, i + n_truths, j + n_detections, width[i, j] * height[i, j]))
        n_truths, n_detections = n_truths + len(a), n_detections + len(b)
    rank, truth, detection, intersection = map(np.concatenate, zip(*found, strict=True))
    truth_area, area = _area(np.concatenate(truth_boxes))[truth], _area(np.concatenate(result_boxes))[detection]
    return _Pairs(rank, truth, detection, intersection / (area + truth_area - intersection), intersection / area)


def _area(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _truth_flags(truth: KittiTruth, name: str, limits: Difficulty) -> Ints:
    """Flag objects: 0 counts; 1 is ignored, found or not; -1 takes no part."""
    types = np.asarray(truth.types)
    own, neighbour = types == name, types == NEIGHBOURS.get(name, name)
    height = truth.boxes[:, 3] - truth.boxes[:, 1]
    clear = (truth.occluded <= limits.max_occlusion) & (truth.truncated <= limits.max_truncation)
    return np.select([own & clear & (height > limits.min_height), own | neighbour], [0, 1], -1)


def _detection_flags(result: KittiResult, name: str, limits: Difficulty) -> Ints:
    """Flag detections: 0 counts, at exactly the limit too; 1 is ignored as too low, of any class; -1 takes no part."""
    height = result.boxes[:, 3] - result.boxes[:, 1]
    return np.select([height < limits.min_height, np.asarray(result.types) == name], [1, 0], -1)


def _curve(truth: KittiTruth, result: KittiResult, pairs: _Pairs, name: str, limits: Difficulty) -> KittiCurve:
    """Run the two passes of the protocol, over all frames at once."""
    truth_flags, flags = _truth_flags(truth, name, limits), _detection_flags(result, name, limits)
    min_iou = MIN_IOU.get(name, 0.5)
    n_gt = int(np.count_nonzero(truth_flags == 0))
    dontcare = np.asarray(truth.types) == "dontcare"
    excused = np.zeros(len(flags), bool)
    excused[pairs.detection[dontcare[pairs.truth] & (pairs.covered > min_iou)]] = True
    possible = (pairs.iou > min_iou) & (truth_flags[pairs.truth] >= 0) & (flags[pairs.detection] >= 0)
    columns: Any = (column[possible] for column in pairs)
    pairs = _Pairs(*columns)
    required, counts = truth_flags[pairs.truth] == 0, flags[pairs.detection] == 0

    # Pass 1, all scores: an object matches the detection of highest score. The scores of true positives are collected.
    score = result.scores[pairs.detection]
    matched, _ = _match(pairs, -score, result.scores, np.array([-np.inf]))
    thresholds = _thresholds(score[matched[:, 0] & required & counts], n_gt)

    # Pass 2, scores >= threshold: the detection of greatest IoU, or else the first of those too low. This pass counts.
    matched, free = _match(pairs, np.where(counts, -pairs.iou, 0), result.scores, thresholds)
    tp = matched[required & counts].sum(0)
    fn = n_gt - matched[required].sum(0)  # an object that matches a detection too low is neither found nor missed
    fp = free[(flags == 0) & ~excused].sum(0)

    precision = np.zeros(RECALL_STEPS + 1)
    precision[: len(thresholds)] = tp / np.maximum(tp + fp, 1)  # 0 where nothing counts: the official program has NaN
    return KittiCurve(n_gt, thresholds, tp, fp, fn, np.maximum.accumulate(precision[::-1])[::-1])


def _match(pairs: _Pairs, cost: Floats, scores: Floats, thresholds: Floats) -> tuple[Bools, Bools]:
    """Match the objects of each frame, in file order, to a free detection each, separately at every threshold.

    An object prefers the least cost, float64[P]; the first in the file wins a tie.
    -> bool[P T], the pairs that matched; bool[D T], the detections of score >= threshold without a match.
    """
    free = scores[:, None] >= thresholds
    allowed = free[pairs.detection]
    matched = greedy_match(
        pairs.truth, pairs.detection, ranks=pairs.rank, preference=(pairs.detection, cost), allowed=allowed
    )
    pair, column = np.nonzero(matched)
    free[pairs.detection[pair], column] = False
    return matched, free


def _thresholds(scores: Floats, n_gt: int) -> Floats:
    """Select at most 41 of the true positives' scores: those of recalls nearest to 0, 1/40, 2/40 .. 1."""
    falling = np.sort(scores)[::-1]
    kept, recall = [], 0.0
    for i in range(len(falling)):
        last = i == len(falling) - 1
        if last or (i + 2) / n_gt - recall >= recall - (i + 1) / n_gt:
            kept.append(i)
            recall += 1 / RECALL_STEPS
    return falling[kept]

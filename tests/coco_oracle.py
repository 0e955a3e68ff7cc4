"""COCO's protocol in plain loops, an image, a class, a size and a threshold at a time."""

from typing import Any

import numpy as np

from tinydet.metrics.coco import AREAS, IOUS, MAX_DETECTIONS, RECALLS, CocoResult, CocoTruth


def oracle(truth: CocoTruth, result: CocoResult, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The precision and the recall of `coco_scores`."""
    precision = np.full((len(IOUS), len(RECALLS), classes, len(AREAS)), -1.0)
    recall = np.full((len(IOUS), classes, len(AREAS), len(MAX_DETECTIONS)), -1.0)
    images = sorted({*truth.images.tolist(), *result.images.tolist()})
    for k in range(classes):
        for a, limits in enumerate(AREAS.values()):
            for m, most in enumerate(MAX_DETECTIONS):
                for t, threshold in enumerate(IOUS):
                    n_gt, outcomes = 0, list[Any]()
                    for image in images:
                        count, found = _image(truth, result, image, k, limits, most, min(threshold, 1 - 1e-10))
                        n_gt, outcomes = n_gt + count, outcomes + found
                    if n_gt:
                        curve, recall[t, k, a, m] = _accumulate(outcomes, n_gt)
                        if most == MAX_DETECTIONS[-1]:
                            precision[t, :, k, a] = curve
    return precision, recall


def _image(truth, result, image, label, limits, most, threshold):
    """Count the objects of an image, and (score, whether it is right) of each detection that counts."""

    def outside(area):
        return area < limits[0] or area > limits[1]

    rows = [i for i in range(len(truth.images)) if truth.images[i] == image and truth.labels[i] == label]
    ignored = {i: bool(truth.crowd[i]) or outside(truth.areas[i]) for i in rows}
    rows.sort(key=lambda i: ignored[i])
    mine = [d for d in range(len(result.images)) if result.images[d] == image and result.labels[d] == label]
    mine = sorted(mine, key=lambda d: -result.scores[d])[:most]
    taken, outcomes = set(), []
    for d in mine:
        best, match = threshold, None
        for i in rows:
            if i in taken and not truth.crowd[i]:
                continue
            if match is not None and not ignored[match] and ignored[i]:
                break
            if (iou := _iou(truth.boxes[i], result.boxes[d], truth.crowd[i])) >= best:
                best, match = iou, i
        if match is not None:
            taken.add(match)
        if not (ignored[match] if match is not None else outside(result.boxes[d, 2] * result.boxes[d, 3])):
            outcomes.append((result.scores[d], match is not None))
    return sum(not one for one in ignored.values()), outcomes


def _iou(a, b, crowd):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, b[2] * b[3]
    return shared / (area if crowd else area + a[2] * a[3] - shared)


def _accumulate(outcomes, n_gt):
    """Precision at each of the recalls, and the last recall."""
    outcomes = sorted(outcomes, key=lambda one: -one[0])
    true, points = 0, []
    for n, (_, right) in enumerate(outcomes, start=1):
        true += right
        points.append((true / n_gt, true / (n + np.spacing(1))))
    curve = [max((p for r, p in points if r >= wanted), default=0.0) for wanted in RECALLS]
    return curve, true / n_gt

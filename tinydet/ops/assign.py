"""Assignment: the targets of each anchor, given the ground truth of an image."""

from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops.boxes import SMALLEST_UNION, area, encode, intersection


class Targets(NamedTuple):
    """The targets of each anchor of an image; or of a batch, with a leading B."""

    labels: Tensor  # int64[A]: a class, BACKGROUND, or IGNORE where the loss must not look
    deltas: Tensor  # float[A 4]: the matched box, encoded; 0 where there is none
    matches: Tensor  # int64[A]: the matched row of the ground truth, or -1


def assign(boxes: Tensor, labels: Tensor, anchors: Tensor, *, iou_threshold: float = 0.5) -> Targets:
    """Assign the ground truth of one image to its anchors.

    An anchor takes the object it overlaps most if that is by at least `iou_threshold`; then every object takes the
    anchor that overlaps it most, however little, the first object winning where two want the same. An anchor left
    over is IGNORE if more than half its area lies in one ignore region, else BACKGROUND. Ties go to the first.

    Args:
        boxes: float[M 4], xyxy pixels of the network's input. An object that touches no anchor gets none.
        labels: int64[M]; rows labelled IGNORE are ignore regions, rows labelled BACKGROUND are padding, which may be
            NaN.
        anchors: float[A 4], same frame.

    Returns:
        Targets of the A anchors.

    Reference: EfficientDet's one threshold of .5 and google/automl's forced matches. Ignore regions are an addition.
    """
    if not len(boxes):  # nothing to reduce over: one row of padding means the same
        boxes, labels = boxes.new_zeros(1, 4), labels.new_full((1,), BACKGROUND)
    shared, anchor_area = intersection(boxes, anchors), area(anchors)  # [M A], [A]
    union = area(boxes)[:, None] + anchor_area - shared
    is_object = (labels >= 0)[:, None]
    overlap = shared / union.clamp(min=SMALLEST_UNION)
    match = match_anchors(overlap.where(is_object, 0), iou_threshold=iou_threshold)
    ignored = (shared > 0.5 * anchor_area).logical_and((labels == IGNORE)[:, None]).any(0)
    matched, row = match >= 0, match.clamp(min=0)
    return Targets(
        labels=labels[row].where(matched, torch.where(ignored, IGNORE, BACKGROUND)),
        deltas=encode(boxes.where(is_object, 0)[row], anchors).where(matched[:, None], 0),
        matches=match,
    )


def match_anchors(overlap: Tensor, *, iou_threshold: float) -> Tensor:
    """Match anchors with objects by IoU. float[M A] -> int64[A], a row or -1."""
    count = len(overlap)
    best, match = overlap.max(0)  # of each anchor
    match = match.where(best >= iou_threshold, -1)
    best, favourite = overlap.max(1)  # of each object
    row = torch.arange(count, device=match.device).where(best > 0, count)
    forced = torch.full_like(match, count).scatter_reduce(0, favourite, row, "amin")
    return forced.where(forced < count, match)


def assign_batch(boxes: Tensor, labels: Tensor, anchors: Tensor, *, iou_threshold: float = 0.5) -> Targets:
    """Assign the ground truth of every image of a batch. float[B M 4], int64[B M], float[A 4] -> Targets."""

    def assign_one(boxes: Tensor, labels: Tensor) -> Targets:
        return assign(boxes, labels, anchors, iou_threshold=iou_threshold)

    # On CPU the planes of one image fit the cache and those of a batch do not: 3 to 5 times faster one by one.
    chunk_size = 1 if boxes.device.type == "cpu" and len(boxes) else None
    return torch.func.vmap(assign_one, chunk_size=chunk_size)(boxes, labels)

"""Assignment: the targets of each anchor, given the ground truth of an image."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops.anchors import LEVELS, feature_sizes
from tinydet.ops.boxes import SMALLEST_UNION, area, at_least_float32, encode, intersection, xyxy_to_cxcywh


class Targets(NamedTuple):
    """The targets of each anchor of an image; or of a batch, with a leading B."""

    labels: Tensor  # int64[A]: a class, BACKGROUND, or IGNORE where the loss must not look
    deltas: Tensor  # float[A 4]: the matched box, encoded; 0 where there is none
    matches: Tensor  # int64[A]: the matched row of the ground truth, or -1


def assign(
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    *,
    iou_threshold: float = 0.5,
    image_size: tuple[int, int] | None = None,
    levels: Sequence[int] = LEVELS,
) -> Targets:
    """Assign the ground truth of one image to its anchors.

    An anchor takes the object it overlaps most, of those that it overlaps by at least `iou_threshold`; or with
    `image_size`, of those whose `adaptive_candidates` it is one of, for IoUs in their `nearest_cells` alone. Then every
    object takes the anchor that overlaps it most, however little, the first object winning where two want the same. An
    anchor left over is IGNORE if more than half its area lies in one ignore region, else BACKGROUND. Ties go to the
    first.

    Args:
        boxes: float[M 4], xyxy pixels of the network's input. An object that touches no anchor gets none.
        labels: int64[M]; rows labelled IGNORE are ignore regions, rows labelled BACKGROUND are padding, which may be
            NaN.
        anchors: float[A 4], same frame.
        image_size, levels: (height, width) and the pyramid's levels that they are the `anchors` of.

    Returns:
        Targets of the A anchors.

    Reference: EfficientDet's one threshold of .5 and google/automl's forced matches. Ignore regions are an addition.
    """
    if not len(boxes):  # nothing to reduce over: one row of padding means the same
        boxes, labels = boxes.new_zeros(1, 4), labels.new_full((1,), BACKGROUND)
    shared, anchor_area = intersection(boxes, anchors), area(anchors)  # [M A], [A]
    union = area(boxes)[:, None] + anchor_area - shared
    is_object = (labels >= 0)[:, None]
    objects, overlap = boxes.where(is_object, 0), (shared / union.clamp(min=SMALLEST_UNION)).where(is_object, 0)
    if image_size is None:
        candidates = overlap >= iou_threshold
    else:
        near, inside = nearest_cells(objects, anchors, image_size=image_size, levels=levels)
        cells = at_least_float32(overlap).unflatten(1, (near.shape[1], -1)).where(near[..., None], 0)
        overlap, candidates = cells.flatten(1), adaptive_candidates(cells, near, inside).flatten(1)
    ignored = (shared > 0.5 * anchor_area).logical_and((labels == IGNORE)[:, None]).any(0)
    return match_anchors(overlap, candidates, ignored, objects, labels, anchors)


def nearest_cells(
    boxes: Tensor, anchors: Tensor, *, image_size: tuple[int, int], levels: Sequence[int] = LEVELS, cells: int = 9
) -> tuple[Tensor, Tensor]:
    """Find of each level the cells whose centres are nearest to an object's, ties included; and the cells inside it.

    float[M 4], float[A 4], the `anchors` of an image of (height, width) -> bool[M C], bool[M C], of all C cells.
    """
    counts = [rows * columns for rows, columns in feature_sizes(image_size, levels=levels)]
    centres = xyxy_to_cxcywh(at_least_float32(anchors[:: len(anchors) // sum(counts)]))[:, :2]
    low, high = at_least_float32(boxes)[:, None].split(2, -1)  # [M 1 2]
    distances = (centres - (low / 2 + high / 2)).square().sum(-1).split(counts, 1)  # squared
    farthest = [level.topk(min(cells, level.shape[1]), largest=False).values[:, -1:] for level in distances]
    near = torch.cat([level <= far for level, far in zip(distances, farthest, strict=True)], 1)
    return near, ((centres > low) & (centres < high)).all(-1)


def adaptive_candidates(overlap: Tensor, near: Tensor, inside: Tensor) -> Tensor:
    """Choose the anchors that may take each object, by a threshold of its own. -> bool[M C S], of S anchors a cell.

    They are those in the `nearest_cells` whose centres lie in the object, and whose IoU with it is at least the mean of
    the IoUs in the nearest cells plus their standard deviation.

    Args:
        overlap: float[M C S], the IoUs, 0 elsewhere than in the nearest cells.
        near, inside: bool[M C], of `nearest_cells`.

    Reference: Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
    Sample Selection (ATSS), section 4.1.
    """
    count = overlap.shape[2] * near.sum(1)
    mean, square = overlap.sum((1, 2)) / count, overlap.square().sum((1, 2)) / count
    threshold = mean + (square - mean.square()).clamp(min=0).sqrt()
    return (near & inside)[..., None] & (overlap >= threshold[:, None, None])


def match_anchors(
    overlap: Tensor, candidates: Tensor, ignored: Tensor, boxes: Tensor, labels: Tensor, anchors: Tensor
) -> Targets:
    """Match the anchors of an image with its objects, and encode the boxes of these.

    Args:
        overlap: float[M A], IoU.
        candidates: bool[M A], which anchors may take which object.
        ignored: bool[A], which to ignore if they take none.
        boxes, labels, anchors: of `assign`; rows without an IoU are never matched.
    """
    best, match = overlap.where(candidates, -1).max(0)  # of each anchor
    match = match.where(best >= 0, -1)
    count = len(overlap)
    best, favourite = overlap.max(1)  # of each object
    row = torch.arange(count, device=match.device).where(best > 0, count)
    forced = torch.full_like(match, count).scatter_reduce(0, favourite, row, "amin")
    match = forced.where(forced < count, match)
    matched, row = match >= 0, match.clamp(min=0)
    return Targets(
        labels=labels[row].where(matched, torch.where(ignored, IGNORE, BACKGROUND)),
        deltas=encode(boxes[row], anchors).where(matched[:, None], 0),
        matches=match,
    )


def assign_batch(boxes: Tensor, labels: Tensor, anchors: Tensor, **settings: Any) -> Targets:
    """Assign the ground truth of every image of a batch. float[B M 4], int64[B M], float[A 4] -> Targets.

    Settings are those of `assign`.
    """
    # On CPU the planes of one image fit the cache and those of a batch do not: 3 to 5 times faster one by one.
    chunk_size = 1 if len(boxes) and boxes.device.type == "cpu" else None
    return torch.func.vmap(partial(assign, anchors=anchors, **settings), chunk_size=chunk_size)(boxes, labels)

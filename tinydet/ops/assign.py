"""Assignment: what each anchor should say, given the objects of a picture."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops.boxes import area, encode, intersection


class Targets(NamedTuple):
    """What the network should say, anchor by anchor, for one picture or with a leading B for a batch."""

    labels: Tensor
    """int64[A]: a class, BACKGROUND, or IGNORE where the loss must not look."""
    deltas: Tensor
    """float[A 4]: the matched box, encoded; 0 where there is none."""
    matches: Tensor
    """int64[A]: the matched row of the ground truth, or -1."""


def assign(boxes: Tensor, labels: Tensor, anchors: Tensor, *, iou_threshold: float = 0.5) -> Targets:
    """Ground truth of one picture to targets of its anchors.

    An anchor takes the object it overlaps most if that is by at least `iou_threshold`; then every object takes the
    anchor that overlaps it most, however little, the first object winning where two want the same. An anchor left
    over is IGNORE if more than half its area lies in one ignore region, else BACKGROUND. Ties go to the first.

    Args:
        boxes: float[M 4], xyxy pixels of the network's input. An object that touches no anchor gets none.
        labels: int64[M]; rows labelled IGNORE are ignore regions, rows labelled BACKGROUND are padding.
        anchors: float[A 4], same frame.
        iou_threshold: the overlap from which an anchor is positive.

    Returns:
        Targets of the A anchors.

    Reference: EfficientDet's one threshold of .5 and google/automl's forced matches. Ignore regions are an addition.
    """
    if not len(boxes):  # nothing to reduce over: one row of padding means the same
        boxes, labels = boxes.new_zeros(1, 4), labels.new_full((1,), BACKGROUND)
    shared = intersection(boxes, anchors)  # [M A]
    anchor_area = area(anchors)
    overlap = _iou(shared, area(boxes)[:, None], anchor_area)
    overlap = overlap.where((labels >= 0)[:, None], 0)
    best, match = overlap.max(0)  # of each anchor
    match = match.where(best >= iou_threshold, -1)
    reach, favourite = overlap.max(1)  # of each object
    ignored = (shared > 0.5 * anchor_area).logical_and((labels == IGNORE)[:, None]).any(0)
    match = _forced(match, reach, favourite)
    matched, row = match >= 0, match.clamp(min=0)
    return Targets(
        labels=labels[row].where(matched, torch.where(ignored, IGNORE, BACKGROUND)),
        deltas=encode(boxes[row], anchors).where(matched[:, None], 0),
        matches=match,
    )


def _iou(shared: Tensor, box_area: Tensor, anchor_area: Tensor) -> Tensor:
    return shared / (box_area + anchor_area - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def _forced(match: Tensor, reach: Tensor, favourite: Tensor) -> Tensor:
    """Matches, of which every object that reaches an anchor has one: its favourite, or the first's of those that ask.

    int64[A], float[M], int64[M] -> int64[A].
    """
    count = len(reach)
    row = torch.arange(count, device=match.device).where(reach > 0, count)
    forced = torch.full_like(match, count).scatter_reduce(0, favourite, row, "amin")
    return forced.where(forced < count, match)


def assign_batch(boxes: Tensor, labels: Tensor, anchors: Tensor, *, iou_threshold: float = 0.5) -> Targets:
    """`assign` for every picture of a batch.

    Args:
        boxes: float[B M 4], xyxy pixels of the network's input.
        labels: int64[B M]; padding rows are BACKGROUND.
        anchors: float[A 4], one set for all pictures.
        iou_threshold: as for `assign`.

    Returns:
        Targets with a leading B.
    """

    def one(boxes: Tensor, labels: Tensor) -> Targets:
        return assign(boxes, labels, anchors, iou_threshold=iou_threshold)

    # On CPU the planes of one picture fit the cache and those of a batch do not: 3 to 5 times faster one by one.
    chunk_size = 1 if boxes.device.type == "cpu" else None
    return torch.func.vmap(one, chunk_size=chunk_size)(boxes, labels)


def assign_nearby(boxes: Tensor, labels: Tensor, anchors: Tensor, *, iou_threshold: float = 0.5) -> Targets:
    """The same as `assign_batch`, looking only where an object may be: on CPU, a quarter to a third of the time.

    Anchors lie beside their neighbours: where a block of them as a whole is out of touch with a box, or of another
    size, all of them are. What is looked at depends on the numbers, which torch.func cannot follow, and for which a GPU
    would have to wait.

    Args:
        boxes: float[B M 4], xyxy pixels of the network's input.
        labels: int64[B M]; padding rows are BACKGROUND.
        anchors: float[A 4], one set for all pictures.
        iou_threshold: as for `assign`, but positive.

    Returns:
        Targets with a leading B.
    """
    if boxes.device.type != "cpu" or not boxes.shape[1]:
        return assign_batch(boxes, labels, anchors, iou_threshold=iou_threshold)
    blocks = F.pad(anchors, (0, 0, 0, -len(anchors) % BLOCK)).T.contiguous().unflatten(1, (-1, BLOCK))  # [4 N BLOCK]
    found = [_nearby(*one, anchors, blocks, iou_threshold) for one in zip(boxes, labels, strict=True)]
    return Targets(*map(torch.stack, zip(*found, strict=True)))


BLOCK = 512
"""Neighbouring anchors that are looked at together."""


def _nearby(boxes: Tensor, labels: Tensor, anchors: Tensor, blocks: Tensor, iou_threshold: float) -> Targets:
    """`assign` for one picture; `blocks`, float[4 N BLOCK], are the anchors as planes, filled up with empty ones."""
    count = len(boxes)
    areas = area(blocks.movedim(0, -1))
    low, high = blocks[:2].amin(2).T, blocks[2:].amax(2).T  # [N 2]
    touching = ((boxes[:, None, :2] < high) & (boxes[:, None, 2:] > low)).all(2) & (labels != BACKGROUND)[:, None]
    # An IoU is never above the ratio of the areas. That rules out whole levels, but not for an ignore region, and where
    # the best anchor so far is below the threshold, all that may be better are looked at. The .999 is for rounding.
    size = area(boxes)[:, None]
    ratio = torch.minimum(size, areas.amax(1)) / torch.maximum(size, areas.amin(1)) / 0.999
    hopeful = ratio >= ratio.where(touching, 0).amax(1, keepdim=True).clamp(max=iou_threshold)
    looked = touching & (hopeful | (labels == IGNORE)[:, None])
    pairs = _overlaps(boxes, blocks, areas, looked)
    reach = _reach(pairs, labels)[:, None]
    if (more := touching & ~looked & (reach < iou_threshold) & (ratio > reach)).any():
        pairs = tuple(map(torch.cat, zip(pairs, _overlaps(boxes, blocks, areas, more), strict=True)))
    row, block, shared, overlap, top = pairs
    is_object, offset = labels[row] >= 0, block * BLOCK

    pair, place = ((overlap >= iou_threshold) & is_object[:, None]).nonzero().unbind(1)
    anchor, value = offset[pair] + place, overlap[pair, place]
    best = value.new_zeros(areas.numel()).scatter_reduce(0, anchor, value, "amax")
    first = row[pair].where(value == best[anchor], count)
    match = first.new_full((areas.numel(),), count).scatter_reduce(0, anchor, first, "amin")[: len(anchors)]
    match = match.where(match < count, -1)

    reach = _reach(pairs, labels)
    winner = ((top == reach[row]) & (top > 0) & is_object).nonzero()[:, 0]
    pair, place = (overlap[winner] == top[winner, None]).nonzero().unbind(1)
    pair = winner[pair]
    favourite = torch.full_like(labels, len(anchors)).scatter_reduce(0, row[pair], offset[pair] + place, "amin")

    region = (labels[row] == IGNORE).nonzero()[:, 0]
    pair, place = (shared[region] > 0.5 * areas[block[region]]).nonzero().unbind(1)
    ignored = torch.zeros(areas.numel(), dtype=torch.bool, device=boxes.device)
    ignored[offset[region[pair]] + place] = True

    match = _forced(match, reach, favourite.clamp(max=len(anchors) - 1))
    matched = (match >= 0).nonzero()[:, 0]
    row, deltas = match[matched], torch.zeros_like(anchors)
    deltas[matched] = encode(boxes[row], anchors[matched])
    targets = torch.where(ignored[: len(anchors)], IGNORE, BACKGROUND)
    targets[matched] = labels[row]
    return Targets(targets, deltas, match)


def _overlaps(boxes: Tensor, blocks: Tensor, areas: Tensor, looked: Tensor) -> tuple[Tensor, ...]:
    """Row, block, shared area, IoU and best IoU of the P pairs in `looked`.

    -> int64[P] twice, float[P BLOCK] twice, float[P].
    """
    row, block = looked.nonzero().unbind(1)
    shared = intersection(boxes[row, None], blocks.index_select(1, block).movedim(0, -1))[:, 0]
    overlap = _iou(shared, area(boxes)[row, None], areas.index_select(0, block))
    return row, block, shared, overlap, overlap.amax(1)


def _reach(pairs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The best IoU of each object, 0 for what is none. -> float[M]."""
    row, *_, top = pairs
    reach = top.new_zeros(len(labels)).scatter_reduce(0, row, top, "amax")
    return reach.where(labels >= 0, 0)

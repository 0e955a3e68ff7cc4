"""Suppression of duplicate detections: greedy and soft NMS, box voting, weighted boxes fusion.

Boxes are xyxy in any frame; labels, where given, let only boxes of one label act on each other. Half precision is
computed in float32 and rounded once, at the end.
"""

import torch
from torch import Tensor

from tinydet.ops.boxes import at_least_float32, iou

METHODS = ("soft", "hard")
SMALLEST_WEIGHT = 1e-16  # of a box in a mean of boxes
SIGMA = 0.5  # the width of the Gaussian of soft NMS behind EfficientDet's published AP
MATRIX = 1024  # boxes up to which all pairs are compared at once, in memory of N^2; of more, one kept box at a time


def nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int | None = None,
) -> Tensor:
    """Suppress duplicate boxes greedily.

    The best box stays, what overlaps it by more than the threshold goes, and so on. Exact, with memory of 256 D: of the
    256 next best boxes those go that a kept one suppresses; the rest settle by iterating keep_j = not any_{i < j}
    (keep_i and i suppresses j), whose only fixed point is the greedy answer.

    Args:
        boxes, scores, labels: float[N 4], float[N] and int64[N]; of equal scores the first comes first.
        iou_threshold: a box goes if its IoU with a better one is greater.

    Returns:
        int64[D]: kept rows, best first.
    """
    boxes = at_least_float32(boxes)

    def suppresses(a: Tensor, b: Tensor) -> Tensor:  # of rows int64[P], int64[Q] -> bool[P Q]
        overlapping = iou(boxes[a], boxes[b]) > iou_threshold
        return overlapping if labels is None else overlapping & (labels[a][:, None] == labels[b])

    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for block in order.split(256):
        if max_detections is not None and len(kept) >= max_detections:
            break
        block = block[~suppresses(kept, block).any(0)]
        inner = suppresses(block, block).triu(1)
        keep = torch.ones_like(block, dtype=torch.bool)
        while not torch.equal(keep, settled := ~(inner & keep[:, None]).any(0)):
            keep = settled
        kept = torch.cat([kept, block[keep]])
    return kept[:max_detections]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    sigma: float = SIGMA,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of duplicate boxes: soft NMS.

    The best box stays, the others' scores become s_j exp(-iou_j^2 / sigma), and so on.

    Args:
        boxes, scores, labels: float[N 4], float[N] >= 0 and int64[N]; of equal scores the first comes first.
        score_threshold: boxes whose score falls to this or below are dropped.

    Returns:
        int64[D] and float[D]: kept rows, best first, and their lowered scores.

    Reference: Bodla et al., Soft-NMS.
    """
    dtype, boxes, scores = scores.dtype, at_least_float32(boxes), at_least_float32(scores)
    limit = len(boxes) if max_detections is None else min(max_detections, len(boxes))
    if 0 < 4 * limit < len(boxes):
        # Scores only fall: where those of the boxes left out are below the last that is kept, none of them would be.
        best, order = scores.topk(4 * limit + 1)
        some = order[:-1].sort().values  # of equal scores the first comes first
        few = boxes[some], scores[some], None if labels is None else labels[some]
        keep, kept = soft_nms(*few, sigma=sigma, score_threshold=score_threshold, max_detections=limit)
        if best[-1] < (kept[-1] if len(keep) == limit else score_threshold):
            return some[keep], kept.to(dtype)

    def decay(rows: Tensor | slice) -> Tensor:  # int64[P] -> float[P N]: what these boxes leave of the scores
        left = torch.exp(-iou(boxes[rows], boxes).square() / sigma)
        return left if labels is None else left.where(labels[rows, None] == labels, 1)

    every = decay(slice(None)) if len(boxes) <= MATRIX else None
    rows, kept_scores = [scores[:0].long()], [scores[:0]]
    for _ in range(limit):
        score, row = scores.max(0, keepdim=True)
        if score <= score_threshold:
            break
        rows.append(row)
        kept_scores.append(score)
        left = decay(row) if every is None else every[row]
        scores = (scores * left[0]).index_fill(0, row, 0)  # settled
    return torch.cat(rows), torch.cat(kept_scores).to(dtype)


def fixed_shape_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, max_detections: int, method: str, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Suppress as `nms` ("hard") or `soft_nms` ("soft"), for a batch.

    No shape depends on values, so that it can be exported, and a GPU does not wait for the CPU.

    Args:
        boxes, scores, labels: float[B N 4], float[B N] and int64[B N]; scores are positive, 0 where there is no box.

    Returns:
        int64[B D] and float[B D]: kept rows, best first, and their scores; 0 where none is left.
    """
    dtype, boxes, scores = scores.dtype, at_least_float32(boxes), at_least_float32(scores)

    def decay(some: Tensor, classes: Tensor) -> Tensor:  # boxes float[B P 4] -> float[B P N]: what they leave of scores
        overlap = iou(some, boxes)
        left = torch.exp(-overlap.square() / SIGMA) if method == "soft" else (overlap <= iou_threshold).to(scores.dtype)
        return left.where(classes[..., None] == labels[:, None], 1)

    every = decay(boxes, labels) if boxes.shape[1] <= MATRIX else None
    rows, kept_scores = [], []
    for _ in range(max_detections):
        score, row = scores.max(1, keepdim=True)
        rows.append(row)
        kept_scores.append(score)
        if every is None:
            left = decay(boxes.gather(1, row[..., None].expand(-1, -1, 4)), labels.gather(1, row))
        else:
            left = every.gather(1, row[..., None].expand(-1, -1, boxes.shape[1]))
        scores = (scores * left[:, 0]).scatter(1, row, 0.0)  # settled
    return torch.cat(rows, 1), torch.cat(kept_scores, 1).to(dtype)


def box_voting(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, *, iou_threshold: float = 0.6) -> Tensor:
    """Refine each kept box to the mean of all boxes of the same object.

    box_i = sum_j s_j box_j / sum_j s_j  over i itself and every j of its label with iou_ij > threshold

    Args:
        boxes, scores, labels: float[... N 4], float[... N] and int64[... N], before suppression; score 0 has no vote.
        keep: int64[... D], the kept rows.

    Returns:
        float[... D 4].

    Reference: Gidaris, Komodakis: Object detection via a multi-region and semantic segmentation-aware CNN model, 2015.
    """
    dtype, boxes, scores = boxes.dtype, at_least_float32(boxes), at_least_float32(scores)
    kept = boxes.gather(-2, keep[..., None].expand(*keep.shape, 4))
    near = (iou(kept, boxes) > iou_threshold) & (labels.gather(-1, keep)[..., None] == labels[..., None, :])
    weight = torch.where(near, scores[..., None, :], 0)
    own = scores.gather(-1, keep)[..., None].clamp(min=SMALLEST_WEIGHT)
    weight = weight.scatter(-1, keep[..., None], own)  # empty boxes do not overlap
    return (weight @ boxes / weight.sum(-1, keepdim=True)).to(dtype)


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, sources: Tensor, *, count: int, iou_threshold: float = 0.55
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse the detections of several models or views.

    The best box is joined by the best of each other source that has its label and overlaps it by more than the
    threshold; then the best of those left, and so on. box = sum_i s_i box_i / sum_i s_i,   s = sum_i s_i / count

    Args:
        boxes, scores, labels: float[N 4], float[N] and int64[N].
        sources: int64[N], the model or view of each box.
        count: of the sources, those without detections included.

    Returns:
        float[D 4], float[D], int64[D]: boxes, scores and labels, best first.

    Reference: Solovyev, Wang, Gabruseva: Weighted boxes fusion, 2021. There boxes join by the mean so far; and scores
    are not those of the best box of each source.
    """
    dtypes, boxes, scores = (boxes.dtype, scores.dtype), at_least_float32(boxes), at_least_float32(scores)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels, sources = boxes[order], scores[order], labels[order], sources[order]
    free = torch.ones_like(labels, dtype=torch.bool)
    fused = [(boxes[:0], scores[:0], labels[:0])]
    for best in range(len(labels)):
        if not free[best]:
            continue
        near = free & (labels == labels[best]) & (sources != sources[best])
        near &= iou(boxes[best, None], boxes)[0] > iou_threshold
        others = sources[near].unique().tolist()
        rows = [best, *(int((near & (sources == other)).nonzero()[0, 0]) for other in others)]
        free[rows] = False
        weight = scores[rows, None].clamp(min=SMALLEST_WEIGHT)
        mean = (weight * boxes[rows]).sum(0, keepdim=True) / weight.sum()
        fused.append((mean, scores[rows].sum(0, keepdim=True) / count, labels[best, None]))
    boxes, scores, labels = map(torch.cat, zip(*fused, strict=True))
    order = scores.argsort(descending=True, stable=True)
    return boxes[order].to(dtypes[0]), scores[order].to(dtypes[1]), labels[order]

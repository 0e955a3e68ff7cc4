"""Suppression of the weaker of two boxes on one object: greedy, and soft."""

from functools import partial

import torch
from torch import Tensor

from tinydet.ops.boxes import iou


def nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int | None = None,
) -> Tensor:
    """Greedy suppression: the best box stays, what overlaps it by more than the threshold goes, and so on.

    Exact for any boxes, in plain tensor operations, with memory of 256 D. Block by block the 256 next best boxes lose
    those that a kept one suppresses, and settle the rest by iterating keep_j = not any_{i < j} (keep_i and i suppresses
    j), whose only fixed point is the greedy answer. With `max_detections`, blocks that cannot matter are not looked at.

    Args:
        boxes: float[N 4], xyxy in any frame, negative coordinates too; an empty box overlaps nothing.
        scores: float[N]; of equal scores the first comes first.
        labels: int64[N]; if given, only boxes of one label suppress each other.
        iou_threshold: a box goes if its IoU with a better one is greater.
        max_detections: stop after so many.

    Returns:
        int64[D]: rows that stay, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for block in order.split(256):
        if max_detections is not None and len(kept) >= max_detections:
            break
        block = block[~_suppresses(kept, block, boxes, labels, iou_threshold).any(0)]
        inner = _suppresses(block, block, boxes, labels, iou_threshold).triu(1)
        keep = torch.ones_like(block, dtype=torch.bool)
        while not torch.equal(keep, settled := ~(inner & keep[:, None]).any(0)):
            keep = settled
        kept = torch.cat([kept, block[keep]])
    return kept[:max_detections]


def _suppresses(a: Tensor, b: Tensor, boxes: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """Whether each of rows `a` would suppress each of rows `b`. int64[P], int64[Q] -> bool[P Q]."""
    overlapping = iou(boxes[a], boxes[b]) > iou_threshold
    return overlapping if labels is None else overlapping & (labels[a][:, None] == labels[b])


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft suppression: the best box stays, and what overlaps it loses score.

    gaussian:  s_j <- s_j exp(-iou_j^2 / sigma)
    linear:    s_j <- s_j (1 - iou_j) where iou_j > iou_threshold

    Args:
        boxes: float[N 4], xyxy in any frame.
        scores: float[N], not negative; of equal scores the first comes first.
        labels: int64[N]; if given, only boxes of one label lower each other's score.
        method: "gaussian" or "linear".
        sigma: width of the Gaussian.
        iou_threshold: of the linear method.
        score_threshold: boxes whose score falls to this or below are dropped.
        max_detections: stop after so many.

    Returns:
        int64[D] and float[D]: rows that stay, best first, and their lowered scores.

    Raises:
        ValueError: the method is unknown.

    Reference: Bodla et al., Soft-NMS; EfficientDet's published AP uses the Gaussian one with sigma .5.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method must be 'gaussian' or 'linear', got {method!r}")
    kept, kept_scores = [], []
    for _ in range(len(boxes) if max_detections is None else min(max_detections, len(boxes))):
        score, best = scores.max(0)
        if score <= score_threshold:
            break
        kept.append(best)
        kept_scores.append(score)
        overlap = iou(boxes[best, None], boxes)[0]
        if method == "gaussian":
            decay = torch.exp(-overlap.square() / sigma)
        else:
            decay = torch.where(overlap > iou_threshold, 1 - overlap, 1)
        if labels is not None:
            decay = decay.where(labels == labels[best], 1)
        scores = (scores * decay).index_fill(0, best, 0)  # settled
    if not kept:
        return torch.empty_like(scores[:0], dtype=torch.int64), scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)


def soft_nms_best(
    boxes: Tensor, scores: Tensor, labels: Tensor | None = None, *, max_detections: int, score_threshold: float = 0.001
) -> tuple[Tensor, Tensor]:
    """The same as Gaussian `soft_nms`, looking at few of the boxes where the others cannot be among the best.

    Scores only fall. If those of the boxes left out are below the last score that comes out, none of them would have.

    Args:
        boxes, scores, labels, max_detections, score_threshold: as for `soft_nms`.

    Returns:
        int64[D] and float[D]: rows that stay, best first, and their lowered scores.
    """
    search = partial(soft_nms, max_detections=max_detections, score_threshold=score_threshold)
    few = 4 * max_detections
    if 0 < few < len(boxes):
        best, order = scores.topk(few + 1)
        some = order[:few].sort().values  # of equal scores the first comes first
        keep, kept_scores = search(boxes[some], scores[some], None if labels is None else labels[some])
        last = kept_scores[-1] if len(keep) == max_detections else score_threshold
        if best[few] < last:
            return some[keep], kept_scores
    return search(boxes, scores, labels)


def vote(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, *, iou_threshold: float = 0.6) -> Tensor:
    """Better places for the boxes that suppression kept: the mean of all that are of the same object.

    box_i = sum_j s_j box_j / sum_j s_j  over i itself and every j of its label with iou_ij > threshold

    Args:
        boxes: float[... N 4], xyxy in any frame, before suppression.
        scores: float[... N], not negative; 0 has no say.
        labels: int64[... N]
        keep: int64[... D], the rows that were kept.
        iou_threshold: of boxes of one object.

    Returns:
        float[... D 4]

    Reference: Gidaris, Komodakis: Object detection via a multi-region and semantic segmentation-aware CNN model, 2015.
    """
    kept = boxes.gather(-2, keep[..., None].expand(*keep.shape, 4))
    near = (iou(kept, boxes) > iou_threshold) & (labels.gather(-1, keep)[..., None] == labels[..., None, :])
    weight = torch.where(near, scores[..., None, :], 0)
    weight = weight.scatter(-1, keep[..., None], scores.gather(-1, keep)[..., None])  # empty boxes do not overlap
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight @ boxes / total.clamp(min=torch.finfo(weight.dtype).tiny), kept)


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, sources: Tensor, *, count: int, iou_threshold: float = 0.55
) -> tuple[Tensor, Tensor, Tensor]:
    """What several detectors, or views, found as one: the mean of the boxes that are of one object.

    The best box is joined by the best of each other source that has its label and overlaps it by more than the
    threshold; then the best of those left, and so on.

    box = sum_i s_i box_i / sum_i s_i,   s = sum_i s_i / count

    Args:
        boxes: float[N 4], xyxy in any frame.
        scores: float[N]; of equal scores the first comes first.
        labels: int64[N].
        sources: int64[N], who found it.
        count: of the sources, those that found nothing included.
        iou_threshold: of boxes of one object.

    Returns:
        float[D 4], float[D], int64[D]: boxes, scores and labels, best first.

    Reference: Solovyev, Wang, Gabruseva: Weighted boxes fusion, 2021. There boxes join by the mean so far; and scores
    are not those of the best box of each source.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels, sources = boxes[order], scores[order], labels[order], sources[order]
    free = torch.ones_like(labels, dtype=torch.bool)
    fused, joined, kept = [], [], []
    for best in range(len(labels)):
        if not free[best]:
            continue
        near = free & (labels == labels[best]) & (sources != sources[best])
        near &= iou(boxes[best, None], boxes)[0] > iou_threshold
        others = sources[near].unique().tolist()
        rows = [best, *(int((near & (sources == other)).nonzero()[0, 0]) for other in others)]
        free[rows] = False
        weight = scores[rows]
        fused.append((weight[:, None] * boxes[rows]).sum(0) / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny))
        joined.append(weight.sum() / count)
        kept.append(best)
    if not kept:
        return boxes[:0], scores[:0], labels[:0]
    result, score, label = torch.stack(fused), torch.stack(joined), labels[kept]
    order = score.argsort(descending=True, stable=True)
    return result[order], score[order], label[order]


def nms_in_steps(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, steps: int, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The same as `nms`, for a batch, in a fixed number of operations, so that it can be exported.

    Args:
        boxes: float[B N 4], xyxy in any frame.
        scores: float[B N], positive; 0 where there is no box.
        labels: int64[B N]; only boxes of one label suppress each other.
        steps: boxes that are kept, at most.
        iou_threshold: a box goes if its IoU with a better one is greater.

    Returns:
        int64[B steps] and float[B steps]: rows that stay, best first, and their scores; 0 where none is left.
    """
    x1, y1, x2, y2 = boxes.unbind(2)
    areas = (x2 - x1) * (y2 - y1)
    kept, kept_scores = [], []
    for _ in range(steps):
        score, best = scores.max(1, keepdim=True)
        kept.append(best)
        kept_scores.append(score)
        left, top, right, bottom = (side.gather(1, best) for side in (x1, y1, x2, y2))
        width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp(min=0)
        height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp(min=0)
        shared = width * height
        # IoU > threshold, without a division that an empty box would make undefined.
        gone = shared > iou_threshold * (areas + areas.gather(1, best) - shared)
        gone = gone & (labels == labels.gather(1, best))
        scores = torch.where(gone, 0, scores).scatter(1, best, 0.0)
    return torch.cat(kept, dim=1), torch.cat(kept_scores, dim=1)

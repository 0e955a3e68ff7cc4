"""From what the network says to boxes, in the frame of the picture as it was."""

from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import Outputs
from tinydet.ops.anchors import anchors
from tinydet.ops.boxes import clip, decode
from tinydet.ops.nms import nms, soft_nms_best, vote

METHODS = ("hard", "soft")
VOTE = 0.6  # of .5 to .8; on KITTI it added two to three to the mean Moderate AP of four detectors


class Detections(NamedTuple):
    """The objects found in one picture, best first."""

    boxes: Tensor
    """float[D 4], xyxy pixels."""
    scores: Tensor
    """float[D] in [0, 1]."""
    labels: Tensor
    """int64[D]: indices of the config's classes."""


def model_anchors(
    config: ModelConfig, image_size: tuple[int, int] | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """The anchors of a model's outputs, for its own input size or another. -> float32[A 4], xyxy input pixels."""
    return anchors(
        image_size or config.image_size,
        scale=config.anchor_scale,
        octaves=config.octaves,
        aspects=config.aspects,
        levels=config.levels,
        device=device,
    )


def detect(
    outputs: Outputs,
    anchors: Tensor,
    *,
    sizes: Tensor | None = None,
    scales: Tensor | None = None,
    score_threshold: float = 0.01,
    candidates: int = 5000,
    max_detections: int = 100,
    method: str = "hard",
    iou_threshold: float = 0.5,
    vote_threshold: float | None = None,
) -> list[Detections]:
    """Outputs of a batch to the objects of each picture.

    The best `candidates` pairs of anchor and class are decoded, suppressed class by class, and cut to the picture.

    Args:
        outputs: logits float[B A K] and deltas float[B A 4].
        anchors: float[A 4], xyxy input pixels.
        sizes: int[B 2], (height, width) of each original picture, to which boxes are cut; none are cut without.
        scales: float[B], input pixels per original pixel; 1 without.
        score_threshold: candidates with lower scores are left out.
        candidates: pairs of anchor and class that enter suppression.
        max_detections: boxes a picture that leave it.
        method: "hard" for greedy suppression, "soft" for the Gaussian one of the published AP, which costs more.
        iou_threshold: of the greedy one.
        vote_threshold: IoU from which on a candidate has a say in where the box that stays is, as for
            `tinydet.ops.nms.vote`; `VOTE` is what validation and prediction use. None has when None.

    Returns:
        Detections of each picture, in original pixels.

    Raises:
        ValueError: the method is unknown.

    Reference: google/automl's post-processing. Where it clips is in input pixels, which is the same.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    logits, deltas = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in outputs)
    found = []
    for i in range(len(logits)):
        score, row, label = best_pairs(logits[i], candidates, score_threshold=score_threshold)
        candidates_score, boxes = score, decode(deltas[i, row], anchors[row])
        frame = None if sizes is None else (int(sizes[i, 0]), int(sizes[i, 1]))
        if scales is not None:
            boxes = boxes / scales[i]
        if frame is not None:
            boxes = clip(boxes, frame)
        if method == "hard":
            keep = nms(boxes, score, label, iou_threshold=iou_threshold, max_detections=max_detections)
            score = score[keep]
        else:
            keep, score = soft_nms_best(
                boxes, score, label, score_threshold=score_threshold, max_detections=max_detections
            )
        placed = boxes[keep]
        if vote_threshold is not None:
            placed = vote(boxes, candidates_score, label, keep, iou_threshold=vote_threshold)
            placed = placed if frame is None else clip(placed, frame)  # a mean may lie a rounding outside
        found.append(Detections(placed, score, label[keep]))
    return found


def best_pairs(logits: Tensor, count: int, *, score_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of anchor and class with the best scores: `logits.flatten().topk(count)` without sorting them all.

    The best classes of the `count` best anchors are `count` pairs, so that no pair that scores less than all of them
    can be among the best.

    Args:
        logits: float[A K].
        count: of pairs, at most.
        score_threshold: pairs with lower scores are left out.

    Returns:
        float[P], int64[P], int64[P]: score, anchor and class of each pair, best first.
    """
    best = logits.amax(1)
    bar = best.kthvalue(len(best) - count + 1).values if count <= len(best) else -torch.inf
    rows = (best >= bar).nonzero()[:, 0]
    some = logits[rows]
    row, label = (some >= bar).nonzero().unbind(1)
    value, order = some[row, label].topk(min(count, len(row)))
    score = value.sigmoid()  # of all: its last bit depends on how many there are, which the threshold must not decide
    order = order[score >= score_threshold]
    return score[: len(order)], rows[row[order]], label[order]

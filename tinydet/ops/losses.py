"""Losses: per element, and the one reduction of them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.labels import IGNORE


def focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 1.5, smoothing: float = 0.0
) -> Tensor:
    """Focal loss of independent sigmoid classes, per element: -alpha_t (1 - p_t)^gamma log p_t.

    Args:
        logits: float[... K].
        labels: int64[...]: a class, BACKGROUND (every class should say no), or IGNORE (the loss is 0).
        alpha: weight of a class that should say yes; the others weigh 1 - alpha.
        gamma: how strongly what is already right is discounted.
        smoothing: pulls the targets of log p_t (not of the two factors) this far towards 1/2.

    Returns:
        float[... K], not reduced.

    Reference: Lin et al., Focal Loss for Dense Object Detection, equation 5; gamma 1.5 as in EfficientDet section 5.1.
    """
    target = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    wrong = torch.where(target, -logits, logits)  # the logit of the wrong answer: p_t = sigmoid(-wrong)
    cross_entropy = -F.logsigmoid(-wrong)
    if smoothing:
        cross_entropy = cross_entropy + smoothing * logits * (target.to(logits.dtype) - 0.5)
    alpha_t = torch.where(target, logits.new_full((), alpha), 1 - alpha)  # two plain numbers would give float32
    loss = alpha_t * torch.exp(gamma * F.logsigmoid(wrong)) * cross_entropy
    return loss.where((labels != IGNORE)[..., None], 0)


def huber_loss(predictions: Tensor, targets: Tensor, *, delta: float = 0.1) -> Tensor:
    """Huber loss, per element: e^2 / 2 within delta, delta (|e| - delta / 2) beyond.

    This is delta times the "smooth L1" of other libraries, which makes that one ten times as large here.

    Args:
        predictions: float[...].
        targets: float[...] of the same shape.
        delta: where the parabola becomes a line.

    Returns:
        float[...], not reduced.
    """
    error = (predictions - targets).abs()
    near = error.clamp(max=delta)
    return near * (error - 0.5 * near)


class Losses(NamedTuple):
    """The terms of a detector's loss, each a scalar tensor."""

    total: Tensor
    """classification + box_weight * box."""
    classification: Tensor
    box: Tensor
    """Before its weight."""


def detection_loss(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    target_deltas: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 1.5,
    smoothing: float = 0.0,
    delta: float = 0.1,
    box_weight: float = 50.0,
) -> Losses:
    """The loss of a batch: focal loss summed / N + box_weight * Huber loss of the positives summed / 4 N.

    N is the number of positive anchors in the whole batch + 1. Half precision is computed in float32.

    Args:
        logits: float[B A K].
        deltas: float[B A 4].
        labels: int64[B A] from `assign`.
        target_deltas: float[B A 4] from `assign`.
        alpha, gamma, smoothing: of `focal_loss`.
        delta: of `huber_loss`.
        box_weight: of the box term in the total.

    Returns:
        Losses.

    Reference: EfficientDet section 5.1; normaliser and box weight as in google/automl, which besides leaves out of the
    box loss each coordinate whose target happens to be exactly 0.
    """
    logits, deltas = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, deltas))
    positive = labels >= 0
    count = positive.sum() + 1
    classification = focal_loss(logits, labels, alpha=alpha, gamma=gamma, smoothing=smoothing).sum() / count
    box = huber_loss(deltas, target_deltas, delta=delta).where(positive[..., None], 0).sum() / (4 * count)
    return Losses(classification + box_weight * box, classification, box)

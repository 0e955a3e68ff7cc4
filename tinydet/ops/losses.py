"""Losses: per element, and the one reduction of them."""

from typing import Any, NamedTuple

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


class _FocalSum(torch.autograd.Function):
    """The sum of `focal_loss`, and in the same pass over memory its gradient.

    Of a class that should say no, with p = sigmoid(x) and s = softplus(x) = -log(1 - p):
    L = (1 - alpha) p^gamma s,  dL/dx = (1 - alpha) p^gamma (gamma (1 - p) s + p).
    One that should say yes is the same of -x with alpha for 1 - alpha. There are so few of these, and of anchors to
    ignore, that all are taken for noes first and put right afterwards.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        x, labels = logits.detach().reshape(-1, logits.shape[-1]), labels.reshape(-1)
        slopes = torch.empty_like(x)
        rows = len(x) if x.is_cuda else max(1, CHUNK // x.shape[-1])
        noes = torch.stack([_noes(*part, gamma) for part in zip(x.split(rows), slopes.split(rows), strict=True)]).sum()

        ignored = (labels == IGNORE).nonzero()[:, 0]
        noes -= _noes(x[ignored], torch.empty_like(x[ignored]), gamma)
        slopes[ignored] = 0

        row = (labels >= 0).nonzero()[:, 0]
        place = row, labels[row]
        slope = torch.empty_like(x[place])
        noes -= _noes(x[place], slope, gamma)
        yeses = _noes(-x[place], slope, gamma)
        slopes[place] = slope * (alpha / (alpha - 1))
        ctx.save_for_backward(slopes.view_as(logits))
        ctx.scale = 1 - alpha
        return ((1 - alpha) * noes + alpha * yeses).to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * (by * ctx.scale), None, None, None


# Elements of a float32 tensor that stays in the cache while the passes below go over it.
CHUNK = 1 << 17


def _noes(x: Tensor, slope: Tensor, gamma: float) -> Tensor:
    """The sum of p^gamma s over x, float64; its derivative by each goes into `slope`, a tensor like x."""
    s, p = F.softplus(x), torch.sigmoid(x, out=slope)
    weight = p.sqrt().mul_(p) if gamma == 1.5 else p.pow(gamma)  # the paper's 1.5 is several times as fast this way
    rest = torch.addcmul(s, s, p, value=-1)
    torch.add(p, rest, alpha=gamma, out=slope).mul_(weight)
    return torch.dot(s.flatten(), weight.flatten()).double()


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
    positives: Tensor | None = None,
    once: bool = False,
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
        positives: N - 1, a scalar, where these are a part of a batch; the losses of the parts add up to the batch's.
        once: to be differentiated once, by autograd: the gradient by the logits comes with the value, in a quarter of
            the time. torch.func and second derivatives need it off, smoothing too.

    Returns:
        Losses.

    Reference: EfficientDet section 5.1; normaliser and box weight as in google/automl, which besides leaves out of the
    box loss each coordinate whose target happens to be exactly 0.
    """
    logits, deltas = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, deltas))
    positive = labels >= 0
    count = (positive.sum() if positives is None else positives) + 1
    if once and not smoothing:
        classification = _FocalSum.apply(logits, labels, alpha, gamma) / count
    else:
        classification = focal_loss(logits, labels, alpha=alpha, gamma=gamma, smoothing=smoothing).sum() / count
    box = huber_loss(deltas, target_deltas, delta=delta).where(positive[..., None], 0).sum() / (4 * count)
    return Losses(classification + box_weight * box, classification, box)

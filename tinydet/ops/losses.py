"""Losses: focal and Huber loss per element, and the one function that reduces them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.ops.boxes import at_least_float32, delta_giou


def check_labels(labels: Tensor, *, classes: int) -> None:
    """Raise InputError for a label, int64[...], that is neither one of 0 .. classes - 1 nor BACKGROUND nor IGNORE.

    It is checked where that costs nothing: on the CPU, outside of torch.func's transforms and of compilation. A GPU
    would have to be waited for; there, `tinydet.train_step` checks what `assign` found.
    """
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(labels)
    if labels.device.type == "cpu" and not traced and labels.numel():
        for label in map(int, labels.aminmax()):
            if not IGNORE <= label < classes:
                raise InputError(f"label {label}: there are {classes} classes, whose labels are 0 to {classes - 1}")


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 1.5) -> Tensor:
    """Compute the focal loss of sigmoid classes, per element.

    -alpha_t (1 - p_t)^gamma log p_t

    Args:
        logits: float[... K].
        labels: int64[...]: a class, BACKGROUND (negative for every class), or IGNORE (loss and gradient are 0, were
            the logits NaN); checked by `check_labels`.
        alpha: weight of the positive class; the negatives weigh 1 - alpha.
        gamma: how strongly well-classified elements are discounted.

    Returns:
        float[... K], not reduced.

    Reference: Lin et al., Focal Loss for Dense Object Detection, equation 5; gamma 1.5 as in EfficientDet section 5.1.
    """
    check_labels(labels, classes=logits.shape[-1])
    target = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    wrong = torch.where(target, -logits, logits)  # the logit of the wrong answer: p_t = sigmoid(-wrong)
    wrong = wrong.where((labels != IGNORE)[..., None], -1e4)  # right, and sure: no loss
    alpha_t = torch.where(target, logits.new_full((), alpha), 1 - alpha)  # two plain numbers would give float32
    return alpha_t * torch.exp(gamma * F.logsigmoid(wrong)) * -F.logsigmoid(-wrong)


def focal_loss_sum(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 1.5) -> Tensor:
    """Sum `focal_loss` over all elements. float[... K], int64[...] -> float[]."""
    return focal_loss(logits, labels, alpha=alpha, gamma=gamma).sum()


def quality_focal_loss(logits: Tensor, quality: Tensor | float, *, alpha: float = 0.25, gamma: float = 1.5) -> Tensor:
    """Compute the focal loss of positives that should have a score of `quality`, per element.

    alpha |quality - p|^gamma BCE(p, quality): `focal_loss` where that is 1. float[...], both; quality is 0 to 1.

    Reference: Li et al., Generalized Focal Loss, equation 2, which has no alpha.
    """
    entropy = -F.logsigmoid(-logits) - quality * logits
    return alpha * (quality - logits.sigmoid()).abs() ** gamma * entropy


def huber_loss(predictions: Tensor, targets: Tensor, *, delta: float = 0.1) -> Tensor:
    """Compute the Huber loss, per element. float[...], float[...] -> float[...].

    e^2 / 2 within delta, delta (|e| - delta / 2) beyond: delta times the "smooth L1" of other libraries.
    """
    error = (predictions - targets).abs()
    near = error.clamp(max=delta)
    return near * (error - 0.5 * near)


class Losses(NamedTuple):
    """The terms of a detector's loss, each a scalar tensor."""

    total: Tensor  # classification + box_weight * box
    classification: Tensor
    box: Tensor  # before its weight


def detection_loss(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    target_deltas: Tensor,
    *,
    quality: bool = False,
    alpha: float = 0.25,
    gamma: float = 1.5,
    delta: float = 0.1,
    box_weight: float | None = None,
    positives: Tensor | None = None,
    focal_sum: Callable[..., Tensor] = focal_loss_sum,
) -> Losses:
    """Reduce the losses of a batch.

    Focal loss summed / N + box_weight * Huber loss of the positives summed / 4 N. N is the number of positive anchors
    in the whole batch + 1. With `quality`, a positive's score should be the IoU of its predicted box, which is no part
    of the gradient, in place of 1; and box_weight * (1 - GIoU) of the positives summed / N takes the Huber loss's
    place. Half precision is computed in float32.

    Args:
        logits, deltas: float[B A K] and float[B A 4], the outputs of the network.
        labels, target_deltas: int64[B A] and float[B A 4] from `assign`; deltas count where a label is a class.
        alpha, gamma, delta: of `focal_loss` and `huber_loss`.
        box_weight: 50 for the Huber loss and 2 for GIoU when None.
        positives: N - 1, a scalar, where these are micro-batches of a batch; their losses add up to the batch's.
        focal_sum: `tinydet.ops.kernels.focal_loss_sum` sums the same, with its gradient, in a quarter of the time.

    Reference: EfficientDet section 5.1; normaliser and box weight as in google/automl, which besides leaves out of the
    box loss each coordinate whose target happens to be exactly 0. With `quality`, Generalized Focal Loss, section 3.
    """
    logits, deltas = at_least_float32(logits), at_least_float32(deltas)
    positive = (labels >= 0)[..., None]
    count = (positive.sum() if positives is None else positives) + 1
    classification = focal_sum(logits, labels, alpha=alpha, gamma=gamma)
    # Of the inputs, not the result: the gradient of what is left out is 0 even if that is NaN.
    deltas, target_deltas = deltas.where(positive, 0), target_deltas.where(positive, 0)
    if quality:
        overlap, giou = delta_giou(deltas, target_deltas)
        own = logits.gather(-1, labels.clamp(0, logits.shape[-1] - 1)[..., None]).where(positive, 0)
        scores = overlap.detach()[..., None], 1.0
        soft, hard = (quality_focal_loss(own, score, alpha=alpha, gamma=gamma) for score in scores)
        classification = classification + (soft - hard).where(positive, 0).sum()
        box = (1 - giou).sum() / count  # 0 where neither has deltas
    else:
        box = huber_loss(deltas, target_deltas, delta=delta).sum() / (4 * count)
    classification = classification / count
    if box_weight is None:
        box_weight = 2.0 if quality else 50.0
    return Losses(classification + box_weight * box, classification, box)

"""Fusion: one feature map out of several."""

from collections.abc import Sequence

import torch
from torch import Tensor

METHODS = ("fast", "softmax", "sum")


def weighted_fusion(inputs: Sequence[Tensor], weights: Tensor | None = None, *, method: str = "fast") -> Tensor:
    """Feature maps of one shape, added with learnt weights.

    fast:     O = sum_i relu(w_i) / (eps + sum_j relu(w_j)) * I_i,  eps = 1e-4
    softmax:  O = sum_i exp(w_i) / sum_j exp(w_j) * I_i
    sum:      O = sum_i I_i

    Args:
        inputs: N tensors of one shape.
        weights: float[N], one scalar an input; unused by "sum".
        method: "fast", "softmax" or "sum".

    Returns:
        A tensor of the inputs' shape.

    Raises:
        ValueError: the method is unknown, or there are not as many weights as inputs.

    Reference: EfficientDet section 3.3.
    """
    if method == "sum":
        return sum(inputs[1:], inputs[0])  # torch.stack would lose the memory format
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if weights is None or weights.shape != (len(inputs),):
        raise ValueError(f"{len(inputs)} inputs need {len(inputs)} weights, got {weights}")
    if method == "fast":
        weights = weights.relu()
        weights = weights / (weights.sum() + 1e-4)
    else:
        weights = weights.softmax(0)
    total = inputs[0] * weights[0]
    for feature, weight in zip(inputs[1:], weights[1:], strict=True):
        total = torch.addcmul(total, feature, weight)
    return total

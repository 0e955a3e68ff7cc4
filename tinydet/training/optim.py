"""AdamW and SGD as pure (init, update) pairs over dicts of tensors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.model.functional import Params

Moments = dict[str, Any]
"""An optimizer's state: dicts of tensors by parameter name, and plain numbers."""


class Optimizer(NamedTuple):
    """Two pure functions, in the manner of optax."""

    init: Callable[[Params], Moments]
    """The moments of parameters that have not been updated yet."""
    update: Callable[[Params, Params, Moments, float], tuple[Params, Moments]]
    """params, grads, moments, lr -> new params and moments; the arguments stay as they were."""


def adamw(*, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01) -> Optimizer:
    """Build AdamW; weight decay applies to kernels only, not to biases, batch norms and fusion weights.

    Reference: Loshchilov, Hutter, Decoupled Weight Decay Regularization. Agrees with `torch.optim.AdamW`.
    """

    def init(params: Params) -> Moments:
        return {"count": 0, "mean": _zeros(params), "square": _zeros(params)}

    def update(params: Params, grads: Params, moments: Moments, lr: float) -> tuple[Params, Moments]:
        count, gradient = moments["count"] + 1, list(grads.values())
        mean = torch._foreach_lerp(_listed(moments["mean"], grads), gradient, 1 - betas[0])
        square = torch._foreach_mul(_listed(moments["square"], grads), betas[1])
        torch._foreach_addcmul_(square, gradient, gradient, 1 - betas[1])
        root = torch._foreach_sqrt(square)
        torch._foreach_div_(root, math.sqrt(1 - betas[1] ** count))
        torch._foreach_add_(root, eps)
        new = torch._foreach_mul(_listed(params, grads), _per_kernel(grads, 1 - lr * weight_decay, other=1.0))
        torch._foreach_addcdiv_(new, mean, root, -lr / (1 - betas[0] ** count))
        return _named(grads, new), {"count": count, "mean": _named(grads, mean), "square": _named(grads, square)}

    return Optimizer(init, update)


def sgd(*, momentum: float = 0.9, weight_decay: float = 4e-5) -> Optimizer:
    """Build SGD with momentum, the paper's; weight decay applies to kernels only. Agrees with `torch.optim.SGD`."""

    def init(params: Params) -> Moments:
        return {"velocity": _zeros(params)}

    def update(params: Params, grads: Params, moments: Moments, lr: float) -> tuple[Params, Moments]:
        old = _listed(params, grads)
        gradient = torch._foreach_add(
            torch._foreach_mul(old, _per_kernel(grads, weight_decay, other=0.0)), list(grads.values())
        )
        velocity = torch._foreach_mul(_listed(moments["velocity"], grads), momentum)
        torch._foreach_add_(velocity, gradient)
        return _named(grads, torch._foreach_add(old, velocity, alpha=-lr)), {"velocity": _named(grads, velocity)}

    return Optimizer(init, update)


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(param) for name, param in params.items()}


def _listed(tensors: Params, order: Params) -> list[Tensor]:
    return [tensors[name] for name in order]


def _named(order: Params, tensors: tuple[Tensor, ...] | list[Tensor]) -> Params:
    return dict(zip(order, tensors, strict=True))


def _per_kernel(grads: Params, value: float, *, other: float) -> list[float]:
    """One number a parameter: `value` for kernels, which have more than one axis, `other` for all else."""
    return [value if grad.ndim > 1 else other for grad in grads.values()]

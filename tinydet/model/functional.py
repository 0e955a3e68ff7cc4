"""The model as a function of its weights: dicts of tensors in, dicts of tensors out."""

import hashlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinydet.model.layers import BatchNorm

Params = dict[str, Tensor]  # by name


class Variables(NamedTuple):
    """The weights of a model and the statistics of its batch norms."""

    params: Params
    buffers: Params


def params_and_buffers(model: nn.Module) -> Variables:
    """Copy the weights out of a module."""
    named = model.named_parameters(), model.named_buffers()
    return Variables(*({name: x.detach().clone() for name, x in each} for each in named))


def apply(
    model: nn.Module,
    params: Params,
    buffers: Params,
    *inputs: Tensor,
    train: bool = False,
    momentum: float = 0.01,
    evaluated: Collection[str] = (),
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Any, Params]:
    """Apply a model with these weights to its inputs: images float[B 3 H W], normalised, and maybe draws.

    Its own weights are neither read nor changed, so it may be on the meta device. While it runs the given ones are in
    it: threads need a model each.

    Args:
        train: use the batch's statistics and stochastic depth.
        momentum: weight of the batch's statistics in the running ones, if `train`.
        evaluated: names of modules that stay in evaluation even so, without their submodules.
        all_reduce: sums a tensor over the processes whose batches are one to the batch norms.

    Returns:
        What the model returns, and the buffers after it: updated copies if `train`, else `buffers` itself.
    """
    if model.training != train:
        model.train(train)
    if train:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.momentum, module.all_reduce = 1.0, all_reduce  # a number that changed would be compiled anew
    # functional_call updates them in place.
    seen = {name: buffer.clone() for name, buffer in buffers.items()} if train else buffers
    for name in evaluated:
        model.get_submodule(name).training = False
    try:
        # No weight of ours has two names; to look for such costs as much as a twentieth of a small network.
        outputs = functional_call(model, (params, seen), inputs, strict=True, tie_weights=False)
        return outputs, ema_update(buffers, seen, decay=1 - momentum) if train else buffers
    finally:
        if evaluated:
            model.train(train)


def value_and_grad(function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Params]]:
    """Differentiate a function by its first argument, a dict of tensors.

    The call shape of `torch.func.grad_and_value` over `torch.autograd.grad`, in half the time and 1 / 2.6 of the
    activation memory on CPU, for it does not record the gradient's graph. The function returns a scalar tensor, or
    (scalar tensor, aux) with `has_aux`; the result returns (value, gradients), or ((value, aux), gradients), where a
    parameter that does not matter has gradient 0.
    """

    def differentiated(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
        with torch.enable_grad():
            result = function(leaves, *args, **kwargs)
        value, *aux = result if has_aux else (result,)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        value = (value.detach(), *aux) if has_aux else value.detach()
        return value, dict(zip(leaves, grads, strict=True))

    return differentiated


def digest(params: Params, buffers: Params) -> str:
    """Compute a digest of tensors and their names, by which weights in two places are compared."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted({**params, **buffers}.items()):
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def ema_update(ema: Params, params: Params, *, decay: float) -> Params:
    """Update an exponential moving average: decay * ema + (1 - decay) * params."""
    averaged = torch._foreach_lerp(list(ema.values()), [params[name] for name in ema], 1 - decay)
    return dict(zip(ema, averaged, strict=True))

"""One step of training as a function, and what it needs of torch.optim."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Tensors, apply, ema_update, normalize, value_and_grad
from tinydet.model.layers import NORM_DECAY, BatchNorm
from tinydet.ops.assign import assign_nearby
from tinydet.ops.losses import Losses, detection_loss

# Peak learning rate, the pictures in a batch that it is for, the power of the batch that it grows with, weight decay.
# SGD's are the paper's. AdamW's rate is the best of 1, 2, 3 and 4e-3 on drawn scenes in batches of four, which with
# the root (Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms) is this for eight.
OPTIMIZERS = {"adamw": (4e-3, 8, 0.5, 1e-2), "sgd": (0.08, 64, 1.0, 4e-5)}
FREEZE = ("none", "trunk", "norms")


class State(NamedTuple):
    """All that a step changes, besides the optimiser's own."""

    params: Tensors
    buffers: Tensors
    ema_params: Tensors
    ema_buffers: Tensors
    step: int


def train_step(
    state: State,
    batch: Batch,
    *,
    model: EfficientDet,
    anchors: Tensor,
    optimizer: Optimizer,
    clip: float,
    ema_decay: float,
    frozen: Collection[str] = (),
) -> tuple[State, Losses]:
    """Gradients, clip, optimiser, EMA.

    Args:
        state: before the step. The optimiser holds its `params` and updates them in place; all else is left as it was.
        batch: on the device of the state.
        model: the skeleton.
        anchors: float[A 4] of the batch's size.
        optimizer: over those of `state.params` that are `trainable`, with the learning rate of this step.
        clip: largest global norm of the gradient.
        ema_decay: of the averaged weights; less at first, min(ema_decay, (1 + step) / (10 + step)). So is the decay of
            the running batch-norm statistics, or the first epochs would be validated with statistics of no picture.
        frozen: names of modules whose parameters and statistics stay as they are, as of `frozen_modules`.

    Returns:
        The state after the step, and the losses before it.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; nothing was updated.
    """
    config = model.config
    images = normalize(batch.images, mean=config.mean, std=config.std)
    targets = assign_nearby(batch.boxes, batch.labels, anchors)

    def loss(params: Tensors) -> tuple[Tensor, tuple[Losses, Tensors]]:
        every = {**state.params, **params}
        outputs, buffers = apply(model, every, state.buffers, images, train=True, frozen=frozen)
        losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas, once=True)
        return losses.total, (Losses(*(term.detach() for term in losses)), buffers)

    (total, (losses, buffers)), grads = value_and_grad(loss, has_aux=True)(trainable(state.params, frozen))
    norm = torch.nn.utils.get_total_norm(list(grads.values()))
    if not (total + norm).isfinite():
        terms = ", ".join(f"{name} {value:g}" for name, value in {**losses._asdict(), "gradient norm": norm}.items())
        raise FloatingPointError(f"step {state.step + 1}: the loss is not finite ({terms}) on {', '.join(batch.names)}")

    scale = (clip / (norm + 1e-6)).clamp(max=1)
    for name, grad in grads.items():
        # In the memory order of the parameter: autograd has its own, and the fused optimisers do not look.
        param = state.params[name]
        param.grad = torch.mul(grad, scale, out=torch.empty_like(param))
    optimizer.step()

    ramp = (1 + state.step) / (10 + state.step)
    decay = min(ema_decay, ramp)
    # The batch norms' own running average, which weighs a batch by 1 - .99, is as slow to start: it gets the same ramp.
    buffers = ema_update(buffers, state.buffers, decay=(1 - min(NORM_DECAY, ramp)) / (1 - NORM_DECAY))
    return State(
        params=state.params,
        buffers=buffers,
        ema_params=ema_update(state.ema_params, state.params, decay=decay),
        ema_buffers=ema_update(state.ema_buffers, buffers, decay=decay),
        step=state.step + 1,
    ), losses


def frozen_modules(model: EfficientDet, freeze: str, *, known: Collection[str]) -> frozenset[str]:
    """The names of the modules that a run leaves as they are.

    Args:
        model: the skeleton.
        freeze: one of `FREEZE`: "none"; "trunk", all of the backbone; "norms", the batch norms, scale and shift
            included, whose statistics are `known`: those of a small batch are worse.
        known: names of the tensors that the run did not begin with at random.

    Raises:
        InputError: what should be frozen is random.
    """
    if freeze == "trunk":
        names = [name for name, _ in model.named_modules() if f"{name}.".startswith("backbone.")]
    else:
        norms = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
        names = [name for name in norms if f"{name}.running_var" in known] if freeze == "norms" else []
    if freeze != "none" and not any(name.startswith("backbone.") for name in known):
        raise InputError(f"freeze {freeze}: the run begins with random weights, and they would stay so")
    return frozenset(names)


def trainable(params: Tensors, frozen: Collection[str]) -> Tensors:
    """The parameters that are in none of the frozen modules."""
    return {name: param for name, param in params.items() if name.rpartition(".")[0] not in frozen}


def make_optimizer(params: Tensors, *, name: str, lr: float, weight_decay: float) -> Optimizer:
    """torch.optim over a dict of parameters, decaying convolution kernels only. `name` is a key of OPTIMIZERS."""
    groups: list[dict[str, Any]] = [
        {"params": [param for param in params.values() if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in params.values() if param.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=0.9, fused=True)
    return AdamW(groups, lr=lr, fused=True)


def lr_factor(step: int, *, warmup: int, total: int) -> float:
    """The learning rate of a step as a share of its peak: up in a line, then down in half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

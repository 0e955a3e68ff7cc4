"""One step of training as a function, and what it needs of torch.optim."""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Tensors, apply, ema_update, normalize, value_and_grad
from tinydet.model.layers import NORM_DECAY, BatchNorm
from tinydet.ops.assign import assign_nearby
from tinydet.ops.losses import Losses, detection_loss

# Peak learning rate, the pictures in a batch that it is for, the power of the batch that it grows with, weight decay.
# SGD's are the paper's. AdamW's rate is the best of 1.4, 2.8 and 5.6e-3 for short runs on KITTI in batches of four; it
# goes with the root of the batch (Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms).
OPTIMIZERS = {"adamw": (5.6e-3, 4, 0.5, 1e-2), "sgd": (0.08, 64, 1.0, 4e-5)}
FREEZE = ("none", "trunk", "norms")
PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the network computes in, by the name of it."""


class State(NamedTuple):
    """All that a step changes, besides the optimiser's own."""

    params: Tensors
    buffers: Tensors
    ema_params: Tensors
    ema_buffers: Tensors
    step: int


class Measured(NamedTuple):
    """What a step saw."""

    losses: Losses
    """Of the whole batch, before the step."""
    norm: Tensor
    """Global norm of the gradient before it was clipped, a scalar."""
    matches: Tensor
    """int64[K]: how many anchors took an object of each class."""


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
    parts: int = 1,
    precision: str = "off",
    scaler: GradScaler | None = None,
) -> tuple[State, Measured]:
    """Gradients, clip, optimiser, EMA.

    Args:
        state: before the step. The optimiser holds its `params` and updates them in place; all else is left as it was.
        batch: on the device of the state.
        model: the skeleton.
        anchors: float[A 4] of the batch's size.
        optimizer: over those of `state.params` that are `trainable`, with the learning rate of this step.
        clip: largest global norm of the gradient.
        ema_decay: of the averaged weights, 0 for none; less at first, min(ema_decay, (1 + step) / (10 + step)). So is
            the decay of the running batch-norm statistics, or the first epochs would be validated with statistics of
            no picture.
        frozen: names of modules whose parameters and statistics stay as they are, as of `frozen_modules`.
        parts: into how many the batch is cut that go through the network one after the other, for less memory. The
            loss is that of the whole batch; batch norms see a part at a time.
        precision: of the network, a key of `PRECISIONS`; losses are in float32.
        scaler: of the loss, which "fp16" needs. A step whose scaled gradient overflows updates nothing but the scale.

    Returns:
        The state after the step, and what was seen before it.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; nothing was updated.
    """
    scaler = scaler or GradScaler(anchors.device.type, enabled=False)
    targets = assign_nearby(batch.boxes, batch.labels, anchors)
    matches = torch.bincount(targets.labels[targets.labels >= 0], minlength=len(model.config.classes))
    loss = partial(
        _part_loss, model=model, positives=matches.sum(), frozen=frozen, precision=PRECISIONS[precision], scaler=scaler
    )
    learning, buffers = trainable(state.params, frozen), state.buffers
    found: list[Losses] = []
    for part in zip(*(x.chunk(parts) for x in (batch.images, targets.labels, targets.deltas)), strict=True):
        (_, (losses, buffers)), slopes = value_and_grad(loss, has_aux=True)(learning, state.params, buffers, *part)
        for name, param in learning.items():
            # In the memory order of the parameter: autograd has its own, and the fused optimisers do not look.
            if found and param.grad is not None:
                param.grad.add_(slopes[name])
            else:
                param.grad = torch.empty_like(param).copy_(slopes[name])
        found.append(losses)
    losses = Losses(*(torch.stack(terms).sum() for terms in zip(*found, strict=True)))
    scaler.unscale_(optimizer)
    clipped = [param.grad for param in learning.values() if param.grad is not None]
    norm = torch.nn.utils.get_total_norm(clipped)
    measured = Measured(losses, norm, matches)
    if not (losses.total + norm).isfinite():
        if not (losses.total.isfinite() and scaler.get_scale() > 1):
            terms = {**losses._asdict(), "gradient norm": norm}
            shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
            names = ", ".join(batch.names)
            raise FloatingPointError(f"step {state.step + 1}: the loss is not finite ({shown}) on {names}")
        scaler.update()  # half
        return state._replace(step=state.step + 1), measured
    torch._foreach_mul_(clipped, (clip / (norm + 1e-6)).clamp(max=1))
    scaler.step(optimizer)
    scaler.update()

    ramp = (1 + state.step) / (10 + state.step)
    decay = min(ema_decay, ramp)
    # The batch norms' own running average, which weighs a part by 1 - .99, is as slow to start: it gets the same ramp.
    kept = NORM_DECAY ** len(found)
    buffers = ema_update(buffers, state.buffers, decay=(1 - min(kept, ramp)) / (1 - kept))
    return State(
        params=state.params,
        buffers=buffers,
        ema_params=ema_update(state.ema_params, state.params, decay=decay),
        ema_buffers=ema_update(state.ema_buffers, buffers, decay=decay),
        step=state.step + 1,
    ), measured


def _part_loss(
    learning: Tensors,
    params: Tensors,
    buffers: Tensors,
    images: Tensor,
    labels: Tensor,
    deltas: Tensor,
    *,
    model: EfficientDet,
    positives: Tensor,
    frozen: Collection[str],
    precision: torch.dtype,
    scaler: GradScaler,
) -> tuple[Tensor, tuple[Losses, Tensors]]:
    """The scaled share of some pictures in the loss of a batch of so many `positives`; its terms and the buffers."""
    pictures = normalize(images, mean=model.config.mean, std=model.config.std)
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        outputs, buffers = apply(model, params | learning, buffers, pictures, train=True, frozen=frozen)
    losses = detection_loss(outputs.logits, outputs.deltas, labels, deltas, positives=positives, once=True)
    return scaler.scale(losses.total), (Losses(*(term.detach() for term in losses)), buffers)


def choose_precision(amp: str, device: torch.device | str) -> str:
    """The key of `PRECISIONS` that "auto" stands for on a device: what its matrix units are made for, none on a CPU."""
    if amp != "auto":
        return amp
    if torch.device(device).type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


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

"""One step of training as a pure function: a state and a batch in, the next state out."""

import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Params, Variables, apply, ema_update, value_and_grad
from tinydet.model.postprocess import model_anchors, normalize
from tinydet.ops.kernels import assign_batch, focal_loss_sum
from tinydet.ops.losses import Losses, detection_loss
from tinydet.training.optim import Optimizer, adamw
from tinydet.training.state import State, trainable

ADAMW = adamw()
NORM_MOMENTUM = 0.01  # of batch norms, after their first steps. Reference: google/automl.
GROWTH = 2 ** (1 / 2000)  # of the loss scale, a step: it doubles in 2,000 steps and is halved when gradients overflow


class StepMetrics(NamedTuple):
    """Measurements of a training step, made before its update."""

    losses: Losses  # of the whole batch
    grad_norm: Tensor  # global norm of the gradient before clipping, a scalar
    positives: Tensor  # int64[K]: anchors assigned to an object of each class
    unknown: Tensor  # int64[]: anchors assigned to an object of no class


def identity(tensors: Params) -> Params:
    """Return the sums over one process, which are the tensors themselves."""
    return tensors


def train_step(
    state: State,
    batch: Batch,
    *,
    model: EfficientDet,
    lr: float,
    optimizer: Optimizer = ADAMW,
    clip: float = 10.0,
    quality: bool = True,
    ema_decay: float = 0.9998,
    frozen: Collection[str] = (),
    evaluated: Collection[str] = (),
    micro_batches: int = 1,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    reduce: Callable[[Params], Params] = identity,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    check: bool = True,
) -> tuple[State, StepMetrics]:
    """Compute a batch's gradient and update parameters, batch-norm statistics and averages.

    Args:
        state: before the step; it stays as it was, bit for bit.
        batch: on the device of the state.
        model: the module, on any device; its own weights are not read.
        lr: learning rate of this step.
        optimizer: whose moments the state holds.
        clip: largest global norm of the gradient.
        quality: whether each object has a threshold of its own for its anchors, scores learn the IoU of their boxes and
            boxes their GIoU (`assign` with image_size, `detection_loss` with quality). Without, as in the paper.
        ema_decay: of the averaged weights, 0 for none; less at first, min(ema_decay, (1 + step) / (10 + step)). The
            batch norms' momentum starts as high, or the first epochs would be validated with statistics of no image.
        frozen: names of modules whose parameters stay as they are, such as `early_stages(model)`.
        evaluated: names of modules that stay in evaluation: their batch norms' statistics stay as they are.
        micro_batches: parts of the batch that go through the network one after another, for less memory. The loss is
            that of the whole batch; batch norms see one part at a time.
        precision: of the network under autocast; losses are in float32.
        seed: decides stochastic depth, with the step's number and the names of the images.
        reduce: sums a dict of tensors over the processes that share a batch, each of which has some of its images;
            identity for one. Losses and gradients are those of the whole batch.
        all_reduce: sums a tensor over them, for batch norms that see the images of all; each sees its own when None.
        check: whether to wait for the loss. A step that does not is computed by a GPU while the next one is prepared;
            its state is only worth what `check_step` makes of it.

    Returns:
        The state after the step, and measurements made before its update. With float16, a step whose scaled gradient
        overflows updates nothing but the loss scale.

    Raises:
        InputError: a label is beyond the classes.
        FloatingPointError: the loss or its gradient is not finite: names the step, the terms and the images.
    """
    config, ramp = model.config, (1 + state.step) / (10 + state.step)
    anchors = model_anchors(config, batch.input_size, device=batch.images.device)
    targets = assign_batch(
        batch.boxes, batch.labels, anchors, image_size=batch.input_size if quality else None, levels=config.levels
    )
    numbers = targets.labels.flatten().clamp(-1, len(config.classes)) + 1  # with no object first, no class last
    _, positives, unknown = (
        torch.zeros(len(config.classes) + 2, dtype=torch.int64, device=numbers.device)
        .scatter_add(0, numbers, torch.ones_like(numbers))
        .split([1, len(config.classes), 1])
    )
    counts = reduce({"positives": positives, "images": positives.new_full((), len(batch.images))})
    positives, share = counts["positives"], len(batch.images) / counts["images"]

    def loss(learning: Params, buffers: Params, *examples: Tensor) -> tuple[Tensor, tuple[Params, Params]]:
        images, labels, deltas, draws = examples
        pixels = normalize(images, mean=config.mean, std=config.std)
        weights = state.params | learning, buffers
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            momentum = max(NORM_MOMENTUM, 1 - ramp)
            outputs, buffers = apply(
                model,
                *weights,
                pixels,
                draws,
                train=True,
                momentum=momentum,
                evaluated=evaluated,
                all_reduce=all_reduce,
            )
        how: Any = {"positives": positives.sum(), "focal_sum": focal_loss_sum, "quality": quality}
        losses = detection_loss(outputs.logits, outputs.deltas, labels, deltas, **how)
        return losses.total * state.loss_scale, ({k: v.detach() for k, v in losses._asdict().items()}, buffers)

    learning = trainable(state.params, frozen)
    # Batch norms of several processes meet in each part, where some may have no image.
    parts = micro_batches if all_reduce else max(1, min(micro_batches, len(batch.images)))
    draws = stochastic_draws(batch.names, model.backbone.depth, seed=seed, step=state.step)
    draws = draws.to(batch.images.device, non_blocking=True)
    examples = (batch.images, targets.labels, targets.deltas, draws)
    terms, buffers, grads = accumulate(value_and_grad(loss, has_aux=True), parts)(learning, state.buffers, *examples)
    # Statistics that are not those of all processes yet.
    own = {} if all_reduce or reduce is identity else trainable(buffers, frozen)
    statistics = {name: share * buffer for name, buffer in own.items()}
    summed = reduce({**terms, **grads, **statistics})
    losses, grads = Losses(*(summed[name] for name in Losses._fields)), {name: summed[name] for name in grads}
    buffers |= {name: summed[name] for name in statistics}
    if state.loss_scale != 1:
        grads = dict(zip(grads, torch._foreach_div(list(grads.values()), state.loss_scale), strict=True))
    norm = torch.nn.utils.get_total_norm(grads.values())
    metrics = StepMetrics(losses, norm, positives, unknown[0])
    grads = dict(zip(grads, torch._foreach_mul(list(grads.values()), (clip / (norm + 1e-6)).clamp(max=1)), strict=True))
    updated, moments = optimizer.update(learning, grads, state.moments, lr)
    params, decay = state.params | updated, min(ema_decay, ramp)
    after = State(
        params=params,
        buffers=buffers,
        moments=moments,
        ema=Variables(*(ema_update(*pair, decay=decay) for pair in zip(state.ema, (params, buffers), strict=True))),
        step=state.step + 1,
        loss_scale=state.loss_scale * GROWTH if precision == torch.float16 else 1.0,
    )
    return check_step(state, after, metrics, names=batch.names) if check else after, metrics


def check_step(before: State, after: State, metrics: StepMetrics, *, names: Sequence[str]) -> State:
    """Return the state that comes of a step, whose measurements are waited for; arguments and errors of `train_step`.

    It is the one before, but for the step's number and the loss scale, where a scaled gradient overflowed.
    """
    losses, norm, positives, unknown = metrics
    if unknown:
        raise InputError(f"a label of {', '.join(names)} is beyond the {len(positives)} classes, numbered from 0")
    if (losses.total + norm).isfinite():
        return after
    if losses.total.isfinite() and before.loss_scale > 1:
        return before._replace(step=before.step + 1, loss_scale=before.loss_scale / 2)
    shown = ", ".join(f"{name} {value:g}" for name, value in {**losses._asdict(), "gradient norm": norm}.items())
    raise FloatingPointError(f"step {before.step + 1}: the loss is not finite ({shown}) on {', '.join(names)}")


def accumulate(gradient: Callable[..., Any], micro_batches: int) -> Callable[..., tuple[Params, Params, Params]]:
    """Sum a loss and its gradient over micro-batches; the buffers pass from one to the next.

    Args:
        gradient: (params, buffers, *tensors) -> ((value, (terms, buffers)), grads), sums over the rows of the tensors.
        micro_batches: number of parts.

    Returns:
        (params, buffers, *tensors) -> summed terms, last buffers, summed grads.
    """

    def summed(params: Params, buffers: Params, *tensors: Tensor) -> tuple[Params, Params, Params]:
        terms: Params = {}
        grads: Params = {}
        for part in zip(*(tensor.tensor_split(micro_batches) for tensor in tensors), strict=True):
            (_, (new_terms, buffers)), new_grads = gradient(params, buffers, *part)
            terms = {name: terms.get(name, 0) + value for name, value in new_terms.items()}
            grads = {name: grads[name] + grad if grads else grad for name, grad in new_grads.items()}
        return terms, buffers, grads

    return summed


def stochastic_draws(names: Sequence[str], depth: int, *, seed: int, step: int) -> Tensor:
    """Draw for each image and block of the backbone whether it is dropped: float32[B depth], even in 0 to 1.

    What an image draws depends on nothing but its name, the step and the seed: not on who computes it, nor with which
    others.
    """
    drawn = [np.random.default_rng((seed, step, zlib.crc32(name.encode()))).random(depth) for name in names]
    return torch.tensor(np.array(drawn), dtype=torch.float32).view(-1, depth)

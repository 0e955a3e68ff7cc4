"""The state of training: a value that can be kept, compared, sent and rolled back."""

from collections.abc import Collection
from os import PathLike
from typing import Any, NamedTuple

import torch

from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import Params, Variables
from tinydet.training.optim import Moments, Optimizer, adamw
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.load import adapt_weights, load_weights


class State(NamedTuple):
    """All that a training step changes."""

    params: Params
    buffers: Params  # running batch-norm statistics
    moments: Moments  # the optimizer's
    ema: Variables  # moving averages of params and buffers: the weights to validate and to predict with
    step: int = 0  # steps done
    loss_scale: float = 1.0  # factor of the loss while float16 gradients are computed


def init(
    config: ModelConfig,
    *,
    weights: str | PathLike[str] = "auto",
    optimizer: Optimizer | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[EfficientDet, State]:
    """Build a model and the state that its training starts from.

    Args:
        config: the model's.
        weights: what to start from, as for `tinydet.weights.load.load_weights`; what they lack is random.
        optimizer: whose moments the state holds; AdamW when None.
        seed: draws the random weights; torch's global generator is left as it was.
        device: where the state lies.

    Returns:
        The module on the meta device, without memory for weights, and the state.

    Raises:
        InputError: the weights cannot be read, or do not fit the config.
    """
    variables, _ = adapt_weights(load_weights(weights, model=config.name), config, seed=seed)
    return meta_model(config), initial_state(variables, optimizer=optimizer or adamw(), device=device)


def initial_state(
    variables: Variables,
    *,
    optimizer: Optimizer,
    frozen: Collection[str] = (),
    device: torch.device | str = "cpu",
    loss_scale: float = 1.0,
) -> State:
    """Build the state before the first step: copies of the weights on a device, and moments of what is not frozen."""
    params, buffers = ({name: tensor.to(device, copy=True) for name, tensor in each.items()} for each in variables)
    return State(params, buffers, optimizer.init(trainable(params, frozen)), Variables(params, buffers), 0, loss_scale)


def trainable(params: Params, frozen: Collection[str]) -> Params:
    """Select the parameters that are in none of the frozen modules."""
    return {name: param for name, param in params.items() if name.rpartition(".")[0] not in frozen}


def save(path: str | PathLike[str], state: State, config: ModelConfig, **training: Any) -> None:
    """Write a checkpoint, whole or not at all; `training` holds plain values besides the state's own.

    It loads with `tinydet.load`, and with `torch.load(path, weights_only=True)`.
    """
    progress = {"moments": state.moments, "step": state.step, "loss_scale": state.loss_scale}
    save_checkpoint(path, Checkpoint(config, state.params, state.buffers, *state.ema, {**training, **progress}))


def restore(checkpoint: Checkpoint) -> State:
    """Read the state back from a checkpoint that `save` wrote.

    Raises:
        InputError: the checkpoint was stripped of it.
    """
    training, ema = checkpoint.training, Variables(checkpoint.ema_params, checkpoint.ema_buffers)
    if missing := [name for name in ("moments", "step", "loss_scale") if name not in training]:
        raise InputError(f"a run cannot be resumed from a stripped checkpoint: it holds no {', '.join(missing)}")
    state = (training["moments"], ema, training["step"], training["loss_scale"])
    return State(checkpoint.params, checkpoint.buffers, *state)

"""What a run of training begins with: data, model, weights, optimiser, and a batch that memory holds."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from tinydet.data.dataset import DetectionDataset
from tinydet.data.loader import train_batches, val_batches
from tinydet.data.opened import open_dataset
from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.detect import model_anchors
from tinydet.model.functional import Tensors
from tinydet.training.batch_size import MOST, largest_batch, memory_limit, noise, peak_bytes
from tinydet.training.fit import alternatives, best_input
from tinydet.training.overfit import overfit_frames, overfit_settings
from tinydet.training.schedule import Plan
from tinydet.training.settings import TrainSettings, fit_crop, fit_model
from tinydet.training.step import (
    Measured,
    State,
    choose_precision,
    frozen_modules,
    make_optimizer,
    train_step,
    trainable,
)
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, skeleton
from tinydet.weights.fetch import Progress
from tinydet.weights.load import Report, fit_weights, load_weights


class Run(NamedTuple):
    """All of a run that its epochs do not replace."""

    settings: TrainSettings
    """With the batch size that was found, where none was given."""
    config: ModelConfig
    train_set: DetectionDataset
    val_set: DetectionDataset
    weights: str
    """What the run began from: a file and what it is, or "random weights"."""
    report: Report | None
    """What became of every tensor of that file; None of a run that goes on."""
    frozen: frozenset[str]
    optimizer: Optimizer
    plateau: ReduceLROnPlateau
    scaler: GradScaler
    step: Callable[..., tuple[State, Measured]]
    """`train_step` of a state, a batch, and the `parts` to cut that into."""
    plan: Plan
    device: torch.device
    precision: str
    """A key of `tinydet.training.step.PRECISIONS`."""


def start(
    settings: TrainSettings,
    out: Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Run, State, dict[str, Any]]:
    """Make all that a run needs, and write nothing.

    Args: as for `tinydet.train.train`.

    Returns:
        The run, its state, and what its last checkpoint says of its training so far.

    Raises:
        InputError: the data, the settings or the folder are no good.
    """
    device = torch.device(device)
    train_set, val_set = open_splits(settings)
    begin, report = _first_checkpoint(settings, train_set, out, resume=resume, device=device, progress=progress)
    config, training, model = begin.config, begin.training, skeleton(begin.config)
    now = State(begin.params, begin.buffers, begin.ema_params, begin.ema_buffers, training["step"])
    if settings.overfit is not None:
        train_set, val_set = overfit_frames(train_set, settings.overfit)
        settings = overfit_settings(settings)
    crop, frozen = fit_crop(settings, config), frozenset(training["frozen"])
    precision = choose_precision(settings.amp, device)
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    step = partial(
        train_step,
        model=model,
        anchors=model_anchors(config, crop, device=device),
        clip=settings.clip,
        ema_decay=settings.ema_decay,
        frozen=frozen,
        precision=precision,
    )
    if settings.batch_size is None:
        most = min(MOST, max(1, len(train_set) // (8 * settings.grad_accumulation)))  # leaves eight steps an epoch
        attempt = partial(_try_step, now=now, step=step, frozen=frozen, crop=crop, device=device)
        found = largest_batch(attempt, limit=memory_limit(device), most=most)
        settings = dataclasses.replace(settings, batch_size=found)
    if settings.step_size > len(train_set):
        raise InputError(
            f"batch_size must be at most the number of training examples, {len(train_set)}, got {settings.step_size}"
        )
    optimizer = make_optimizer(
        trainable(now.params, frozen), name=str(settings.optimizer), lr=settings.peak_lr, weight_decay=settings.decay
    )
    plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    if resume:
        optimizer.load_state_dict(training["optimizer"])
        plateau.load_state_dict(training["plateau"])
        scaler.load_state_dict(training["scaler"])
    plan = Plan(
        steps=len(train_set) // settings.step_size,
        epochs=settings.epochs,
        seconds=None if settings.minutes is None else 60 * settings.minutes,
        warmup_epochs=settings.warmup_epochs,
    )
    step = partial(step, optimizer=optimizer, scaler=scaler)
    made = (frozen, optimizer, plateau, scaler, step, plan, device, precision)
    return Run(settings, config, train_set, val_set, training["weights"], report, *made), now, training


def open_splits(settings: TrainSettings) -> tuple[DetectionDataset, DetectionDataset]:
    """The data to train on and to validate on: two splits of one, or all of two."""
    whole = settings.val is not None
    train_set = open_dataset(settings.data, "all" if whole else "train", classes=settings.classes)
    val_set = open_dataset(settings.val or settings.data, "all" if whole else "val", classes=train_set.classes)
    return train_set, val_set


def training_batches(
    run: Run, epochs: range, *, batch_size: int | None = None, workers: int | None = None
) -> DataLoader:
    """The batches that a run is trained on, of a step each, in these epochs; in other portions if asked for."""
    settings = run.settings
    return train_batches(
        run.train_set,
        fit_crop(settings, run.config),
        fit=run.config.image_size,
        scale_range=None if settings.overfit else settings.scale_range,
        pasted=settings.paste or 0.0,
        batch_size=batch_size or settings.step_size,
        epochs=epochs,
        seed=settings.seed,
        fill=run.config.fill,
        workers=settings.workers if workers is None else workers,
        pin_memory=run.device.type == "cuda",
    )


def validation_batches(run: Run) -> DataLoader:
    """The batches that a run is validated on, each time that it is gone through."""
    return val_batches(
        run.val_set,
        run.config.image_size,
        batch_size=run.settings.batch_size or 1,
        fill=run.config.fill,
        workers=run.settings.workers,
        pin_memory=run.device.type == "cuda",
    )


def _first_checkpoint(
    settings: TrainSettings,
    train_set: DetectionDataset,
    out: Path | None,
    *,
    resume: bool,
    device: torch.device,
    progress: Progress | None,
) -> tuple[Checkpoint, Report | None]:
    """The last checkpoint of a run to go on with; or the first of a new run, and the report on its weights."""
    last = out / "last.pt" if out is not None else None
    if resume:
        if last is None:
            raise InputError("resume: say which run to go on with")
        return load_checkpoint(last, device=device), None
    if last is not None and last.exists():
        raise InputError(f"{out}: holds a run already; resume it, or choose another folder")
    weights = load_weights(settings.weights, model=settings.model, progress=progress)
    config = fit_model(settings, train_set.sizes, classes=train_set.classes, base=weights.config)
    if settings.auto_size:
        best = best_input(alternatives(train_set, config))
        config = dataclasses.replace(config, image_size=best.image_size, anchor_scale=best.anchor_scale)
    torch.manual_seed(settings.seed)
    params, buffers, report = fit_weights(weights, config, class_map=dict(settings.class_map))
    frozen = frozen_modules(skeleton(config), settings.freeze, known=report.taken)
    ema_params, ema_buffers = _copied(params, device), _copied(buffers, device)
    training = {
        "step": 0,
        "parts": settings.grad_accumulation,
        "elapsed": 0.0,
        "history": [],
        "best": (-1.0, 0.0),
        "weights": weights.source,
        "frozen": sorted(frozen),
    }
    begin = Checkpoint(config, _copied(params, device), _copied(buffers, device), ema_params, ema_buffers, training)
    return begin, report


def _try_step(
    pictures: int,
    *,
    now: State,
    step: Callable[..., tuple[State, Measured]],
    frozen: frozenset[str],
    crop: tuple[int, int],
    device: torch.device,
) -> int:
    """The bytes that are held at most during a step of so many pictures; nothing that is given changes."""
    state = now._replace(params=_copied(now.params, device))
    optimizer = make_optimizer(trainable(state.params, frozen), name="adamw", lr=0.0, weight_decay=0.0)
    batch = noise(pictures, crop, device)
    return peak_bytes(lambda: step(state, batch, optimizer=optimizer), device)


def _copied(tensors: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}

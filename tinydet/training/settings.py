"""Settings of a training run, each declared once: default, help, choices, bounds. The command line reads them here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinydet.errors import InputError
from tinydet.fields import check_fields, setting

WIDE = (320, 1088)  # (height, width) of the input for images more than twice as wide as high
# Peak learning rate, the images of a step that it is for, the power of that number it grows with, weight decay. SGD's
# are the paper's. AdamW's rate is the best of 1.4, 2.8 and 5.6e-3 for short runs on KITTI in batches of four; it goes
# with the root of the batch (Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms).
OPTIMIZERS = {"adamw": (5.6e-3, 4, 0.5, 1e-2), "sgd": (0.08, 64, 1.0, 4e-5)}
FREEZE = ("auto", "none", "early", "backbone", "norms")
EARLY = ("auto", "early")  # of these: the batch norms of what is frozen go by the batch
LOSSES = ("quality", "focal")
PRECISIONS = ("auto", "bf16", "fp16", "off")
SCHEDULES = ("cosine", "plateau", "constant")
# The values of settings that are left out, by recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"optimizer": "adamw", "freeze": "auto", "loss": "quality"},
    "paper": {"optimizer": "sgd", "freeze": "none", "scale_range": (0.1, 2.0), "copy_paste": 0.0, "loss": "focal"},
}


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `tinydet train`; saved with every checkpoint. None: by the data, the weights or the recipe."""

    data: str
    val: str | None = setting(None, "Data to validate on; all of DATA is then trained on.")
    model: str | None = setting(
        None, "d0 to d7, d7x, lite0 to lite4, lite3x, d0-symmetric; default: that of the weights, or d0."
    )
    classes: tuple[str, ...] | None = setting(
        None, "Class names to detect; default: Car,Pedestrian,Cyclist of KITTI data, all classes of other data."
    )
    image_size: tuple[int, int] | str | None = setting(
        None,
        "Network input in pixels; default: by the shape of the images. auto takes the size and the anchor scale that "
        "`tinydet check` recommends.",
        low=1,
    )
    anchor_scale: float | None = setting(None, "Anchor size in strides; default: by the input size.", low=0, above=True)
    weights: str = setting(
        "auto",
        "Weights to start from: coco (a published detector), imagenet (a backbone), none, or a file: a checkpoint of "
        "tinydet, effdet or zylo117, or an EfficientNet of timm, torchvision or lukemelas. auto is imagenet where it "
        "can be had, else none.",
    )
    class_map: tuple[tuple[str, str], ...] = setting((), "Names that the weights have for classes, where they differ.")
    freeze: str | None = setting(
        None,
        "Keep weights as they were loaded: early (the backbone's stages up to P3, whose batch norms go by the batch "
        "even so), backbone, norms (for batches of one or two), none; auto is early where a backbone was loaded; "
        "default: by the recipe, auto.",
        choices=FREEZE,
    )
    recipe: str = setting(
        "default",
        "Defaults of --optimizer, --loss, --freeze, --scale-range, --copy-paste and --crop: those measured best here, "
        "or the paper's.",
        choices=tuple(RECIPES),
    )
    epochs: int = setting(50, "Passes over the training images.", low=1, high=10**9)
    minutes: float | None = setting(
        None, "Length of the run in minutes, its last validation included; instead of --epochs.", low=0, above=True
    )
    batch_size: int | None = setting(
        4, "Images that go through the network together, in each process; auto: as many as memory holds.", low=1
    )
    grad_accumulation: int = setting(1, "Batches whose gradients are summed for one step.", low=1)
    sync_bn: str = setting(
        "auto",
        "Batch norms see the images of all processes that torchrun started; auto: where each has fewer than eight.",
        choices=("auto", "on", "off"),
    )
    processes: int = setting(1, "Processes that the run started with.", low=1)
    optimizer: str | None = setting(None, "Optimizer; default: by the recipe, adamw.", choices=tuple(OPTIMIZERS))
    lr: float | None = setting(
        None, "Peak learning rate; default: by the optimizer and the batch.", low=0, above=True, high=1e30
    )
    weight_decay: float | None = setting(None, "Weight decay of convolution kernels; default: by the optimizer.", low=0)
    schedule: str = setting(
        "cosine",
        "Learning rate: falls in half a cosine, falls by ten when the validation loss has not fallen for three epochs, "
        "or stays constant.",
        choices=SCHEDULES,
    )
    warmup_epochs: float = setting(1.0, "Epochs in which the learning rate rises, at most a tenth of the run.", low=0)
    loss: str | None = setting(
        None,
        "Loss: quality (each object has an IoU threshold of its own for its anchors, ATSS; scores learn the IoU of "
        "their boxes, quality focal loss; boxes their GIoU) or the paper's, focal; default: by the recipe, quality.",
        choices=LOSSES,
    )
    clip: float = setting(10.0, "Largest global norm of the gradient.", low=0, above=True)
    ema_decay: float = setting(0.9998, "Decay of the averaged weights; 0: no averaging.", low=0, high=1)
    amp: str = setting(
        "auto",
        "Precision of the network; auto is bf16 on a GPU that supports it, fp16 on another, off (float32) on a CPU.",
        choices=PRECISIONS,
    )
    compile: bool = setting(
        False,
        "Compile the network before the first step, in minutes: for a GPU, which is not measured; on two cores of a "
        "CPU a step of d0 took 1.42 times as long afterwards.",
    )
    crop: tuple[int, int] | None = setting(
        None, "Part of the input that a step sees of an image, in pixels; default: by the recipe and the input.", low=1
    )
    scale_range: tuple[float, float] | None = setting(
        None,
        "Bounds of the scale jitter; 1 just fits the image into the input; default: by the recipe, 0.6,1.2, or "
        "0.8,1.8 where --crop is less than the input.",
        low=0,
        above=True,
    )
    copy_paste: float | None = setting(
        None,
        "Probability that an image gets objects of another; default: by the recipe, 0, or 0.7 where --crop is less "
        "than the input.",
        low=0,
        high=1,
    )
    augment: Mapping[str, Any] | None = setting(
        None, "Transforms in place of flip and colour jitter: a JSON or YAML file that albumentations.save wrote."
    )
    keep: int | None = setting(None, "Keep the checkpoint of every Nth epoch as epoch-N.pt.", low=1)
    early_stop: int | None = setting(None, "Stop after that many epochs without a better one.", low=1)
    overfit: int | None = setting(
        None,
        "Train on that many images, unchanged, until all their objects are found: the first thing to try on new data.",
        low=1,
    )
    seed: int = setting(0, "Seed of weights, order and augmentation.", low=0, high=2**32)
    workers: int = setting(1, "Processes that load images; default: half the cores, 1 to 4.", low=0)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.scale_range is not None and self.scale_range[0] > self.scale_range[1]:
            raise InputError(f"scale_range must be a lower and a higher number, got {self.scale_range}")
        if isinstance(self.image_size, str) and self.image_size != "auto":
            raise InputError(f"image_size must be (height, width) or 'auto', got {self.image_size!r}")

    @property
    def step_size(self) -> int:
        """Images of a step, at most; the batch size must be known."""
        assert self.batch_size is not None
        return self.batch_size * self.grad_accumulation * self.processes

    @property
    def peak_lr(self) -> float:
        lr, images, power, _ = OPTIMIZERS[str(self.optimizer)]
        return lr * (self.step_size / images) ** power if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        return OPTIMIZERS[str(self.optimizer)][-1] if self.weight_decay is None else self.weight_decay

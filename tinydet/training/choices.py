"""What the settings of a run leave open: its input, crop, precision and frozen modules, by data and device."""

import dataclasses
from collections.abc import Collection

import numpy as np
import torch

from tinydet.data.dataset import DetectionDataset
from tinydet.data.loader import resolve_crop
from tinydet.errors import InputError
from tinydet.model.backbone import early_stages
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.layers import BatchNorm
from tinydet.ops.anchors import feature_sizes
from tinydet.training.autosize import anchor_recall, best_input, compare_inputs
from tinydet.training.settings import EARLY, WIDE, TrainSettings

COVERED = 0.9  # least share of the anchor recall that must be left for levels to go


def resolve_config(settings: TrainSettings, dataset: DetectionDataset, *, base: ModelConfig) -> ModelConfig:
    """Choose the model's classes, input size and anchor scale for a data set.

    Where neither the settings nor an earlier run decided them, images more than twice as wide as high get an input of
    320x1088 and smaller anchors than usual: on KITTI 95% of the pedestrians then have an anchor of IoU .5, where D0's
    square has 40%, for a third more computation.

    Args:
        settings: what was asked for goes first.
        dataset: the training data.
        base: config of the weights that the run starts from.
    """
    published = model_config(base.name)
    trained = (base.image_size, base.anchor_scale) != (published.image_size, published.anchor_scale)
    aspect = np.median(dataset.sizes[:, 1] / dataset.sizes[:, 0])
    asked = settings.image_size if isinstance(settings.image_size, tuple) else None
    wide = not trained and aspect > 2
    image_size = asked or (WIDE if wide else base.image_size)
    scale = (2.5 if image_size[0] >= WIDE[0] else 2.0) if wide else base.anchor_scale
    config = dataclasses.replace(
        base, classes=dataset.classes, image_size=image_size, anchor_scale=settings.anchor_scale or scale
    )
    if settings.image_size != "auto":
        return config
    best = best_input(compare_inputs(dataset, config))
    return dataclasses.replace(config, image_size=best.image_size, anchor_scale=best.anchor_scale)


def choose_crop_size(settings: TrainSettings, config: ModelConfig) -> tuple[int, int]:
    """Choose the (height, width) that a step sees of an image: as asked for, or by the recipe and the input."""
    if settings.overfit is not None:
        return config.image_size
    if settings.crop is not None:
        return settings.crop
    return resolve_crop(config.image_size) if settings.recipe == "default" else config.image_size


def choose_levels(
    settings: TrainSettings, dataset: DetectionDataset, config: ModelConfig, *, detector: bool
) -> ModelConfig:
    """Leave a model P3 to P5 where a step sees half the width of an input or less, and these cover its objects.

    A crop has so few cells of P6 and P7 that their anchors learn little of what whole images show. On KITTI the others
    alone were worth 1.9 points (95%: .1 to 3.7), and a sixth as many images had large cars that are not there; where
    objects fill the height of the images, one run lost 10 points and another none.

    Args:
        config: of `resolve_config`.
        detector: whether the run starts from a whole detector, whose levels stay.
    """
    if detector or 2 * choose_crop_size(settings, config)[1] > config.image_size[1]:
        return config
    fewer = dataclasses.replace(config, levels=config.levels[:3])
    recall, left = (anchor_recall(dataset, one).mean for one in (config, fewer))
    return config if left < COVERED * recall else fewer


def check_batch_norms(config: ModelConfig, crop: tuple[int, int], *, evaluated: Collection[str], images: int) -> None:
    """Raise InputError where a batch norm would be trained on one value a channel, which has no variance, or none."""
    if images > 1 or not trained_norms(config, evaluated=evaluated):
        return
    if not images:
        raise InputError("--sync-bn off: a step has fewer images than there are processes; leave it auto")
    if feature_sizes(crop, levels=config.levels)[-1] == (1, 1):
        raise InputError(
            f"batch norms would see one value a channel: of one image of {crop[0]}x{crop[1]}, the last feature map is "
            "1x1; try a larger --size, a larger --batch-size, or --weights coco --freeze norms"
        )


def trained_norms(config: ModelConfig, *, evaluated: Collection[str]) -> set[str]:
    """Name the batch norms that go by the batch."""
    norms = {name for name, module in meta_model(config).named_modules() if isinstance(module, BatchNorm)}
    return norms - {*evaluated}


def choose_precision(amp: str, device: torch.device) -> str:
    """Resolve "auto": bf16 on a GPU that supports it, fp16 on another, off elsewhere."""
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def frozen_modules(model: EfficientDet, freeze: str, *, loaded: Collection[str]) -> frozenset[str]:
    """Name the modules whose parameters a run leaves as they are.

    Args:
        model: the module.
        freeze: "none"; "early", the backbone's stages up to P3; "auto", those if they were loaded; "backbone", all of
            it; "norms", the batch norms whose statistics were loaded: those of a small batch are worse.
        loaded: names of the tensors that were loaded and are not random.

    Raises:
        InputError: what should be frozen is random.
    """
    known = any(name.startswith("backbone.") for name in loaded)
    if freeze == "none" or (freeze == "auto" and not known):
        return frozenset()
    if not known:
        raise InputError(f"freeze {freeze}: the run starts from random weights, which would stay random")
    if freeze in EARLY:
        return early_stages(model)
    if freeze == "backbone":
        return frozenset(name for name, _ in model.named_modules() if f"{name}.".startswith("backbone."))
    norms = (name for name, module in model.named_modules() if isinstance(module, BatchNorm))
    return frozenset(name for name in norms if f"{name}.running_var" in loaded)


def evaluated_modules(freeze: str | None, frozen: Collection[str]) -> frozenset[str]:
    """Name the modules that stay in evaluation: the frozen ones, but for early stages, whose norms go by the batch."""
    return frozenset() if freeze in EARLY else frozenset(frozen)

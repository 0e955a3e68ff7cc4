"""Anchor recall of a data set over input sizes and anchor scales: which input to train with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from tinydet.data.dataset import DetectionDataset
from tinydet.model.config import ModelConfig
from tinydet.ops.boxes import area
from tinydet.ops.kernels import max_anchor_iou

IOU = 0.5  # from which on an anchor takes an object
ENOUGH = 0.95  # anchor recall, the mean of the classes: KITTI's in 320x1088
MAX_IMAGES = 50_000  # to measure anchor recall by, and a tenth to compare inputs by
AREAS = (0.5, 0.75, 1, 1.5, 2, 3)  # of an input, relative to the model's
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
STRIDE = 32  # pixels, of which the sides of an input are multiples
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's areas in square pixels, here of the input."""


class AnchorRecall(NamedTuple):
    """The share of the objects that some anchor overlaps by IoU .5; nan of none."""

    image_size: tuple[int, int]
    anchor_scale: float
    mean: float
    """Of the classes that have objects."""
    by_class: dict[str, float]
    by_size: dict[str, float]
    """By the keys of `SIZES`."""


def anchor_recall(dataset: DetectionDataset, config: ModelConfig) -> AnchorRecall:
    """Measure how well a model's anchors cover the objects of a data set, by 50,000 images spread over more."""
    dataset = dataset.sample(MAX_IMAGES)
    boxes, labels = torch.from_numpy(dataset.boxes_in(config.image_size)), dataset.labels
    shapes: dict[str, Any] = {"octaves": config.octaves, "aspects": config.aspects, "levels": config.levels}
    covered = (max_anchor_iou(boxes, config.image_size, scale=config.anchor_scale, **shapes) >= IOU).numpy()
    areas = area(boxes).numpy()

    def recall(rows: np.ndarray) -> float:
        return float(covered[rows].mean()) if rows.any() else float("nan")

    by_class = {name: recall(labels == i) for i, name in enumerate(config.classes)}
    by_size = {name: recall((labels >= 0) & (areas >= low) & (areas < high)) for name, (low, high) in SIZES.items()}
    known = [share for share in by_class.values() if share == share]
    mean = float(np.mean(known)) if known else float("nan")
    return AnchorRecall(config.image_size, config.anchor_scale, mean, by_class, by_size)


def compare_inputs(dataset: DetectionDataset, config: ModelConfig) -> list[AnchorRecall]:
    """Find the best anchor scale for each of some inputs of the images' shape, small to large."""
    sample, found = dataset.sample(MAX_IMAGES // 10), []
    aspect = float(np.median(sample.sizes[:, 1] / sample.sizes[:, 0]))
    for size in input_sizes(config.image_size, aspect=aspect):
        recalls = [anchor_recall(sample, replace(config, image_size=size, anchor_scale=scale)) for scale in SCALES]
        found.append(max(recalls, key=lambda one: (one.mean, one.anchor_scale)))
    return found


def input_sizes(image_size: tuple[int, int], *, aspect: float) -> list[tuple[int, int]]:
    """List inputs (height, width) of an aspect, width by height, by `AREAS` relative to another input."""
    areas = image_size[0] * image_size[1] * np.array(AREAS)
    sides = np.sqrt(np.stack([areas / aspect, areas * aspect], axis=1))
    rounded = STRIDE * (sides / STRIDE).round().clip(1).astype(int)
    return list(dict.fromkeys((height, width) for height, width in rounded.tolist()))


def best_input(found: Sequence[AnchorRecall]) -> AnchorRecall:
    """Choose the smallest input with enough anchor recall, or else the one with most."""
    return next((one for one in found if one.mean >= ENOUGH), max(found, key=lambda one: one.mean))

"""The input and the anchors that fit a data set: how well those of a model reach it, and what would be better."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tinydet.data.dataset import DetectionDataset
from tinydet.model.config import ModelConfig
from tinydet.ops.anchors import coverage_nearby

REACHED = 0.5  # IoU, from which on an anchor takes an object
ENOUGH = 0.95  # of the objects, the mean of the classes: KITTI's in 320x1088
ENOUGH_PICTURES = 5000  # to compare inputs by
AREAS = (0.5, 0.75, 1, 1.5, 2, 3)  # of the model's own input
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
STEP = 32  # pixels, of the sides of an input
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's, in square pixels, here of the input."""


class Reach(NamedTuple):
    """The share of a data set's objects that some anchor overlaps by at least .5; nan where there are none."""

    image_size: tuple[int, int]
    anchor_scale: float
    mean: float
    """Of the classes that have objects."""
    by_class: dict[str, float]
    by_size: dict[str, float]
    """Of the objects that are small, medium and large in this input."""


def reach(dataset: DetectionDataset, config: ModelConfig) -> Reach:
    """How well a model's anchors reach the objects of a data set."""
    boxes = dataset.boxes_in(config.image_size)
    labels = np.concatenate(dataset.labels)
    shape: dict[str, Any] = {name: getattr(config, name) for name in ("octaves", "aspects", "levels")}
    best = coverage_nearby(torch.from_numpy(boxes), config.image_size, scale=config.anchor_scale, **shape)
    reached = best.numpy() >= REACHED
    areas, objects = (boxes[:, 2:] - boxes[:, :2]).prod(1), labels >= 0
    by_class = {name: _share(reached[labels == i]) for i, name in enumerate(config.classes)}
    by_size = {name: _share(reached[objects & (areas >= low) & (areas < high)]) for name, (low, high) in SIZES.items()}
    known = [share for share in by_class.values() if share == share]
    return Reach(config.image_size, config.anchor_scale, float(np.mean(known)) if known else np.nan, by_class, by_size)


def alternatives(dataset: DetectionDataset, config: ModelConfig) -> list[Reach]:
    """For inputs of the pictures' shape, from small to large, the anchor scale that reaches most.

    Of a large data set some of the pictures are looked at.
    """
    aspect = float(np.median([width / height for height, width in dataset.sizes]))
    dataset = dataset.take(range(0, len(dataset), max(1, len(dataset) // ENOUGH_PICTURES)))
    found = []
    for image_size in input_sizes(config.image_size, aspect=aspect):
        tried = [
            reach(dataset, dataclasses.replace(config, image_size=image_size, anchor_scale=scale)) for scale in SCALES
        ]
        found.append(max(tried, key=lambda one: (one.mean, one.anchor_scale)))
    return found


def input_sizes(image_size: tuple[int, int], *, aspect: float) -> list[tuple[int, int]]:
    """Inputs (height, width) of some aspect, width by height, by the area of another; whole multiples of 32."""
    area = image_size[0] * image_size[1]
    sides = [((area * share / aspect) ** 0.5, (area * share * aspect) ** 0.5) for share in AREAS]
    rounded = [(max(STEP, STEP * round(h / STEP)), max(STEP, STEP * round(w / STEP))) for h, w in sides]
    return list(dict.fromkeys(rounded))


def best_input(found: Sequence[Reach]) -> Reach:
    """Of `alternatives`, the smallest that reaches enough, or else the one that reaches most."""
    return next((one for one in found if one.mean >= ENOUGH), max(found, key=lambda one: one.mean))


def _share(reached: np.ndarray) -> float:
    """Of those that are reached, nan of none."""
    return float(reached.mean()) if len(reached) else float("nan")

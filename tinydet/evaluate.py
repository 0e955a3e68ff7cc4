"""Evaluate: what a detector finds in a data set, and how good that is."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import read_image
from tinydet.data.loader import Batch, val_batches
from tinydet.data.opened import open_dataset
from tinydet.detector import Detector
from tinydet.model.config import COCO_CLASSES, ModelConfig
from tinydet.model.detect import VOTE, Detections, detect, model_anchors
from tinydet.model.functional import Tensors, normalize
from tinydet.model.fuse import network
from tinydet.ops.assign import assign_nearby
from tinydet.ops.losses import Losses, detection_loss
from tinydet.score import Scores, score_detections
from tinydet.weights.formats import Weights
from tinydet.weights.load import with_classes


class Validation(NamedTuple):
    """One pass over a data set."""

    losses: Losses
    """Mean of the batches' losses, weighed by their number of pictures; float64 scalars on the CPU."""
    detections: list[Detections]
    """Of each picture in the data set's order, in original pixels, on the CPU."""


@torch.inference_mode()
def validate(params: Tensors, buffers: Tensors, batches: Iterable[Batch], *, config: ModelConfig) -> Validation:
    """Loss and detections of every picture in one pass, with soft suppression and votes on boxes.

    Args:
        params, buffers: weights of a whole detector; they decide the device.
        batches: from `tinydet.data.loader.val_batches`.
        config: the model's.
    """
    device = next(iter(params.values())).device
    forward = network(params, buffers, config=config)
    detections: list[Detections] = []
    total, count = torch.zeros(3, dtype=torch.float64), 0
    anchors: Tensor | None = None
    for batch in batches:
        if anchors is None:
            height, width = batch.images.shape[-2:]
            anchors = model_anchors(config, (height, width), device=device)
        images = normalize(batch.images.to(device), mean=config.mean, std=config.std)
        outputs = forward(images)
        targets = assign_nearby(batch.boxes.to(device), batch.labels.to(device), anchors)
        losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas)
        total += torch.stack(losses).cpu().double() * len(images)
        count += len(images)
        found = detect(
            outputs, anchors, sizes=batch.sizes, scales=batch.scales.to(device), method="soft", vote_threshold=VOTE
        )
        detections += [Detections(*(field.cpu() for field in one)) for one in found]
    return Validation(Losses(*(total / max(count, 1))), detections)


def detect_in(
    data: str | PathLike[str],
    weights: Weights,
    *,
    split: str,
    batch_size: int,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    tta: bool = False,
) -> tuple[DetectionDataset, list[Detections]]:
    """What a detector finds in a split of a data set, computed where the weights are.

    Args:
        data: as for `tinydet.data.opened.open_dataset`.
        weights: of a whole detector.
        split: "train", "val" or "all".
        batch_size: pictures at a time.
        classes: what to score; when None what the weights find, or for a detector of COCO's classes those of the data.
        class_map: names of classes to the names that the weights have for them, as for `fit_weights`.
        tta: as for `tinydet.detector.Detector.detect`.

    Returns:
        The data set, and the detections in each of its pictures, in original pixels.

    Raises:
        InputError: the weights know nothing of a class, or the data are no good.
    """
    if classes is None and weights.config.classes != COCO_CLASSES:
        classes = weights.config.classes
    if classes is not None:
        weights = with_classes(weights, classes, class_map=class_map)
    dataset = open_dataset(data, split, classes=classes)
    if classes is None:
        weights = with_classes(weights, dataset.classes, class_map=class_map)
    config = weights.config
    if tta:
        look = partial(Detector(weights).detect, tta=True, score_threshold=0.01, method="soft")
        return dataset, [look([read_image(path)])[0] for path in dataset.paths]
    batches = val_batches(dataset, config.image_size, batch_size=batch_size, workers=1, fill=config.fill)
    return dataset, validate(weights.params, weights.buffers, batches, config=config).detections


def score_weights(data: str | PathLike[str], weights: Weights, **settings: Any) -> Scores:
    """AP of a detector on a split of a data set; arguments as for `detect_in`."""
    return score_detections(*detect_in(data, weights, **settings))

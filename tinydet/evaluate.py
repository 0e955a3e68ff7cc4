"""Evaluate: what a detector finds in a data set, and how good that is."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinydet.data.kitti import CLASSES, KittiDataset, KittiObjects, find_kitti, read_objects
from tinydet.data.loader import Batch, val_batches
from tinydet.errors import InputError
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap
from tinydet.model.config import COCO_CLASSES, ModelConfig
from tinydet.model.detect import Detections, detect, model_anchors
from tinydet.model.functional import Tensors, normalize
from tinydet.model.fuse import network
from tinydet.ops.assign import assign_nearby
from tinydet.ops.losses import Losses, detection_loss
from tinydet.weights.formats import Weights
from tinydet.weights.load import with_classes

NOTHING = KittiObjects([], np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
Scores = dict[str, dict[str, dict[str, float]]]


class Validation(NamedTuple):
    """One pass over a data set."""

    losses: Losses
    """Mean of the batches' losses, weighed by their number of pictures; float64 scalars on the CPU."""
    detections: list[Detections]
    """Of each picture in the data set's order, in original pixels, on the CPU."""


@torch.inference_mode()
def validate(params: Tensors, buffers: Tensors, batches: Iterable[Batch], *, config: ModelConfig) -> Validation:
    """Loss and detections of every picture in one pass, with the soft suppression of the published AP.

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
        found = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales.to(device), method="soft")
        detections += [Detections(*(field.cpu() for field in one)) for one in found]
    return Validation(Losses(*(total / max(count, 1))), detections)


def score_weights(
    data: str | PathLike[str],
    weights: Weights,
    *,
    split: str,
    batch_size: int,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> Scores:
    """AP of a detector on a split of a KITTI folder, computed where the weights are.

    Args:
        data: a KITTI folder.
        weights: of a whole detector.
        split: "train" or "val".
        batch_size: pictures at a time.
        classes: what to score; when None what the weights find, or Car, Pedestrian and Cyclist of a COCO detector.
        class_map: names of classes to the names that the weights have for them, as for `fit_weights`.
    """
    if classes is None:
        classes = CLASSES if weights.config.classes == COCO_CLASSES else weights.config.classes
    weights = with_classes(weights, classes, class_map=class_map)
    config = weights.config
    dataset = KittiDataset(data, split, classes=config.classes)
    batches = val_batches(dataset, config.image_size, batch_size=batch_size, workers=1, fill=config.fill)
    found = validate(weights.params, weights.buffers, batches, config=config)
    return score_detections(dataset, found.detections)


def score_detections(dataset: KittiDataset, detections: Sequence[Detections]) -> Scores:
    """AP of detections in original pixels, one for each frame of a data set and labelled by its classes."""
    results = kitti_results(detections, dataset.classes)
    return kitti_ap(kitti_truths(dataset.objects), results, classes=dataset.classes)


def kitti_results(detections: Sequence[Detections], classes: Sequence[str]) -> list[KittiResult]:
    """Detections in original pixels as KITTI results, one for each frame."""
    return [
        KittiResult([classes[i] for i in labels.tolist()], boxes.double().numpy(), scores.double().numpy())
        for boxes, scores, labels in detections
    ]


def kitti_truths(objects: Iterable[KittiObjects]) -> list[KittiTruth]:
    """Label files as KITTI's ground truth, one for each frame."""
    return [KittiTruth(one.types, one.truncated, one.occluded, one.boxes) for one in objects]


def score_predictions(
    data: str | PathLike[str], predictions: str | PathLike[str], *, classes: Sequence[str], split: str = "val"
) -> tuple[Scores, list[str]]:
    """AP of a folder of KITTI result files.

    Args:
        data: a KITTI folder, of which `split` is scored, or a bare folder of label files, all of which are.
        predictions: a folder with a NNNNNN.txt for each frame.
        classes: names to score.
        split: "train" or "val".

    Returns:
        What `kitti_ap` returns, and the frames that have no result file: they count as frames without detections.

    Raises:
        InputError: no result file fits any frame, or a line does not parse.
    """
    names, objects = _labelled_frames(Path(data), classes=classes, split=split)
    found = {path.stem: path for path in Path(predictions).glob("*.txt")}
    missing = [name for name in names if name not in found]
    if len(missing) == len(names):
        raise InputError(f"{predictions}: no result file for any of {len(names)} frames, such as {names[0]}.txt")
    results = []
    for name in names:
        one = read_objects(found[name], scored=True) if name in found else NOTHING
        assert one.scores is not None
        results.append(KittiResult(one.types, one.boxes, one.scores))
    return kitti_ap(kitti_truths(objects), results, classes=classes), missing


def _labelled_frames(data: Path, *, classes: Sequence[str], split: str) -> tuple[list[str], list[KittiObjects]]:
    """Frame names and labels of a bare folder of label files, or of a KITTI split."""
    try:
        find_kitti(data)
    except InputError:
        if bare := sorted(data.glob("*.txt")):
            return [path.stem for path in bare], [read_objects(path) for path in bare]
        raise
    dataset = KittiDataset(data, split, classes=classes)
    return dataset.names, dataset.objects


def mean_moderate(scores: Scores) -> float:
    """The one number that runs are compared by: Moderate R40 in percent, the mean of the classes that have objects."""
    counted = [name for name, levels in scores["n_gt"].items() if levels["moderate"]]
    return float(np.mean([scores["R40"][name]["moderate"] for name in counted])) if counted else 0.0

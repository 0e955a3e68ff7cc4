"""Evaluation: the losses and detections of a dataset, and their AP by the KITTI and COCO protocols."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from tinydet.data.dataset import DetectionDataset, ground_truth
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import dead_worker, val_batches
from tinydet.data.open import open_dataset
from tinydet.detector import Detector
from tinydet.distributed import ALONE, World
from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.metrics.coco import IOUS, STATS, CocoResult, CocoTruth, coco_scores, crowded_notes
from tinydet.metrics.kitti import DIFFICULTIES, KittiResult, KittiTruth, kitti_ap, kitti_curves
from tinydet.model.config import COCO_CLASSES, ModelConfig
from tinydet.model.fold import inference_fn
from tinydet.model.functional import Params, Variables
from tinydet.model.postprocess import Detections, detect, model_anchors, normalize
from tinydet.ops.boxes import xyxy_to_xywh
from tinydet.ops.kernels import assign_batch
from tinydet.ops.losses import Losses, check_labels, detection_loss
from tinydet.weights.load import Loaded, select_classes
from tinydet.weights.onnx_file import OnnxFile


class Validation(NamedTuple):
    """The losses and detections of a dataset, on the CPU."""

    losses: Losses  # means over the images, float64
    detections: list[Detections]  # of each image, in original pixels


@torch.inference_mode()
def validate(
    variables: tuple[Params, Params],
    data: Any,
    *,
    config: ModelConfig,
    batch_size: int = 8,
    workers: int = 0,
    world: World = ALONE,
    quality: bool = True,
) -> Validation:
    """Compute the losses and the detections of a dataset in one pass, on the device of (params, buffers).

    The data are any sized dataset of `Example` or (image, boxes, labels), or batches. Of several processes each
    computes those of its batches, as `val_batches` shares them, and returns all: the same bits as one process does.
    `quality` is that of `train_step`.

    Raises:
        InputError: a label is none of the classes of the config.
        FloatingPointError: an output of the network is NaN or infinite; names the image.
    """
    if hasattr(data, "__getitem__"):
        data = val_batches(data, config, batch_size=batch_size, workers=workers, world=world)
    device = next(iter(variables[0].values())).device
    infer = inference_fn(Variables(*variables), config=config)
    sums, detections = [torch.zeros(len(Losses._fields), dtype=torch.float64)], list[Detections]()
    problem = ""
    for batch in data:
        if not len(batch.images):  # the last of a process that has one batch less than the others
            continue
        check_labels(batch.labels, classes=len(config.classes))
        batch = batch.to(device)
        anchors = model_anchors(config, batch.input_size, device=device)
        outputs = infer(normalize(batch.images, mean=config.mean, std=config.std))
        targets = assign_batch(
            batch.boxes, batch.labels, anchors, image_size=batch.input_size if quality else None, levels=config.levels
        )
        losses = detection_loss(*outputs, targets.labels, targets.deltas, quality=quality)
        sums.append(torch.stack(losses).cpu().double() * len(batch.images))
        try:
            found = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales, names=batch.names)
        except FloatingPointError as error:  # which all processes raise, once none is in the middle of its batches
            problem = problem or str(error)
            continue
        detections += [one.cpu() for one in found]
    for text in filter(None, world.exchange(problem)):
        raise FloatingPointError(text)
    detections = gather_detections(detections, world)
    total: Any = sum(torch.cat(world.gather(torch.stack(sums))))
    return Validation(Losses(*(total / max(len(detections), 1))), detections)


def gather_detections(detections: Sequence[Detections], world: World) -> list[Detections]:
    """Collect the detections of the images of each process, in the order of the ranks, as two tensors."""
    counts = torch.tensor([len(one.labels) for one in detections], dtype=torch.int64)
    rows = [torch.cat([boxes, scores[:, None], labels[:, None]], 1) for boxes, scores, labels in detections]
    every = torch.cat(world.gather(torch.cat([torch.zeros(0, 6), *rows])))
    images = every.split(torch.cat(world.gather(counts)).tolist())
    return [Detections(one[:, :4], one[:, 4], one[:, 5].long()) for one in images]


class Scores(dict[str, Any]):
    """AP by name, in percent, None where there are no objects.

    ["COCO"]: {"AP", "AP50", "AP75", "AP small", .. "AR large", "per_class": {class: AP}}.
    ["KITTI"], of KITTI data: {"R40": {class: {"easy", "moderate", "hard"}}, "R11": likewise, "n_gt": counts likewise}.
    ["notes"], where there are any: sentences on what the scores leave out.
    """

    @property
    def metric(self) -> str:
        """Name the primary metric, by which runs are compared."""
        return "Moderate R40" if "KITTI" in self else "COCO AP"

    @property
    def by_class(self) -> dict[str, float]:
        """Select the primary metric of each class that has objects."""
        r40 = self["KITTI"]["R40"] if "KITTI" in self else {}
        every = {name: levels["moderate"] for name, levels in r40.items()} or self["COCO"]["per_class"]
        return {name: ap for name, ap in every.items() if ap is not None}

    @property
    def ap(self) -> float:
        """Average the primary metric over these classes; 0 where there are none."""
        if "KITTI" in self:
            return float(np.mean([*self.by_class.values()])) if self.by_class else 0.0
        return self["COCO"]["AP"] or 0.0


def evaluate(
    dataset: Dataset[Any], detections: Validation | Sequence[Detections], *, classes: Sequence[str] | None = None
) -> Scores:
    """Compute the AP of detections: COCO's, and of KITTI data also the official KITTI AP.

    They are in original pixels, and labelled by the classes of the dataset, or by `classes` where it has none.

    Raises:
        InputError: there are not as many lists of detections as images, or a label is none of the classes.
    """
    truth = ground_truth(dataset, classes=classes)
    found = detections.detections if isinstance(detections, Validation) else detections
    objects, result = _coco_columns(truth, found)
    numbers = coco_numbers(objects, result, classes=truth.classes)
    if isinstance(truth, KittiDataset):
        numbers |= kitti_ap(*_kitti_frames(truth, found), classes=truth.classes)
    notes = crowded_notes(objects)
    return Scores(scores_by_name(numbers), **({"notes": notes} if notes else {}))


def coco_numbers(truth: CocoTruth, result: CocoResult, *, classes: Sequence[str]) -> dict[str, Any]:
    """Compute COCO's twelve numbers and the AP of each class: fractions, -1 where undefined."""
    scores = coco_scores(truth, result, classes=len(classes))
    per_class = dict(zip(classes, scores.per_class_ap.tolist(), strict=True))
    return {"stats": scores.stats.tolist(), "per_class_AP": per_class}


def scores_by_name(numbers: Mapping[str, Any]) -> Scores:
    """Convert the numbers of `coco_numbers`, and maybe of `kitti_ap`, to percent by name."""
    stats, per_class = dict(zip(STATS, numbers["stats"], strict=True)), numbers["per_class_AP"]
    coco, by_class = ({key: 100 * x if x >= 0 else None for key, x in table.items()} for table in (stats, per_class))
    scores = Scores(COCO={**coco, "per_class": by_class})
    if n_gt := numbers.get("n_gt"):
        scores["KITTI"] = {"n_gt": n_gt, "R40": {}, "R11": {}}
        for kind, name, level in product(("R40", "R11"), n_gt, DIFFICULTIES):
            ap = numbers[kind][name][level] if n_gt[name][level] else None
            scores["KITTI"][kind].setdefault(name, {})[level] = ap
    return scores


class PrCurve(NamedTuple):
    """Precision over recall of one class, and its area."""

    ap: float  # percent
    n_gt: int  # objects that count
    precision: np.ndarray  # float64[R] in 0..1, at R recalls from 0 to 1 in even steps


def pr_curves(dataset: DetectionDataset, detections: Sequence[Detections]) -> dict[str, dict[str, PrCurve]]:
    """Compute the curves whose area is AP, by class: KITTI's by difficulty (R40), else COCO's by IoU."""
    curves: dict[str, dict[str, PrCurve]] = {name: {} for name in dataset.classes}
    if isinstance(dataset, KittiDataset):
        for name, levels in kitti_curves(*_kitti_frames(dataset, detections), classes=dataset.classes).items():
            curves[name] = {level: PrCurve(one.r40, one.n_gt, one.precision) for level, one in levels.items()}
        return curves
    scores = coco_scores(*_coco_columns(dataset, detections), classes=len(dataset.classes))
    for (k, name), t in product(enumerate(dataset.classes), (0, 5, 8)):
        precision = scores.precision[t, :, k, 0].clip(0)
        curves[name][f"IoU {IOUS[t]:g}"] = PrCurve(100 * float(precision.mean()), int(scores.n_gt[k, 0]), precision)
    return curves


def _check(dataset: DetectionDataset, detections: Sequence[Detections]) -> None:
    """Raise InputError unless there are detections of each image, labelled by the classes."""
    if len(detections) != len(dataset):
        raise InputError(f"detections: {len(detections)} lists for {len(dataset)} images; there must be one for each")
    count = len(dataset.classes)
    for name, (*_, labels) in zip(dataset.names, detections, strict=True):
        if wrong := labels[(labels < 0) | (labels >= count)].tolist():
            raise InputError(f"detections in image {name}: label {wrong[0]} is none of 0 to {count - 1}")


def _coco_columns(dataset: DetectionDataset, detections: Sequence[Detections]) -> tuple[CocoTruth, CocoResult]:
    """Convert a dataset and the detections of each image to COCO's columns."""
    _check(dataset, detections)
    boxes, scores, labels = (torch.cat(fields).cpu() for fields in zip(*detections, strict=True))
    images = np.repeat(np.arange(len(detections)), [len(one.labels) for one in detections])
    result = CocoResult(images, labels.numpy(), xyxy_to_xywh(boxes.double()).numpy(), scores.double().numpy())
    return CocoTruth(*dataset.coco_annotations()), result


def _kitti_frames(dataset: KittiDataset, found: Sequence[Detections]) -> tuple[list[KittiTruth], list[KittiResult]]:
    """Convert a dataset and the detections of each image to KITTI's frames."""
    _check(dataset, found)
    results = []
    for boxes, scores, labels in found:
        types = [dataset.classes[label] for label in labels.tolist()]
        results.append(KittiResult(types, boxes.double().cpu().numpy(), scores.double().cpu().numpy()))
    return [KittiTruth(*dataset.objects(i)[:4]) for i in range(len(dataset))], results


def evaluate_detector(
    data: PathLike,
    weights: Sequence[Loaded],
    *,
    split: str,
    batch_size: int,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    world: World = ALONE,
    **views: Any,
) -> tuple[DetectionDataset, list[Detections]]:
    """Detect the objects of a split: by default of the weights' classes; of the data's if those are COCO's, or mapped.

    Several weights detect as one `Detector`; `views` are tta, tiles and overlap of its `predict`. Several processes
    share the images, and have all detections.
    """
    if classes is None and not class_map and weights[0].config.classes != COCO_CLASSES:
        classes = weights[0].config.classes
    with world.together():
        dataset = open_dataset(data, split, classes=classes)
        weights = [select_classes(one, dataset.classes, class_map=class_map) for one in weights]
        world.agree(lambda: {"images": len(dataset), "checksums of names, sizes and boxes": dataset.digest()})
        world.agree(lambda: {"weights": [one.digest() for one in weights]})
    one, *others = weights
    if isinstance(one, OnnxFile) or others or views.get("tta") or views.get("tiles"):
        images = (dataset[i].image for i in world.share(range(len(dataset))))
        found = Detector(weights).predict(images, batch_size=batch_size, score_threshold=0.01, **views)
        return dataset, gather_detections([each.detections for each in found], world)
    loader = val_batches(dataset, one.config, batch_size=batch_size, workers=1, world=world)
    try:
        return dataset, validate((one.params, one.buffers), loader, config=one.config, world=world).detections
    except RuntimeError as error:
        raise dead_worker(error, loader) or error from None

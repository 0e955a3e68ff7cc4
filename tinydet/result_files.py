"""Result files of any detector beside the annotations: their AP as the official tools print it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinydet.data.coco_file import parse_bbox, parse_id, read_coco
from tinydet.data.dataset import as_annotations
from tinydet.data.kitti import KITTI_CLASSES, KittiDataset, KittiObjects, find_kitti, kitti_labels, read_kitti_objects
from tinydet.errors import InputError, list_some, quoted
from tinydet.evaluation import coco_numbers
from tinydet.files import PathLike, files_by_stem, short_path
from tinydet.metrics.coco import CocoResult, CocoTruth, crowded_notes
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap
from tinydet.ops.boxes import xyxy_to_xywh
from tinydet.reading import LARGEST, check_field, read_json

Evaluation = tuple[dict[str, Any], list[str]]  # numbers, and notes on the files, a sentence each


def evaluate_files(
    data: PathLike, predictions: PathLike, *, classes: Sequence[str] | None = None, split: str = "val"
) -> Evaluation:
    """Compute the AP of COCO results beside COCO annotations, or of a folder of KITTI result files beside labels.

    The numbers are {"stats": COCO's twelve, "per_class_AP": by class name, or category id of COCO results}, fractions,
    -1 where undefined; of KITTI also {"R40": {class: {level: percent}}, "R11": likewise, "n_gt": counts likewise}.
    """
    coco = [Path(path).suffix.lower() == ".json" for path in (data, predictions)]
    if any(coco) != all(coco):
        raise InputError(f"{data} and {predictions}: COCO results need a JSON file of annotations, and the reverse")
    if not all(coco):
        return _evaluate_kitti(Path(data), Path(predictions), classes=classes or KITTI_CLASSES, split=split)
    if classes is not None:
        raise InputError("classes: COCO results are evaluated for every category of the annotations")
    return _evaluate_coco(data, predictions)


def _evaluate_coco(data: PathLike, predictions: PathLike) -> Evaluation:
    """Compute the AP of a file of COCO results."""
    truth, content = read_coco(data, needs_files=False), read_json(predictions)
    check_field(content, [dict], where=f"{short_path(predictions)}: detections")
    images, labels = ({i: n for n, i in enumerate(ids)} for ids in (truth.image_ids.tolist(), truth.categories))
    rows = []
    for n, one in enumerate(content):
        where = f"{short_path(predictions)}: detection number {n}"
        values: list[Any] = [one.get(key) for key in ("image_id", "category_id", "score")]
        (image, category), score = map(parse_id, values[:2]), values[2]
        if image not in images:
            raise InputError(f"{where}: image_id {quoted(values[0])} is not among the annotated images")
        if category is None:
            raise InputError(f"{where}: category_id {quoted(values[1])} must be a number or text")
        if type(score) not in (int, float) or not abs(score) < LARGEST:
            raise InputError(f"{where}: score {quoted(score)} is not a finite number")
        box = parse_bbox(one.get("bbox"), where=where)
        if category in labels:
            rows.append([images[image], labels[category], *box, score])
    table = np.array(rows, np.float64).reshape(-1, 7)
    result = CocoResult(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6])
    unknown = len(content) - len(rows)
    notes = [*truth.notes, *crowded_notes(CocoTruth(*truth.annotations))]
    if unknown:
        notes.append(f"{unknown} of {len(content)} detections are of categories that {short_path(data)} does not have")
    if (truth.annotation_ids == 0).any():
        notes.append(f"{short_path(data)}: an annotation has the id 0; pycocotools takes it for never detected")
    numbers = coco_numbers(CocoTruth(*truth.annotations), result, classes=[*map(str, labels)])
    return numbers, notes


def _evaluate_kitti(data: Path, predictions: Path, *, classes: Sequence[str], split: str) -> Evaluation:
    """Compute the AP of a folder of KITTI result files."""
    truths = _kitti_frames(data, classes=classes, split=split)
    found = files_by_stem(predictions, [".txt"])
    missing = [name for name in truths if name not in found]
    if len(missing) == len(truths):
        raise InputError(f"{predictions}: no result file for any of {len(truths)} frames, such as {missing[0]}.txt")
    empty = KittiObjects([], np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    results = [read_kitti_objects(found[name], scored=True) if name in found else empty for name in truths]
    kitti_results = [KittiResult(one.types, one.boxes, np.asarray(one.scores)) for one in results]
    kitti = kitti_ap([KittiTruth(*one[:4]) for one in truths.values()], kitti_results, classes=classes)

    truth = CocoTruth(*as_annotations(*_end_to_end([*truths.values()], classes), classes=len(classes)))
    images, labels, boxes = _end_to_end(results, classes)
    keep, scores = labels >= 0, np.concatenate([one.scores for one in kitti_results])
    result = CocoResult(images[keep], labels[keep], xyxy_to_xywh(torch.from_numpy(boxes[keep])).numpy(), scores[keep])
    some = list_some(missing, most=5)
    note = f"{len(missing)} frames have no result file and count as frames without detections: {some}"
    return {**kitti, **coco_numbers(truth, result, classes=classes)}, [note] if missing else []


def _kitti_frames(data: Path, *, classes: Sequence[str], split: str) -> dict[str, KittiObjects]:
    """Read the labels by name of a bare folder of label files, or of a split of a KITTI folder."""
    try:
        folder = find_kitti(data)
    except InputError:
        if files := files_by_stem(data, [".txt"]):
            return {name: read_kitti_objects(file) for name, file in files.items()}
        raise
    dataset = KittiDataset(folder, split, classes=classes)
    return {name: dataset.objects(i) for i, name in enumerate(dataset.names.tolist())}


def _end_to_end(frames: Sequence[KittiObjects], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the objects of frames: rows of the frames int64[M], labels int64[M], boxes float64[M 4]."""
    images = np.repeat(np.arange(len(frames)), [len(one.types) for one in frames])
    labels = kitti_labels([kind for one in frames for kind in one.types], classes)
    return images, labels, np.concatenate([one.boxes for one in frames])

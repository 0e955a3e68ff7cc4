"""Score: detections, or files of them, beside a data set's truth."""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.coco import CocoDataset
from tinydet.data.coco_file import CocoObjects, read_coco, read_json, xywh
from tinydet.data.dataset import DetectionDataset
from tinydet.data.kitti import CLASSES, KittiDataset, find_kitti, kitti_labels
from tinydet.data.kitti_labels import KittiObjects, read_objects
from tinydet.data.text import shown
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.metrics.coco import IOUS, STATS, CocoResult, CocoScores, CocoTruth, coco_scores
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap, kitti_curves
from tinydet.model.detect import Detections

Scores = dict[str, Any]
"""COCO's twelve numbers as "stats" and "per_class_AP", by name or category id: fractions, and -1 where undefined. Of
KITTI data also what `kitti_ap` returns, in percent."""
NOTHING = KittiObjects([], np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))


class PrCurve(NamedTuple):
    """Precision over recall."""

    ap: float
    """In percent."""
    n_gt: int
    """Objects that had to be found."""
    precision: np.ndarray
    """float64[R] in 0..1, at R recalls from 0 to 1 in even steps."""


class Headline(NamedTuple):
    """The one number that runs are compared by."""

    metric: str
    """Moderate R40 of KITTI data, COCO AP of other."""
    ap: float
    """In percent, the mean of the classes that have objects; 0 where none has."""
    by_class: dict[str, float]
    """In percent; COCO's of the classes that have objects."""


def headline(scores: Scores) -> Headline:
    """The number of some scores that runs are compared by."""
    if "R40" not in scores:
        by_class = {name: 100 * ap for name, ap in scores["per_class_AP"].items() if ap >= 0}
        return Headline("COCO AP", max(0.0, 100 * scores["stats"][0]), by_class)
    by_class = {name: levels["moderate"] for name, levels in scores["R40"].items()}
    counted = [by_class[name] for name, levels in scores["n_gt"].items() if levels["moderate"]]
    return Headline("Moderate R40", float(np.mean(counted)) if counted else 0.0, by_class)


def percent(share: float) -> str:
    """One of COCO's numbers, as it is shown; a dash where it is undefined."""
    return f"{100 * share:.2f}" if share >= 0 else "-"


def coco_rows(scores: Scores) -> list[list[str]]:
    """COCO's twelve numbers as they are shown: a head and the percents of AP, a head and the percents of AR."""
    rows = []
    for kind, part in (("AP", slice(6)), ("AR", slice(6, 12))):
        names = [name.removeprefix(kind).strip() or "mean" for name in STATS[part]]
        rows += [[f"COCO {kind} %", *names], ["all classes", *map(percent, scores["stats"][part])]]
    return rows


def score_detections(dataset: DetectionDataset, detections: Sequence[Detections]) -> Scores:
    """AP of detections in original pixels, one for each frame of a data set and labelled by its classes."""
    scores = _by_name(coco_curves(dataset, detections), dataset.classes)
    if not isinstance(dataset, KittiDataset):
        return scores
    results = kitti_results(detections, dataset.classes)
    return kitti_ap(kitti_truths(dataset.objects), results, classes=dataset.classes) | scores


def coco_curves(dataset: DetectionDataset, detections: Sequence[Detections]) -> CocoScores:
    """COCO's precision and recall of detections, as of `score_detections`."""
    return coco_scores(coco_truth(dataset), coco_result(detections), classes=len(dataset.classes))


def pr_curves(dataset: DetectionDataset, detections: Sequence[Detections]) -> dict[str, dict[str, PrCurve]]:
    """The curves under which AP is the area, by class: KITTI's by difficulty (R40), else COCO's by IoU."""
    if isinstance(dataset, KittiDataset):
        results = kitti_results(detections, dataset.classes)
        kitti = kitti_curves(kitti_truths(dataset.objects), results, classes=dataset.classes)
        return {
            name: {level: PrCurve(one.r40, one.n_gt, one.precision) for level, one in levels.items()}
            for name, levels in kitti.items()
        }
    scores = coco_curves(dataset, detections)
    curves: dict[str, dict[str, PrCurve]] = {}
    for k, name in enumerate(dataset.classes):
        each = {f"IoU {IOUS[t]:g}": scores.precision[t, :, k, 0].clip(0) for t in (0, 5, 8)}
        curves[name] = {key: PrCurve(100 * float(one.mean()), int(scores.n_gt[k, 0]), one) for key, one in each.items()}
    return curves


def score_files(
    data: str | PathLike[str],
    predictions: str | PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    split: str = "val",
) -> tuple[Scores, list[str]]:
    """AP of files of results, and what should be said of them, a sentence each.

    Args:
        data: a JSON file of COCO annotations, or as for `score_kitti_files`.
        predictions: a JSON file of COCO results, or a folder of KITTI result files.
        classes: of KITTI data, names to score; Car, Pedestrian and Cyclist when None.
        split: of KITTI data.

    Raises:
        InputError: as of `score_coco_files` and `score_kitti_files`; or one is COCO's and the other is not.
    """
    coco = [Path(path).suffix.lower() == ".json" for path in (data, predictions)]
    if all(coco):
        if classes is not None:
            raise InputError("classes: COCO results are scored for every category of the annotations")
        return score_coco_files(data, predictions)
    if any(coco):
        raise InputError(f"{data} and {predictions}: COCO results need a JSON file of annotations, and the reverse")
    scores, missing = score_kitti_files(data, predictions, classes=classes or CLASSES, split=split)
    some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    note = f"{len(missing)} frames have no result file and count as frames without detections: {some}"
    return scores, [note] if missing else []


def score_kitti_files(
    data: str | PathLike[str], predictions: str | PathLike[str], *, classes: Sequence[str] = CLASSES, split: str = "val"
) -> tuple[Scores, list[str]]:
    """AP of a folder of KITTI result files.

    Args:
        data: a KITTI folder, of which `split` is scored, or a bare folder of label files, all of which are.
        predictions: a folder with a NNNNNN.txt for each frame.
        classes: names to score.
        split: "train", "val" or "all".

    Returns:
        The scores, and the frames that have no result file: they count as frames without detections.

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
    truth = _joined_truth([_kitti_frame(one, classes) for one in objects])
    labels = [kitti_labels([*one.types], classes) for one in results]
    rows = [own >= 0 for own in labels]
    columns = zip(results, rows, labels, strict=True)
    result = _joined_result([(one.boxes[keep], one.scores[keep], own[keep]) for one, keep, own in columns])
    scores = _by_name(coco_scores(truth, result, classes=len(classes)), classes)
    return kitti_ap(kitti_truths(objects), results, classes=classes) | scores, missing


def score_coco_files(truth: str | PathLike[str], predictions: str | PathLike[str]) -> tuple[Scores, list[str]]:
    """COCO AP of a file of COCO results.

    Args:
        truth: a file of COCO annotations; all of its pictures are scored.
        predictions: a JSON list of {"image_id", "category_id", "bbox": [left, top, width, height], "score"}.

    Returns:
        The scores, classes by category id; and what should be said of the file: detections of categories that the
        annotations do not have are left out.

    Raises:
        InputError: names the file, the detection and the value.
    """
    file, path = read_coco(truth), Path(predictions)
    pictures, labels = ({one: i for i, one in enumerate(ids)} for ids in (file.images, file.categories))
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{shown(path)}: not COCO results; there must be a list of detections")
    rows = []
    for n, one in enumerate(content):
        where = f"{shown(path)}: detection number {n}"
        if not isinstance(one, dict) or one.get("image_id") not in pictures:
            image = one.get("image_id") if isinstance(one, dict) else one
            raise InputError(f"{where}: image_id {image!r} is not among the annotated pictures")
        if type(one.get("score")) not in (int, float):
            raise InputError(f"{where}: score {one.get('score')!r} is not a number")
        box = xywh(one.get("bbox"), where=where)
        if one.get("category_id") in labels:
            rows.append((pictures[one["image_id"]], labels[one["category_id"]], box, one["score"]))
    images, classes, boxes, scores = zip(*rows, strict=True) if rows else ((),) * 4
    result = CocoResult(
        images=np.array(images, np.int64),
        labels=np.array(classes, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        scores=np.array(scores, np.float64),
    )
    names = tuple(file.categories.values())
    objects = _joined_truth([_coco_frame(one, names) for one in file.objects.values()])
    found = coco_scores(objects, result, classes=len(names))
    lost = len(content) - len(rows)
    note = f"{lost} of {len(content)} detections are of categories that {shown(file.path)} does not have"
    return _by_name(found, [*map(str, file.categories)]), [note] if lost else []


def coco_truth(dataset: DetectionDataset) -> CocoTruth:
    """A data set's objects as COCO's: an ignore region, which is of no class, as a crowd of every class."""
    if isinstance(dataset, CocoDataset):
        return _joined_truth([_coco_frame(one, dataset.classes) for one in dataset.objects])
    if isinstance(dataset, KittiDataset):
        return _joined_truth([_kitti_frame(one, dataset.classes) for one in dataset.objects])
    frames = zip(dataset.boxes, dataset.labels, strict=True)
    return _joined_truth([_frame(boxes, labels, classes=len(dataset.classes)) for boxes, labels in frames])


def coco_result(detections: Sequence[Detections]) -> CocoResult:
    """Detections in original pixels, one for each picture, as COCO's."""
    return _joined_result([tuple(field.cpu().numpy() for field in one) for one in detections])


def kitti_results(detections: Sequence[Detections], classes: Sequence[str]) -> list[KittiResult]:
    """Detections in original pixels as KITTI results, one for each frame."""
    return [
        KittiResult([classes[i] for i in labels.tolist()], boxes.double().numpy(), scores.double().numpy())
        for boxes, scores, labels in detections
    ]


def kitti_truths(objects: Iterable[KittiObjects]) -> list[KittiTruth]:
    """Label files as KITTI's ground truth, one for each frame."""
    return [KittiTruth(one.types, one.truncated, one.occluded, one.boxes) for one in objects]


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # labels, boxes, areas, crowd of one picture


def _coco_frame(objects: CocoObjects, classes: Sequence[str]) -> Columns:
    """Annotations, all of these classes."""
    label = {name.lower(): i for i, name in enumerate(classes)}
    return np.array([label[name.lower()] for name in objects.categories], np.int64), *objects[2:]


def _kitti_frame(objects: KittiObjects, classes: Sequence[str]) -> Columns:
    """The lines of a label file, as they are written."""
    labels = kitti_labels(objects.types, classes)
    return _frame(objects.boxes[labels != BACKGROUND], labels[labels != BACKGROUND], classes=len(classes))


def _frame(boxes: np.ndarray, labels: np.ndarray, *, classes: int) -> Columns:
    """Boxes, float[N 4] as xyxy, and their labels, of which IGNORE stands for every class."""
    times = np.where(labels == IGNORE, classes, 1)
    rows = np.repeat(np.arange(len(labels)), times)
    crowd = labels[rows] == IGNORE
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    sides = _xywh(boxes)[rows]
    return np.where(crowd, nth, labels[rows]), sides, sides[:, 2] * sides[:, 3], crowd


def _joined_truth(frames: Sequence[Columns]) -> CocoTruth:
    """The objects of all pictures end to end."""
    empty = (np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
    images = np.repeat(np.arange(len(frames)), [len(labels) for labels, *_ in frames])
    return CocoTruth(images, *(np.concatenate(column) for column in zip(empty, *frames, strict=True)))


def _joined_result(frames: Sequence[tuple[np.ndarray, ...]]) -> CocoResult:
    """Boxes as xyxy, scores and labels of the detections in all pictures, end to end."""
    empty = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    boxes, scores, labels = (np.concatenate(column) for column in zip(empty, *frames, strict=True))
    images = np.repeat(np.arange(len(frames)), [len(labels) for *_, labels in frames])
    return CocoResult(images, labels, _xywh(boxes), scores.astype(np.float64))


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """float64[N 4]: left, top, width, height of boxes given as xyxy."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _by_name(scores: CocoScores, names: Sequence[str]) -> Scores:
    """COCO's numbers as plain values."""
    return {"stats": scores.stats.tolist(), "per_class_AP": dict(zip(names, scores.per_class_ap.tolist(), strict=True))}


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

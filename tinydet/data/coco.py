"""COCO's JSON: a file of annotations to a data set, and back."""

import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.data.coco_file import CocoFile, CocoObjects, read_coco
from tinydet.data.dataset import DetectionDataset, Frame, check_named, clip_boxes, draw_split, known_split, label_of
from tinydet.data.example import Example, read_size
from tinydet.data.text import shown
from tinydet.errors import InputError, Report, attempt, stop
from tinydet.labels import BACKGROUND, IGNORE

# Other kinds of COCO's annotations, which lie beside those of objects.
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}


def find_coco(root: str | PathLike[str]) -> dict[str, Path]:
    """The files of annotations in a folder, by "train" and "val"; or the one that is for both, as "all".

    They lie in the folder, in its `annotations`, or as `_annotations.coco.json` among the pictures of each split; the
    names of files and folders say which is which. A path to a file is that file, for all.

    Raises:
        InputError: there is none, or more than one of a split: says which.
    """
    root = Path(root)
    if root.suffix == ".json":
        return {"all": root}
    files = [*root.glob("*.json"), *(root / "annotations").glob("*.json"), *root.glob("*/_annotations.coco.json")]
    files = [file for file in sorted(files) if not file.name.startswith(OTHER_TASKS)]
    found: dict[str, Path] = {}
    for file in files:
        name = file.parent.name if file.name == "_annotations.coco.json" else file.stem
        splits = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS}
        split = splits.pop() if len(splits) == 1 else "all" if len(files) == 1 else None
        if split in found:
            raise InputError(f"{root}: both {found[split].name} and {file.name} may be the {split} annotations")
        if split is not None:
            found[split] = file
    if not found:
        raise InputError(f"{root}: found no COCO annotations: no JSON there, in annotations, or beside the pictures")
    return found


class CocoDataset(DetectionDataset):
    """One split of COCO annotations.

    Crowd regions become ignore regions; classes that were not chosen are background; pictures without objects stay.
    Boxes are clipped to their picture, and a box that has no width or height is left out, which the notes say.

    Attributes:
        image_ids: the id of each frame's picture.
        category_ids: the id of each class.
        objects: the annotations of each frame that are of the classes, as written, for the evaluation; all else as of
            `DetectionDataset`.
    """

    kind = "COCO"
    per_frame = (*DetectionDataset.per_frame, "image_ids", "objects")

    def __init__(
        self,
        root: str | PathLike[str],
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transform: Callable[[Example], Example] | None = None,
        seed: int = 0,
        report: Report = stop,
    ) -> None:
        """Read a folder that `find_coco` knows, or a file.

        Args:
            root: the folder, or the file.
            split: "train", "val" or "all".
            classes: names of categories; all that the file has, in the order of their ids, when None.
            transform: of every example that is asked for.
            seed: draws the split where there is one file for both.
            report: of each annotation or picture that is wrong; if it returns, that is left out.

        Raises:
            InputError: names the file, the annotation and the value; or the class, and those that occur.
        """
        known_split(split)
        file, ids, note = _split(root, split=split, seed=seed, report=report)
        everything = tuple(file.categories.values())
        objects = [file.objects[i] for i in ids]
        notes = check_named(classes, everything, [one.categories for one in objects], split=split)
        classes = everything if classes is None else tuple(classes)
        by_name = {name.lower(): i for i, name in file.categories.items()}
        self.category_ids = tuple(by_name[name.lower()] for name in classes)
        chosen, place = label_of(classes, {}), _picture_folder(file, split=split)
        tried = [attempt(report, _frame, file, i, place, chosen, report=report) for i in ids]
        read = [(i, *one, _taken(file.objects[i], chosen)) for i, one in zip(ids, tried, strict=True) if one]
        self.image_ids, self.objects = [i for i, *_ in read], [taken for *_, taken in read]
        if flat := [str(one) for _, _, empty, _ in read for one in empty]:
            some = ", ".join(flat[:5]) + (f" and {len(flat) - 5} more" if len(flat) > 5 else "")
            notes.append(f"{shown(file.path)}: boxes without width or height are left out: annotations {some}")
        super().__init__(
            [one for _, one, _, _ in read], classes=classes, split_note=note, notes=notes, transform=transform
        )


def _split(root: str | PathLike[str], *, split: str, seed: int, report: Report) -> tuple[CocoFile, list[int], str]:
    """The file of a split, the ids of the split's pictures, and a sentence that says how they were chosen."""
    files = find_coco(root)
    path = files.get(split) or files.get("all")
    if path is None:
        given = ", ".join(map(str, files.values()))
        raise InputError(f"{root}: found no annotations of {split}, only {given}; give the path of a file instead")
    file = read_coco(path, report=report)
    ids = list(file.images)
    if not ids:
        raise InputError(f"{shown(path)}: there are no images")
    if split == "all" or split in files:
        return file, ids, f"{len(ids)} {split} pictures, those of {path}"
    rows, how = draw_split(len(ids), split=split, seed=seed)
    return file, [ids[row] for row in rows], f"{len(rows)} {split} pictures of {len(ids)} in {path}: {how}"


def _taken(objects: CocoObjects, label: Callable[[str], int]) -> CocoObjects:
    """Those of the chosen classes."""
    rows = [row for row, name in enumerate(objects.categories) if label(name) != BACKGROUND]
    ids, categories = ([column[row] for row in rows] for column in (objects.ids, objects.categories))
    return CocoObjects(ids, categories, *(column[rows] for column in objects[2:]))


def _picture_folder(file: CocoFile, *, split: str) -> Path:
    """Where a file's pictures lie: beside it, or in a folder with the usual names; known by the first of them."""
    first = str(next(iter(file.images.values()))["file_name"]) if file.images else ""
    years = {word for word in re.findall(r"[a-z]+\d*", file.path.stem.lower()) if word.startswith(tuple(SPLIT_WORDS))}
    names = ["", "images", *sorted(years), split, *(f"images/{name}" for name in (*sorted(years), split))]
    places = [root / name for root in (file.path.parent, file.path.parent.parent) for name in names]
    for place in places:
        if (place / first).is_file():
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise InputError(f"{shown(file.path)}: found no picture {first!r}; looked in {looked}")


def _frame(
    file: CocoFile, image: int, place: Path, label: Callable[[str], int], *, report: Report
) -> tuple[Frame, list[Any]]:
    """A picture with its objects as clipped boxes and labels, and the annotations that have no width or height."""
    entry, objects = file.images[image], file.objects[image]
    path = place / str(entry["file_name"])
    size = read_size(path)
    said = (entry.get("height"), entry.get("width"))
    if None not in said and said != size:
        raise InputError(
            f"{shown(file.path)}: image {image} is {said[1]}x{said[0]}, and {path} {size[1]}x{size[0]} upright"
        )
    labels = np.array([*map(label, objects.categories)], dtype=np.int64)
    flat = (objects.boxes[:, 2:] == 0).any(axis=1)
    corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], axis=1)
    boxes, gone = clip_boxes(corners, size)
    for row in np.flatnonzero(gone & ~flat).tolist():
        where, box = f"{shown(file.path)}: annotation {objects.ids[row]}", objects.boxes[row].tolist()
        report(InputError(f"{where}: bbox {box} lies outside of its {size[1]}x{size[0]} picture"))
    rows = np.flatnonzero((labels != BACKGROUND) & ~gone)
    labels = np.where(objects.crowd, IGNORE, labels)
    places = [f"{shown(file.path)}: annotation {objects.ids[row]}" for row in rows]
    lost = [objects.ids[row] for row in np.flatnonzero(flat)]
    return Frame(Path(entry["file_name"]).stem, path, size, boxes[rows], labels[rows], places), lost


def coco_json(dataset: DetectionDataset) -> dict[str, Any]:
    """A data set as COCO annotations, to be written as JSON.

    Pictures and classes are numbered from 1, file names are absolute paths. COCO's regions to be left alone are of one
    class each, so that an ignore region becomes a crowd of every class.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.classes, start=1)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    frames = zip(dataset.paths, dataset.sizes, dataset.boxes, dataset.labels, strict=True)
    for image, (path, (height, width), boxes, labels) in enumerate(frames, start=1):
        images.append({"id": image, "file_name": str(path.resolve()), "height": height, "width": width})
        for box, label in zip(boxes.astype(np.float64), labels.tolist(), strict=True):
            sides = (box[2:] - box[:2]).tolist()
            for category in [label + 1] if label != IGNORE else range(1, len(dataset.classes) + 1):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": category,
                        "bbox": [*box[:2].tolist(), *sides],
                        "area": sides[0] * sides[1],
                        "iscrowd": int(label == IGNORE),
                    }
                )
    return {"images": images, "annotations": annotations, "categories": categories}

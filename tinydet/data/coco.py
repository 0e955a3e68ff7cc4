"""COCO's JSON: a file of annotations to a data set."""

import math
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.dataset import CocoAnnotations, Columns, DetectionDataset, gather
from tinydet.data.images import read_size
from tinydet.data.splits import check_split, class_labels, draw_split, resolve_classes
from tinydet.errors import InputError, OnError, raise_error, try_call
from tinydet.files import PathLike, paused_gc, read_json, short_path
from tinydet.labels import BACKGROUND, IGNORE

# Other kinds of COCO's annotations, which lie beside those of objects.
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
NUMBERS = {int, float}  # JSON's; a bool is not one


def find_coco(root: PathLike) -> dict[str, Path]:
    """Find the files of annotations in a folder, by "train" and "val"; or the one for both, as "all"."""
    root = Path(root)
    if root.suffix == ".json":
        return {"all": root}
    # In the folder, in its `annotations`, or among the images of each split.
    globs = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    files = sorted(file for glob in globs for file in root.glob(glob) if not file.name.startswith(OTHER_TASKS))
    found: dict[str, Path] = {}
    for file in files:
        name = file.parent.name if file.name == "_annotations.coco.json" else file.stem
        splits = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS}
        split = splits.pop() if len(splits) == 1 else "all" if len(files) == 1 else None
        if split and (first := found.setdefault(split, file)) != file:
            raise InputError(f"{root}: both {first.name} and {file.name} may be the {split} annotations")
    if not found:
        raise InputError(f"{root}: found no COCO annotations: no JSON there, in annotations, or beside the images")
    return found


def _find_images(path: Path, file_names: Sequence[str], *, split: str) -> tuple[list[str], np.ndarray]:
    """Find the images of a file of annotations by its first: their paths, and bool[N], which of them are there."""
    years = {word for word in re.findall(r"[a-z]+\d*", path.stem.lower()) if word.startswith(tuple(SPLIT_WORDS))}
    names = ["", "images", *sorted(years), split, *(f"images/{name}" for name in (*sorted(years), split))]
    places = [root / name for root in (path.parent, path.parent.parent) for name in names]
    place = next((place for place in places if (place / file_names[0]).is_file()), None)
    if place is None:
        looked = ", ".join(dict.fromkeys(map(str, places)))
        raise InputError(f"{short_path(path)}: found no image {file_names[0]!r}; looked in {looked}")
    images = [os.path.join(place, name) for name in file_names]
    # Folders are listed, because a look at each file of 118,000 takes minutes on some file systems.
    folders = {folder for folder in map(os.path.dirname, images) if os.path.isdir(folder)}
    known = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder)}
    return images, np.array([image in known or os.path.isfile(image) for image in images])


class CocoFile(NamedTuple):
    """A file of annotations, read and checked."""

    image_ids: np.ndarray  # int64[N], rising
    file_names: np.ndarray  # str[N]
    sizes: np.ndarray  # int64[N 2], (height, width), 0 where the file does not state them
    categories: dict[int, str]  # class names by id, ids rising
    annotations: CocoAnnotations  # of all images, in the file's order for each; labels count the categories
    annotation_ids: np.ndarray  # int64[A]; -1 - n for the annotation number n, if it has no id


@paused_gc()
def read_coco(path: PathLike, *, on_error: OnError = raise_error) -> CocoFile:
    """Read a file of annotations, without those whose error `on_error` took; ids may have any numbers."""
    content, where = read_json(path), short_path(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise InputError(f"{path}: not COCO annotations; there must be lists of images, annotations and categories")
    images = _by_id(content["images"], "image", needs="file_name", where=where)
    categories = _by_id(content["categories"], "category", needs="name", where=where)
    names = [str(one["name"]) for one in categories.values()]
    lower = [name.lower() for name in names]
    if twice := [name for name in lower if lower.count(name) > 1]:
        raise InputError(f"{where}: two categories are called {twice[0]!r}")
    rows, labels = ({one: row for row, one in enumerate(ids)} for ids in (images, categories))
    table = array("d")
    for n, one in enumerate(content.get("annotations") or []):
        table.extend(try_call(on_error, _annotation, one, n, rows, labels, where=where) or ())
    columns = np.array(table, dtype=np.float64).reshape(-1, 9)
    columns = columns[np.argsort(columns[:, 0], kind="stable")]
    image, label, ids = columns[:, [0, 1, 8]].astype(np.int64).T
    sizes = [try_call(on_error, _size, one, where=where) or (0, 0) for one in images.values()]
    return CocoFile(
        image_ids=np.array(list(images), dtype=np.int64),
        file_names=np.array([str(one["file_name"]) for one in images.values()], dtype=str),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        categories=dict(zip(categories, names, strict=True)),
        annotations=CocoAnnotations(image, label, columns[:, 2:6], columns[:, 6], columns[:, 7].astype(bool)),
        annotation_ids=ids,
    )


def _by_id(entries: Sequence[Any], what: str, *, needs: str, where: str) -> dict[int, dict[str, Any]]:
    """Map ids, rising, to the entries of a list."""
    found: dict[int, dict[str, Any]] = {}
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or needs not in entry:
            raise InputError(f"{where}: {what} number {n} has no whole id, or no {needs} ({str(entry)[:80]})")
        if entry["id"] in found:
            raise InputError(f"{where}: two entries for one {what} have the id {entry['id']}")
        found[entry["id"]] = entry
    return dict(sorted(found.items()))


def _size(image: dict[str, Any], *, where: str) -> tuple[int, int]:
    """Get the (height, width) that the file states of an image; 0 if it states none."""
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return 0, 0
    if not all(type(side) in NUMBERS and side >= 1 and side == int(side) for side in (height, width)):
        raise InputError(f"{where}: image {image['id']}: width {width!r} and height {height!r} must be whole numbers")
    return int(height), int(width)


def _annotation(one: Any, n: int, images: dict[int, int], labels: dict[int, int], *, where: str) -> tuple[float, ...]:
    """Check annotation number n: rows of image and category, left, top, width, height, area, crowd, id."""
    if not isinstance(one, dict):
        raise InputError(f"{where}: annotation number {n} is not an object ({one!r})")
    number = one.get("id")
    where = f"{where}: annotation {f'number {n}' if number is None else number}"
    for key, known in (("image_id", images), ("category_id", labels)):
        if type(one.get(key)) not in NUMBERS or one[key] not in known:
            raise InputError(f"{where}: {key} {one.get(key)!r} is not among the {key[:-3]} ids")
    box = parse_bbox(one.get("bbox"), where=where)
    area = one.get("area", box[2] * box[3])
    if type(area) not in NUMBERS or not 0 <= area < math.inf:
        raise InputError(f"{where}: area {area!r} is not a number of square pixels")
    known_id = number if type(number) is int and 0 <= number < 2**53 else -1 - n
    return images[one["image_id"]], labels[one["category_id"]], *box, area, bool(one.get("iscrowd", 0)), known_id


def parse_bbox(box: Any, *, where: str) -> list[float]:
    """Check that a box is left, top, width and height; `where` begins the message of the InputError if it is not."""
    if not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        raise InputError(f"{where}: bbox must be [left, top, width, height], got {box!r}")
    if not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:  # COCO's own files hold some of no width
        raise InputError(f"{where}: bbox {box} has a negative side, or one that is not finite")
    return box


class CocoDataset(DetectionDataset):
    """One split of COCO annotations; the arguments and errors are those of `open_dataset`.

    Crowd regions become ignore regions, and a box without width or height is left out, which the notes say. The sizes
    that the file states are believed until an image is read. `category_ids` are those of the classes.
    """

    kind = "COCO"

    def __init__(
        self,
        root: PathLike | dict[str, Path],
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        files = root if isinstance(root, dict) else find_coco(root)
        path = files.get(split) or files.get("all")
        if path is None:
            given = ", ".join(map(str, files.values()))
            raise InputError(f"found no annotations of split {split!r}, only {given}; give the path of a file")
        file, self._file = read_coco(path, on_error=on_error), short_path(path)
        count = len(file.image_ids)
        if not count:
            raise InputError(f"{self._file}: there are no images")
        if split == "all" or split in files:
            drawn, note = [*range(count)], f"{count} {'' if split == 'all' else f'{split} '}images, those of {path}"
        else:
            drawn, note = draw_split(count, split=split, seed=seed, reason=f"{path} holds both splits")
        paths, there = _find_images(path, file.file_names[drawn].tolist(), split=split)
        sizes = file.sizes[drawn]
        for i in np.flatnonzero((sizes[:, 0] == 0) | ~there).tolist():
            sizes[i] = try_call(on_error, read_size, paths[i]) or 0
        usable = np.flatnonzero(sizes[:, 0])
        rows = np.array(drawn)[usable]

        index, ends = gather(np.searchsorted(file.annotations.images, np.arange(count + 1)), rows)
        images, ids = np.repeat(np.arange(len(rows)), np.diff(ends)), file.annotation_ids[index]
        _, categories, boxes, areas, crowd = (column[index] for column in file.annotations)
        named = tuple(file.categories.values())
        counts = dict(zip(named, np.bincount(categories, minlength=len(named)).tolist(), strict=True))
        chosen, notes = resolve_classes(classes, counts, split=split, named=named)
        by_name = {name.lower(): i for i, name in file.categories.items()}
        self.category_ids, self._image_ids = tuple(by_name[name.lower()] for name in chosen), file.image_ids[rows]
        labels = class_labels(named, chosen)[categories]
        kept, flat = labels != BACKGROUND, (boxes[:, 2:] == 0).any(axis=1)
        written = CocoAnnotations(*(column[kept] for column in (images, labels, boxes, areas, crowd)))
        if flat.any():
            some = ", ".join(map(str, ids[flat][:5])) + (f" and {flat.sum() - 5} more" if flat.sum() > 5 else "")
            notes.append(f"{self._file}: boxes without width or height are left out: annotations {some}")
        columns = Columns(
            names=np.array([Path(paths[i]).stem for i in usable], dtype=str),
            paths=np.array([paths[i] for i in usable], dtype=str),
            sizes=sizes[usable],
            offsets=np.searchsorted(images[~flat], np.arange(len(rows) + 1)),
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[~flat],
            labels=np.where(crowd & kept, IGNORE, labels)[~flat],
            lines=ids[~flat],
        )
        super().__init__(columns, classes=chosen, split_note=note, notes=notes, annotations=written, on_error=on_error)

    @property
    def image_ids(self) -> np.ndarray:
        """int64[N]: the id of each image."""
        return self._image_ids[self._rows]

    def _origin(self, row: int, line: int) -> str:
        return f"{self._file}: annotation {line if line >= 0 else f'number {-1 - line}'}"

    def _stated_by(self, index: int) -> str:
        return f"{self._file}: image {self.image_ids[index]}"

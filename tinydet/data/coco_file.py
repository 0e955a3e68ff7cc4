"""COCO's JSON of annotations: a file to checked columns."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.text import read_text, shown
from tinydet.errors import InputError, Report, attempt, stop


class CocoObjects(NamedTuple):
    """The annotations of one picture, in the file's order, or the detections in it."""

    ids: list[Any]
    """N annotation ids."""
    categories: list[str]
    """N class names."""
    boxes: np.ndarray
    """float64[N 4]: left, top, width, height, as written; original pixels, not clipped."""
    areas: np.ndarray
    """float64[N], square pixels: of the outline, where the file gives it."""
    crowd: np.ndarray
    """bool[N]: regions of too many objects to be told apart."""


class CocoFile(NamedTuple):
    """A file of annotations, read and checked."""

    path: Path
    images: dict[int, dict[str, Any]]
    """What the file says of each picture, by id, ids rising."""
    categories: dict[int, str]
    """Class names by id, ids rising."""
    objects: dict[int, CocoObjects]
    """By the id of the picture; pictures without any are there too."""


def read_coco(path: str | PathLike[str], *, report: Report = stop) -> CocoFile:
    """Read a file of annotations; ids may have any numbers.

    An inverted box is an error. One without width or height is kept: COCO's own files hold a few.

    Args:
        path: the file.
        report: of each annotation that is wrong; if it returns, the annotation is left out.

    Raises:
        InputError: the file is no JSON, or something in it does not fit: names the file, the annotation and the value.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise InputError(f"{path}: not COCO annotations; there must be lists of images, annotations and categories")
    images = _by_id(content["images"], what="image", needs="file_name", path=path)
    categories = {i: str(one["name"]) for i, one in _by_id(content["categories"], "category", "name", path).items()}
    if twice := [name for name, count in Counter(map(str.lower, categories.values())).items() if count > 1]:
        raise InputError(f"{shown(path)}: two categories are called {twice[0]!r}")
    rows: dict[int, list[tuple[Any, ...]]] = {i: [] for i in images}
    for n, one in enumerate(content.get("annotations") or []):
        where = f"{shown(path)}: annotation {one.get('id', f'number {n}') if isinstance(one, dict) else f'number {n}'}"
        read = attempt(report, _annotation, one, images=images, categories=categories, where=where)
        if read:
            rows[read[0]].append(read[1])
    return CocoFile(path, images, categories, {i: _objects(found) for i, found in rows.items()})


def read_json(path: Path) -> Any:
    """A JSON file's content, or InputError with the line at fault."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{shown(path)}:{error.lineno}: not JSON ({error.msg}, character {error.colno})") from None


def _by_id(entries: Iterable[Any], what: str, needs: str, path: Path) -> dict[int, dict[str, Any]]:
    """Entries by their ids, rising."""
    found: dict[int, dict[str, Any]] = {}
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or needs not in entry:
            raise InputError(f"{shown(path)}: {what} number {n} has no whole id, or no {needs} ({str(entry)[:80]})")
        if entry["id"] in found:
            raise InputError(f"{shown(path)}: two of what should be one {what} have the id {entry['id']}")
        found[entry["id"]] = entry
    return dict(sorted(found.items()))


def _annotation(
    one: Any, *, images: Mapping[int, Any], categories: Mapping[int, str], where: str
) -> tuple[int, tuple[Any, ...]]:
    """The picture's id, and what `CocoObjects` holds of an annotation."""
    if not isinstance(one, dict):
        raise InputError(f"{where} is not an object ({one!r})")
    for key, known in (("image_id", images), ("category_id", categories)):
        if one.get(key) not in known:
            raise InputError(f"{where}: {key} {one.get(key)!r} is not among the {key[:-3]} ids")
    box = xywh(one.get("bbox"), where=where)
    area = one.get("area", box[2] * box[3])
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        raise InputError(f"{where}: area {area!r} is no size")
    return one["image_id"], (one.get("id"), categories[one["category_id"]], box, area, bool(one.get("iscrowd", 0)))


def xywh(box: Any, *, where: str) -> list[float]:
    """A box as left, top, width and height.

    Raises:
        InputError: it is none; `where` begins the message.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
        raise InputError(f"{where}: bbox must be [left, top, width, height], got {box!r}")
    if not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
        raise InputError(f"{where}: bbox {box} has a negative side, or one that is not finite")
    return box


def _objects(rows: list[tuple[Any, ...]]) -> CocoObjects:
    """The annotations of a picture as columns."""
    ids, categories, boxes, areas, crowd = zip(*rows, strict=True) if rows else ((),) * 5
    return CocoObjects(
        ids=list(ids),
        categories=list(categories),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowd, bool),
    )

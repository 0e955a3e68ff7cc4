"""COCO's JSON: where its files and their images are, and what a file of annotations says."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from tinydet.data.dataset import CocoAnnotations
from tinydet.data.splits import split_of
from tinydet.errors import InputError, NotFoundError, OnError, list_some, quoted, raise_error, try_call
from tinydet.files import PathLike, list_files, list_folders, short_path
from tinydet.reading import LARGEST, paused_gc, read_json

# Other kinds of COCO's annotations, which lie beside those of objects.
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")
IMAGE_FOLDERS = ("images", "imgs", "img", "data", "jpegimages")  # that may hold a folder for each split
SAMPLE, MAX_FOLDERS = 1000, 30  # file names that tell where the images are; folders of another machine in each
MAX_FILE_NAME, MAX_SIDE = 1000, 10**6  # characters, all names being held in as many; pixels
NUMBERS = {int, float}  # JSON's; a bool is not one

Id = int | str


def find_coco(root: PathLike) -> dict[str, Path]:
    """Find the files of annotations in a folder, by "train" and "val"; or the one for both, as "all"."""
    root = Path(root)
    if root.suffix.lower() == ".json":
        return {"all": root}
    if not root.is_dir():
        raise NotFoundError(f"{root}: not a JSON file")
    # In the folder, in its `annotations`, or one in the folder of each split.
    files = [
        (file.stem, file) for folder in (root, *list_folders(root, ["annotations"])) for file in _json_files(folder)
    ]
    splits = [folder for folder in list_folders(root) if split_of(folder.name)]
    files += [(folder.name, some[0]) for folder in splits if len(some := _json_files(folder)) == 1]
    found: dict[str, Path] = {}
    for name, file in files:
        split = split_of(name) or ("all" if len(files) == 1 else None)
        if split not in (None, "test") and (first := found.setdefault(split, file)) != file:
            raise InputError(f"{root}: both {short_path(first)} and {short_path(file)} may be the {split} annotations")
    if not files:
        raise NotFoundError(f"{root}: found no COCO annotations: no JSON there, in annotations, or beside the images")
    if len(found) == 2:
        return found
    if not found or any(file not in found.values() and split_of(name) != "test" for name, file in files):
        listed = [short_path(file) for _, file in files]
        raise InputError(f"{root}: {list_some(listed, most=5)}: give the path of the annotations")
    return {"all": next(iter(found.values()))}


def _json_files(folder: Path) -> list[Path]:
    """List the JSON files of a folder that may be annotations of objects."""
    return [file for file in list_files(folder, [".json"]) if not file.name.startswith(OTHER_TASKS)]


def _image_folders(path: Path) -> Iterator[list[Path]]:
    """List where the images of a file of annotations may be, in groups: first what is called as the file is."""
    path, words, split = path.absolute(), re.split(r"[^a-z0-9]+", path.stem.lower()), split_of(path.stem)
    for root in (path.parent, path.parent.parent):
        inner, common = list_folders(root), list_folders(root, IMAGE_FOLDERS)
        deeper = [folder for place in common for folder in list_folders(place)]
        alike = [one for one in inner + deeper if one.name.lower() in words or (split and split_of(one.name) == split)]
        yield alike
        # A folder up, other folders are of other data.
        others = [one for one in (root, *(inner if root == path.parent else common), *deeper) if one not in alike]
        yield [one for one in others if not (split and split_of(one.name)) or one == root]


def find_images(path: Path, file_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Find the images of a file of annotations: their paths, and bool[N], which of them are there.

    They are in the folder that holds most of a sample. File names may begin with folders of another machine.
    """
    slashed = (name.replace("\\", "/") for name in file_names)
    names = [PurePosixPath(name).parts if "/" in name else (name,) for name in slashed]  # pathlib takes its time
    sample, looked = names[:: -(-len(names) // SAMPLE)], list[str]()
    starts = range(min(MAX_FOLDERS, max(map(len, sample))))
    for folders in _image_folders(path):
        looked += map(str, folders)
        hits = {
            (folder, start): sum(len(name) > start and _spell(folder, name[start:]) is not None for name in sample)
            for folder, start in product(folders, starts)
        }
        if any(hits.values()):
            break
    else:
        tried = f"looked in {', '.join(looked[:8])}{', ...' if len(looked) > 8 else ''}"
        some = f"none of its {len(names)} images, such as {quoted(file_names[0])}"
        raise InputError(f"{short_path(path)}: found {some}; {tried}")
    folder, start = max(hits, key=lambda key: hits[key])
    images = [os.path.join(folder, *(name[start:] or name)) for name in names]
    # Folders are listed, because a look at each file of 118,000 takes minutes on some file systems.
    places = {place for place in map(os.path.dirname, images) if os.path.isdir(place)}
    known = {os.path.join(place, name) for place in places for name in os.listdir(place)}
    for i in (i for i, image in enumerate(images) if image not in known):
        images[i] = _spell(folder, names[i][start:]) or images[i]
    return images, np.array([image in known or os.path.isfile(image) for image in images])


def _spell(folder: Path, name: Sequence[str]) -> str | None:
    """Find the path of a file by the parts of its name, with é as one character or as two, or None."""
    spellings = [name]
    if not all(map(str.isascii, name)):
        spellings += [[normalize("NFC", part) for part in name], [normalize("NFD", part) for part in name]]
    return next(filter(os.path.isfile, (os.path.join(folder, *parts) for parts in spellings)), None)


class CocoFile(NamedTuple):
    """A file of annotations, read and checked."""

    image_ids: np.ndarray  # int64[N], rising; or of objects, where some are text
    file_names: np.ndarray  # str[N]
    sizes: np.ndarray  # int64[N 2], (height, width), 0 where the file does not state them
    categories: dict[Id, str]  # class names by id, ids rising
    annotations: CocoAnnotations  # of all images, in the file's order for each; labels count the categories
    annotation_ids: np.ndarray  # int64[A]; -1 - n for the annotation number n, if it has no id that is a number
    notes: list[str]  # on the file, a sentence each


@paused_gc()
def read_coco(path: PathLike, *, needs_files: bool = True, on_error: OnError = raise_error) -> CocoFile:
    """Read a file of annotations, without what `on_error` took; ids are any numbers or text, as in pycocotools.

    A category that stands for all others, without annotations, is left out: Roboflow writes the project as one.
    """
    content, where = read_json(path), short_path(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise InputError(f"{path}: not COCO annotations; there must be lists of images, annotations and categories")
    if not isinstance(entries := content.get("annotations", []), list):
        raise InputError(f"{where}: annotations must be a list, got {quoted(entries)}")
    needs = "file_name" if needs_files else "id"
    images = _by_id(content["images"], "image", needs=needs, where=where, on_error=on_error)
    categories = _by_id(content["categories"], "category", needs="name", where=where, on_error=on_error)
    group = _group(categories, entries)
    names = [str(one["name"]) for one in categories.values()]
    if twice := [name for name, count in Counter(map(str.lower, names)).items() if count > 1]:
        on_error(InputError(f"{where}: two categories are called {quoted(twice[0])}"))
    rows, labels = ({one: row for row, one in enumerate(ids)} for ids in (images, categories))
    table = array("d")
    for n, one in enumerate(entries):
        table.extend(try_call(on_error, _annotation, one, n, rows, labels, where=where) or ())
    columns = np.array(table, dtype=np.float64).reshape(-1, 9)
    columns = columns[np.argsort(columns[:, 0], kind="stable")]
    image, label, ids = columns[:, [0, 1, 8]].astype(np.int64).T
    sizes = [try_call(on_error, _size, one, where=where) or (0, 0) for one in images.values()]
    return CocoFile(
        image_ids=np.array([*images], dtype=np.int64 if all(isinstance(one, int) for one in images) else object),
        file_names=np.array([str(one.get("file_name", "")) for one in images.values()], dtype=str),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        categories=dict(zip(categories, names, strict=True)),
        annotations=CocoAnnotations(image, label, columns[:, 2:6], columns[:, 6], columns[:, 7].astype(bool)),
        annotation_ids=ids,
        notes=[f"{where}: {group} is left out: it groups all others"] if group else [],
    )


def _by_id(entries: Sequence[Any], what: str, *, needs: str, where: str, on_error: OnError) -> dict[Id, dict[str, Any]]:
    """Map ids, numbers rising before text, to the entries of a list."""
    found: dict[Id, dict[str, Any]] = {}
    for n, entry in enumerate(entries):
        known = parse_id(entry.get("id")) if isinstance(entry, dict) else None
        if known is None or type(entry.get(needs)) not in (str, int) or entry[needs] == "":
            on_error(InputError(f"{where}: {what} number {n} has no id, or no {needs} ({quoted(entry)})"))
        elif len(str(entry[needs])) > MAX_FILE_NAME:
            on_error(InputError(f"{where}: {what} {quoted(known)}: {needs} is longer than {MAX_FILE_NAME} characters"))
        elif known in found:
            on_error(InputError(f"{where}: two entries for one {what} have the id {quoted(known)}"))
        else:
            found[known] = entry
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _group(categories: dict[Id, dict[str, Any]], annotations: Sequence[Any]) -> str | None:
    """Take the first category out if all others are its members and no annotation is of it; give its name."""
    if len(categories) < 2:
        return None
    (known, first), *others = categories.items()
    if any(one.get("supercategory") != first["name"] for _, one in others):
        return None
    if any(isinstance(one, dict) and parse_id(one.get("category_id")) == known for one in annotations):
        return None
    return f"category {quoted(known)} {quoted(categories.pop(known)['name'])}"


def parse_id(value: Any) -> Id | None:
    """Parse an id, a number or text; text that spells a whole number is that number; None if it is neither."""
    if type(value) is int and abs(value) < 2**63:
        return value
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 and str(int(value)) == value else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else None


def _size(image: dict[str, Any], *, where: str) -> tuple[int, int]:
    """Get the (height, width) that the file states of an image; 0 if it states none."""
    stated = image.get("height"), image.get("width")
    if None in stated:
        return 0, 0
    height, width = map(parse_id, stated)
    if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in (height, width)):
        text = f"width {quoted(stated[1])} and height {quoted(stated[0])} must be whole numbers from 1 to {MAX_SIDE}"
        raise InputError(f"{where}: image {quoted(image['id'])}: {text}")
    return height, width  # type: ignore[return-value]


def _annotation(one: Any, n: int, images: dict[Id, int], labels: dict[Id, int], *, where: str) -> tuple[float, ...]:
    """Check annotation number n: rows of image and category, left, top, width, height, area, crowd, id."""
    if not isinstance(one, dict):
        raise InputError(f"{where}: annotation number {n} is not an object ({quoted(one)})")
    number = one.get("id")
    known_id = number if type(number) is int and 0 <= number < 2**53 else -1 - n
    where = f"{where}: annotation {known_id if known_id >= 0 else f'number {n}' if number is None else quoted(number)}"
    image, category = parse_id(one.get("image_id")), parse_id(one.get("category_id"))
    for key, known, ids in (("image_id", image, images), ("category_id", category, labels)):
        if known not in ids:
            raise InputError(f"{where}: {key} {quoted(one.get(key))} is not among the {key[:-3]} ids")
    box, area, crowd = parse_bbox(one.get("bbox"), where=where), one.get("area"), one.get("iscrowd")
    area = box[2] * box[3] if area is None else area
    if type(area) not in NUMBERS or not 0 <= area < LARGEST**2:
        raise InputError(f"{where}: area {quoted(area)} is not a number of square pixels")
    if crowd not in (None, 0, 1, "0", "1"):
        raise InputError(f"{where}: iscrowd {quoted(crowd)} must be 0 or 1")
    return images[image], labels[category], *box, area, crowd in (1, "1"), known_id  # type: ignore[index]


def parse_bbox(box: Any, *, where: str) -> list[float]:
    """Check that a box is left, top, width and height; `where` begins the message of the InputError if it is not."""
    if not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        raise InputError(f"{where}: bbox must be [left, top, width, height], got {quoted(box)}")
    if not all(map(LARGEST.__ge__, map(abs, box))) or box[2] < 0 or box[3] < 0:  # COCO's files hold some of no width
        problem = f"has a negative side, or one that is no finite number to {LARGEST:g}"
        raise InputError(f"{where}: bbox {quoted(box)} {problem}")
    return box

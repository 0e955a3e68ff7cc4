"""YOLO's folders: a data.yaml, pictures, and beside them a text file of boxes for each."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.dataset import (
    DetectionDataset,
    Frame,
    check_named,
    clip_boxes,
    draw_split,
    known_split,
    label_of,
    left_over,
)
from tinydet.data.example import Example, read_size
from tinydet.data.text import number, read_lines, read_text, shown
from tinydet.errors import InputError, Report, attempt, stop
from tinydet.labels import BACKGROUND

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
SUFFIXES = (".yaml", ".yml")
SLACK = 1e-3  # of a side by which a box may leave its picture: what is written with three or more decimals does


class YoloFolder(NamedTuple):
    """What a data.yaml says."""

    path: Path
    names: tuple[str, ...]
    pictures: dict[str, list[Path]]
    """By split."""


def find_yolo(root: str | PathLike[str]) -> YoloFolder:
    """Find and read the data.yaml of a folder, or the YAML file itself.

    Its `names` are a list or numbered; `train` and `val` are folders, lists of them, or text files with a picture a
    line, from `path`, or from where the file lies.

    Raises:
        InputError: there is none, or it does not say what it should: names the file and the value.
    """
    root = Path(root)
    files = [root] if root.suffix in SUFFIXES else sorted(file for file in root.glob("*") if file.suffix in SUFFIXES)
    if len(files) != 1:
        what = f"{len(files)} YAML files, {', '.join(file.name for file in files)}" if files else "no data.yaml"
        raise InputError(f"{root}: found {what}")
    file = files[0]
    content = _yaml(file)
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{shown(file)}: not a YOLO data file; it has no names of classes")
    names = _names(content["names"], file=file, count=content.get("nc"))
    base = (file.parent / str(content.get("path") or "")).resolve()
    base = base if base.is_dir() else file.parent
    pictures = {}
    for split, keys in (("train", ("train",)), ("val", ("val", "valid", "validation"))):
        places = next((content[key] for key in keys if content.get(key)), None)
        if places is not None:
            listed = places if isinstance(places, list) else [places]
            pictures[split] = [picture for place in listed for picture in _pictures(base, str(place), file=file)]
    if not pictures:
        raise InputError(f"{shown(file)}: says neither train nor val")
    return YoloFolder(file, names, pictures)


def _yaml(file: Path) -> Any:
    """A YAML file's plain values."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise InputError(f"{file}: needs PyYAML, which comes with albumentations: pip install pyyaml") from None
    try:
        return yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{shown(file)}: not YAML ({' '.join(str(error).split())})") from None


def _names(names: Any, *, file: Path, count: Any) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise InputError(f"{shown(file)}: names must be numbered from 0 without gaps, got {sorted(names, key=str)}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{shown(file)}: names must be a list of classes, got {names!r}")
    if count is not None and count != len(names):
        raise InputError(f"{shown(file)}: nc is {count!r}, and there are {len(names)} names")
    return tuple(map(str, names))


def _pictures(base: Path, place: str, *, file: Path) -> list[Path]:
    """The pictures of a folder, or those that a text file lists, in order."""
    # Roboflow writes ../train/images, from a folder that the file does not lie in.
    path = next((one for one in (base / place, base / place.removeprefix("../")) if one.exists()), None)
    if path is None:
        raise InputError(f"{shown(file)}: {place!r} is not there; looked for {base / place}")
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURES)
    found = []
    for row, line in enumerate(read_lines(path), start=1):
        picture = path.parent / line.strip()
        if not picture.is_file():
            raise InputError(f"{shown(path)}:{row}: picture {line.strip()!r} is not there")
        found.append(picture)
    return found


class YoloDataset(DetectionDataset):
    """One split of a YOLO folder.

    A picture without a text file holds no objects. Of an outline, more than four numbers, the box around it is taken.
    """

    kind = "YOLO"

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
        """Read a folder or a file that `find_yolo` knows.

        Args:
            root: the folder, or the YAML file.
            split: "train", "val" or "all".
            classes: their names; all that the file names when None.
            transform: of every example that is asked for.
            seed: draws the split where the file names but one.
            report: of each line or picture that is wrong; if it returns, that is left out.

        Raises:
            InputError: names the file, the line and the value; or the class, and those that occur.
        """
        known_split(split)
        folder = find_yolo(root)
        pictures, note = _split(folder, split=split, seed=seed)
        texts = [_label_file(picture) for picture in pictures]
        read = [read_yolo(text, classes=len(folder.names), report=report) for text in texts]
        occurring = [[folder.names[i] for i in labels.tolist()] for labels, *_ in read]
        notes = check_named(classes, folder.names, occurring, split=split)
        classes = folder.names if classes is None else tuple(classes)
        label = np.array([*map(label_of(classes, {}), folder.names)], dtype=np.int64)
        if bare := sum(not text.is_file() for text in texts):
            notes.append(
                f"{bare} of {len(pictures)} {split} pictures have no label file: they count as without objects"
            )
        pictured = {_label_file(picture) for some in folder.pictures.values() for picture in some}
        for place in sorted({text.parent for text in texts}):
            notes += left_over("label files", {one.name for one in place.glob("*.txt") if one not in pictured}, place)
        frames = [
            attempt(report, _frame, picture, text, label[labels], boxes, lines)
            for picture, text, (labels, boxes, lines) in zip(pictures, texts, read, strict=True)
        ]
        super().__init__(
            [one for one in frames if one], classes=classes, split_note=note, notes=notes, transform=transform
        )


def _split(folder: YoloFolder, *, split: str, seed: int) -> tuple[list[Path], str]:
    """The pictures of a split, and a sentence that says how they were chosen."""
    both = folder.pictures
    everything = list(dict.fromkeys(picture for pictures in both.values() for picture in pictures))
    if split == "all":
        return everything, f"all {len(everything)} pictures that {folder.path} names"
    if len(both) == 2:
        if shared := set(both["train"]) & set(both["val"]):
            raise InputError(f"{shown(folder.path)}: {min(shared)} is both in train and in val")
        return both[split], f"{len(both[split])} {split} pictures, as {folder.path} says"
    try:
        rows, how = draw_split(len(everything), split=split, seed=seed)
    except InputError as error:
        raise InputError(f"{folder.path}: {error}") from None
    note = f"{len(rows)} {split} pictures of {len(everything)}: {folder.path} names only {'/'.join(both)}, so {how}"
    return [everything[row] for row in rows], note


def _label_file(picture: Path) -> Path:
    """Where the boxes of a picture are: in `labels` for the last `images` of its path, else beside it."""
    parts = list(picture.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_yolo(path: Path, *, classes: int, report: Report = stop) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The objects of one picture.

    Args:
        path: a line an object: its class, then centre, width and height, or the corners of its outline, all as shares
            of the picture. A file that is not there holds none.
        classes: how many there are.
        report: of each line that is no object; if it returns, the line is left out.

    Returns:
        int64[N] classes; float64[N 4] boxes, xyxy, as shares of the picture's width and height; and N line numbers.

    Raises:
        InputError: names the file, the line and the value.
    """
    lines = enumerate(read_lines(path) if path.is_file() else [], start=1)
    tried = {n: attempt(report, _object, line, where=f"{shown(path)}:{n}", classes=classes) for n, line in lines}
    read = {n: one for n, one in tried.items() if one}
    labels, boxes = [label for label, _ in read.values()], [box for _, box in read.values()]
    return np.array(labels, np.int64), np.array(boxes, np.float64).reshape(-1, 4), list(read)


def _object(line: str, *, where: str, classes: int) -> tuple[int, list[float]]:
    """The class and the box of one line."""
    words = line.split()
    if len(words) < 5 or len(words) % 2 == 0:
        raise InputError(f"{where}: expected a class and 4 numbers, or an outline's corners ({line.strip()!r})")
    if not words[0].isdecimal() or int(words[0]) >= classes:
        raise InputError(f"{where}: class {words[0]!r} is not one of 0 .. {classes - 1}")
    return int(words[0]), _box([number(word, where=where) for word in words[1:]], where=where)


def _box(values: list[float], *, where: str) -> list[float]:
    """The xyxy box, in shares, of centre and size or of an outline."""
    if len(values) == 4:
        x, y, width, height = values
        if width <= 0 or height <= 0:
            raise InputError(f"{where}: width and height must be positive, got {width:g} and {height:g}")
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    else:
        box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        if box[0] == box[2] or box[1] == box[3]:
            raise InputError(f"{where}: the outline has no width or height")
    if min(box) < -SLACK or max(box) > 1 + SLACK:
        sides = " ".join(f"{side:g}" for side in box)
        raise InputError(f"{where}: the box leaves its picture ({sides}, as shares of it); are these pixels?")
    return box


def _frame(picture: Path, text: Path, labels: np.ndarray, shares: np.ndarray, lines: list[int]) -> Frame:
    """A picture with its objects as clipped boxes in pixels, the background left out."""
    height, width = size = read_size(picture)
    boxes, empty = clip_boxes(shares * (width, height, width, height), size)
    if empty.any():
        raise InputError(f"{shown(text)}: {empty.sum()} boxes lie outside of their {width}x{height} picture")
    rows = np.flatnonzero(labels != BACKGROUND)
    return Frame(picture.stem, picture, size, boxes[rows], labels[rows], [f"{shown(text)}:{lines[i]}" for i in rows])

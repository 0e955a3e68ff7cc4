"""KITTI's 2D object labels: text to arrays, a folder to a data set."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from tinydet.data.example import Example, read_image, read_size
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE

CLASSES = ("Car", "Pedestrian", "Cyclist")
# The classes that the benchmark neither rewards nor punishes when they are taken for their neighbour.
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
FIELDS = (
    *("type", "truncated", "occluded", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
PICTURES = (".png", ".jpg", ".jpeg")


class KittiObjects(NamedTuple):
    """The lines of one label or result file, in the file's order.

    Attributes:
        types: N class names, as written.
        truncated: float64[N], 0..1, -1 where it does not apply.
        occluded: int64[N], 0..3, -1 where it does not apply.
        boxes: float64[N 4], xyxy, original pixels, not clipped.
        scores: float64[N] of a result file, None for labels.
    """

    types: list[str]
    truncated: np.ndarray
    occluded: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None


class KittiFolder(NamedTuple):
    """Where the parts of a KITTI folder lie; `lists` is None when there are no split lists."""

    images: Path
    labels: Path
    lists: Path | None


def read_objects(path: str | PathLike[str], *, scored: bool = False) -> KittiObjects:
    """Parse a label file, or a result file.

    An inverted box (x2 < x1) is an error in both, since it means that the file holds something else, such as widths.
    An empty box (x2 == x1) is an error in a label. In a result it is kept: detectors that clip to the picture write
    such boxes, and the official program counts them as detections that match nothing.

    Args:
        path: 15 fields a line, 16 in a result file. An empty file holds no objects.
        scored: whether it is a result file.

    Raises:
        InputError: names the file, the line and the value.
    """
    fields = FIELDS if scored else FIELDS[:-1]
    types, rows = [], []
    for number, line in enumerate(_read_lines(Path(path)), start=1):
        where = f"{_shown(path)}:{number}"
        words = line.split()
        if len(words) != len(fields):
            raise InputError(f"{where}: expected {len(fields)} fields, got {len(words)} ({line.strip()!r})")
        values = [_number(word, where=f"{where}: {field}") for field, word in zip(fields[1:], words[1:], strict=True)]
        _check_box(values[3:7], where=where, may_be_empty=scored)
        if not values[1].is_integer():
            raise InputError(f"{where}: occluded is not a whole number ({words[2]!r})")
        types.append(words[0])
        rows.append(values)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields) - 1)
    return KittiObjects(
        types=types,
        truncated=table[:, 0],
        occluded=table[:, 1].astype(np.int64),
        boxes=table[:, 3:7],
        scores=table[:, -1] if scored else None,
    )


def find_kitti(root: str | PathLike[str]) -> KittiFolder:
    """Find pictures and labels in KITTI's folder, its `training`, or where torchvision keeps it.

    Raises:
        InputError: says where it looked.
    """
    places = [Path(root), *(Path(root) / place for place in ("training", "raw/training", "Kitti/raw/training"))]
    for folder in places:
        if (folder / "image_2").is_dir() and (folder / "label_2").is_dir():
            lists = (parent / "ImageSets" for parent in (folder, folder.parent))
            found = (place for place in lists if any((place / f"{split}.txt").is_file() for split in ("train", "val")))
            return KittiFolder(folder / "image_2", folder / "label_2", next(found, None))
    looked = ", ".join(str(place) for place in places)
    raise InputError(f"{root}: found no folder that holds both image_2 and label_2; looked in {looked}")


def split_frames(
    folder: KittiFolder, *, pictures: Mapping[str, Path], labels: Mapping[str, Path], split: str, seed: int
) -> tuple[list[str], str]:
    """Choose the frames of one split.

    `ImageSets/train.txt` and `val.txt` decide where they exist. Otherwise the frames, in order, are cut into ten blocks
    and two of them are drawn for validation: consecutive frames of a drive are near-duplicates, so that a split frame
    by frame would be tested on what it was trained on.

    Args:
        folder: from `find_kitti`.
        pictures: path by frame name.
        labels: path by frame name.
        split: "train" or "val".
        seed: of the draw; both splits need the same one.

    Returns:
        The frames, in order, and a sentence that says how they were chosen.

    Raises:
        InputError: a frame without picture or label, listed twice, or nothing to choose from.
    """
    if folder.lists is not None:
        frames = _listed_frames(folder.lists, pictures=pictures, labels=labels, split=split)
        return frames, f"{len(frames)} {split} frames, as listed in {folder.lists / split}.txt"
    if unpaired := sorted(pictures.keys() ^ labels.keys()):
        missing, place = ("label", folder.labels) if unpaired[0] in pictures else ("picture", folder.images)
        raise InputError(f"{place}: frame {unpaired[0]!r} has no {missing} ({len(unpaired)} frames are incomplete)")
    if len(pictures) < 2:
        raise InputError(f"{folder.images}: {len(pictures)} frames cannot be split into train and val; add ImageSets")
    everything = sorted(pictures)
    blocks = np.array_split(np.arange(len(everything)), min(10, len(everything)))
    drawn = np.random.default_rng(seed).permutation(len(blocks))[: max(1, len(blocks) // 5)]
    frames = [everything[i] for b, block in enumerate(blocks) if (b in drawn) == (split == "val") for i in block]
    return frames, (
        f"{len(frames)} {split} frames of {len(everything)}: there are no ImageSets, so {len(drawn)} of {len(blocks)} "
        f"blocks of consecutive frames, drawn with seed {seed}, are val (KITTI itself is shuffled: give it ImageSets)"
    )


class KittiDataset(Dataset[Example]):
    """One split of a KITTI folder; labels and picture headers are read and checked at once, pictures when asked for.

    A DontCare box, and one of a neighbour class that was not itself chosen, becomes an ignore region; every other class
    is background. Boxes are clipped to their picture.

    Attributes:
        classes: the class names, as given; their order gives the labels.
        names: the frames.
        paths: their pictures.
        sizes: (height, width) of each.
        objects: their labels as written, for the evaluation.
        boxes: float32[N 4] of each frame, xyxy, original pixels.
        labels: int64[N] of each frame, class index or IGNORE.
        split_note: a sentence that says how the frames were chosen.
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: str = "train",
        *,
        classes: Sequence[str] = CLASSES,
        transform: Callable[[Example], Example] | None = None,
        seed: int = 0,
    ) -> None:
        """Read a folder that `find_kitti` knows; `split` is "train" or "val", `seed` draws it where no list does.

        Raises:
            InputError: names the file, the line and the value; or the class, and those that occur.
        """
        if split not in ("train", "val"):
            raise InputError(f"split must be train or val, got {split!r}")
        folder = find_kitti(root)
        pictures, labels = _by_frame(folder.images, PICTURES), _by_frame(folder.labels, (".txt",))
        self.classes, self.transform = tuple(classes), transform
        self.names, self.split_note = split_frames(folder, pictures=pictures, labels=labels, split=split, seed=seed)
        self.objects = [read_objects(labels[name]) for name in self.names]
        _check_classes(self.classes, self.objects, split=split)
        self.paths = [pictures[name] for name in self.names]
        self.sizes = [read_size(path) for path in self.paths]
        targets = [
            _targets(objects, classes=self.classes, size=size, path=labels[name])
            for name, objects, size in zip(self.names, self.objects, self.sizes, strict=True)
        ]
        self.boxes = [boxes for boxes, _ in targets]
        self.labels = [rows for _, rows in targets]

    def take(self, rows: Sequence[int]) -> "KittiDataset":
        """The same data set with these of its frames, in this order; a frame may come several times."""
        taken = copy(self)
        for name in ("names", "paths", "sizes", "objects", "boxes", "labels"):
            setattr(taken, name, [getattr(self, name)[row] for row in rows])
        return taken

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        image = read_image(self.paths[index])
        height, width = image.shape[:2]
        example = Example(image, self.boxes[index], self.labels[index], self.names[index], (height, width))
        return self.transform(example) if self.transform else example


def _targets(
    objects: KittiObjects, *, classes: Sequence[str], size: tuple[int, int], path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Turn objects into clipped float32[N 4] boxes and int64[N] labels, leaving out the background."""
    chosen = {name.lower(): label for label, name in enumerate(classes)}
    ignored = {"dontcare", *(NEIGHBOURS[name] for name in chosen if name in NEIGHBOURS)}
    known = dict.fromkeys(ignored, IGNORE) | chosen
    labels = np.array([known.get(name.lower(), BACKGROUND) for name in objects.types], dtype=np.int64)
    height, width = size
    boxes = objects.boxes.clip(0, (width, height, width, height)).astype(np.float32)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if empty.any():
        row = int(empty.argmax())
        box = " ".join(f"{side:g}" for side in objects.boxes[row])
        raise InputError(f"{_shown(path)}:{row + 1}: box {box} lies outside of its {width}x{height} picture")
    return boxes[labels != BACKGROUND], labels[labels != BACKGROUND]


def _check_classes(classes: Sequence[str], objects: Sequence[KittiObjects], *, split: str) -> None:
    """Raise unless the classes are distinct and occur: all of them to train, at least one to validate."""
    lower = [name.lower() for name in classes]
    if not classes or len(set(lower)) < len(lower) or "dontcare" in lower:
        raise InputError(f"classes must be distinct names other than DontCare, got {', '.join(classes) or 'none'}")
    counts = Counter(name for frame in objects for name in frame.types)
    missing = [name for name in classes if name.lower() not in {known.lower() for known in counts}]
    if missing and (split == "train" or len(missing) == len(classes)):
        occurring = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
        raise InputError(f"no {split} label holds class {missing[0]!r}; they hold {occurring}")


def _listed_frames(lists: Path, *, pictures: Mapping[str, Path], labels: Mapping[str, Path], split: str) -> list[str]:
    """Read the list of one split, and check what lists there are against the folder and each other."""
    listed: dict[str, str] = {}
    frames: dict[str, list[str]] = {"train": [], "val": []}
    for part in frames:
        path = lists / f"{part}.txt"
        if part != split and not path.is_file():
            continue
        for number, line in enumerate(_read_lines(path), start=1):
            where, name = f"{_shown(path)}:{number}", line.strip()
            for kind, known in (("picture", pictures), ("label", labels)):
                if name not in known:
                    raise InputError(f"{where}: frame {name!r} has no {kind}")
            if name in listed:
                raise InputError(f"{where}: frame {name!r} was listed before, in {listed[name]}")
            listed[name] = where
            frames[part].append(name)
    if not frames[split]:
        raise InputError(f"{_shown(lists / split)}.txt: lists no frames")
    return frames[split]


def _by_frame(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map frame names to the files of a folder that have one of the suffixes."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            if path.stem in paths:
                raise InputError(
                    f"{folder}: frame {path.stem!r} is there twice, {paths[path.stem].name} and {path.name}"
                )
            paths[path.stem] = path
    return paths


def _number(word: str, *, where: str) -> float:
    """Parse one finite number."""
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{where} is not a number ({word!r})") from None
    if not math.isfinite(value):
        raise InputError(f"{where} is not finite ({word!r})")
    return value


def _check_box(box: Sequence[float], *, where: str, may_be_empty: bool) -> None:
    """Raise for an inverted box, and for an empty one unless it may be."""
    for axis, low, high in (("x", box[0], box[2]), ("y", box[1], box[3])):
        if high < low or (high == low and not may_be_empty):
            raise InputError(f"{where}: {axis}2 {'<' if high < low else '=='} {axis}1 ({high:g}, {low:g})")


def _read_lines(path: Path) -> list[str]:
    """Read a text file's lines without the blank ones at its end."""
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{_shown(path)}: not a text file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _shown(path: str | PathLike[str]) -> str:
    """Shorten a path to its file and folder."""
    return "/".join(Path(path).parts[-2:])

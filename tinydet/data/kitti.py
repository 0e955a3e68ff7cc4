"""KITTI: label and result files as arrays, and a data set of one split of a folder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydet.data.dataset import DetectionDataset, Frame, as_annotations, join_frames
from tinydet.data.images import IMAGE_SUFFIXES, read_size
from tinydet.data.splits import (
    SPLITS,
    check_split,
    class_labels,
    draw_split,
    left_over_note,
    read_lists,
    resolve_classes,
)
from tinydet.errors import InputError, NotFoundError, OnError, quoted, raise_error, try_call
from tinydet.files import PathLike, files_by_stem, list_files, short_path
from tinydet.reading import parse_float, parse_lines, read_text

KITTI_CLASSES = ("Car", "Pedestrian", "Cyclist")
# The classes that the benchmark neither rewards nor punishes when they are taken for their neighbour.
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
FIELDS = "type truncated occluded alpha x1 y1 x2 y2 height width length x y z rotation_y score"
Paths = dict[str, Path]  # files by their names without suffix


class KittiObjects(NamedTuple):
    """The N lines of a label or result file, as written and in its order."""

    types: list[str]
    truncated: np.ndarray  # float64[N], 0..1, -1 where it does not apply
    occluded: np.ndarray  # int64[N], 0..3, -1 where it does not apply
    boxes: np.ndarray  # float64[N 4], xyxy, original pixels, not clipped
    scores: np.ndarray | None  # float64[N] of a result file
    lines: Sequence[int] = ()  # the number of each line, from 1


def read_kitti_objects(path: PathLike, *, scored: bool = False, on_error: OnError = raise_error) -> KittiObjects:
    """Read a label file, or with `scored` a result file, without the lines whose error `on_error` took."""
    fields = FIELDS.split()[: None if scored else -1]
    found = parse_lines(path, _parse_line, fields, on_error=on_error)
    types, rows = [kind for kind, _ in found.values()], [values for _, values in found.values()]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields) - 1)
    scores = table[:, -1] if scored else None
    return KittiObjects(types, table[:, 0], table[:, 1].astype(np.int64), table[:, 3:7], scores, list(found))


def _parse_line(line: str, fields: Sequence[str], *, where: str) -> tuple[str, list[float]]:
    """Parse the type and the numbers of one line."""
    words = line.split()
    if len(words) != len(fields):
        raise InputError(f"{where}: expected {len(fields)} fields, got {len(words)} ({quoted(line.strip())})")
    values = [parse_float(word, where=f"{where}: {field}") for field, word in zip(fields[1:], words[1:], strict=True)]
    x1, y1, x2, y2 = values[3:7]
    for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
        # Detectors that clip to the image write empty boxes, and the official program counts them as false positives.
        if high < low or (high == low and "score" not in fields):
            raise InputError(f"{where}: {axis}2 {'<' if high < low else '=='} {axis}1 ({high:g}, {low:g})")
    if not values[1].is_integer() or abs(values[1]) > 9:
        raise InputError(f"{where}: occluded is not a whole number from 0 to 3 ({quoted(words[2])})")
    return words[0], values


def kitti_labels(types: Sequence[str] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Label objects: IGNORE for DontCare and neighbours of a class, BACKGROUND for strangers; int64[N]."""
    neighbours = {NEIGHBOURS[name] for name in map(str.lower, classes) if name in NEIGHBOURS}
    return class_labels(types, classes, ignored=neighbours)


class KittiFolder(NamedTuple):
    """Where the parts of a KITTI folder lie."""

    images: Path
    labels: Path
    lists: Path | None  # ImageSets, if there are any


def find_kitti(root: PathLike) -> KittiFolder:
    """Find images and labels in KITTI's folder, its `training`, where its archives or torchvision put them."""
    root = Path(root)
    places = [root / place for place in ("", "training", "raw/training", "Kitti/raw/training")]
    both = [(place / "image_2", place / "label_2") for place in places]
    both.append((root / "data_object_image_2/training/image_2", root / "data_object_label_2/training/label_2"))
    if _are_labels(root / "labels"):
        both.append((root / "data", root / "labels"))  # FiftyOne's
    for images, labels in both:
        if images.is_dir() and labels.is_dir():
            lists = (folder / "ImageSets" for folder in (images.parent, images.parent.parent, root))
            found = (place for place in lists if any((place / f"{split}.txt").is_file() for split in SPLITS))
            return KittiFolder(images, labels, next(found, None))
    for pair in both:
        for there, missing in (pair, pair[::-1]):
            if there.is_dir():
                raise InputError(f"{there} is there, but no {missing}")
    raise NotFoundError(f"{root}: found no image_2 and label_2")


def _are_labels(folder: Path) -> bool:
    """Say whether the text files of a folder hold KITTI's fields, by their first lines."""
    lines = (read_text(path).split("\n", 1)[0] for path in list_files(folder, [".txt"])[:3])
    return any(len(line.split()) == len(FIELDS.split()) - 1 and not line[0].isdecimal() for line in lines)


class KittiDataset(DetectionDataset):
    """One split of a KITTI folder; the arguments and errors are those of `open_dataset`.

    DontCare boxes and those of neighbour classes that were not chosen are ignore regions, other classes background.
    """

    kind = "KITTI"

    def __init__(
        self,
        root: PathLike | KittiFolder,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        classes = KITTI_CLASSES if classes is None else tuple(classes)
        self._folder = folder = root if isinstance(root, KittiFolder) else find_kitti(root)
        images = files_by_stem(folder.images, IMAGE_SUFFIXES, on_error=on_error)
        labels = files_by_stem(folder.labels, [".txt"], on_error=on_error)
        names, note = _split_names(folder, images, labels, split=split, seed=seed, on_error=on_error)
        sizes = {name: size for name in names if (size := try_call(on_error, read_size, images[name]))}
        objects = [read_kitti_objects(labels[name], on_error=on_error) for name in sizes]
        counts = Counter(kind for one in objects for kind in one.types)
        resolve_classes(classes, counts, split=split, where=short_path(folder.labels))
        frames = [
            Frame(name, images[name], size, one.boxes, kitti_labels(one.types, classes))
            for (name, size), one in zip(sizes.items(), objects, strict=True)
        ]
        columns = join_frames(frames, [one.lines for one in objects])
        notes = left_over_note("labels", labels.keys() - images.keys(), folder.labels)
        written = as_annotations(columns.image_index, columns.labels, columns.boxes, classes=len(classes))
        super().__init__(columns, classes=classes, split_note=note, notes=notes, annotations=written, on_error=on_error)
        self._objects = objects

    def objects(self, index: int) -> KittiObjects:
        """Give the lines of one image's label file as written, for the evaluation."""
        return self._objects[self._rows[index]]

    def _origin(self, row: int, line: int) -> str:
        return f"{short_path(self._folder.labels / self._columns.names[row])}.txt:{line}"


def _split_names(
    folder: KittiFolder, images: Paths, labels: Paths, *, split: str, seed: int, on_error: OnError
) -> tuple[list[str], str]:
    """Choose the images of a split, as `ImageSets` list them or `draw_split` draws them; and say how."""
    if folder.lists and split != "all":
        names = _listed_names(folder.lists, images, labels, split=split, on_error=on_error)
        return names, f"{len(names)} {split} images, as listed in {folder.lists / split}.txt"
    candidates = labels.keys() if folder.lists else images.keys() | labels.keys()
    incomplete = sorted(candidates - (images.keys() & labels.keys()))
    for name in incomplete:
        missing, place = ("label", folder.labels) if name in images else ("image", folder.images)
        problem = f"frame {quoted(name)} has no {missing} ({len(incomplete)} frames are incomplete)"
        on_error(InputError(f"{place}: {problem}"))
    names = sorted(candidates - set(incomplete))
    if split == "all":
        return names, f"all {len(names)} images"
    names, note = draw_split(names, split=split, seed=seed, reason=f"{folder.images.parent} has no ImageSets")
    return names, f"{note} (KITTI itself is shuffled: give it ImageSets)"


def _listed_names(lists: Path, images: Paths, labels: Paths, *, split: str, on_error: OnError) -> list[str]:
    """Read the list of one split, and check what lists there are against the folder and each other."""

    def resolve(name: str, *, where: str) -> str:
        if name not in images:
            name = name.removesuffix(".txt").removesuffix(".png").removesuffix(".jpg")
        for what, known in (("image", images), ("label", labels)):
            if name not in known:
                raise InputError(f"{where}: frame {quoted(name)} has no {what}")
        return name

    there = [part for part in SPLITS if (lists / f"{part}.txt").is_file()]
    if split not in there:
        raise InputError(f"{lists}: has no {split}.txt")
    names = read_lists(lists, there, resolve, what="frame", on_error=on_error)
    if not names[split]:
        raise InputError(f"{short_path(lists / split)}.txt: lists no frames")
    return names[split]

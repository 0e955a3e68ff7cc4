"""KITTI's folder: where its parts lie, and a data set of one of its splits."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydet.data.dataset import (
    DetectionDataset,
    Frame,
    check_classes,
    clip_boxes,
    draw_split,
    known_split,
    label_of,
    left_over,
)
from tinydet.data.example import Example, read_size
from tinydet.data.kitti_labels import KittiObjects, read_objects
from tinydet.data.text import read_lines, shown
from tinydet.errors import InputError, Report, attempt, stop
from tinydet.labels import BACKGROUND, IGNORE

CLASSES = ("Car", "Pedestrian", "Cyclist")
# The classes that the benchmark neither rewards nor punishes when they are taken for their neighbour.
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
PICTURES = (".png", ".jpg", ".jpeg")


class KittiFolder(NamedTuple):
    """Where the parts of a KITTI folder lie; `lists` is None when there are no split lists."""

    images: Path
    labels: Path
    lists: Path | None


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
    folder: KittiFolder,
    *,
    pictures: Mapping[str, Path],
    labels: Mapping[str, Path],
    split: str,
    seed: int,
    report: Report = stop,
) -> tuple[list[str], str]:
    """Choose the frames of one split: as `ImageSets/train.txt` and `val.txt` say, else as `draw_split` draws them.

    Args:
        folder: from `find_kitti`.
        pictures: path by frame name.
        labels: path by frame name.
        split: "train", "val" or "all".
        seed: of the draw; both splits need the same one.
        report: of each frame without picture or label, or listed twice; if it returns, the frame is left out.

    Returns:
        The frames, in order, and a sentence that says how they were chosen.

    Raises:
        InputError: a frame without picture or label, listed twice, or nothing to choose from.
    """
    if folder.lists is not None:
        if split == "all":
            frames = sorted(labels)
            return _paired(frames, folder, pictures=pictures, labels=labels, report=report), f"all {len(frames)} frames"
        frames = _listed_frames(folder.lists, pictures=pictures, labels=labels, split=split, report=report)
        return frames, f"{len(frames)} {split} frames, as listed in {folder.lists / split}.txt"
    everything = _paired(
        sorted(pictures.keys() | labels.keys()), folder, pictures=pictures, labels=labels, report=report
    )
    try:
        rows, how = draw_split(len(everything), split=split, seed=seed)
    except InputError as error:
        raise InputError(f"{folder.images}: {error}; add ImageSets") from None
    warning = "" if split == "all" else " (KITTI itself is shuffled: give it ImageSets)"
    frames = [everything[row] for row in rows]
    return frames, f"{len(frames)} {split} frames of {len(everything)}: there are no ImageSets, so {how}{warning}"


class KittiDataset(DetectionDataset):
    """One split of a KITTI folder.

    A DontCare box, and one of a neighbour class that was not itself chosen, becomes an ignore region; every other class
    is background. Boxes are clipped to their picture.

    Attributes:
        objects: the labels of each frame as written, for the evaluation; all else as of `DetectionDataset`.
    """

    kind = "KITTI"
    per_frame = (*DetectionDataset.per_frame, "objects")

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
        """Read a folder that `find_kitti` knows.

        Args:
            root: the folder.
            split: "train", "val" or "all".
            classes: their names; Car, Pedestrian and Cyclist when None.
            transform: of every example that is asked for.
            seed: draws the split where no list does.
            report: of each line, box or picture that is wrong; if it returns, that is left out.

        Raises:
            InputError: names the file, the line and the value; or the class, and those that occur.
        """
        known_split(split)
        classes = CLASSES if classes is None else tuple(classes)
        folder = find_kitti(root)
        pictures, labels = by_frame(folder.images, PICTURES), by_frame(folder.labels, (".txt",))
        names, note = split_frames(folder, pictures=pictures, labels=labels, split=split, seed=seed, report=report)
        objects = [read_objects(labels[name], report=report) for name in names]
        check_classes(classes, (kind for frame in objects for kind in frame.types), split=split)
        read = [
            (attempt(report, _frame, name, pictures[name], labels[name], one, classes=classes, report=report), one)
            for name, one in zip(names, objects, strict=True)
        ]
        self.objects = [one for frame, one in read if frame]
        super().__init__(
            [frame for frame, _ in read if frame],
            classes=classes,
            split_note=note,
            notes=left_over("labels", labels.keys() - pictures.keys(), folder.labels),
            transform=transform,
        )


def kitti_labels(types: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """int64[N] of N objects: the class of each, IGNORE for DontCare and for neighbours of a class, else BACKGROUND."""
    ignored = {"dontcare", *(NEIGHBOURS[one] for one in map(str.lower, classes) if one in NEIGHBOURS)}
    return np.array([*map(label_of(classes, dict.fromkeys(ignored, IGNORE)), types)], dtype=np.int64)


def _frame(
    name: str, picture: Path, path: Path, objects: KittiObjects, *, classes: Sequence[str], report: Report
) -> Frame:
    """A frame with its objects as clipped boxes and labels, the background left out."""
    size, labels = read_size(picture), kitti_labels(objects.types, classes)
    places = [f"{shown(path)}:{line}" for line in objects.lines]
    boxes, empty = clip_boxes(objects.boxes, size)
    for row in np.flatnonzero(empty).tolist():
        box = " ".join(f"{side:g}" for side in objects.boxes[row])
        report(InputError(f"{places[row]}: box {box} lies outside of its {size[1]}x{size[0]} picture"))
    rows = np.flatnonzero((labels != BACKGROUND) & ~empty)
    return Frame(name, picture, size, boxes[rows], labels[rows], [places[row] for row in rows])


def _paired(
    frames: list[str],
    folder: KittiFolder,
    *,
    pictures: Mapping[str, Path],
    labels: Mapping[str, Path],
    report: Report,
) -> list[str]:
    """The frames that have both picture and label; the others are reported."""
    unpaired = [name for name in frames if name not in pictures or name not in labels]
    for name in unpaired:
        missing, place = ("label", folder.labels) if name in pictures else ("picture", folder.images)
        report(InputError(f"{place}: frame {name!r} has no {missing} ({len(unpaired)} frames are incomplete)"))
    return [name for name in frames if name in pictures and name in labels]


def _listed_frames(
    lists: Path, *, pictures: Mapping[str, Path], labels: Mapping[str, Path], split: str, report: Report
) -> list[str]:
    """Read the list of one split, and check what lists there are against the folder and each other."""
    listed: dict[str, str] = {}
    frames: dict[str, list[str]] = {"train": [], "val": []}
    for part in frames:
        path = lists / f"{part}.txt"
        if part != split and not path.is_file():
            continue
        for row, line in enumerate(read_lines(path), start=1):
            where, name = f"{shown(path)}:{row}", line.strip()
            missing = [kind for kind, known in (("picture", pictures), ("label", labels)) if name not in known]
            if missing:
                report(InputError(f"{where}: frame {name!r} has no {missing[0]}"))
            elif name in listed:
                report(InputError(f"{where}: frame {name!r} was listed before, in {listed[name]}"))
            else:
                listed[name] = where
                frames[part].append(name)
    if not frames[split]:
        raise InputError(f"{shown(lists / split)}.txt: lists no frames")
    return frames[split]


def by_frame(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map frame names to the files of a folder that have one of the suffixes.

    Raises:
        InputError: a frame is there twice.
    """
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            if path.stem in paths:
                raise InputError(
                    f"{folder}: frame {path.stem!r} is there twice, {paths[path.stem].name} and {path.name}"
                )
            paths[path.stem] = path
    return paths

"""What every reader makes of its files: one split of a data set, pictures with boxes."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from tinydet.data.example import Example, fit_scale, read_image
from tinydet.data.text import shown
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND

SPLITS = ("train", "val", "all")
Some = TypeVar("Some", bound="DetectionDataset")


class Frame(NamedTuple):
    """What is known of a picture before it is read."""

    name: str
    path: Path
    size: tuple[int, int]
    """(height, width)"""
    boxes: np.ndarray
    """float32[N 4], xyxy, original pixels, within the picture."""
    labels: np.ndarray
    """int64[N], class index or IGNORE."""
    places: Sequence[str] = ()
    """Where each of the N is written: the file, and the line or the number."""


class DetectionDataset(Dataset[Example]):
    """One split of a data set; labels and picture headers are read and checked at once, pictures when asked for.

    Attributes:
        kind: whose files these are, such as KITTI.
        classes: the class names; their order gives the labels.
        names: the frames.
        paths: their pictures.
        sizes: (height, width) of each.
        boxes: float32[N 4] of each frame, xyxy, original pixels.
        labels: int64[N] of each frame, class index or IGNORE.
        places: where each of the N is written.
        split_note: a sentence that says how the frames were chosen.
        notes: what else should be said of the files, a sentence each.
    """

    kind = "pictures"
    per_frame: tuple[str, ...] = ("names", "paths", "sizes", "boxes", "labels", "places")

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        classes: Sequence[str],
        split_note: str = "",
        notes: Sequence[str] = (),
        transform: Callable[[Example], Example] | None = None,
    ) -> None:
        if not frames:
            raise InputError(f"{split_note or 'the data set'}: no picture that can be used")
        self.names = [frame.name for frame in frames]
        self.paths = [frame.path for frame in frames]
        self.sizes = [frame.size for frame in frames]
        self.boxes = [frame.boxes for frame in frames]
        self.labels = [frame.labels for frame in frames]
        self.places = [frame.places or [shown(frame.path)] * len(frame.labels) for frame in frames]
        self.classes, self.transform = tuple(classes), transform
        self.split_note, self.notes = split_note, tuple(notes)

    def take(self: Some, rows: Sequence[int]) -> Some:
        """The same data set with these of its frames, in this order; a frame may come several times."""
        taken = copy(self)
        for name in self.per_frame:
            setattr(taken, name, [getattr(self, name)[row] for row in rows])
        return taken

    @property
    def counts(self) -> dict[str, int]:
        """How many objects of each class there are."""
        labels = np.concatenate(self.labels)
        return {name: int((labels == i).sum()) for i, name in enumerate(self.classes)}

    def boxes_in(self, image_size: tuple[int, int]) -> np.ndarray:
        """The boxes of all frames end to end, float32[N 4], in pixels of a network's input of (height, width)."""
        scales = [fit_scale(size, image_size) for size in self.sizes]
        return np.concatenate([boxes * scale for boxes, scale in zip(self.boxes, scales, strict=True)])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        image = read_image(self.paths[index])
        height, width = image.shape[:2]
        example = Example(image, self.boxes[index], self.labels[index], self.names[index], (height, width))
        return self.transform(example) if self.transform else example


def draw_split(count: int, *, split: str, seed: int) -> tuple[list[int], str]:
    """Choose rows of a data set that does not say which are for validation.

    The rows, in order, are cut into ten blocks and two of them are drawn: neighbours, such as the frames of a drive,
    are near-duplicates, so that a split one by one would be tested on what it was trained on.

    Args:
        count: of the rows.
        split: "train", "val", or "all" of them.
        seed: of the draw; both splits need the same one.

    Returns:
        The rows, in order, and how they were chosen, as the end of a sentence.

    Raises:
        InputError: there are fewer than two.
    """
    if split == "all":
        return list(range(count)), "all of them"
    if count < 2:
        raise InputError(f"{count} pictures cannot be split into train and val")
    blocks = np.array_split(np.arange(count), min(10, count))
    drawn = np.random.default_rng(seed).permutation(len(blocks))[: max(1, len(blocks) // 5)]
    rows = [int(i) for b, block in enumerate(blocks) if (b in drawn) == (split == "val") for i in block]
    return rows, f"{len(drawn)} of {len(blocks)} blocks of consecutive frames, drawn with seed {seed}, are val"


def known_split(split: str) -> str:
    """The split, if it is one.

    Raises:
        InputError: it is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    return split


def check_classes(classes: Sequence[str], occurring: Iterable[str], *, split: str) -> None:
    """Raise InputError unless the classes are distinct and occur: all of them to train, at least one to validate.

    Args:
        classes: the names asked for, in any case.
        occurring: the class of every object.
        split: of what.
    """
    lower = [name.lower() for name in classes]
    if not classes or len(set(lower)) < len(lower) or "dontcare" in lower:
        raise InputError(f"classes must be distinct names other than DontCare, got {', '.join(classes) or 'none'}")
    counts = Counter(occurring)
    missing = [name for name in classes if name.lower() not in {known.lower() for known in counts}]
    if missing and (split == "train" or len(missing) == len(classes)):
        held = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
        raise InputError(f"no {split} label holds class {missing[0]!r}; they hold {held}")


def check_named(
    classes: Sequence[str] | None, named: Sequence[str], frames: Iterable[Sequence[str]], *, split: str
) -> list[str]:
    """The same where a file names its classes, and none need be asked for.

    Args:
        classes: the names asked for; all that the file names when None.
        named: those, of which some may not occur.
        frames: the class of every object, picture by picture.
        split: of what.

    Returns:
        What should be said of the classes, a sentence each.

    Raises:
        InputError: as of `check_classes`; or a class is not among those named, or there are no objects.
    """
    occurring = Counter(name for frame in frames for name in frame)
    if unknown := [name for name in classes or () if name.lower() not in map(str.lower, named)]:
        raise InputError(f"no class {unknown[0]!r}; there are {', '.join(named)}")
    if classes is not None:
        check_classes(classes, occurring.elements(), split=split)
    if not occurring and split != "val":
        raise InputError(f"the {split} pictures hold no objects at all")
    absent = [name for name in named if classes is None and not occurring[name]]
    return [f"no {split} picture holds {', '.join(absent)}"] if absent else []


def label_of(classes: Sequence[str], extra: Mapping[str, int]) -> Callable[[str], int]:
    """What gives a class name, in any case, its label; BACKGROUND where it is not among the classes or the `extra`."""
    known = {**extra, **{name.lower(): label for label, name in enumerate(classes)}}
    return lambda name: known.get(name.lower(), BACKGROUND)


def left_over(what: str, names: Collection[str], folder: Path) -> list[str]:
    """A sentence about things of a folder that have no picture, where there are any."""
    some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{folder}: {len(names)} {what} have no picture ({some})"] if names else []


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, float[N 4], cut to a picture of (height, width), as float32; and which of them nothing is left of."""
    height, width = size
    clipped = boxes.clip(0, (width, height, width, height)).astype(np.float32)
    return clipped, np.any(clipped[:, 2:] <= clipped[:, :2], axis=1)

"""Data sets as columns: one split, images with boxes, in a few arrays that workers share."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset, Subset

from tinydet.data.images import Example, read_image, to_example
from tinydet.errors import InputError, OnError, raise_error
from tinydet.files import short_path
from tinydet.labels import BACKGROUND, IGNORE

SLIVER = 0.05  # of a box's area, which rounding may leave outside of its image
Self = TypeVar("Self", bound="DetectionDataset")


class Frame(NamedTuple):
    """What is known of an image before it is read."""

    name: str
    path: Path
    size: tuple[int, int]  # (height, width)
    boxes: np.ndarray  # float32[N 4], xyxy, original pixels, within the image
    labels: np.ndarray  # int64[N], class index or IGNORE


class Columns(NamedTuple):
    """N images and their M boxes, end to end in the order of the images."""

    names: np.ndarray  # str[N]
    paths: np.ndarray  # str[N]
    sizes: np.ndarray  # int64[N 2], (height, width)
    offsets: np.ndarray  # int64[N+1]: the boxes of image i are rows offsets[i] to offsets[i + 1]
    boxes: np.ndarray  # float[M 4], xyxy, original pixels
    labels: np.ndarray  # int64[M], class index, IGNORE, or BACKGROUND of what is left out
    lines: np.ndarray  # int64[M], the line or the annotation that each box is written in; 0 where there is none

    @property
    def image_index(self) -> np.ndarray:
        """int64[M], row of the image that each box is in."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.offsets))


class CocoAnnotations(NamedTuple):
    """Annotations as COCO's metric reads them, ordered by image."""

    images: np.ndarray  # int64[A], row of the image
    labels: np.ndarray  # int64[A], class index
    boxes: np.ndarray  # float64[A 4]: left, top, width, height as written; original pixels, not clipped
    areas: np.ndarray  # float64[A], square pixels: of the outline, where the file gives it
    crowd: np.ndarray  # bool[A]: regions that any number of detections may lie in


def as_annotations(images: np.ndarray, labels: np.ndarray, boxes: np.ndarray, *, classes: int) -> CocoAnnotations:
    """Convert xyxy boxes to COCO's annotations: an ignore region to a crowd of every class, BACKGROUND to nothing."""
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    annotations = CocoAnnotations(images, labels, boxes, boxes[:, 2] * boxes[:, 3], labels == IGNORE)
    return crowds_of_every_class(annotations, classes=classes)


def crowds_of_every_class(annotations: CocoAnnotations, *, classes: int) -> CocoAnnotations:
    """Repeat annotations labelled IGNORE for every class, and leave out those labelled BACKGROUND."""
    labels = annotations.labels
    times = np.where(labels == IGNORE, classes, labels != BACKGROUND)
    rows = np.repeat(np.arange(len(labels)), times)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    taken = CocoAnnotations(*(column[rows] for column in annotations))
    return taken._replace(labels=np.where(taken.labels == IGNORE, nth, taken.labels))


def gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index the entries of some of the lists that lie end to end at `offsets`; and give the new offsets."""
    counts = np.diff(offsets)[rows]
    ends = np.append(0, np.cumsum(counts))
    return np.arange(ends[-1]) + np.repeat(offsets[:-1][rows] - ends[:-1], counts), ends


def keep_boxes(columns: Columns, keep: np.ndarray) -> Columns:
    """Keep some of the boxes, by bool[M], and all images."""
    offsets = np.append(0, np.cumsum(keep))[columns.offsets]
    return Columns(*columns[:3], offsets, *(column[keep] for column in columns[4:]))


def join_frames(frames: Sequence[Frame], lines: Sequence[Sequence[int]] = ()) -> Columns:
    """Put frames end to end, and the lines that their boxes are written in."""
    offsets = np.cumsum([0, *(len(frame.labels) for frame in frames)])
    return Columns(
        names=np.array([frame.name for frame in frames], dtype=str),
        paths=np.array([str(frame.path) for frame in frames], dtype=str),
        sizes=np.array([frame.size for frame in frames], dtype=np.int64).reshape(-1, 2),
        offsets=offsets,
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(frame.boxes for frame in frames)]),
        labels=np.concatenate([np.zeros(0, np.int64), *(frame.labels for frame in frames)]).astype(np.int64),
        lines=np.array([n for some in lines for n in some], int) if lines else np.zeros(offsets[-1], int),
    )


def _column(name: str) -> Any:
    """Make an attribute of a data set that is a column of the images that were taken."""
    return property(attrgetter(f"_taken.{name}"))


class DetectionDataset(Dataset[Example]):
    """One split of a data set; labels are read and checked at once, images when asked for.

    Args:
        frames: the images; or their columns, whose boxes may be float64 and labelled BACKGROUND too.
        classes: the K class names; their order gives the labels.
        split_note: a sentence that says how the images were chosen; `notes`: others on the files.
        annotations: what to evaluate against, as written in the files; made of the boxes when None.
        on_error: called for each box outside of its image; if it returns, the box is left out. None: boxes and labels
            are what they must be, and are not looked at.

    Raises:
        InputError: there is no image, or a box lies outside of its own.
    """

    kind = "images"  # or whose files these are
    names: np.ndarray = _column("names")  # str[N]
    paths: np.ndarray = _column("paths")  # str[N], the image files
    sizes: np.ndarray = _column("sizes")  # int64[N 2], (height, width)
    offsets: np.ndarray = _column("offsets")  # int64[N+1]: image i has the boxes offsets[i] to offsets[i + 1]
    boxes: np.ndarray = _column("boxes")  # float32[M 4], xyxy, original pixels, within their images
    labels: np.ndarray = _column("labels")  # int64[M], class index or IGNORE
    image_index: np.ndarray = _column("image_index")  # int64[M], row of the image that each box is in

    def __init__(
        self,
        frames: Iterable[Frame] | Columns,
        *,
        classes: Sequence[str],
        split_note: str = "",
        notes: Sequence[str] = (),
        annotations: CocoAnnotations | None = None,
        on_error: OnError | None = raise_error,
    ) -> None:
        self._columns = columns = frames if isinstance(frames, Columns) else join_frames(list(frames))
        self._annotations = annotations
        self._rows: np.ndarray | range = range(len(columns.names))  # of those that were taken; a range of all
        self.classes, self.split_note = tuple(classes), split_note
        self.notes: tuple[str, ...] = tuple(notes)
        if not len(self):
            raise InputError(f"{split_note or 'the data set'}: there is no image that can be used")
        if on_error is None:
            return
        images = columns.image_index
        boxes = columns.boxes.clip(0, columns.sizes[images][:, [1, 0, 1, 0]]).astype(np.float32)
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        for m in np.flatnonzero(empty).tolist():
            (height, width), where = columns.sizes[images[m]], self._origin(images[m], columns.lines[m])
            box = " ".join(f"{side:g}" for side in columns.boxes[m].tolist())
            on_error(InputError(f"{where}: box {box} (x1 y1 x2 y2) lies outside of its {width}x{height} image"))
        inside, whole = ((box[:, 2:] - box[:, :2]).clip(0).prod(axis=1) for box in (boxes, columns.boxes))
        objects = columns.labels >= 0
        if leaving := int(((inside < (1 - SLIVER) * whole) & objects & ~empty).sum()):
            text = f"{leaving} of {objects.sum()} boxes leave their image by more than {SLIVER:.0%}"
            self.notes += (f"{text}: corners instead of sizes? labels of another resolution?",)
        self._columns = keep_boxes(columns._replace(boxes=boxes), (columns.labels != BACKGROUND) & ~empty)

    def take(self: Self, rows: Sequence[int] | np.ndarray) -> Self:
        """Select images by their rows, in this order; an image may come several times. Nothing is copied."""
        taken = type(self).__new__(type(self))
        every = np.arange(len(self)) if isinstance(self._rows, range) else self._rows
        taken.__dict__.update(self.__dict__, _rows=every[np.asarray(rows, dtype=np.int64)])
        taken.__dict__.pop("_taken", None)
        return taken

    def sample(self: Self, most: int) -> Self:
        """Take at most so many images, spread evenly over all."""
        return self if len(self) <= most else self.take(np.linspace(0, len(self) - 1, most, dtype=np.int64))

    @cached_property
    def _taken(self) -> Columns:
        """Gather the columns of the images that were taken."""
        if isinstance(self._rows, range):
            return self._columns
        boxes, offsets = gather(self._columns.offsets, self._rows)
        names, paths, sizes = (column[self._rows] for column in self._columns[:3])
        return Columns(names, paths, sizes, offsets, *(column[boxes] for column in self._columns[4:]))

    @property
    def counts(self) -> dict[str, int]:
        """Count the objects of each class."""
        parts = np.array_split(self.labels, 1 + len(self.labels) // 2**20)  # a copy of which is small
        numbers = np.sum([np.bincount(part[part >= 0], minlength=len(self.classes)) for part in parts], axis=0)
        return dict(zip(self.classes, numbers.tolist(), strict=True))

    def digest(self) -> str:
        """Compute checksums of the names, sizes, offsets, boxes and labels, by which processes compare their data.

        Paths are left out, for they may differ between machines. A second for ten million images with three boxes each.
        """
        names = np.ascontiguousarray(self.names).view(np.uint32).reshape(len(self), self.names.itemsize // 4)
        longest = names.any(axis=0).sum()  # as other images, which were not taken, may have longer names
        columns = names[:, :longest], self.sizes, self.offsets, self.boxes, self.labels
        return "-".join(f"{zlib.crc32(np.ascontiguousarray(column).data):08x}" for column in columns)

    def boxes_in(self, image_size: tuple[int, int]) -> np.ndarray:
        """Scale all boxes to pixels of a network's input of (height, width), float32[M 4]."""
        scales = (np.array(image_size) / self.sizes).min(axis=1).astype(np.float32)
        return self.boxes * scales[self.image_index, None]

    def frame(self, index: int) -> Frame:
        """View one image's row of the columns."""
        row, columns = self._rows[index], self._columns
        (height, width), part = columns.sizes[row].tolist(), slice(*columns.offsets[row : row + 2])
        name, path = str(columns.names[row]), Path(str(columns.paths[row]))
        return Frame(name, path, (height, width), columns.boxes[part], columns.labels[part])

    def frames(self) -> Iterator[Frame]:
        """Iterate over the frames of all images."""
        return map(self.frame, range(len(self)))

    def origin(self, m: int) -> str:
        """Name the file and the line, or the annotation, of box m, as messages do."""
        image = int(np.searchsorted(self.offsets, m, side="right")) - 1
        return self._origin(self._rows[image], self._taken.lines[m])

    def _origin(self, row: int, line: int) -> str:
        """Name the place where a box of an image, by its row of all, is written."""
        return short_path(self._columns.paths[row])

    def _stated_by(self, index: int) -> str:
        """Name what states an image's size."""
        return short_path(self.frame(index).path)

    def coco_annotations(self) -> CocoAnnotations:
        """Give the objects as COCO's metric reads them, those that a file holds as written there."""
        if self._annotations is None:
            return as_annotations(self.image_index, self.labels, self.boxes, classes=len(self.classes))
        if isinstance(self._rows, range):
            return self._annotations
        index, ends = gather(
            np.searchsorted(self._annotations.images, np.arange(len(self._columns.names) + 1)), self._rows
        )
        images = np.repeat(np.arange(len(self)), np.diff(ends))
        return CocoAnnotations(images, *(column[index] for column in self._annotations[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Read one image; raise InputError if it cannot be read, or has another size than was stated."""
        frame = self.frame(index)
        image = read_image(frame.path)
        if image.shape[:2] != frame.size:
            stated, found = ("x".join(map(str, size[1::-1])) for size in (frame.size, image.shape))
            raise InputError(f"{self._stated_by(index)} is {stated} pixels, but {frame.path} is {found} upright")
        return Example(image, frame.boxes, frame.labels, frame.name, frame.size)


def ground_truth(dataset: Any, *, classes: Sequence[str] | None = None) -> DetectionDataset:
    """Collect the boxes of any sized data set; its classes are its own, else class_0, class_1, ..., when None."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, DetectionDataset):
        return dataset.dataset.take(dataset.indices)
    if isinstance(dataset, DetectionDataset):
        return dataset
    frames = []
    for _, boxes, labels, name, size, scale in (to_example(dataset[i], str(i)) for i in range(len(dataset))):
        boxes = (np.asarray(boxes) / scale).astype(np.float32)
        frames.append(Frame(name, Path(f"item {name}"), size, boxes, np.asarray(labels)))  # a path for messages alone
    highest = max((int(frame.labels.max(initial=-1)) for frame in frames), default=-1)
    classes = classes or getattr(dataset, "classes", None) or [f"class_{i}" for i in range(highest + 1)]
    if highest >= len(classes):
        raise InputError(f"the data set has label {highest}, but only {len(classes)} classes: {', '.join(classes)}")
    return DetectionDataset(frames, classes=classes)

"""An index: a data set of millions of images as columns in files, which all processes map into memory.

Its folder holds a .npy file for each column, the images of train before those of val, and tinydet-index.json, which is
written last: the classes, and the notes and counts of both splits. Images are not copied; the paths are absolute.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.data.dataset import CocoAnnotations, Columns, DetectionDataset, Frame, keep_boxes
from tinydet.data.splits import SPLITS, check_split, class_labels, resolve_classes
from tinydet.errors import InputError, NotFoundError, OnError, raise_error, shorten
from tinydet.files import PathLike, atomic_write, output_errors, short_path, write_file
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.reading import check_field, read_json

INDEX, VERSION = "tinydet-index.json", 1
ROWS = 2**18  # of a column that are written at a time
# Of each column, as Columns and CocoAnnotations have them: what its rows are, their type and their further shape.
FILES: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "names": ("images", np.str_, ()),
    "paths": ("images", np.str_, ()),
    "sizes": ("images", np.int64, (2,)),
    "offsets": ("images", np.int64, ()),  # and one row more
    "boxes": ("boxes", np.float32, (4,)),
    "labels": ("boxes", np.int64, ()),
    "lines": ("boxes", np.int64, ()),
    "annotation_images": ("annotations", np.int64, ()),
    "annotation_labels": ("annotations", np.int64, ()),
    "annotation_boxes": ("annotations", np.float64, (4,)),
    "annotation_areas": ("annotations", np.float64, ()),
    "annotation_crowd": ("annotations", np.bool_, ()),
}
SPLIT = {"note": str, "notes": [str], "objects": {str: float}, "images": float, "boxes": float, "annotations": float}
CONTENT = {"version": float, "kind": str, "classes": [str], "splits": dict.fromkeys(SPLITS, SPLIT)}


class IndexDataset(DetectionDataset):
    """One split of an index; the arguments and errors are those of `open_dataset`.

    What was written was checked, and is believed: opening reads the ends of the columns alone. Classes that are not all
    of the index, in its order, copy boxes and labels into the memory of the process; ignore regions all stay.
    """

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        path = find_index(root).absolute()
        content = read_json(path)
        check_field(content, CONTENT, where=str(path))
        if content["version"] != VERSION:
            raise InputError(f"{path}: version {content['version']:g} of the format; this tinydet reads {VERSION}")
        boxes, annotations = _open_columns(path, content["splits"], split=split)
        opened = [content["splits"][one] for one in (SPLITS if split == "all" else [split])]
        objects = sum((Counter(one["objects"]) for one in opened), Counter[str]())
        named = content["classes"]
        chosen, notes = resolve_classes(classes, objects, split=split, where=short_path(path), named=named)
        self._label_of: np.ndarray | None = None
        if [*map(str.lower, chosen)] != [*map(str.lower, named)]:
            self._label_of = _relabelling(named, chosen)
            boxes = boxes._replace(labels=self._label_of[boxes.labels])
            boxes = keep_boxes(boxes, boxes.labels != BACKGROUND)
        self.kind, self._source = f"index of {content['kind']}", (path, split, classes)
        super().__init__(
            boxes,
            classes=chosen,
            split_note=opened[0]["note"] if len(opened) == 1 else f"all {len(boxes.names)} images",
            notes=[*dict.fromkeys([*(note for one in opened for note in one["notes"]), *notes])],
            annotations=annotations,
            on_error=None,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process maps into its memory itself."""
        return {key: value for key, value in vars(self).items() if key not in ("_columns", "_annotations", "_taken")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path, split, classes = state["_source"]
        IndexDataset.__init__(self, path, split, classes=classes)
        vars(self).update(state)

    def frame(self, index: int) -> Frame:
        """Copy one image's row of the columns, which themselves cannot be written to."""
        frame = super().frame(index)
        return frame._replace(boxes=frame.boxes.copy(), labels=frame.labels.copy())

    def coco_annotations(self) -> CocoAnnotations:
        """Give the objects as COCO's metric reads them, those of the chosen classes."""
        found = super().coco_annotations()
        if self._label_of is None:
            return found
        found = found._replace(labels=self._label_of[found.labels])
        return CocoAnnotations(*(column[found.labels != BACKGROUND] for column in found))

    def _origin(self, row: int, line: int) -> str:
        what = "annotation" if self.kind.endswith("COCO") else "line"
        return super()._origin(row, line) + (f", {what} {line}" if line else "")


def find_index(root: PathLike) -> Path:
    """Find the JSON file of an index: it is the path itself, or lies in the folder."""
    path = Path(root)
    path = path if path.name == INDEX else path / INDEX
    if not os.path.isfile(path):
        raise NotFoundError(f"{root}: found no {INDEX}")
    return path


def write_index(folder: Path, datasets: Mapping[str, DetectionDataset], *, classes: Sequence[str]) -> None:
    """Write the train and val splits of a data set to a folder, with all their classes in this order.

    Raises:
        InputError: a file cannot be written.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FILES}
    parts["offsets"].append(np.zeros(1, np.int64))
    images, boxes, splits = 0, 0, {}
    for key, dataset in datasets.items():
        label_of = _relabelling(dataset.classes, classes)
        columns, annotations = dataset._taken, dataset.coco_annotations()
        columns = columns._replace(
            paths=np.array([os.path.abspath(path) for path in columns.paths.tolist()]),
            offsets=columns.offsets[1:] + boxes,
            labels=label_of[columns.labels],
        )
        annotations = annotations._replace(images=annotations.images + images, labels=label_of[annotations.labels])
        for name, column in zip(FILES, (*columns, *annotations), strict=True):
            parts[name].append(column)
        splits[key] = {
            "note": dataset.split_note,
            "notes": dataset.notes,
            "objects": {classes[k]: n for k, n in zip(label_of, dataset.counts.values(), strict=False)},
            "images": len(dataset),
            "boxes": len(columns.labels),
            "annotations": len(annotations.labels),
        }
        images, boxes = images + len(dataset), boxes + len(columns.labels)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, some in parts.items():
        _write(folder / f"{name}.npy", some, FILES[name][1])
    kind = datasets["train"].kind.removeprefix("index of ")
    content = {"version": VERSION, "kind": kind, "classes": [*classes], "splits": splits}
    write_file(folder / INDEX, json.dumps(content, indent=1))


def _relabelling(named: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Map labels of some classes, IGNORE and BACKGROUND, which count from the end, to those of others, int64[K+2]."""
    return np.append(class_labels(named, classes), [IGNORE, BACKGROUND])


def _write(path: Path, parts: Sequence[np.ndarray], kind: Any) -> None:
    """Write arrays end to end as one column."""
    dtype = np.result_type(*parts) if kind is np.str_ else np.dtype(kind)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (sum(map(len, parts)), *parts[0].shape[1:])}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            for start in range(0, len(part), ROWS):
                file.write(part[start : start + ROWS].astype(dtype).tobytes())


def _open_columns(path: Path, splits: Mapping[str, Any], *, split: str) -> tuple[Columns, CocoAnnotations]:
    """Map the columns of a split into memory."""
    first, last = {"train": (0, 1), "val": (1, 2), "all": (0, 2)}[split]
    columns, starts = list[np.ndarray](), {}
    for name, (of, kind, shape) in FILES.items():
        train, val = (int(splits[one][of]) for one in SPLITS)
        if min(train, val) < 0:
            raise InputError(f"{path}: a split has a negative number of {of}")
        ends, more = (0, train, train + val), int(name == "offsets")
        column = _map(path.with_name(f"{name}.npy"), kind, (train + val + more, *shape))
        columns.append(column[ends[first] : ends[last] + more])
        starts[of] = ends[first]
    boxes, annotations = Columns(*columns[:7]), CocoAnnotations(*columns[7:])
    if (boxes.offsets[0], boxes.offsets[-1]) != (starts["boxes"], starts["boxes"] + len(boxes.boxes)):
        raise InputError(f"{path.with_name('offsets.npy')}: no offsets of the boxes; write the index again")
    if split == "val":  # which is copied here, and seldom large
        boxes = boxes._replace(offsets=boxes.offsets - starts["boxes"])
        annotations = annotations._replace(images=annotations.images - starts["images"])
    return boxes, annotations


def _map(path: Path, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map a column of a type and shape into memory, to read alone."""
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("no such file")
        column = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except Exception as error:  # of all kinds, of damaged headers
        raise InputError(f"{path}: no column ({shorten(str(error), most=100)}); write the index again") from None
    if (column.dtype.type, column.shape, column.dtype.isnative, column.flags.c_contiguous) != (kind, shape, True, True):
        found, wanted = (f"{kind}{[*shape]}" for kind, shape in ((column.dtype, column.shape), (kind.__name__, shape)))
        raise InputError(f"{path}: holds {found}, not {wanted}; write the index again")
    return column

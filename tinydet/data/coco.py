"""COCO's annotations as a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinydet.data.coco_file import find_coco, find_images, read_coco
from tinydet.data.dataset import CocoAnnotations, Columns, DetectionDataset, crowds_of_every_class, gather
from tinydet.data.images import read_size
from tinydet.data.splits import check_split, class_labels, draw_split, of_split, resolve_classes
from tinydet.errors import InputError, OnError, raise_error, shorten, try_call
from tinydet.files import PathLike, short_path
from tinydet.labels import BACKGROUND, IGNORE


class CocoDataset(DetectionDataset):
    """One split of COCO annotations; the arguments and errors are those of `open_dataset`.

    Crowd regions become ignore regions, and a box without width or height is left out, which the notes say. The sizes
    that the file states are believed until an image is read. `category_ids` are those of the classes, None for one
    that the file does not name.
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
        drawn, note = [*range(count)], f"{count} {of_split(split)}images, those of {path}"
        if split not in ("all", *files):
            reason = f"{path} is the only file of annotations"
            drawn, note = draw_split(drawn, split=split, seed=seed, reason=reason)
        paths, there = find_images(path, file.file_names[drawn].tolist())
        sizes, first = file.sizes[drawn], {image: i for i, image in reversed([*enumerate(paths)])}
        for i in np.flatnonzero((sizes[:, 0] == 0) | ~there).tolist():
            sizes[i] = try_call(on_error, read_size, paths[i]) or 0
        for i in (i for i, image in enumerate(paths) if first[image] != i):
            ids = " and ".join(shorten(str(file.image_ids[drawn[k]])) for k in (first[paths[i]], i))
            on_error(InputError(f"{self._file}: images {ids} are one file, {short_path(paths[i])}"))
            sizes[i] = 0
        usable = np.flatnonzero(sizes[:, 0])
        rows = np.array(drawn)[usable]

        index, ends = gather(np.searchsorted(file.annotations.images, np.arange(count + 1)), rows)
        images, ids = np.repeat(np.arange(len(rows)), np.diff(ends)), file.annotation_ids[index]
        _, categories, boxes, areas, crowd = (column[index] for column in file.annotations)
        named = tuple(file.categories.values())
        counts = dict(zip(named, np.bincount(categories, minlength=len(named)).tolist(), strict=True))
        chosen, notes = resolve_classes(classes, counts, split=split, where=self._file, named=named)
        by_name = {name.lower(): i for i, name in file.categories.items()}
        self.category_ids, self._image_ids = tuple(by_name.get(name.lower()) for name in chosen), file.image_ids[rows]
        labels = class_labels(named, chosen)[categories]
        written = CocoAnnotations(images, labels, boxes, areas, crowd | (labels == IGNORE))
        labels = np.where(crowd & (labels != BACKGROUND), IGNORE, labels)
        flat, again = (boxes[:, 2:] == 0).any(axis=1), repeated_regions(images, labels, boxes)
        if flat.any():
            some = ", ".join(map(str, ids[flat][:5])) + (f" and {flat.sum() - 5} more" if flat.sum() > 5 else "")
            notes.append(f"{self._file}: boxes without width or height are left out: annotations {some}")
        keep = ~flat & ~again
        columns = Columns(
            names=np.array([Path(paths[i]).stem for i in usable], dtype=str),
            paths=np.array([paths[i] for i in usable], dtype=str),
            sizes=sizes[usable],
            offsets=np.searchsorted(images[keep], np.arange(len(rows) + 1)),
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[keep],
            labels=labels[keep],
            lines=ids[keep],
        )
        super().__init__(
            columns,
            classes=chosen,
            split_note=note,
            notes=[*file.notes, *notes],
            annotations=crowds_of_every_class(written, classes=len(chosen)),
            on_error=on_error,
        )

    @property
    def image_ids(self) -> np.ndarray:
        """int64[N], or of objects where some are text: the id of each image."""
        return self._image_ids[self._rows]

    def _origin(self, row: int, line: int) -> str:
        return f"{self._file}: annotation {line if line >= 0 else f'number {-1 - line}'}"

    def _stated_by(self, index: int) -> str:
        return f"{self._file}: image {shorten(str(self.image_ids[index]))}"


def repeated_regions(images: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Tell which ignore regions repeat an earlier one of their image, as crowds of several classes do. bool[A]."""
    ignored = np.flatnonzero(labels == IGNORE)
    _, first = np.unique(np.column_stack([images, boxes])[ignored], axis=0, return_index=True)
    again = labels == IGNORE
    again[ignored[first]] = False
    return again

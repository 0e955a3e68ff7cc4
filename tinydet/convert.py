"""Convert a data set: the splits, images, boxes and classes that tinydet reads, to the files of another format."""

import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from tinydet.data.dataset import DetectionDataset
from tinydet.data.images import IMAGE_SUFFIXES, Box, read_image, read_size
from tinydet.data.index import write_index
from tinydet.data.kitti import KittiDataset
from tinydet.data.open import open_dataset
from tinydet.data.splits import DONT_CARE, SPLITS
from tinydet.data.yolo_rows import box_shares
from tinydet.errors import InputError
from tinydet.files import PathLike, atomic_write, output_errors, write_file
from tinydet.labels import IGNORE
from tinydet.prediction import UNKNOWN_3D, UNKNOWN_POSE

IMAGE_FOLDERS = {"coco": "{split}", "yolo": "images/{split}", "kitti": "training/image_2", "voc": "JPEGImages"}
SUFFIXES = {"yolo": IMAGE_SUFFIXES, "kitti": (".png", ".jpg", ".jpeg"), "voc": IMAGE_SUFFIXES}  # COCO has any


class Split(NamedTuple):
    """One split as it is to be written."""

    dataset: DetectionDataset
    names: list[str]  # of the image files; COCO's may have folders
    labels: list[int]  # the written class of each class of the data set


Splits = Mapping[str, Split]
Progress = Callable[[int, int | None], None] | None
Texts = Iterator[tuple[str, str]]  # the paths of files in the new folder, and what they hold


class Converted(NamedTuple):
    """What was written."""

    splits: Mapping[str, DetectionDataset]  # train and val, as they were read
    classes: tuple[str, ...]  # as the format spells them; KITTI's are to be named to read it
    notes: list[str]  # on the files that were read, and on what the format cannot hold


def convert_data(
    data: PathLike,
    out: PathLike,
    *,
    to: str,
    classes: Sequence[str] | None = None,
    progress: Progress = None,
) -> Converted:
    """Write the train and val images, boxes and classes of a data set to a new folder in another format.

    The folder reads back the same, every box as the same float32; only YOLO cannot hold ignore regions. Images are
    copied, but those whose suffix the format does not have are written as PNG; an index names them where they are.

    Args:
        data: what `open_dataset` opens.
        out: a folder that is empty or not there.
        to: "coco", "yolo", "kitti", "voc" or "index".
        classes: those to write, as `open_dataset` takes them.
        progress: called with the number of images that are written, of an index checked, and of all.

    Raises:
        InputError: something in the data is wrong, two images or classes would have one name, or `out` is not empty,
            all before anything is written; or writing failed.
    """
    if to not in FORMATS:
        raise InputError(f"to must be one of {', '.join(FORMATS)}; got {to!r}")
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists, and is not an empty folder; name another")
    datasets = {key: open_dataset(data, key, classes=classes) for key in SPLITS}
    done, total = count(1), sum(map(len, datasets.values()))
    for one in datasets.values():
        for i, path in enumerate(one.paths):
            if read_size(path) != one.frame(i).size or not _has_suffix(path, to=to):
                one[i]  # which raises if it cannot be read to its end, or has another size
            if progress and to == "index":
                progress(next(done), total)
    named = {name.lower(): name for one in datasets.values() for name in one.classes}
    written, changes = _spell([*named.values()], to=to)
    notes = [*(note for one in datasets.values() for note in one.notes), *([] if classes else _not_chosen(datasets))]
    if to == "index":
        kitti = isinstance(datasets["train"], KittiDataset)
        kept, losses = tuple(written), ["an index is scored by COCO's AP alone, not by KITTI's"] if kitti else []
        write = partial(write_index, out, datasets, classes=written)
    else:
        splits = _new_splits(datasets, [*named], to=to)
        kept, losses = _losses(splits, written, to=to)
        write = partial(_write, out, splits, [*WRITERS[to](splits, written)], to=to, progress=progress)
    try:
        write()
    except InputError as error:
        raise InputError(f"{error}; {out} is not complete") from None
    return Converted(datasets, kept, [*dict.fromkeys([*notes, *changes, *losses])])


def _new_splits(datasets: Mapping[str, DetectionDataset], classes: Sequence[str], *, to: str) -> Splits:
    """Name the images of each split anew, and number its classes by these, in lower case."""
    every = [path for one in datasets.values() for path in one.paths.tolist()]
    end = len(datasets["train"])
    apart = [every[:end], every[end:]] if "{split}" in IMAGE_FOLDERS[to] else [every]
    names = [name for paths in apart for name in _file_names(paths, to=to)]
    return {
        key: Split(one, some, [classes.index(name.lower()) for name in one.classes])
        for (key, one), some in zip(datasets.items(), (names[:end], names[end:]), strict=True)
    }


def _write(out: Path, splits: Splits, texts: Sequence[tuple[str, str]], *, to: str, progress: Progress) -> None:
    """Write the images, and then the texts: without these, what was interrupted is not taken for a data set."""
    copies = [
        (Path(source), out / IMAGE_FOLDERS[to].format(split=key) / name)
        for key, (dataset, names, _) in splits.items()
        for source, name in zip(dataset.paths.tolist(), names, strict=True)
    ]
    with output_errors(out):
        for done, (source, target) in enumerate(copies, start=1):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == target.suffix:
                with open(source, "rb") as content, atomic_write(target, sync=False) as file:
                    shutil.copyfileobj(content, file)
            else:
                Image.fromarray(read_image(source)).save(png := io.BytesIO(), format="PNG")
                write_file(target, png.getvalue())
            if progress:
                progress(done, len(copies))
        for path, text in texts:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            write_file(out / path, text)


def _not_chosen(datasets: Mapping[str, DetectionDataset]) -> list[str]:
    """Say which objects of KITTI are of none of its three usual classes."""
    kitti = [one for one in datasets.values() if isinstance(one, KittiDataset)]
    types = Counter(kind for one in kitti for i in range(len(one)) for kind in one.objects(i).types)
    known = {DONT_CARE, *(name.lower() for one in kitti for name in one.classes)}
    others = [f"{count} {kind}" for kind, count in types.items() if kind.lower() not in known]
    return [f"not written as objects: {', '.join(others)}; name their classes too"] if others else []


def _spell(classes: Sequence[str], *, to: str) -> tuple[list[str], list[str]]:
    """Spell class names as a format can hold them, and note which that changes."""
    blank = {"kitti": ("[ ,]+", "_"), "voc": (" +", " ")}  # KITTI's are named with commas between
    written = [re.sub(*blank[to], name).strip() if to in blank else name for name in classes]
    lower = [name.lower() for name in written]
    for name, new in zip(classes, written, strict=True):
        if not new or not name.isprintable():
            raise InputError(f"class {name!r} cannot be written; rename it, or choose others")
        if lower.count(new.lower()) > 1:
            raise InputError(f"class {name!r} would be {new!r}, and so would another; rename it, or choose others")
    changed = [f"{name!r} is written as {new!r}" for name, new in zip(classes, written, strict=True) if name != new]
    return written, [f"class {', '.join(changed)}"] if changed else []


def _has_suffix(path: PathLike, *, to: str) -> bool:
    """Say whether a format has an image's suffix."""
    return to not in SUFFIXES or Path(path).suffix.lower() in SUFFIXES[to]


def _file_names(paths: Sequence[str], *, to: str) -> list[str]:
    """Name image files: COCO's with their folders, others without, or joined to them where two have one name."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    for path in whole:
        if to != "coco" and (path.name.startswith(".") or not path.name.isprintable()):
            raise InputError(f"{str(path)!r}: lists cannot hold its name; rename it")
    base = os.path.commonpath([path.parent for path in whole])
    nested = [path.relative_to(base) for path in whole]
    if to != "coco":
        suffixes = [path.suffix if _has_suffix(path, to=to) else ".png" for path in nested]
        # Lists are read without the blanks around a name.
        nested = [path.with_name(path.stem.strip() + end) for path, end in zip(nested, suffixes, strict=True)]
    flat = [[path.name for path in nested], ["_".join(path.parts) for path in nested]]
    for names in [[path.as_posix() for path in nested]] if to == "coco" else flat:
        # Label files have the name without suffix, and not all file systems tell A from a.
        keys = [(name if to == "coco" else os.path.splitext(name)[0]).lower() for name in names]
        first: dict[str, int] = {}
        clashes = [(first[key], i) for i, key in enumerate(keys) if first.setdefault(key, i) != i]
        if not clashes:
            return names
    a, b = clashes[0]
    if paths[a] == paths[b]:
        raise InputError(f"{paths[a]} is in train and in val, which {to} cannot hold")
    raise InputError(f"{paths[a]} and {paths[b]}: both would be {names[b]}; rename one")


def _losses(splits: Splits, classes: Sequence[str], *, to: str) -> tuple[tuple[str, ...], list[str]]:
    """Say what a format cannot hold, ignore regions or classes without objects; and give the other classes."""
    held = Counter((key, label) for key, *_, objects in _images(splits) for label, _ in objects)
    notes = []
    if to == "yolo" and (regions := sum(held[key, IGNORE] for key in splits)):
        notes.append(f"YOLO has no ignore regions: {regions} are left out, and what they hold counts as background")
    # Neither has a list of classes: those of Pascal VOC are what occurs, those of KITTI must occur in train.
    where = {"kitti": ["train"], "voc": [*splits]}.get(to)
    lost = [name for i, name in enumerate(classes) if where and not any(held[key, i] for key in where)]
    if lost:
        some = f"no {'train ' if to == 'kitti' else ''}object is of class {', '.join(lost)}"
        notes.append(f"{some}: left out, because the format has no list of classes")
    return tuple(name for name in classes if name not in lost), notes


def _images(splits: Splits) -> Iterator[tuple[str, str, tuple[int, int], list[tuple[int, Box]]]]:
    """Iterate over the images: split, file name, (height, width), and objects as class, or IGNORE, and xyxy box."""
    for key, (dataset, names, labels) in splits.items():
        for name, frame in zip(names, dataset.frames(), strict=True):
            pairs = zip(frame.labels.tolist(), map(tuple, frame.boxes.tolist()), strict=True)
            objects = [(label if label == IGNORE else labels[label], box) for label, box in pairs]
            yield key, name, frame.size, objects


def _coco_texts(splits: Splits, classes: Sequence[str]) -> Texts:
    """Write annotations as COCO's files hold them; an ignore region of other formats becomes a crowd of each class."""
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    for key, (dataset, names, labels) in splits.items():
        images = [
            {"id": i, "file_name": f"{key}/{name}", "height": height, "width": width}
            for i, (name, (height, width)) in enumerate(zip(names, dataset.sizes.tolist(), strict=True), start=1)
        ]
        rows = enumerate(zip(*(column.tolist() for column in dataset.coco_annotations()), strict=True), start=1)
        annotations = [
            {"id": n, "image_id": i + 1, "category_id": labels[k] + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for n, (i, k, box, area, crowd) in rows
        ]
        yield f"{key}.json", json.dumps({"images": images, "annotations": annotations, "categories": categories})


def _yolo_texts(splits: Splits, classes: Sequence[str]) -> Texts:
    """Write a text file of shares for each image, and data.yaml."""
    for key, name, size, objects in _images(splits):
        rows = [(label, *box_shares(box, size)) for label, box in objects if label != IGNORE]
        lines = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
        yield f"labels/{key}/{os.path.splitext(name)[0]}.txt", lines
    # What is JSON is YAML, and a class may be called "no".
    yield "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps([*classes], ensure_ascii=False)}\n"


def _kitti_texts(splits: Splits, classes: Sequence[str]) -> Texts:
    """Write a label file for each image, and lists of the splits."""
    for _, name, _, objects in _images(splits):
        lines = ""
        for label, box in objects:
            kind = "DontCare" if label == IGNORE else classes[label]
            lines += f"{kind} {UNKNOWN_POSE} {' '.join(map(_decimal, box))} {UNKNOWN_3D}\n"
        yield f"training/label_2/{os.path.splitext(name)[0]}.txt", lines
    yield from _lists(splits, "ImageSets")


def _voc_texts(splits: Splits, classes: Sequence[str]) -> Texts:
    """Write an XML file for each image, and lists of the splits; pixels are counted from 1."""
    for _, name, (height, width), objects in _images(splits):
        size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
        text = f"<annotation>\n  <filename>{escape(name)}</filename>\n  <size>{size}</size>\n"
        for label, (x1, y1, x2, y2) in objects:
            kind, difficult = ("ignore", 1) if label == IGNORE else (escape(classes[label]), 0)
            corner = f"<xmin>{_decimal(x1, plus=1)}</xmin><ymin>{_decimal(y1, plus=1)}</ymin>"
            box = f"{corner}<xmax>{_decimal(x2)}</xmax><ymax>{_decimal(y2)}</ymax>"
            text += f"  <object>\n    <name>{kind}</name>\n    <difficult>{difficult}</difficult>\n"
            text += f"    <bndbox>{box}</bndbox>\n  </object>\n"
        yield f"Annotations/{os.path.splitext(name)[0]}.xml", f"{text}</annotation>\n"
    yield from _lists(splits, "ImageSets/Main")


def _lists(splits: Splits, folder: str) -> Texts:
    """List the images of each split by their names without suffix."""
    for key, split in splits.items():
        yield f"{folder}/{key}.txt", "".join(f"{os.path.splitext(name)[0]}\n" for name in split.names)


def _decimal(x: float, *, plus: int = 0) -> str:
    """Format x + plus in the fewest decimals that read back as the same float32."""
    tried = (f"{x + plus:.{digits}f}" for digits in range(12))
    return next((text for text in tried if np.float32(float(text) - plus) == np.float32(x)), str(x + plus))


WRITERS = {"coco": _coco_texts, "yolo": _yolo_texts, "kitti": _kitti_texts, "voc": _voc_texts}
FORMATS = (*WRITERS, "index")

"""YOLO's folders: a data.yaml, images, and beside them a text file of boxes for each."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.dataset import DetectionDataset, Frame, join_frames
from tinydet.data.images import IMAGE_SUFFIXES, read_size
from tinydet.data.splits import check_split, class_labels, draw_split, left_over_note, resolve_classes
from tinydet.errors import InputError, OnError, raise_error, try_call
from tinydet.files import PathLike, parse_float, parse_lines, read_text, short_path

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation")}
TOLERANCE = 1e-3  # of a side by which a box may leave its image: what is written with three or more decimals does


class YoloFolder(NamedTuple):
    """What a data.yaml says."""

    path: Path
    names: tuple[str, ...]  # of the classes
    images: dict[str, list[Path]]  # by split


def find_yolo(root: PathLike) -> YoloFolder:
    """Find and read the data.yaml of a folder, or the YAML file itself."""
    files = [file for file in (Path(root), *sorted(Path(root).glob("*"))) if file.suffix in (".yaml", ".yml")]
    if len(files) != 1:
        what = f"{len(files)} YAML files, {', '.join(file.name for file in files)}" if files else "no data.yaml"
        raise InputError(f"{root}: found {what}")
    file, where, content = files[0], short_path(files[0]), _read_yaml(files[0])
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError(f"{where}: names must be numbered from 0 without gaps, got {sorted(names, key=str)}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{where}: names must be a list of classes, got {names!r}")
    if content.get("nc") not in (None, len(names)):
        raise InputError(f"{where}: nc is {content['nc']!r}, and there are {len(names)} names")
    base = (file.parent / str(content.get("path") or "")).resolve()
    base = base if base.is_dir() else file.parent
    images = {}
    for split, keys in SPLIT_KEYS.items():
        if places := next((content[key] for key in keys if content.get(key)), None):
            listed = places if isinstance(places, list) else [places]
            images[split] = [image for place in listed for image in _list_images(base, str(place), where=where)]
    if not images:
        raise InputError(f"{where}: says neither train nor val")
    return YoloFolder(file, tuple(map(str, names)), images)


def _read_yaml(file: Path) -> dict[Any, Any]:
    """Read a YAML file of plain values that has names."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise InputError(f"{file}: needs PyYAML, which comes with albumentations: pip install pyyaml") from None
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{short_path(file)}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{short_path(file)}: not a YOLO data file; it has no names of classes")
    return content


def _list_images(base: Path, place: str, *, where: str) -> list[Path]:
    """List the images of a folder, or those that a text file lists, in order."""
    # Roboflow writes ../train/images, from a folder that the file does not lie in.
    path = next((one for one in (base / place, base / place.removeprefix("../")) if one.exists()), None)
    if path is None:
        raise InputError(f"{where}: {place!r} is not there; looked for {base / place}")
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGE_SUFFIXES)

    def find(line: str, *, where: str) -> Path:
        if not (image := path.parent / line.strip()).is_file():
            raise InputError(f"{where}: image {line.strip()!r} is not there")
        return image

    return [*parse_lines(path, find).values()]


class YoloDataset(DetectionDataset):
    """One split of a YOLO folder; the arguments and errors are those of `open_dataset`.

    An image without a text file holds no objects. Of an outline, more than four numbers, the box around it is taken.
    """

    kind = "YOLO"

    def __init__(
        self,
        root: PathLike | YoloFolder,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        folder = root if isinstance(root, YoloFolder) else find_yolo(root)
        images, note = _split_images(folder, split=split, seed=seed)
        sized = [(image, size) for image in images if (size := try_call(on_error, read_size, image))]
        texts = [_label_file(image) for image, _ in sized]
        objects = [read_yolo(text, classes=len(folder.names), on_error=on_error) for text in texts]
        counts = Counter(folder.names[label] for labels, *_ in objects for label in labels.tolist())
        chosen, notes = resolve_classes(classes, counts, split=split, named=folder.names)
        if bare := sum(not text.is_file() for text in texts):
            notes.append(f"{bare} of {len(sized)} {split} images have no label file: they count as without objects")
        known = {_label_file(image) for listed in folder.images.values() for image in listed}
        for place in sorted({text.parent for text in texts}):
            names = {text.name for text in place.glob("*.txt") if text not in known}
            notes += left_over_note("label files", names, place)
        label_of = class_labels(folder.names, chosen)
        frames = [
            Frame(image.stem, image, size, boxes * (size[::-1] * 2), label_of[labels])
            for (image, size), (labels, boxes, _) in zip(sized, objects, strict=True)
        ]
        columns = join_frames(frames, [numbers for *_, numbers in objects])
        super().__init__(columns, classes=chosen, split_note=note, notes=notes, on_error=on_error)

    def _origin(self, row: int, line: int) -> str:
        return f"{short_path(_label_file(Path(self._columns.paths[row])))}:{line}"


def _split_images(folder: YoloFolder, *, split: str, seed: int) -> tuple[list[Path], str]:
    """Choose the images of a split, and say how."""
    path, _, both = folder
    everything = [*dict.fromkeys(image for images in both.values() for image in images)]
    if split == "all":
        return everything, f"all {len(everything)} images that {path} names"
    if len(both) == 2:
        if shared := set(both["train"]) & set(both["val"]):
            raise InputError(f"{short_path(path)}: {min(shared)} is both in train and in val")
        return both[split], f"{len(both[split])} {split} images, as {path} says"
    rows, note = draw_split(len(everything), split=split, seed=seed, reason=f"{path} names only {'/'.join(both)}")
    return [everything[row] for row in rows], note


def _label_file(image: Path) -> Path:
    """Find where the boxes of an image are: in `labels` for the last `images` of its path, else beside it."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_yolo(path: Path, *, classes: int, on_error: OnError = raise_error) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Read one image's objects, none without a file: classes int64[N], xyxy shares of it float64[N 4], lines."""
    rows = parse_lines(path, _parse_line, classes, on_error=on_error) if path.is_file() else {}
    table = np.array([*rows.values()], dtype=np.float64).reshape(-1, 5)
    return table[:, 0].astype(np.int64), table[:, 1:], [*rows]


def _parse_line(line: str, classes: int, *, where: str) -> list[float]:
    """Parse the class and the xyxy box of one line, of centre, width and height, or of the corners of an outline."""
    words = line.split()
    if len(words) < 5 or len(words) % 2 == 0:
        raise InputError(f"{where}: expected a class and 4 numbers, or an outline's corners ({line.strip()!r})")
    if not words[0].isdecimal() or int(words[0]) >= classes:
        raise InputError(f"{where}: class {words[0]!r} is not one of 0 .. {classes - 1}")
    values = [parse_float(word, where=where) for word in words[1:]]
    box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    if len(values) == 4:
        x, y, width, height = values
        if width <= 0 or height <= 0:
            raise InputError(f"{where}: width and height must be positive, got {width:g} and {height:g}")
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    elif box[0] == box[2] or box[1] == box[3]:
        raise InputError(f"{where}: the outline has no width or height")
    if min(box) < -TOLERANCE or max(box) > 1 + TOLERANCE:
        sides = " ".join(f"{side:g}" for side in box)
        raise InputError(f"{where}: the box leaves its image ({sides}, as shares of it); are these pixels?")
    return [int(words[0]), *box]

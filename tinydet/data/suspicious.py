"""What may be wrong with a data set though every line of it can be read: a sentence for each cause."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import read_image
from tinydet.data.text import shown

TINY = 4.0  # pixels of the input, a side that nothing can be recognised in
LOOKED_AT = 50  # pairs of neighbours at most: a sample says as much, and every picture takes milliseconds
THUMBNAIL = (32, 24)
ALIKE = 12.0  # mean difference of thumbnails' grey, 0..255, below which two pictures are of one scene


def doubles(dataset: DetectionDataset) -> list[str]:
    """Objects that are there more than once, a line each."""
    found = []
    for boxes, labels, places in zip(dataset.boxes, dataset.labels, dataset.places, strict=True):
        first: dict[tuple[float, ...], str] = {}
        for label, box, place in zip(labels.tolist(), boxes.tolist(), places, strict=True):
            before = first.setdefault((label, *box), place)
            if label >= 0 and before != place:
                found.append(f"{place}: the same {dataset.classes[label]} again as in {before}")
    return found


def tiny(dataset: DetectionDataset, image_size: tuple[int, int]) -> list[str]:
    """Whether there are objects too small to be seen in an input of (height, width)."""
    boxes = dataset.boxes_in(image_size)
    sides = boxes[:, 2:] - boxes[:, :2]
    objects = np.concatenate(dataset.labels) >= 0
    small = int(((sides.min(axis=1, initial=np.inf) < TINY) & objects).sum())
    text = f"{small} of {objects.sum()} objects are less than {TINY:g} pixels wide or high in an input of "
    return [text + "x".join(map(str, image_size))] if small else []


def twins(train_set: DetectionDataset, val_set: DetectionDataset) -> list[str]:
    """Whether pictures are in both splits, or follow one another by number in different ones and look alike."""
    paths = {path.resolve() for path in train_set.paths}
    both = [path for path in val_set.paths if path.resolve() in paths]
    found = [f"{shown(path)} is in train and in val" for path in both]
    numbered = {key: path for path in train_set.paths if (key := _number(path)) is not None}
    near = {path: _neighbours(path, numbered) for path in val_set.paths if path not in both}
    followed = [path for path, others in near.items() if others]
    looked = followed[:: max(1, -(-len(followed) // LOOKED_AT))]
    close = [path for path in looked if any(_difference(path, other) < ALIKE for other in near[path])]
    if close:
        some = ", ".join(path.name for path in close[:3]) + (", ..." if len(close) > 3 else "")
        found.append(
            f"{len(close)} of {len(looked)} val pictures that come right before or after one of train look like it "
            f"({some}): the score will be too good; split by whole drives or films"
        )
    return found


def _neighbours(path: Path, numbered: dict[tuple[str, str, int], Path]) -> list[Path]:
    """The pictures whose numbers are next to a picture's."""
    if (key := _number(path)) is None:
        return []
    folder, name, number = key
    return [numbered[one] for one in ((folder, name, number - 1), (folder, name, number + 1)) if one in numbered]


def _number(path: Path) -> tuple[str, str, int] | None:
    """The folder of a picture, and its name up to its last number."""
    found = re.fullmatch(r"(.*?)(\d+)\D*", path.stem)
    return (str(path.parent), found[1], int(found[2])) if found else None


def _difference(a: Path, b: Path) -> float:
    """How different two pictures are at a glance, 0..255."""
    small = []
    for path in (a, b):
        grey = Image.fromarray(read_image(path)).convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
        small.append(np.asarray(grey, dtype=float))
    return float(np.abs(small[0] - small[1]).mean())

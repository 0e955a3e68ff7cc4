"""Data checks: what may be wrong with a data set though every line of it can be read."""

import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

from tinydet.data.dataset import DetectionDataset
from tinydet.data.images import read_image
from tinydet.errors import list_some
from tinydet.files import short_path

MIN_SIDE = 4.0  # pixels of the input: nothing can be recognised in less
AT_ONCE = 10_000  # images whose boxes are compared
MAX_PAIRS = 50  # neighbours that are compared: a sample says as much, and every image takes milliseconds
THUMBNAIL = (32, 24)
MAX_DIFFERENCE = 12.0  # mean over the thumbnails' grey, 0..255, below which two images are of one scene


def duplicate_boxes(dataset: DetectionDataset) -> list[str]:
    """Find objects that are annotated more than once, a line for each."""
    lines = []
    for start in range(0, len(dataset), AT_ONCE):
        part = dataset.take(range(start, min(start + AT_ONCE, len(dataset))))
        keys = map(tuple, np.column_stack([part.image_index, part.labels, part.boxes]).tolist())
        first: dict[tuple[float, ...], int] = {}
        pairs = [(m, first.setdefault(key, m), int(key[1])) for m, key in enumerate(keys)]
        again = [(part.origin(m), part.classes[k], part.origin(old)) for m, old, k in pairs if m != old and k >= 0]
        lines += [f"{here}: the same {name} again as in {there}" for here, name, there in again]
    return lines


def small_objects(dataset: DetectionDataset, image_size: tuple[int, int]) -> list[str]:
    """Say whether there are objects too small to be seen in an input of (height, width)."""
    boxes, objects = dataset.boxes_in(image_size), dataset.labels >= 0
    small = int(((boxes[:, 2:] - boxes[:, :2] < MIN_SIDE).any(axis=1) & objects).sum())
    size = "x".join(map(str, image_size))
    text = f"{small} of {objects.sum()} objects are less than {MIN_SIDE:g} pixels wide or high in an input of {size}"
    return [text] if small else []


def train_val_leakage(train_set: DetectionDataset, val_set: DetectionDataset) -> list[str]:
    """Say whether images are in both splits, or are near-duplicates of their neighbour by number in the other."""
    val_paths = [*map(Path, val_set.paths)]
    resolved = {path.resolve() for path in val_paths}
    wanted = {(folder, name, n + step) for folder, name, n in map(_number, val_paths) for step in (-1, 1)}
    twice, numbered = set[Path](), {}
    for path in map(Path, train_set.paths):  # maybe millions, of which only these are kept
        if (real := path.resolve()) in resolved:
            twice.add(real)
        if (key := _number(path)) in wanted:
            numbered[key] = path
    both, found = {path for path in val_paths if path.resolve() in twice}, []
    if both:
        some = list_some(sorted(map(short_path, both)))
        found.append(
            f"{len(both)} of {len(val_paths)} val images are in train too ({some}): the score will be too good"
        )
    neighbours = {}
    for path in val_paths:
        folder, name, number = _number(path)
        near = [numbered[key] for step in (-1, 1) if (key := (folder, name, number + step)) in numbered]
        if near and path not in both:
            neighbours[path] = near
    compared = list(neighbours)[:: max(1, -(-len(neighbours) // MAX_PAIRS))]
    alike = [path for path in compared if any(_difference(path, near) < MAX_DIFFERENCE for near in neighbours[path])]
    if alike:
        some = list_some([path.name for path in alike])
        found.append(
            f"{len(alike)} of {len(compared)} val images that come right before or after one of train look like it "
            f"({some}): the score will be too good; split by whole drives or films"
        )
    return found


def _number(path: Path) -> tuple[Path, str, float]:
    """Split an image's path into its folder, its name up to its last number, and that; NaN, next to none, without."""
    found = re.fullmatch(r"(.*?)(\d+)\D*", path.stem)
    return (path.parent, found[1], int(found[2])) if found else (path.parent, path.stem, math.nan)


def _difference(a: Path, b: Path) -> float:
    """Compute the mean difference of two images' thumbnails, 0..255."""
    images = [Image.fromarray(read_image(path)).convert("L") for path in (a, b)]
    small, other = (np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX), dtype=float) for image in images)
    return float(np.abs(small - other).mean())

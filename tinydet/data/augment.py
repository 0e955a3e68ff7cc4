"""Data augmentation: scale, crop, flip and colour jitter, or transforms of the user's; and copy-paste."""

import os
import random
from typing import Any

import numpy as np

from tinydet.data.images import Box, Example, letterbox, letterbox_scale, pad, resample
from tinydet.errors import InputError
from tinydet.labels import IGNORE

# An object of which a crop leaves less than this share of its area becomes an ignore region: nobody could name it.
MIN_VISIBLE = 0.3
MIN_SIDE = 2  # pixels of the input, of a box that is kept
MAX_PASTED = 3  # objects an image is given
MIN_PASTED_SIDE = 8  # pixels
MARGIN = 0.08  # of an object's longer side: the surroundings that come along, feathered
MAX_CROWDING = 0.1  # overlap with another object, as a share of the smaller, above which an object is not taken
MAX_HIDING = 0.05  # the same between a pasted object and those that are there
TRIES = 8  # to find a place


def augment(
    example: Example,
    size: tuple[int, int],
    *,
    pad_value: tuple[int, int, int],
    seed: int | tuple[int, ...],
    input_size: tuple[int, int] | None = None,
    scale_range: tuple[float, float] = (0.8, 1.8),
    transforms: Any = None,
) -> Example:
    """Scale, crop, flip and jitter the colours of an example, the same way whenever the seed is the same.

    At scale 1 the whole image just fits `input_size` (height, width), `size` when None: with a larger one than `size` a
    part of the image comes out, at the resolution that the whole of it will have in prediction. `transforms`, of
    `own_transforms`, take the place of flip and jitter; an image that they make larger than `size` is scaled to fit.

    Raises:
        InputError: the transforms fail, or give no uint8[H W 3].
    """
    rng = np.random.default_rng(seed)
    height, width = example.image.shape[:2]
    scale = letterbox_scale((height, width), input_size or size) * rng.uniform(*scale_range)
    objects = example.boxes[example.labels != IGNORE]
    crop = choose_crop(objects, (height, width), (size[0] / scale, size[1] / scale), rng=rng)
    # One filtered resampling of the pixels that are needed, by what scales the images in prediction too.
    image = resample(example.image, crop, scale=scale)
    boxes, labels = crop_boxes(example.boxes, example.labels, crop=crop, scale=scale, size=image.shape[:2])
    if transforms is None:
        transforms = flip_and_jitter(rng)
    else:  # one generator for all: their draws have nothing to do with each other
        transforms.set_random_state(rng, random.Random(int(rng.integers(2**32))))
    image, boxes, rows = transform(transforms, image, boxes, where=example.name)
    changed = example._replace(image=image, boxes=boxes, labels=labels[rows], scale=example.scale * scale)
    if image.shape[0] > size[0] or image.shape[1] > size[1]:
        return letterbox(changed, size, pad_value=pad_value)
    return changed._replace(image=pad(image, size, value=pad_value))


def transform(pipeline: Any, image: np.ndarray, boxes: np.ndarray, *, where: str) -> tuple[np.ndarray, ...]:
    """Apply albumentations' pipeline -> image, the boxes in it, clipped, and the rows of `boxes` that they were."""
    try:
        changed = pipeline(image=image, bboxes=boxes, index=np.arange(len(boxes)))
    except Exception as error:  # whatever transforms may raise
        raise InputError(f"{where}: the augmentation failed ({error_line(error)})") from error
    image, rows = changed["image"], np.array(changed["index"], dtype=np.int64)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        got = f"{getattr(image, 'dtype', type(image).__name__)}{[*getattr(image, 'shape', ())]}"
        raise InputError(f"{where}: the augmentation must give uint8[H W 3], not {got}; leave out Normalize, ToTensor")
    return image, np.array(changed["bboxes"], dtype=np.float32).reshape(-1, 4), rows


def error_line(error: Exception) -> str:
    """Name an error of another library in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def choose_crop(
    objects: np.ndarray, image_size: tuple[int, int], crop_size: tuple[float, float], *, rng: np.random.Generator
) -> Box:
    """Place a crop, xyxy, so that it holds one of objects float32[N 4], drawn at random, as much of it as it can."""
    whole = np.array(image_size[::-1], dtype=np.float64)
    sides = np.minimum(whole, crop_size[::-1])
    first, last = np.zeros(2), whole - sides
    if len(objects):
        box = objects[rng.integers(len(objects))].astype(np.float64)
        ends = np.clip([box[2:] - sides, box[:2]], 0, last)
        first, last = ends.min(axis=0), ends.max(axis=0)
    corner = rng.uniform(first, last)
    x1, y1, x2, y2 = map(float, (*corner, *np.minimum(corner + sides, whole)))
    return x1, y1, x2, y2


def crop_boxes(
    boxes: np.ndarray, labels: np.ndarray, *, crop: Box, scale: float, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes float32[N 4] and labels int64[N] into a scaled crop of (height, width), and clip or drop them."""
    moved = (boxes - np.array(crop[:2] * 2)) * scale
    clipped = moved.clip(0, (size[1], size[0], size[1], size[0]))
    sides, whole = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
    visible = sides.prod(axis=1) >= MIN_VISIBLE * whole.prod(axis=1)
    kept = (sides >= MIN_SIDE).all(axis=1)
    return clipped[kept].astype(np.float32), np.where(visible, labels, IGNORE)[kept]


def import_albumentations() -> Any:
    """Import albumentations, which takes seconds, without its question to PyPI for a newer version."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def flip_and_jitter(rng: np.random.Generator) -> Any:
    """Build the part of the augmentation that keeps an image's size, seeded by the generator's next draws."""
    A = import_albumentations()
    colours = {"brightness": (0.8, 1.2), "contrast": (0.8, 1.2), "saturation": (0.7, 1.3), "hue": (-0.02, 0.02)}
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), A.ColorJitter(**colours, p=0.8)], bbox_params=box_params())
    for transform in pipeline.transforms:
        # Seeding the pipeline would give all of them one seed: flipped images would have colours of their own.
        transform.set_random_seed(int(rng.integers(2**32)))
    return pipeline


def box_params() -> Any:
    """Say how albumentations is given boxes: those that leave the image are clipped, or left out, by their index."""
    return import_albumentations().BboxParams(
        "pascal_voc", label_fields=["index"], clip=True, filter_invalid_bboxes=True, min_width=1, min_height=1
    )


def copy_paste(example: Example, other: Example, *, rng: np.random.Generator) -> Example:
    """Paste up to three objects of another image, some mirrored, where they hide none that are there.

    They keep their size and their height in the image, where objects of that size are found.

    Reference: after Dwibedi et al., Cut, Paste and Learn, and Ghiasi et al., Simple Copy-Paste; by boxes with feathered
    edges, for want of masks.
    """
    image, boxes, labels = example.image.copy(), example.boxes, example.labels
    for row in rng.permutation(separate_objects(other.boxes, other.labels))[:MAX_PASTED]:
        crop = crop_around(other.boxes[row], other.image.shape[:2])
        patch, box = other.image[crop[1] : crop[3], crop[0] : crop[2]], other.boxes[row] - [*crop[:2]] * 2
        height, width = patch.shape[:2]
        if rng.random() < 0.5:
            patch, box = patch[:, ::-1], np.array([width - box[2], box[1], width - box[0], box[3]])
        free = np.array(image.shape[:2]) - (height, width)
        if free.min() < 0:
            continue
        y = min(int(crop[1] * image.shape[0] / other.image.shape[0]), int(free[0]))
        for x in rng.integers(free[1] + 1, size=TRIES).tolist():
            moved = (box + np.array([x, y] * 2)).astype(np.float32)
            if max_overlap(moved, boxes) <= MAX_HIDING:
                here = image[y : y + height, x : x + width]
                here[:] = here + (patch - here.astype(np.float32)) * feather(height, width)
                boxes, labels = np.concatenate([boxes, moved[None]]), np.append(labels, other.labels[row])
                break
    return example._replace(image=image, boxes=boxes, labels=labels)


def separate_objects(boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """Find the rows of the objects, ignore regions aside, that are large enough and overlap with no other."""
    large = (boxes[:, 2:] - boxes[:, :2] >= MIN_PASTED_SIDE).all(axis=1)
    rows = np.flatnonzero(large & (labels >= 0)).tolist()
    return [row for row in rows if max_overlap(boxes[row], np.delete(boxes, row, axis=0)) <= MAX_CROWDING]


def max_overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Compute the largest intersection of a box with one of float[N 4], as a share of the smaller; 0 without any."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = np.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return float((sides.clip(0).prod(axis=1) / areas).max(initial=0))


def crop_around(box: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Get the whole pixels, xyxy, of a box and its margin, within an image of (height, width)."""
    margin = MARGIN * float((box[2:] - box[:2]).max())
    x1, y1 = np.floor(box[:2] - margin).clip(0).astype(int).tolist()
    x2, y2 = np.ceil(box[2:] + margin).astype(int).tolist()
    return x1, y1, min(x2, size[1]), min(y2, size[0])


def feather(height: int, width: int) -> np.ndarray:
    """Make the weights of a patch, float32[H W 1]: 1 but for a margin in which they go down to almost 0."""
    edge = MARGIN * max(height, width) / (1 + 2 * MARGIN) + 1
    down, across = (np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).clip(max=edge) / edge for n in (height, width))
    return (down[:, None] * across)[..., None].astype(np.float32)

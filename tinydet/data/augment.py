"""Training pictures made different each time: scale, crop, flip and colour."""

import os

import numpy as np

from tinydet.data.example import Example, fit_scale, pad, resample
from tinydet.labels import IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks PyPI for its newest version on import
import albumentations as A

MIN_VISIBLE = 0.3  # of an object's area: with less in the picture nobody could name it
MIN_SIDE = 2  # pixels of the input


def augment(
    example: Example,
    size: tuple[int, int],
    *,
    fill: tuple[int, int, int],
    seed: int | tuple[int, ...],
    fit: tuple[int, int] | None = None,
    scale_range: tuple[float, float] = (0.7, 1.5),
) -> Example:
    """Scale, crop, flip and recolour an example, the same way whenever the seed is the same.

    An object that the crop leaves less than 30% of becomes an ignore region; what is left of a box is dropped only when
    it is less than two pixels wide or high.

    Args:
        example: any picture size; boxes within the picture.
        size: (height, width) of what comes out.
        fill: RGB colour of what the scaled picture leaves free on the right and below, 0..255.
        seed: decides everything; (seed, epoch, index) makes a sample independent of who draws it.
        fit: (height, width) that a whole picture just fits at scale 1; `size` when None. With a larger one what comes
            out is a part of the picture, at the resolution that the whole of it will have in prediction.
        scale_range: bounds of the scale.

    Returns:
        An example whose image is uint8[H W 3] and whose `scale` is the one drawn.
    """
    rng = np.random.default_rng(seed)
    height, width = example.image.shape[:2]
    scale = fit_scale((height, width), fit or size) * rng.uniform(*scale_range)
    objects = example.boxes[example.labels != IGNORE]
    window = choose_window(objects, (height, width), (size[0] / scale, size[1] / scale), rng=rng)
    # One filtered resampling of the pixels that are needed, by what scales the pictures in prediction too.
    image = resample(example.image, window, scale=scale)
    boxes, labels = crop_boxes(example.boxes, example.labels, window=window, scale=scale, size=image.shape[:2])
    changed = flip_and_colour(rng)(image=image, bboxes=boxes, index=np.arange(len(boxes)))
    rows = np.array(changed["index"], dtype=np.int64)
    return example._replace(
        image=pad(changed["image"], size, fill=fill),
        boxes=np.array(changed["bboxes"], dtype=np.float32).reshape(-1, 4),
        labels=labels[rows],
        scale=example.scale * scale,
    )


def choose_window(
    objects: np.ndarray, picture: tuple[int, int], window: tuple[float, float], *, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Place a window so that it holds one object, drawn at random, whole or as much of it as it can.

    Args:
        objects: float32[N 4], xyxy, pixels; without objects the window goes anywhere.
        picture: (height, width) in pixels.
        window: (height, width) in pixels; what exceeds the picture is cut off.
        rng: draws the object and the place.

    Returns:
        xyxy, pixels, within the picture.
    """
    whole = np.array(picture[::-1], dtype=np.float64)
    sides = np.minimum(whole, window[::-1])
    first, last = np.zeros(2), whole - sides
    if len(objects):
        box = objects[rng.integers(len(objects))].astype(np.float64)
        ends = np.clip([box[2:] - sides, box[:2]], 0, last)
        first, last = ends.min(axis=0), ends.max(axis=0)
    corner = rng.uniform(first, last)
    x1, y1, x2, y2 = (*corner, *np.minimum(corner + sides, whole))
    return float(x1), float(y1), float(x2), float(y2)


def crop_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    window: tuple[float, float, float, float],
    scale: float,
    size: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Follow boxes into a window of their picture.

    Args:
        boxes: float32[N 4], xyxy, pixels of the picture.
        labels: int64[N]
        window: xyxy, pixels of the picture.
        scale: new pixels per pixel of the picture.
        size: (height, width) of the scaled window.

    Returns:
        float32[M 4] boxes in pixels of the scaled window, clipped to it, and their int64[M] labels, IGNORE where too
        little of an object is left. M < N where nothing is left.
    """
    moved = (boxes - np.array(window[:2] * 2)) * scale
    clipped = moved.clip(0, (size[1], size[0], size[1], size[0]))
    sides, whole = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
    visible = sides.prod(axis=1) >= MIN_VISIBLE * whole.prod(axis=1)
    kept = (sides >= MIN_SIDE).all(axis=1)
    return clipped[kept].astype(np.float32), np.where(visible, labels, IGNORE)[kept]


def flip_and_colour(rng: np.random.Generator) -> A.Compose:
    """Build the part of the augmentation that keeps a picture's size, seeded by the generator's next draws."""
    pipeline = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.02, 0.02), p=0.8),
        ],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["index"], clip=True, filter_invalid_bboxes=True),
    )
    for transform in pipeline.transforms:
        # Seeding the pipeline gives all of its transforms one and the same seed: flipped pictures would have colours
        # of their own.
        transform.set_random_seed(int(rng.integers(2**32)))
    return pipeline

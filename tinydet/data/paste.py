"""Objects of one picture put into another: few pictures become many, and no object keeps its surroundings."""

import numpy as np

from tinydet.data.example import Example

MOST = 3  # objects that a picture is given
MIN_SIDE = 8  # pixels, of an object that is worth it
MARGIN = 0.08  # of an object's longer side: what comes along around it, and fades into what is there
CROWDED = 0.1  # of it or of another: an object that shares more with one is not taken
HIDING = 0.05  # of the new object or of one that is there: they may share no more
TRIES = 8  # to find a place


def paste(example: Example, other: Example, *, rng: np.random.Generator) -> Example:
    """Put up to three objects of another picture into a copy of this one, each mirrored or not.

    They keep their size and their height in the picture, where objects of that size are found, and move sideways to
    where they hide nothing. One that overlaps with others, or finds no place, is left out.

    Args:
        example: any picture; its objects and ignore regions are not covered.
        other: of the same classes.
        rng: draws the objects and their places.

    Returns:
        The example with another image, and the new objects after its own.

    Reference: after Dwibedi et al., Cut, Paste and Learn, and Ghiasi et al., Simple Copy-Paste; by boxes, with edges
    that fade, for want of masks.
    """
    image, boxes, labels = example.image.copy(), example.boxes, example.labels
    for row in rng.permutation(free_standing(other.boxes, other.labels))[:MOST]:
        window = window_around(other.boxes[row], other.image.shape[:2])
        patch, box = other.image[window[1] : window[3], window[0] : window[2]], other.boxes[row] - [*window[:2]] * 2
        height, width = patch.shape[:2]
        if rng.random() < 0.5:
            patch, box = patch[:, ::-1], np.array([width - box[2], box[1], width - box[0], box[3]])
        free = np.array(image.shape[:2]) - (height, width)
        if free.min() < 0:
            continue
        y = min(int(window[1] * image.shape[0] / other.image.shape[0]), int(free[0]))
        for x in rng.integers(free[1] + 1, size=TRIES).tolist():
            moved = (box + np.array([x, y] * 2)).astype(np.float32)
            if overlap(moved, boxes) <= HIDING:
                here = image[y : y + height, x : x + width]
                here[:] = here + (patch - here.astype(np.float32)) * fading(height, width)
                boxes, labels = np.concatenate([boxes, moved[None]]), np.append(labels, other.labels[row])
                break
    return example._replace(image=image, boxes=boxes, labels=labels)


def free_standing(boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """The rows of the objects, ignore regions aside, that are large enough and by themselves.

    Args:
        boxes: float32[N 4], xyxy, pixels.
        labels: int64[N]
    """
    large = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    rows = np.flatnonzero(large & (labels >= 0)).tolist()
    return [row for row in rows if overlap(boxes[row], np.delete(boxes, row, axis=0)) <= CROWDED]


def overlap(box: np.ndarray, others: np.ndarray) -> float:
    """What a box, xyxy, has in common with one of float[N 4], as a share of the smaller: the largest, 0 without any."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = np.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return float((sides.clip(0).prod(axis=1) / areas).max(initial=0))


def window_around(box: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The whole pixels, xyxy, of a box and its margin, within a picture of (height, width)."""
    margin = MARGIN * float((box[2:] - box[:2]).max())
    x1, y1 = np.floor(box[:2] - margin).clip(0).astype(int).tolist()
    x2, y2 = np.ceil(box[2:] + margin).astype(int).tolist()
    return x1, y1, min(x2, size[1]), min(y2, size[0])


def fading(height: int, width: int) -> np.ndarray:
    """float32[H W 1]: 1 but for a margin all around, in which it goes down to almost 0."""
    edge = MARGIN * max(height, width) / (1 + 2 * MARGIN) + 1
    down, across = (np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).clip(max=edge) / edge for n in (height, width))
    return (down[:, None] * across)[..., None].astype(np.float32)

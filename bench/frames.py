"""Objects and detections like those of KITTI's validation split, from a fixed seed: numpy only."""

from typing import NamedTuple

import numpy as np

KINDS = np.array(["Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "DontCare", "Truck"])
SHARES = [0.5, 0.15, 0.1, 0.05, 0.03, 0.12, 0.05]


class Frame(NamedTuple):
    """N objects and D detections of one picture; boxes are xyxy pixels."""

    types: list[str]
    truncated: np.ndarray  # float64[N]
    occluded: np.ndarray  # int64[N]
    boxes: np.ndarray  # float64[N 4]
    found_types: list[str]
    found_boxes: np.ndarray  # float64[D 4]
    scores: np.ndarray  # float64[D]


def drawn_frames(count: int, *, objects: int = 7, detections: int = 50) -> list[Frame]:
    """Frames of about `objects` each; half of the `detections` lie near an object, the others anywhere."""
    rng = np.random.default_rng(0)
    return [one_frame(rng, int(number), detections) for number in rng.poisson(objects, count)]


def one_frame(rng: np.random.Generator, objects: int, detections: int) -> Frame:
    """One of them."""
    kinds, boxes = rng.choice(KINDS, objects, p=SHARES), boxes_anywhere(rng, objects)
    near = rng.integers(0, objects, detections // 2 if objects else 0)
    sides = (boxes[near, 2:] - boxes[near, :2])[:, [0, 1, 0, 1]]
    far = detections - len(near)
    return Frame(
        types=kinds.tolist(),
        truncated=rng.uniform(0, 0.6, objects) * (rng.random(objects) < 0.4),
        occluded=rng.integers(0, 4, objects),
        boxes=boxes,
        found_types=[*kinds[near].tolist(), *rng.choice(KINDS[:3], far).tolist()],
        found_boxes=np.concatenate([boxes[near] + rng.normal(0, 0.04, sides.shape) * sides, boxes_anywhere(rng, far)]),
        scores=np.concatenate([rng.normal(1, 1, len(near)), rng.normal(-1, 1, far)]),
    )


def boxes_anywhere(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 15 to 120 pixels' height in a picture of 1240 x 375."""
    height = rng.uniform(15, 120, count)
    width = height * rng.uniform(0.4, 1.8, count)
    x, y = rng.uniform(0, 1240 - width), rng.uniform(100, 375 - height)
    return np.stack([x, y, x + width, y + height], 1)

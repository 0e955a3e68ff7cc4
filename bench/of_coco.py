"""COCO's evaluation by faster-coco-eval, in the Python where it is installed: no tinydet here."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from bench.frames import KINDS, Frame, drawn_frames

NUMBERS = {str(name): number for number, name in enumerate(KINDS, start=1)}


def evaluation(*, frames: int) -> Callable[[], object]:
    """COCO's AP of the frames that KITTI's AP is computed of: ten thresholds, four sizes, all classes."""
    made = drawn_frames(frames)
    objects = [one for number, frame in enumerate(made) for one in boxes_of(number, frame.types, frame.boxes)]
    truth = COCO(
        {
            "images": [{"id": number, "width": 1240, "height": 375} for number in range(frames)],
            "categories": [{"id": number, "name": name} for name, number in NUMBERS.items()],
            "annotations": [{**one, "id": number, "iscrowd": 0} for number, one in enumerate(objects, start=1)],
        }
    )
    found = truth.loadRes([one for number, frame in enumerate(made) for one in detections_of(number, frame)])

    def call() -> None:
        with redirect_stdout(StringIO()):
            evaluator = COCOeval_faster(truth, found, iouType="bbox")
            evaluator.evaluate()
            evaluator.accumulate()

    return call


def boxes_of(image: int, types: list[str], boxes: np.ndarray) -> list[dict[str, Any]]:
    """Boxes of one picture as COCO has them."""
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return [
        {"image_id": image, "category_id": NUMBERS[kind], "bbox": box, "area": box[2] * box[3]}
        for kind, box in zip(types, sides.tolist(), strict=True)
    ]


def detections_of(image: int, frame: Frame) -> list[dict[str, Any]]:
    """Detections of one picture as COCO has them."""
    found = boxes_of(image, frame.found_types, frame.found_boxes)
    return [{**box, "score": score} for box, score in zip(found, frame.scores.tolist(), strict=True)]

"""COCO's evaluation by faster-coco-eval, in the Python where it is installed: no tinydet here."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

from faster_coco_eval import COCO, COCOeval_faster

from tests.bench.inputs import KINDS, columns
from tests.bench.inputs import frames as drawn_frames


def evaluation(*, frames: int) -> Callable[[], object]:
    """COCO's AP of the frames that KITTI's AP is computed of: ten thresholds, four sizes, all classes."""
    objects, detections = (
        [
            {"image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "score": score}
            for image, label, box, score in zip(*(column.tolist() for column in columns(list(each))), strict=True)
        ]
        for each in zip(*drawn_frames(frames), strict=True)
    )
    truth = COCO(
        {
            "images": [{"id": number, "width": 1240, "height": 375} for number in range(frames)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(KINDS.tolist(), start=1)],
            "annotations": [{**one, "id": number, "iscrowd": 0} for number, one in enumerate(objects, start=1)],
        }
    )
    found = truth.loadRes(detections)

    def call() -> None:
        with redirect_stdout(StringIO()):
            evaluator = COCOeval_faster(truth, found, iouType="bbox")
            evaluator.evaluate()
            evaluator.accumulate()

    return call

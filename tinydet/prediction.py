"""What was found in one picture, in every form that it is wanted in."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tinydet.draw import paint
from tinydet.model.detect import Detections

# The fields of a KITTI result that only a detector of 3D boxes knows, as the benchmark wants them left out.
UNKNOWN_POSE, UNKNOWN_3D = "-1 -1 -10", "-1 -1 -1 -1000 -1000 -1000 -10"


@dataclass(frozen=True)
class Prediction:
    """One picture and the objects found in it, best first.

    In text, numbers are the shortest decimals that read back as the same float32.
    """

    path: Path
    """Of the picture's file; a name where it came without one."""
    image: np.ndarray
    """uint8[H W 3], RGB, upright."""
    detections: Detections
    """In pixels of `image`, float32, on the CPU."""
    classes: tuple[str, ...]
    """The detector's, by label."""

    @property
    def boxes(self) -> Tensor:
        """float32[D 4], xyxy, pixels of `image`."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """float32[D], 0..1, falling."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """int64[D], indices of `classes`."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """D class names."""
        return [self.classes[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        """How many objects were found."""
        return len(self.scores)

    def draw(self) -> Image.Image:
        """The picture with the objects drawn on it."""
        return paint(self.image, self.boxes, self.labels, self.scores, classes=self.classes)

    def to_json(self) -> str:
        """One line of JSON, without the line's end; boxes are xyxy."""
        height, width = self.image.shape[:2]
        detections = [
            {"class": self.classes[label], "label": label, "score": score, "box": box}
            for label, score, box in self._rows()
        ]
        return json.dumps({"image": str(self.path), "width": width, "height": height, "detections": detections})

    def to_coco(self, image_id: int, *, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO results.

        Args:
            image_id: of the picture.
            category_ids: by class name; the label + 1 when None.
        """
        return [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[self.classes[label]],
                "bbox": [x1, y1, float(np.float32(x2 - x1)), float(np.float32(y2 - y1))],
                "score": score,
            }
            for label, score, (x1, y1, x2, y2) in self._rows()
        ]

    def to_kitti(self) -> str:
        """The text of a KITTI result file. Blanks in a class name become underscores, as in Person_sitting.

        Rounded to KITTI's two decimals a box could fall to the other side of a threshold.
        """
        lines = [
            " ".join(map(str, ["_".join(self.classes[label].split()), UNKNOWN_POSE, *box, UNKNOWN_3D, score]))
            for label, score, box in self._rows()
        ]
        return "".join(f"{line}\n" for line in lines)

    def to_yolo(self) -> str:
        """The text of a YOLO result file: label, centre, width and height as shares of the picture's, and score."""
        height, width = self.image.shape[:2]
        lines = [
            f"{label} {(x1 + x2) / 2 / width:.9g} {(y1 + y2) / 2 / height:.9g} "
            f"{(x2 - x1) / width:.9g} {(y2 - y1) / height:.9g} {score}"
            for label, score, (x1, y1, x2, y2) in self._rows()
        ]
        return "".join(f"{line}\n" for line in lines)

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        """Label, score and box of each detection."""
        boxes, scores, labels = (field.numpy() for field in self.detections)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            yield int(label), float(str(score)), [float(str(side)) for side in box]

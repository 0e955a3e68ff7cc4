"""A prediction: an image and its detections, in the formats that other tools read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tinydet.data.yolo_rows import box_shares
from tinydet.draw import draw
from tinydet.errors import InputError
from tinydet.model.postprocess import Detections

# The fields of a KITTI result that only a detector of 3D boxes knows, as the benchmark wants them left out.
UNKNOWN_POSE, UNKNOWN_3D = "-1 -1 -10", "-1 -1 -1 -1000 -1000 -1000 -10"


@dataclass(frozen=True)
class Prediction:
    """An image and the objects detected in it, best first; as text, their numbers read back as the same float32."""

    path: Path  # of the image file; a name where the image came without one
    image: np.ndarray  # uint8[H W 3], RGB, upright
    classes: tuple[str, ...]  # names by label
    boxes: Tensor  # float32[D 4], xyxy, pixels of `image`, on the CPU
    scores: Tensor  # float32[D], 0..1, falling
    labels: Tensor  # int64[D], indices of `classes`

    @property
    def detections(self) -> Detections:
        """Return boxes, scores and labels."""
        return Detections(self.boxes, self.scores, self.labels)

    @property
    def names(self) -> list[str]:
        """Return D class names."""
        return [self.classes[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def draw(self) -> Image.Image:
        """Draw the detections on the image."""
        return draw(self.image, self.boxes, self.labels, self.scores, classes=self.classes)

    def to_dict(self) -> dict[str, Tensor]:
        """Convert to torchvision's dictionary of boxes, labels and scores; labels count from 0."""
        return {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`, with class names; raise InputError where that is not installed."""
        try:
            import supervision
        except ImportError:
            raise InputError("to_supervision needs supervision: pip install supervision") from None
        boxes, scores, labels = (field.numpy() for field in self.detections)
        data = {"class_name": np.array(self.names, dtype=str)}
        return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels, data=data)

    def to_json(self, **fields: Any) -> str:
        """Format as one line of JSON, with further fields before the detections; boxes are xyxy."""
        (height, width), keys = self.image.shape[:2], ("class", "label", "score", "box")
        detections = [dict(zip(keys, (self.classes[row[0]], *row), strict=True)) for row in self._rows()]
        image = {"image": str(self.path), "width": width, "height": height}
        return json.dumps({**image, **fields, "detections": detections})

    def to_coco(
        self, image_id: int | str, *, category_ids: Mapping[str, int | str] | None = None
    ) -> list[dict[str, Any]]:
        """Format as COCO results, those of classes with a category id; it is the label + 1 where none are given."""
        if category_ids is None:
            category_ids = {name: label for label, name in enumerate(self.classes, start=1)}
        results = []
        for label, score, (x1, y1, x2, y2) in self._rows():
            category_id = category_ids.get(self.classes[label])
            bbox = [x1, y1, float(np.float32(x2 - x1)), float(np.float32(y2 - y1))]
            if category_id is not None:
                results.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
        return results

    def to_kitti(self) -> str:
        """Format as a KITTI result file, unrounded; blanks in class names become underscores, as in Person_sitting."""
        names = ["_".join(name.split()) for name in self.classes]
        rows = ((names[label], " ".join(map(str, box)), score) for label, score, box in self._rows())
        return "".join(f"{name} {UNKNOWN_POSE} {box} {UNKNOWN_3D} {score}\n" for name, box, score in rows)

    def to_yolo(self) -> str:
        """Format as a YOLO result file: label, centre, width and height as shares of the image's, and score."""
        rows = ((label, box_shares(box, self.image.shape[:2]), score) for label, score, box in self._rows())
        return "".join(f"{label} {' '.join(f'{side:.9g}' for side in sides)} {score}\n" for label, sides, score in rows)

    def to_labelstudio(self) -> dict[str, Any]:
        """Format as a task of Label Studio with predictions, for the tags Image "image" and RectangleLabels "label"."""
        (height, width), results = self.image.shape[:2], []
        for label, score, (x1, y1, x2, y2) in self._rows():
            corner = {"x": 100 * x1 / width, "y": 100 * y1 / height}
            sides = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
            value = {**corner, **sides, "rotation": 0, "rectanglelabels": [self.classes[label]]}
            tags = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
            size = {"original_width": width, "original_height": height, "image_rotation": 0}
            results.append({**tags, **size, "value": value, "score": score})
        return {"data": {"image": str(self.path)}, "predictions": [{"result": results}]}

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        """Iterate over label, score and box of each detection."""
        boxes, scores, labels = (field.numpy() for field in self.detections)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            yield int(label), float(str(score)), [float(str(side)) for side in box]

"""Detector: images in any form to predictions in any form."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinydet.data.images import image_to_rgb, letterbox, read_image, to_example
from tinydet.data.loader import Batch, collate
from tinydet.draw import draw
from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.model.fold import inference_fn
from tinydet.model.functional import Variables
from tinydet.model.postprocess import METHODS, Detections, detect, model_anchors, normalize
from tinydet.ops.nms import weighted_boxes_fusion
from tinydet.weights.formats import Weights
from tinydet.weights.load import load_detector

# Views of test-time augmentation: the scale of the network's input, and whether the image is mirrored; first the plain.
VIEWS = ((1.0, False), (1.0, True), (1.25, False), (1.25, True))
# The fields of a KITTI result that only a detector of 3D boxes knows, as the benchmark wants them left out.
UNKNOWN_POSE, UNKNOWN_3D = "-1 -1 -10", "-1 -1 -1 -1000 -1000 -1000 -10"

ImageLike = PathLike | Image.Image | np.ndarray | Tensor


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

    def to_json(self) -> str:
        """Format as one line of JSON; boxes are xyxy."""
        (height, width), keys = self.image.shape[:2], ("class", "label", "score", "box")
        detections = [dict(zip(keys, (self.classes[row[0]], *row), strict=True)) for row in self._rows()]
        return json.dumps({"image": str(self.path), "width": width, "height": height, "detections": detections})

    def to_coco(self, image_id: int, *, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Format as COCO results; the id of a category, by class name, is its label + 1 where none are given."""
        results = []
        for label, score, (x1, y1, x2, y2) in self._rows():
            category_id = label + 1 if category_ids is None else category_ids[self.classes[label]]
            bbox = [x1, y1, float(np.float32(x2 - x1)), float(np.float32(y2 - y1))]
            results.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
        return results

    def to_kitti(self) -> str:
        """Format as a KITTI result file, unrounded; blanks in class names become underscores, as in Person_sitting."""
        names = ["_".join(name.split()) for name in self.classes]
        rows = ((names[label], " ".join(map(str, box)), score) for label, score, box in self._rows())
        return "".join(f"{name} {UNKNOWN_POSE} {box} {UNKNOWN_3D} {score}\n" for name, box, score in rows)

    def to_yolo(self) -> str:
        """Format as a YOLO result file: label, centre, width and height as shares of the image's, and score."""
        (height, width), text = self.image.shape[:2], ""
        for label, score, (x1, y1, x2, y2) in self._rows():
            sides = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            text += f"{label} {' '.join(f'{side:.9g}' for side in sides)} {score}\n"
        return text

    def _rows(self) -> Iterator[tuple[int, float, list[float]]]:
        """Iterate over label, score and box of each detection."""
        boxes, scores, labels = (field.numpy() for field in self.detections)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            yield int(label), float(str(score)), [float(str(side)) for side in box]


def load(
    source: PathLike, *, model: str | None = None, device: torch.device | str = "cpu", compile: bool = False
) -> "Detector":
    """Load a detector from a file of weights, or the published ones of `model` ("coco"); compiling takes a minute.

    Raises:
        InputError: there is no such file, or it holds no whole detector.
    """
    return Detector(load_detector(source, model=model, device=device), compile=compile)


class Detector:
    """Weights prepared for inference, on the device that they are on; `classes` are their names by label."""

    def __init__(self, weights: Weights, *, compile: bool = False) -> None:
        self.config, self.source, self.classes = weights.config, weights.source, weights.config.classes
        self.compiled = compile  # anew for every batch size
        self._device = next(iter(weights.params.values())).device
        self._infer = inference_fn(Variables(weights.params, weights.buffers), config=self.config, compile=compile)

    @overload
    def __call__(self, images: PathLike | Image.Image, **settings: Any) -> Prediction: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], **settings: Any) -> list[Prediction]: ...
    @overload
    def __call__(self, images: np.ndarray | Tensor, **settings: Any) -> Any: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, tta: bool = False, **settings: Any
    ) -> Prediction | list[Prediction]:
        """Detect the objects in an image, or in each of several.

        Args:
            images: a path, a PIL image, an array uint8[H W 3] or a tensor uint8[3 H W], RGB; or a list or a batch.
            tta: test-time augmentation: detect in mirrored and larger views too, and fuse the boxes of all.
            settings: score_threshold, max_detections, method ("soft" or "hard" NMS) and classes of `detect`.

        Raises:
            InputError: a file cannot be read, an array has another shape or type, or a setting makes no sense.
        """
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        given: list[Any] = list(images) if several else [images]  # type: ignore[arg-type]
        names = [image if isinstance(image, (str, os.PathLike)) else f"image-{i}" for i, image in enumerate(given, 1)]
        arrays = [*map(as_image, given)]
        found = self.detect(self.prepare(arrays, tta=tta), **settings)
        rows = zip(map(Path, names), arrays, found, strict=True)
        predictions = [Prediction(path, array, self.classes, *one) for path, array, one in rows]
        return predictions if several else predictions[0]

    def prepare(self, images: Sequence[np.ndarray], *, tta: bool = False) -> list[Batch]:
        """Letterbox images, uint8[H W 3] of any sizes, to the network's input, a batch a view."""
        (height, width), pad_value, batches = self.config.image_size, self.config.pad_value, []
        for scale, mirrored in (VIEWS if tta else VIEWS[:1]) if images else ():
            size = round(scale * height), round(scale * width)
            examples = [to_example((image[:, ::-1] if mirrored else image, [], []), "") for image in images]
            batches.append(collate([letterbox(example, size, pad_value=pad_value) for example in examples]))
        return batches

    @torch.inference_mode()
    def detect(
        self,
        views: Sequence[Batch],
        *,
        score_threshold: float = 0.3,
        max_detections: int = 100,
        method: str = "soft",
        classes: str | Sequence[str] | None = None,
    ) -> list[Detections]:
        """Detect the objects of these classes in the views of `prepare`, in each image's own pixels, on the CPU."""
        if max_detections < 1:
            raise InputError(f"max_detections must be positive, got {max_detections}")
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        labels, found = self._labels(classes), []
        limits: dict[str, Any] = {"score_threshold": score_threshold, "max_detections": max_detections}
        for view, (_, mirrored) in zip(views, VIEWS, strict=False):
            batch = view.to(self._device)
            outputs = self._infer(normalize(batch.images, mean=self.config.mean, std=self.config.std))
            if labels is not None:
                outputs = outputs._replace(logits=outputs.logits[..., labels])
            anchors = model_anchors(self.config, (batch.images.shape[2], batch.images.shape[3]), device=self._device)
            every = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales, method=method, **limits)
            every = [one.cpu() for one in every]
            found.append([*map(_mirror, every, view.sizes[:, 1].tolist())] if mirrored else every)
        fused = [_fuse(each, **limits) for each in zip(*found, strict=True)]
        return fused if labels is None else [one._replace(labels=labels[one.labels]) for one in fused]

    def _labels(self, classes: str | Sequence[str] | None) -> Tensor | None:
        """Look up the labels of class names, rising; None for all."""
        if classes is None:
            return None
        labels = {name.lower(): label for label, name in enumerate(self.classes)}
        names = [classes] if isinstance(classes, str) else classes
        if unknown := [name for name in names if name.lower() not in labels]:
            raise InputError(f"{self.source} finds no {', '.join(unknown)}; it finds {', '.join(self.classes)}")
        return torch.tensor(sorted({labels[name.lower()] for name in names}))


def as_image(image: ImageLike) -> np.ndarray:
    """Convert an image in any form that `Detector` takes to uint8[H W 3], RGB, upright."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return image_to_rgb(image)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        image = image.cpu().permute(1, 2, 0).contiguous().numpy()
    shape = tuple(getattr(image, "shape", ()))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and image.size:
        return image
    got = f"{image.dtype} of shape {shape}" if isinstance(image, (np.ndarray, Tensor)) else type(image).__name__
    forms = "a path, a PIL image, an array uint8[H W 3] or a tensor uint8[3 H W], RGB"
    raise InputError(f"an image must be {forms}; got {got}")


def _mirror(found: Detections, width: int) -> Detections:
    """Mirror the boxes of an image of a width."""
    x1, y1, x2, y2 = found.boxes.unbind(1)
    return found._replace(boxes=torch.stack([width - x2, y1, width - x1, y2], dim=1))


def _fuse(views: Sequence[Detections], *, score_threshold: float, max_detections: int) -> Detections:
    """Fuse the detections in the views of one image."""
    if len(views) == 1:
        return views[0]
    boxes, scores, labels = (torch.cat(fields) for fields in zip(*views, strict=True))
    sources = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(view.scores) for view in views]))
    fused = weighted_boxes_fusion(boxes, scores, labels, sources, count=len(views))
    keep = fused[1] >= score_threshold
    return Detections(*(field[keep][:max_detections] for field in fused))

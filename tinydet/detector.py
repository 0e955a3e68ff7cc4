"""A detector that is called with pictures."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinydet.data.example import Example, letterbox, picture_to_rgb, read_image
from tinydet.data.loader import Batch, collate
from tinydet.errors import InputError
from tinydet.model.detect import METHODS, VOTE, Detections, detect, model_anchors
from tinydet.model.efficientdet import Outputs
from tinydet.model.functional import normalize
from tinydet.model.fuse import network
from tinydet.ops.nms import weighted_boxes_fusion
from tinydet.prediction import Prediction
from tinydet.weights.fetch import Progress
from tinydet.weights.formats import Weights
from tinydet.weights.load import load_detector

ONE_VIEW = ((1.0, False),)
SEVERAL_VIEWS = ((1.0, False), (1.0, True), (1.25, False), (1.25, True))
"""Of a picture: how large the network's input is, relative to the config's, and whether it is mirrored."""

SOMETHING = 1e-9  # a score

Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor


def load(
    source: str | PathLike[str],
    *,
    model: str | None = None,
    device: torch.device | str = "cpu",
    compile: bool = False,
    progress: Progress | None = None,
) -> "Detector":
    """A detector, ready to be called.

    Args:
        source, model, progress: as for `tinydet.weights.load.load_weights`: a file, or "coco".
        device: where to compute.
        compile: as for `tinydet.model.fuse.network`.

    Raises:
        InputError: there is no such file, or it holds no whole detector.
    """
    return Detector(load_detector(source, model=model, device=device, progress=progress), compile=compile)


class Detector:
    """Weights made ready for inference, on the device that they are on.

    Attributes:
        config: the model's.
        source: for people, where the weights are from.
        classes: names by label.
    """

    def __init__(self, weights: Weights, *, compile: bool = False) -> None:
        self.config, self.source, self.classes = weights.config, weights.source, weights.config.classes
        self._device = next(iter(weights.params.values())).device
        self._forward = network(weights.params, weights.buffers, config=weights.config, compile=compile)
        self._anchors = cache(partial(model_anchors, self.config, device=self._device))
        self._compiled = compile

    @overload
    def __call__(self, pictures: str | PathLike[str] | Image.Image, **settings: Any) -> Prediction: ...
    @overload
    def __call__(self, pictures: list[Any] | tuple[Any, ...], **settings: Any) -> list[Prediction]: ...
    @overload
    def __call__(self, pictures: np.ndarray | Tensor, **settings: Any) -> Any: ...
    def __call__(self, pictures: Picture | Sequence[Picture], **settings: Any) -> Prediction | list[Prediction]:
        """The objects in a picture, or in each of several.

        Args:
            pictures: a path, a PIL image, an array uint8[H W 3] or a tensor uint8[3 H W], RGB; or a list of such, an
                array uint8[B H W 3] or a tensor uint8[B 3 H W].
            settings: as for `detect`.

        Returns:
            A `Prediction`, or a list of one for each picture.

        Raises:
            InputError: a file cannot be read, an array has another shape or type, or a setting makes no sense.
        """
        several = isinstance(pictures, (list, tuple)) or getattr(pictures, "ndim", 0) == 4
        given: list[Any] = list(pictures) if several else [pictures]  # type: ignore[arg-type]
        images = [as_image(one) for one in given]
        names = [one if isinstance(one, (str, PathLike)) else f"picture-{i}" for i, one in enumerate(given, start=1)]
        found = self.detect(images, **settings) if images else []
        every = zip(names, images, found, strict=True)
        predictions = [Prediction(Path(name), image, one, self.classes) for name, image, one in every]
        return predictions if several else predictions[0]

    def detect(self, images: Sequence[np.ndarray], *, tta: bool = False, **settings: Any) -> list[Detections]:
        """Objects in pixels of each picture, float32, on the CPU.

        Args:
            images: uint8[H W 3], RGB, at least one; of any sizes.
            tta: look at each mirrored and larger too, and take the mean of what is found.
            settings: as for `run`.
        """
        return self.run(self.prepare(images, tta=tta), **settings)

    def prepare(self, images: Sequence[np.ndarray], *, tta: bool = False) -> list[Batch]:
        """The network's input for each view of some pictures; what can be done beside the network."""
        height, width = self.config.image_size
        views = SEVERAL_VIEWS if tta else ONE_VIEW
        return [
            _letterboxed(images, (round(scale * height), round(scale * width)), mirrored, fill=self.config.fill)
            for scale, mirrored in views
        ]

    @torch.inference_mode()
    def run(
        self,
        views: Sequence[Batch],
        *,
        score_threshold: float = 0.3,
        max_detections: int = 100,
        method: str = "hard",
        classes: Sequence[str] | None = None,
        fill_to: int = 0,
    ) -> list[Detections]:
        """Objects in the pictures of `prepare`.

        Args:
            views: from `prepare`; none, to have the settings checked.
            score_threshold, max_detections, method: as for `tinydet.model.detect.detect`.
            classes: to look for no others than these.
            fill_to: the size of batch that a compiled network knows, if this one may be smaller.

        Raises:
            InputError: a setting makes no sense, or a class is not the detector's.
        """
        settings = {"score_threshold": score_threshold, "max_detections": max_detections, "method": method}
        check_settings(**settings)  # type: ignore[arg-type]
        others = self._others(classes)
        if not views:
            return []
        if others:  # which score nothing
            settings["score_threshold"] = max(score_threshold, SOMETHING)
        forward = partial(_filled, self._forward, size=fill_to) if self._compiled and fill_to else self._forward
        found = []
        for view, (_, mirrored) in zip(views, SEVERAL_VIEWS if len(views) > 1 else ONE_VIEW, strict=True):
            batch = view.to(self._device)
            outputs = forward(normalize(batch.images, mean=self.config.mean, std=self.config.std))
            if others:
                unasked = torch.tensor(others, device=self._device)
                outputs = outputs._replace(logits=outputs.logits.index_fill(2, unasked, -torch.inf))
            anchors = self._anchors((batch.images.shape[-2], batch.images.shape[-1]))
            one = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales, vote_threshold=VOTE, **settings)  # type: ignore[arg-type]
            one = [Detections(*(field.cpu() for field in picture)) for picture in one]
            if mirrored:
                one = [_mirrored(picture, int(size[1])) for picture, size in zip(one, view.sizes, strict=True)]
            found.append(one)
        if len(found) == 1:
            return found[0]
        bounds = {"score_threshold": score_threshold, "max_detections": max_detections}
        return [_fused(each, **bounds) for each in zip(*found, strict=True)]  # type: ignore[arg-type]

    def _others(self, classes: Sequence[str] | None) -> list[int]:
        """The labels of all classes but these."""
        if classes is None:
            return []
        known = {name.lower(): label for label, name in enumerate(self.classes)}
        if unknown := [name for name in classes if name.lower() not in known]:
            raise InputError(f"{self.source} finds no {', '.join(unknown)}; it finds {', '.join(self.classes)}")
        wanted = {known[name.lower()] for name in classes}
        return [label for label in range(len(self.classes)) if label not in wanted]


def check_settings(*, score_threshold: float, max_detections: int, method: str) -> None:
    """Raise InputError for a setting of `Detector.run` that makes no sense."""
    if max_detections < 1:
        raise InputError(f"max_detections must be positive, got {max_detections}")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")


def as_image(picture: Picture) -> np.ndarray:
    """A picture as uint8[H W 3], RGB, upright, as `Detector` takes it.

    Raises:
        InputError: it cannot be read, or an array has another shape or type.
    """
    if isinstance(picture, (str, PathLike)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return picture_to_rgb(picture)
    if isinstance(picture, Tensor):
        if picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3:
            return np.ascontiguousarray(picture.cpu().numpy().transpose(1, 2, 0))
        raise InputError(f"a tensor must be uint8[3 H W], RGB; got {picture.dtype} of shape {tuple(picture.shape)}")
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    raise InputError(f"an array must be uint8[H W 3], RGB; got {picture.dtype} of shape {picture.shape}")


def _letterboxed(
    images: Sequence[np.ndarray], size: tuple[int, int], mirrored: bool, *, fill: tuple[int, int, int]
) -> Batch:
    """Pictures of any sizes as a batch of one size."""
    nothing = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    seen = [np.ascontiguousarray(image[:, ::-1]) if mirrored else image for image in images]
    examples = [Example(image, *nothing, "", (image.shape[0], image.shape[1])) for image in seen]
    return collate([letterbox(one, size, fill=fill) for one in examples])


def _filled(forward: Callable[[Tensor], Outputs], images: Tensor, *, size: int) -> Outputs:
    """What a network says of a last batch that may be short, by way of a full one."""
    full = torch.cat([images, images[:1].expand(size - len(images), -1, -1, -1)])
    return Outputs(*(x[: len(images)] for x in forward(full)))


def _mirrored(found: Detections, width: int) -> Detections:
    """The same objects in a picture of some width, mirrored."""
    x1, y1, x2, y2 = found.boxes.unbind(1)
    return found._replace(boxes=torch.stack([width - x2, y1, width - x1, y2], dim=1))


def _fused(views: Sequence[Detections], *, score_threshold: float, max_detections: int) -> Detections:
    """What was found in several views of one picture."""
    boxes, scores, labels = (torch.cat(fields) for fields in zip(*views, strict=True))
    sources = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(view.scores) for view in views]))
    fused = weighted_boxes_fusion(boxes, scores, labels, sources, count=len(views))
    keep = fused[1] >= score_threshold
    return Detections(*(field[keep][:max_detections] for field in fused))

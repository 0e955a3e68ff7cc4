"""Detector: images in any form to predictions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinydet.data.images import image_to_rgb, read_image
from tinydet.distributed import use_threads
from tinydet.engines import OnnxEngine, TorchEngine, make_engine
from tinydet.errors import InputError, OnError, raise_error, try_call
from tinydet.files import PathLike
from tinydet.model.postprocess import METHODS, Detections
from tinydet.prediction import Prediction
from tinydet.prefetch import prefetch
from tinydet.views import View, fuse, plan_views, restore
from tinydet.weights.formats import Weights
from tinydet.weights.load import Loaded, load_any, select_classes
from tinydet.weights.onnx_file import OnnxFile

ImageLike = PathLike | Image.Image | np.ndarray | Tensor
CALL_BATCH = 8  # images in a batch of a call
MOST_WORKERS = 4  # batches that are detected in at once


def load(
    source: PathLike | Sequence[PathLike],
    *,
    model: str | None = None,
    device: torch.device | str = "cpu",
    compile: bool = False,
) -> "Detector":
    """Load a detector from a file of weights or an exported one, or the published one of `model` ("coco").

    Several files make one detector, which fuses what each of them detects. To compile takes a minute.

    Raises:
        InputError: there is no such file, or it holds no whole detector, or their classes differ.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    return Detector([load_any(one, model=model, device=device) for one in sources], compile=compile)


class Detector:
    """Weights prepared for inference, on the device that they are on; `classes` are their names by label.

    Several weights, of the same classes in any order and of any models and input sizes, detect together. The classes,
    the config and the size of automatic tiles are those of the first.
    """

    def __init__(self, weights: Loaded | Sequence[Loaded], *, compile: bool = False) -> None:
        given = [weights] if isinstance(weights, (Weights, OnnxFile)) else _same_classes(weights)
        self.config, self.classes = given[0].config, given[0].config.classes
        self.source = " and ".join(one.source for one in given)
        self.engines = [make_engine(one, compile=compile) for one in given]
        # In eager mode on a CPU threads that share a layer wait for each other, and idle where one of them lacks its
        # core: batches at once take .8 of the time, and beside a busy process a sixth. Others have a turn each.
        self.eager = all(isinstance(one, TorchEngine) and one.eager for one in self.engines)
        self._turn = nullcontext() if self.eager else Lock()

    @property
    def workers(self) -> int:
        """Batches that `predict` detects in at once."""
        return min(torch.get_num_threads(), MOST_WORKERS) if self.eager else 2

    @overload
    def __call__(self, images: PathLike | Image.Image, **settings: Any) -> Prediction: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], **settings: Any) -> list[Prediction]: ...
    @overload
    def __call__(self, images: np.ndarray | Tensor, **settings: Any) -> Any: ...
    def __call__(self, images: ImageLike | Sequence[ImageLike], **settings: Any) -> Prediction | list[Prediction]:
        """Detect the objects in an image, or in each of a list or a batch; the settings and errors of `predict`."""
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        given: Any = images if several else [images]
        settings = {"batch_size": max(1, min(len(given), CALL_BATCH)), **settings}
        predictions = [*self.predict(given, **settings)]
        return predictions if several else predictions[0]

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 1,
        score_threshold: float = 0.3,
        max_detections: int = 100,
        method: str | None = None,
        classes: str | int | Sequence[str | int] | None = None,
        tta: bool = False,
        tiles: tuple[int, int] | str | None = None,
        overlap: float = 0.2,
        workers: int | None = None,
        on_error: OnError = raise_error,
    ) -> Iterator[Prediction]:
        """Detect the objects in images in their order, lazily, a few batches ahead.

        Args:
            images: paths, PIL images, arrays uint8[H W 3] or tensors uint8[3 H W], RGB; any iterable, such as a batch.
            batch_size: images that are read, and images or views of them that a network is given, at once.
            method: "soft" or "hard" NMS; None: soft, or what a file was exported with.
            classes: names, in any case, or labels of the classes to detect; all where None.
            tta: test-time augmentation: detect in mirrored and larger views too, and fuse the boxes of all.
            tiles: (height, width) in pixels of tiles in which to detect too, for small objects in large images; "auto"
                for the network's input size. An image that is no larger has none.
            overlap: of neighbouring tiles, as a share of their sides.
            workers: threads that each read and detect in a batch with their share of PyTorch's threads, whose number
                decides the last bits; 0 for the caller's. `self.workers` where None, for a single batch 0.
            on_error: takes the error of an image that cannot be read, which is then left out.

        Raises:
            InputError: a setting makes no sense: at once; or, in its turn, an image cannot be read, or is an array of
                another shape or type.
            FloatingPointError: an output of a network is NaN or infinite; names the image.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be positive, got {batch_size}")
        if max_detections < 1:
            raise InputError(f"max_detections must be positive, got {max_detections}")
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
        if method not in (None, *METHODS):
            raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        if not 0 <= overlap <= 0.9:
            raise InputError(f"overlap must be in [0, 0.9], got {overlap}")
        for engine in self.engines:
            if isinstance(engine, OnnxEngine):
                engine.check(method=method, score_threshold=score_threshold, tta=tta)
        tile: Any = self.config.image_size if isinstance(tiles, str) and tiles == "auto" else tiles
        sides = tile if isinstance(tile, (tuple, list)) and len(tile) == 2 else (0, 0)
        if tile is not None and not all(isinstance(side, int) and side > 0 for side in sides):
            raise InputError(f'tiles must be (height, width) in pixels or "auto", got {tiles!r}')
        labels = None if classes is None else torch.tensor(self.labels(classes))
        limits: Any = {"score_threshold": score_threshold, "max_detections": max_detections}
        plan = {"networks": len(self.engines), "tta": tta, "tile": tile, "overlap": overlap, "batch_size": batch_size}
        one = isinstance(images, (str, os.PathLike, Image.Image))
        numbered: Iterator[tuple[int, Any]] = enumerate([images] if one else images, start=1)

        detect = partial(self._detect, plan=plan, labels=labels, method=method, **limits)
        groups = iter(lambda: [*islice(numbered, batch_size)], [])

        def detect_groups() -> Iterator[Prediction]:
            first = [*islice(groups, 2)]
            count = (self.workers if len(first) > 1 else 0) if workers is None else workers
            share = partial(use_threads, max(1, torch.get_num_threads() // max(1, count))) if self.eager else None
            every = chain(first, groups)
            found = prefetch(detect, every, depth=count, start=share) if count else map(detect, every)
            for predictions, errors in found:
                yield from predictions
                for error in errors:
                    on_error(error)

        return detect_groups()

    def labels(self, classes: str | int | Sequence[str | int]) -> list[int]:
        """Look up the labels of classes, by name in any case or by label, rising; raise InputError for others."""
        known = {name.lower(): label for label, name in enumerate(self.classes)}
        given = [classes] if isinstance(classes, (str, int)) else classes
        labels = [known.get(one.lower()) if isinstance(one, str) else one for one in given]
        unknown = [str(one) for one, label in zip(given, labels, strict=True) if label not in known.values()]
        if unknown or not labels:
            there = f"{', '.join(self.classes)} (labels 0 to {len(self.classes) - 1})"
            raise InputError(
                f"{self.source} finds no {', '.join(unknown) or 'class of an empty list'}; it finds {there}"
            )
        return sorted({int(label) for label in labels if label is not None})

    def _detect(
        self, group: Sequence[tuple[int, ImageLike]], *, plan: dict[str, Any], labels: Tensor | None, **settings: Any
    ) -> tuple[list[Prediction], list[InputError]]:
        """Read numbered images, and detect objects in all views of each; with the errors of those that fail."""
        errors, files = list[InputError](), list[tuple[Path, np.ndarray]]()
        for number, image in group:
            path = Path(image) if isinstance(image, (str, os.PathLike)) else Path(f"image-{number}")
            if (array := try_call(errors.append, as_image, image, name=path.name)) is not None:
                files.append((path, array))
        found: list[list[tuple[View, Detections]]] = [[] for _ in files]
        for views in plan_views([image.shape[:2] for _, image in files], **plan):
            crops, names = [], []
            for view in views:
                (path, image), (x1, y1, x2, y2) = files[view.image], view.crop
                crops.append(image[y1:y2, x1:x2][:, ::-1] if view.mirrored else image[y1:y2, x1:x2])
                names.append(str(path))
            engine: Any = self.engines[views[0].network]
            prepared = engine.prepare(crops, names=names, scale=views[0].scale, fill=plan["batch_size"])
            with self._turn:
                detections = engine.detect(prepared, labels, **settings)
            for view, one in zip(views, detections, strict=False):
                found[view.image].append((view, restore(one, view)))
        limits = {name: settings[name] for name in ("score_threshold", "max_detections")}
        fused = (fuse(each, **limits) for each in found)
        return [Prediction(*file, self.classes, *one) for file, one in zip(files, fused, strict=True)], errors


def as_image(image: ImageLike, *, name: str = "image") -> np.ndarray:
    """Convert an image in any form that `Detector` takes to uint8[H W 3], RGB, upright; errors name it."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            image = image_to_rgb(image)
        except Exception as error:  # its pixels are read only now
            raise InputError(f"{name}: not a readable image ({error})") from error
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        image = image.cpu().permute(1, 2, 0).contiguous().numpy()
    got = type(image).__name__
    if isinstance(image, (np.ndarray, Tensor)) and not isinstance(image, np.ma.MaskedArray):  # whose mask would be lost
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
            return image
        got = f"{image.dtype} of shape {tuple(image.shape)}"
    forms = "a path, a PIL image, an array uint8[H W 3] or a tensor uint8[3 H W], RGB"
    raise InputError(f"{name} must be {forms}; got {got}")


def _same_classes(weights: Sequence[Loaded]) -> list[Loaded]:
    """Put the classes of each of several weights into the order of the first; raise InputError where they differ."""
    if not weights:
        raise InputError("a detector needs weights; there are none")
    first = weights[0]
    for one in weights[1:]:
        for a, b in ((first, one), (one, first)):
            there = [name.lower() for name in b.config.classes]
            if missing := [name for name in a.config.classes if name.lower() not in there]:
                raise InputError(
                    f"{b.source} finds no {', '.join(missing)}, as {a.source} does; classes must be the same"
                )
    return [select_classes(one, first.config.classes) for one in weights]

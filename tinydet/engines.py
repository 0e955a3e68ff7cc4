"""Engines: what runs a detector, PyTorch or ONNX Runtime, from images of any size to their objects."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinydet.data.images import letterbox, to_example
from tinydet.data.loader import Batch, collate
from tinydet.errors import InputError
from tinydet.model.efficientdet import Outputs
from tinydet.model.fold import inference_fn
from tinydet.model.functional import Variables
from tinydet.model.postprocess import Detections, detect, model_anchors, normalize
from tinydet.weights.formats import Weights
from tinydet.weights.onnx_file import OnnxFile


class TorchEngine:
    """Weights prepared for inference with PyTorch, on the device that they are on."""

    def __init__(self, weights: Weights, *, compile: bool = False) -> None:
        self.config, self.compiled = weights.config, compile  # anew for every size of batch
        self.device = next(iter(weights.params.values())).device
        self.eager = self.device.type == "cpu" and not compile
        self.infer = inference_fn(Variables(weights.params, weights.buffers), config=weights.config, compile=compile)

    def prepare(
        self, images: Sequence[np.ndarray], *, names: Sequence[str], scale: float = 1.0, fill: int = 0
    ) -> Batch:
        """Letterbox images, uint8[H W 3], RGB, of any sizes, to a batch for `detect`.

        Args:
            names: of the images, for errors.
            scale: of the network's input size.
            fill: images of a batch, to which fewer are filled up where each size of batch is compiled.
        """
        size = round(scale * self.config.image_size[0]), round(scale * self.config.image_size[1])
        examples = []
        for image, name in zip(images, names, strict=True):
            example = to_example((image, [], []), name)
            examples.append(letterbox(example, size, pad_value=self.config.pad_value))
        if self.compiled:
            examples += examples[-1:] * (fill - len(examples))
        batch = collate(examples)
        if self.device.type == "cuda":  # which copies pinned memory while it works on what came before
            batch = batch._replace(images=batch.images.pin_memory())
        return batch

    @torch.inference_mode()
    def network(self, batch: Batch) -> Outputs:
        """Compute the network's outputs for a batch on its device."""
        try:
            return self.infer(normalize(batch.images, mean=self.config.mean, std=self.config.std))
        except RuntimeError as error:
            if self.compiled and type(error).__module__.startswith("torch._"):  # Dynamo's or Inductor's
                raise InputError(f"the network could not be compiled ({str(error).splitlines()[0]})") from error
            raise

    @torch.inference_mode()
    def detect(
        self, prepared: Batch, labels: Tensor | None = None, *, method: str | None = None, **limits: Any
    ) -> list[Detections]:
        """Detect the objects, of these labels, int64[K], or of all, in each image: on the CPU, in its pixels.

        `method` is "soft" or "hard" NMS, of an exported file its own; the limits are score_threshold, max_detections.
        """
        batch = prepared.to(self.device)
        outputs = self.network(batch)
        if labels is not None:
            outputs = outputs._replace(logits=outputs.logits[..., labels.to(self.device)])
        anchors = model_anchors(self.config, batch.input_size, device=self.device)
        frame: Any = {"sizes": batch.sizes, "scales": batch.scales, "names": batch.names}
        found = [one.cpu() for one in detect(outputs, anchors, method=method or "soft", **frame, **limits)]
        return found if labels is None else [one._replace(labels=labels[one.labels]) for one in found]


class OnnxEngine:
    """An exported file in ONNX Runtime, which letterboxes images itself and suppresses as it was exported."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file

    def check(self, *, method: str | None, score_threshold: float, tta: bool) -> None:
        """Raise InputError where it would have to detect in another way than it was exported to."""
        own, least = self.file.suppression["method"], self.file.suppression["score_threshold"]
        if method not in (None, own):
            raise InputError(f"{self.file.source} suppresses duplicate boxes by {own} NMS, not {method}")
        if score_threshold < least:
            raise InputError(f"{self.file.source} leaves out what scores below {least:g}, not {score_threshold:g}")
        if tta:
            raise InputError(f"{self.file.source} has one input size; test-time augmentation needs the weights")

    def prepare(
        self, images: Sequence[np.ndarray], *, names: Sequence[str], scale: float = 1.0, fill: int = 0
    ) -> list[np.ndarray]:
        """Stack images of one size, as `TorchEngine.prepare` batches them; the file does the rest."""
        return [np.stack([*group]) for _, group in groupby(images, key=np.shape)]

    def detect(
        self,
        prepared: list[np.ndarray],
        labels: Tensor | None = None,
        *,
        method: str | None = None,
        score_threshold: float,
        max_detections: int,
    ) -> list[Detections]:
        """Detect objects, as `TorchEngine.detect` does."""
        chosen, found = torch.arange(len(self.file.labels)) if labels is None else labels, []
        wanted = torch.tensor(self.file.labels)[chosen]
        for images in prepared:
            outputs = map(torch.from_numpy, self.file.session.run(None, {"images": images}))
            for boxes, scores, theirs in zip(*outputs, strict=True):
                same = (theirs[:, None] == wanted) & (scores >= score_threshold)[:, None]
                row, column = same.nonzero().T[:, :max_detections]
                found.append(Detections(boxes[row], scores[row], chosen[column]))
        return found


Engine = TorchEngine | OnnxEngine


def make_engine(weights: Weights | OnnxFile, *, compile: bool = False) -> Engine:
    """Prepare the engine of weights, or of an exported file; raise InputError where that is to be compiled."""
    if not isinstance(weights, OnnxFile):
        return TorchEngine(weights, compile=compile)
    if compile:
        raise InputError(f"{weights.source} cannot be compiled; it is already prepared for ONNX Runtime")
    return OnnxEngine(weights)

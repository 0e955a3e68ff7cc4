"""Export: a detector as one file that other programs run, pictures in, objects out."""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.data.example import fit_scale, read_image
from tinydet.data.scenes import draw_scene
from tinydet.errors import InputError
from tinydet.files import replacing
from tinydet.model.detect import VOTE, model_anchors
from tinydet.model.fuse import fuse, fused_skeleton
from tinydet.ops.boxes import clip, decode
from tinydet.ops.nms import nms_in_steps, vote
from tinydet.weights.formats import Weights

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats, and how the names of their files end."""
OPSET = 18  # the first in which a picture can be shrunk with a filter
CANDIDATES = 1000  # pairs of anchor and class that enter suppression
BATCH = 2  # of the example that is traced: with one, the size of a batch would be taken for a constant
WHOLE = 2**30  # bytes: constants are folded however large they are
AGREES = 1e-3  # score by which an exported detector may differ from the one it was


def sample_picture(path: str | PathLike[str] | None, size: tuple[int, int] | None) -> np.ndarray:
    """A picture to try an exported detector on, uint8[H W 3]: a file's, or a drawn street; of another size if given."""
    image = np.array(draw_scene(0)[0]) if path is None else read_image(path)
    if size is None or image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


class Difference(NamedTuple):
    """By how much an exported detector differs from the one it was, at most."""

    boxes: float
    """In pixels."""
    scores: float
    objects: int
    """That were compared."""


class Pipeline(nn.Module):
    """All that lies between pictures and objects, for pictures of one size.

    Args:
        weights: of a whole detector.
        picture: (height, width) of the pictures.
        score_threshold: what scores lower is left out.
        max_detections: boxes a picture.
    """

    anchors: Tensor
    mean: Tensor
    std: Tensor
    fill: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        weights: Weights,
        picture: tuple[int, int],
        *,
        score_threshold: float = 0.3,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        config = weights.config
        self.network = fused_skeleton(config)
        fused = fuse(weights.params, weights.buffers, config=config)
        # Training leaves kernels in an order of memory that torch.export.save takes for a part of something.
        plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in fused.items()}
        self.network.load_state_dict(plain, assign=True)
        anchors = model_anchors(config)
        self.register_buffer("anchors", anchors)
        self.register_buffer("mean", 255 * torch.tensor(config.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(config.std)[:, None, None])
        self.register_buffer("fill", torch.tensor(config.fill, dtype=torch.float32)[:, None, None])
        self.size, self.picture, self.scale = config.image_size, picture, fit_scale(picture, config.image_size)
        sides = [max(1, round(side * self.scale)) for side in picture]
        self.register_buffer("rows", _resampling(picture[0], sides[0]))
        self.register_buffer("columns", _resampling(picture[1], sides[1]).T.contiguous())
        self.score_threshold, self.max_detections = score_threshold, max_detections
        self.candidates = min(CANDIDATES, len(anchors) * len(config.classes))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objects in pictures.

        Args:
            images: uint8[B H W 3], RGB.

        Returns:
            float32[B D 4] boxes, xyxy in pixels of the pictures; float32[B D] scores; int64[B D] labels. Best first;
            rows without an object have score 0 and label -1.
        """
        logits, deltas = self.network((self._letterboxed(images) - self.mean) / self.std)
        classes = logits.shape[2]
        top, pairs = logits.flatten(1).topk(self.candidates, dim=1)
        rows = (pairs // classes)[..., None].expand(-1, -1, 4)
        anchors = self.anchors.expand(images.shape[0], -1, -1).gather(1, rows)
        boxes = decode(deltas.gather(1, rows), anchors) / self.scale
        boxes = clip(boxes, self.picture)
        scores = top.sigmoid()
        scores = torch.where(scores >= self.score_threshold, scores, 0)
        labels = pairs % classes
        keep, kept = nms_in_steps(boxes, scores, labels, steps=min(self.max_detections, self.candidates))
        placed, found = clip(vote(boxes, scores, labels, keep, iou_threshold=VOTE), self.picture), kept > 0
        return torch.where(found[..., None], placed, 0), kept, torch.where(found, labels.gather(1, keep), -1)

    def _letterboxed(self, images: Tensor) -> Tensor:
        """float32[B 3 h w], 0..255: the pictures in the network's input."""
        pixels = images.permute(0, 3, 1, 2).float()
        if self.picture != self.size:
            pixels = (self.rows @ pixels @ self.columns).round().clamp(0, 255)
        below, right = (whole - part for whole, part in zip(self.size, pixels.shape[-2:], strict=True))
        if below or right:
            pixels = F.pad(pixels - self.fill, (0, right, 0, below)) + self.fill
        return pixels


def _resampling(old: int, new: int) -> Tensor:
    """float32[new old]: what scales one side of a picture, filtering when it shrinks.

    As a product with a matrix it is the same everywhere; runtimes differ in how they resize.
    """
    unit = torch.eye(old)[None, None]
    return F.interpolate(unit, size=(new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def export(
    weights: Weights,
    path: str | PathLike[str],
    *,
    format: str,
    image: np.ndarray,
    score_threshold: float = 0.3,
    max_detections: int = 100,
) -> Difference | None:
    """Write a detector as one file, and run that file on a picture.

    Args:
        weights: of a whole detector, on the CPU.
        path: of the file.
        format: "onnx", or "torch" for `torch.export.load`.
        image: uint8[H W 3], RGB; the file is for pictures of its size, any number at a time.
        score_threshold, max_detections: as for `tinydet.model.detect.detect`.

    Returns:
        How the file's detections differ from those of the detector; None where there is nothing to run it.

    Raises:
        InputError: the format is unknown, a package that it needs is missing, or the file does not do what it should.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    picture = image.shape[0], image.shape[1]
    pipeline = Pipeline(weights, picture, score_threshold=score_threshold, max_detections=max_detections)
    images = torch.from_numpy(image)[None].expand(BATCH, -1, -1, -1).contiguous()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        program = torch.export.export(pipeline, (images,), dynamic_shapes={"images": {0: batch}})
    run = (_save_onnx if format == "onnx" else _save_torch)(program, Path(path))
    if run is None:
        return None
    difference = compared(pipeline(images[:1]), run(images[:1]))
    if not difference.scores <= AGREES:
        raise InputError(f"{path}: scores differ by {difference.scores:g} from those of the detector; do not use it")
    return difference


def _save_torch(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Write a program of torch.export, and return it as it reads back."""
    with replacing(path) as file:
        torch.export.save(program, file)
    return torch.export.load(path).module()


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
    """Write a program as ONNX, and return it as ONNX Runtime runs it, where that is installed."""
    if missing := [name for name in ("onnx", "onnxscript") if not find_spec(name)]:
        raise InputError(f"{path}: ONNX needs {' and '.join(missing)}; pip install 'tinydet[onnx]'")
    names = ["boxes", "scores", "labels"]
    from onnxscript.optimizer import fold_constants

    named = {"input_names": ["images"], "output_names": names}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **named)  # type: ignore[arg-type]
    finally:
        log.setLevel(level)
    assert made is not None
    # A padded kernel that is left to ONNX Runtime becomes an invalid graph: its Pad_Fusion takes it for a picture.
    fold_constants(made.model, input_size_limit=WHOLE, output_size_limit=WHOLE)
    with replacing(path) as file:
        file.write(made.model_proto.SerializeToString())
    if not find_spec("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(names, {"images": images.numpy()})))


def compared(expected: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> Difference:
    """The largest difference between two answers of a `Pipeline` to one picture; infinite where one is missing.

    Each object is compared with the one of its class that is nearest: of two that score nearly the same, either may
    come first.
    """
    boxes, scores = [0.0], [0.0]
    found = [[field[0][one[1][0] > 0] for field in one] for one in (expected, given)]
    for (a, s, k), (b, t, m) in (found, found[::-1]):
        for box, score, label in zip(a, s, k, strict=True):
            same = m == label
            if not same.any():
                return Difference(float("inf"), float("inf"), len(found[0][1]))
            apart = (b[same] - box).abs().amax(1)
            nearest = int((apart + (t[same] - score).abs()).argmin())
            boxes.append(apart[nearest].item())
            scores.append((t[same][nearest] - score).abs().item())
    return Difference(max(boxes), max(scores), len(found[0][1]))

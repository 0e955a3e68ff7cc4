"""Export: a detector as one file that other programs run, images in, objects out."""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.data.images import letterbox_scale, read_image
from tinydet.errors import InputError, nearest
from tinydet.files import PathLike, atomic_write, output_errors, write_file
from tinydet.model.fold import fold_batch_norm, folded_model
from tinydet.model.functional import Variables
from tinydet.model.postprocess import Detections, detect_padded, model_anchors, normalize
from tinydet.weights.formats import Weights

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}  # suffix of the files of each
OPSET = 18  # the first in which an image can be shrunk with a filter
CANDIDATES = 1000  # pairs of anchor and class that enter suppression
BATCH = 2  # of the example that is traced: with one, the size of a batch would be taken for a constant
ANY_SIZE = 2**30  # bytes: constants are folded however large they are
TOLERANCE = 1e-3  # by which scores of the file may differ from those of the detector


class Difference(NamedTuple):
    """The largest difference between an exported detector and the detector itself."""

    boxes: float  # pixels
    scores: float
    objects: int  # that were compared


def sample_image(path: PathLike | None, size: tuple[int, int] | None) -> np.ndarray:
    """Read an image to test an exported detector on, or else make smooth noise; scaled to (height, width), if given."""
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8) if path is None else read_image(path)
    if size is None or image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


class Pipeline(nn.Module):
    """The detector from images of one size (height, width) to objects; the settings are those of `detect_padded`."""

    anchors: Tensor  # float32[A 4]
    rows: Tensor  # float32[h H]
    columns: Tensor  # float32[W w]

    def __init__(self, weights: Weights, size: tuple[int, int], **settings: Any) -> None:
        super().__init__()
        self.config, self.size, self.scale = weights.config, size, letterbox_scale(size, weights.config.image_size)
        self.settings = {"score_threshold": 0.3, "candidates": CANDIDATES, "fixed_shape": True, **settings}
        self.network = folded_model(self.config)
        folded = fold_batch_norm(Variables(weights.params, weights.buffers), self.config)
        # Training leaves kernels in an order of memory that torch.export.save takes for a part of something.
        plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in folded.items()}
        self.network.load_state_dict(plain, assign=True)
        height, width = (max(1, round(side * self.scale)) for side in size)
        self.register_buffer("anchors", model_anchors(self.config))
        self.register_buffer("rows", _resampling(size[0], height))
        self.register_buffer("columns", _resampling(size[1], width).T.contiguous())
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect the objects in images, uint8[B H W 3], RGB.

        -> boxes float32[B D 4], xyxy in pixels of the images; scores float32[B D]; labels int64[B D]. Best first; rows
        without an object have score 0 and label -1.
        """
        pixels, batch = self.letterbox(images), images.shape[0]
        outputs = self.network(normalize(pixels, mean=self.config.mean, std=self.config.std))
        sizes, scales = torch.tensor(self.size).expand(batch, -1), torch.tensor(self.scale).expand(batch)
        found = detect_padded(outputs, self.anchors, sizes=sizes, scales=scales, **self.settings)
        return found.boxes, found.scores, found.labels  # torch.export.save knows no named tuples

    def letterbox(self, images: Tensor) -> Tensor:
        """Letterbox images, uint8[B H W 3], to the network's input. -> float32[B 3 h w], 0..255"""
        pixels = images.permute(0, 3, 1, 2).float()
        if self.size != self.config.image_size:
            pixels = (self.rows @ pixels @ self.columns).round().clamp(0, 255)
        below, right = (whole - part for whole, part in zip(self.config.image_size, pixels.shape[-2:], strict=True))
        if below or right:
            pad_value = torch.tensor(self.config.pad_value)[:, None, None]
            pixels = F.pad(pixels - pad_value, (0, right, 0, below)) + pad_value
        return pixels


def _resampling(old: int, new: int) -> Tensor:
    """Make the matrix, float32[new old], that scales one side of an image, filtering when it shrinks."""
    unit = torch.eye(old)[None, None]  # a matrix, since runtimes differ in how they resize
    return F.interpolate(unit, size=(new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def export_model(
    weights: Weights, path: PathLike, *, format: str, image: np.ndarray, **settings: Any
) -> Difference | None:
    """Write a detector as one file for images of the size of this one, uint8[H W 3], RGB, and test it on that.

    The weights must be on the CPU. There is no difference without a runtime to test in.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {format!r}{nearest(format, FORMATS)}")
    if format == "onnx" and (missing := [name for name in ("onnx", "onnxscript") if not find_spec(name)]):
        raise InputError(f"{path}: ONNX needs {' and '.join(missing)}; pip install 'tinydet[onnx]'")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(weights, (image.shape[0], image.shape[1]), **settings)
    images = torch.from_numpy(image)[None].expand(BATCH, -1, -1, -1).contiguous()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        program = torch.export.export(pipeline, (images,), dynamic_shapes={"images": {0: batch}})
    if format == "onnx":
        run = _save_onnx(program, path)
    else:
        with atomic_write(path) as file:
            torch.export.save(program, file)
        run = torch.export.load(path).module()
    if run is None:
        return None
    expected, found = (Detections(*(field[0] for field in one(images[:1]))) for one in (pipeline, run))
    difference = compare_detections(expected, found)
    if not difference.scores <= TOLERANCE:
        raise InputError(f"{path}: scores differ by {difference.scores:g} from those of the detector; do not use it")
    return difference


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
    """Write a program as ONNX, and return it as ONNX Runtime runs it, where that is installed."""
    from onnxscript.optimizer import fold_constants

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["boxes", "scores", "labels"]}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    finally:
        log.setLevel(level)
    assert made is not None
    # A padded kernel that is left to ONNX Runtime becomes an invalid graph: its Pad_Fusion takes it for an image.
    fold_constants(made.model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    write_file(path, made.model_proto.SerializeToString())
    if not find_spec("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))


def compare_detections(expected: Detections, found: Detections) -> Difference:
    """Compare each object with the nearest of its class: of two that score nearly the same, either may come first."""
    a, b = (Detections(*(field[one.scores > 0] for field in one)) for one in (expected, found))
    worst = torch.zeros(2)  # of boxes and scores
    for one, other in ((a, b), (b, a)):
        for box, score, label in zip(*one, strict=True):
            apart = torch.stack([(other.boxes - box).abs().amax(1), (other.scores - score).abs()], 1)
            apart = apart[other.labels == label]
            if not len(apart):
                return Difference(float("inf"), float("inf"), len(a.scores))
            worst = torch.maximum(worst, apart[apart.sum(1).argmin()])
    boxes, scores = worst.tolist()
    return Difference(boxes, scores, len(a.scores))

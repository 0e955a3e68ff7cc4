"""Export: a detector as one file that other programs run, images in, objects out."""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tinydet.data.images import read_image
from tinydet.errors import InputError, nearest
from tinydet.files import PathLike, atomic_write, output_errors, write_file
from tinydet.model.fold import fold_batch_norm, folded_model
from tinydet.model.functional import Variables
from tinydet.model.postprocess import BOX_VOTING_IOU, Detections, detect_padded, model_anchors, normalize
from tinydet.onnx_graph import drop_unread, pad_in_pooling, trim_kernels
from tinydet.weights.formats import Weights
from tinydet.weights.onnx_file import load_onnx, make_metadata

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}  # suffix of the files of each
OPSET = 18  # the first in which an image can be shrunk with a filter
# Of `detect_padded`, in the file's metadata. Suppression compares each candidate with each: these are four for each
# detection, of the best anchor of each cell, so that they do not all go to the first of many objects.
SETTINGS: dict[str, Any] = {
    "score_threshold": 0.01,
    "candidates": 400,
    "max_detections": 100,
    "method": "soft",
    "iou_threshold": 0.5,
    "box_voting_iou": BOX_VOTING_IOU,
}
LARGEST = 1 << 16  # side of an image
BATCH = 2  # of the example that is traced: with one, the size of a batch would be taken for a constant
ANY_SIZE = 2**30  # bytes: constants are folded however large they are
TOLERANCE = 1e-3  # by which scores of the file may differ from those of the detector


class Difference(NamedTuple):
    """The largest difference between an exported detector and the detector itself."""

    boxes: float  # pixels
    scores: float
    objects: int  # that were compared


def sample_image(path: PathLike | None, size: tuple[int, int]) -> np.ndarray:
    """Read an image to test an exported detector on, or else make smooth noise of (height, width)."""
    if path is not None:
        return read_image(path)
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return np.array(Image.fromarray(noise).resize(size[::-1], Image.Resampling.BILINEAR))


class Pipeline(nn.Module):
    """The detector from images of any size to objects; the settings are those of `detect_padded`."""

    anchors: Tensor  # float32[A 4]
    pad_value: Tensor  # float32[3 1 1]

    def __init__(self, weights: Weights, **settings: Any) -> None:
        super().__init__()
        self.config = weights.config
        self.suppression = {**SETTINGS, "cell_anchors": self.config.num_anchors, **settings}
        self.network = folded_model(self.config)
        folded = fold_batch_norm(Variables(weights.params, weights.buffers), self.config)
        # Training leaves kernels in an order of memory that torch.export.save takes for a part of something.
        plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in folded.items()}
        self.network.load_state_dict(plain, assign=True)
        self.register_buffer("anchors", model_anchors(self.config))
        self.register_buffer("pad_value", torch.tensor(self.config.pad_value, dtype=torch.float32)[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect the objects in images, uint8[B H W 3], RGB.

        -> boxes float32[B D 4], xyxy in pixels of the images; scores float32[B D]; labels int64[B D]. Best first; rows
        without an object have score 0 and label -1.
        """
        (height, width), size = images.shape[1:3], self.config.image_size
        outputs = self.network(normalize(self.letterbox(images), mean=self.config.mean, std=self.config.std))
        sizes = torch.stack([torch.full((1,), height), torch.full((1,), width)], 1)
        scales = torch.full((1,), torch.sym_min(size[0] / height, size[1] / width))
        frame: Any = {"sizes": sizes, "scales": scales}
        found = detect_padded(outputs, self.anchors, fixed_shape=True, **frame, **self.suppression)
        return found.boxes, found.scores, found.labels  # torch.export.save knows no named tuples

    def letterbox(self, images: Tensor) -> Tensor:
        """Letterbox images, uint8[B H W 3], to the network's input. -> float32[B 3 h w], 0..255"""
        (height, width), (h, w) = images.shape[1:3], self.config.image_size
        # round(height * scale), of whole numbers, which can be traced for any size
        inner_h = torch.sym_max(1, torch.sym_min(h, (2 * height * w + width) // (2 * width)))
        inner_w = torch.sym_max(1, torch.sym_min(w, (2 * width * h + height) // (2 * height)))
        pixels: Any = images.permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=(inner_h, inner_w), mode="bilinear", antialias=True)
        border, (value, *others) = (0, w - inner_w, 0, h - inner_h), self.config.pad_value
        if {value} == {*others}:  # a tenth of the time of a Lite detector in 8 bits
            return F.pad(pixels, border, value=value)
        return F.pad(pixels - self.pad_value, border) + self.pad_value


def export_model(
    weights: Weights, path: PathLike, *, format: str, image: np.ndarray | None = None, **settings: Any
) -> Difference | None:
    """Write a detector as one file for images of any size, and test it on this one, uint8[H W 3], or noise.

    The weights must be on the CPU. There is no difference without a runtime to test in.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {format!r}{nearest(format, FORMATS)}")
    if format == "onnx" and (missing := [name for name in ("onnx", "onnxscript") if not find_spec(name)]):
        raise InputError(f"{path}: ONNX needs {' and '.join(missing)}; pip install 'tinydet[onnx]'")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(weights, **settings)
    if image is None:
        image = sample_image(None, weights.config.image_size)
    images = torch.from_numpy(image)[None].expand(BATCH, -1, -1, -1).contiguous()
    free: Any = {0: Dim("batch", max=1024), 1: Dim("height", max=LARGEST), 2: Dim("width", max=LARGEST)}
    with torch.no_grad():
        program = torch.export.export(pipeline, (images,), dynamic_shapes=(free,))
    with TemporaryDirectory() as folder:
        made, difference = Path(folder) / path.name, None
        run: Any = None
        if format == "torch":
            with atomic_write(made) as file:
                torch.export.save(program, file)
            run = torch.export.load(made).module()
        else:
            _save_onnx(program, pipeline, made)
            if find_spec("onnxruntime"):
                session = load_onnx(made).session
                run = lambda x: tuple(map(torch.from_numpy, session.run(None, {"images": x.numpy()})))  # noqa: E731
        if run is not None:
            difference = compare_runs(pipeline, run, images)
            if not difference.scores <= TOLERANCE:
                raise InputError(f"{path}: not written; its scores differ by {difference.scores:g} from the detector's")
        write_file(path, made.read_bytes())
    return difference


def compare_runs(
    detector: Callable[[Tensor], tuple[Tensor, ...]], exported: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
) -> Difference:
    """Compare an exported detector with the detector at the size that was traced, turned and halved."""
    samples = (sample.contiguous() for sample in (images, images.transpose(1, 2), images[:, ::2, ::2]))
    parts = [compare_detections(first_image(detector(one)), first_image(exported(one))) for one in samples]
    boxes, scores, objects = zip(*parts, strict=True)
    return Difference(max(boxes), max(scores), sum(objects))


def first_image(outputs: tuple[Tensor, ...]) -> Detections:
    """Return the detections of the first image of a batch."""
    return Detections(*(field[0] for field in outputs))


def _save_onnx(program: torch.export.ExportedProgram, pipeline: Pipeline, path: Path) -> None:
    """Write a program as ONNX, with what there is to know of it in its metadata."""
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
    proto = made.model_proto
    for simplify in (trim_kernels, pad_in_pooling, drop_unread):
        simplify(proto.graph)
    for name, text in make_metadata(pipeline.config, pipeline.suppression).items():
        proto.metadata_props.add(key=name, value=text)
    write_file(path, proto.SerializeToString())


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

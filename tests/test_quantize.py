"""A quantised file detects nearly what the float one does, in integers."""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tinydet.quantize
from tests.checkpoints import weights_of
from tests.kitti_folders import write_kitti
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.fold import FoldedConv
from tinydet.model.functional import params_and_buffers
from tinydet.model.layers import ACTIVATIONS, downsample
from tinydet.model.postprocess import normalize
from tinydet.onnx_graph import drop_unread, pad_in_pooling, trim_kernels
from tinydet.quantize import export_int8, quantize_onnx
from tinydet.weights.formats import Weights

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

# Without VNNI, an x86 processor adds pairs of products in 16 bits, and what does not fit is cut off: there the rounded
# numbers are computed with in float, as a file that is not optimised says.
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
SATURATES = "avx2" in CPU and "vnni" not in CPU

LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Network(nn.Module):
    """What there is of layers in a folded detector, one of each."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = ACTIVATIONS[activation]
        self.stem = FoldedConv(3, 16, 3, stride=2, bias=True)
        self.depthwise = FoldedConv(16, 16, 3, groups=16, bias=True)
        self.project = FoldedConv(16, 16, bias=True)
        self.predict = FoldedConv(16, 8, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        x = x + self.project(self.activation(self.depthwise(x)))
        x = self.activation(x + F.interpolate(downsample(x, padding="same"), size=x.shape[-2:], mode="nearest"))
        return torch.cat(
            [self.predict(one).permute(0, 2, 3, 1).flatten(1) for one in (x, downsample(x, padding="same"))], 1
        )


class Pipeline(nn.Module):
    """Images to scores, of which only the network is to be quantised."""

    def __init__(self, normalisation: dict[str, Any], activation: str = "relu6") -> None:
        super().__init__()
        self.network, self.normalisation = Network(activation), normalisation

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        return (self.network(normalize(pixels, **self.normalisation)) + 1).sigmoid()


def save(path: Path, pipeline: nn.Module, *, simplified: bool = True) -> Path:
    images = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
        program = torch.export.export(pipeline.eval(), (images,), dynamic_shapes=({0: batch},))
        made = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False, input_names=["images"])
    assert made is not None
    model = made.model_proto
    if simplified:
        for simplify in (trim_kernels, pad_in_pooling, drop_unread):
            simplify(model.graph)
    onnx.save(model, path)
    return path


def run(path: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if SATURATES:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("float") / "lite.onnx", Pipeline(LITE))


def test_a_quantised_network_computes_the_same_in_integers(lite: Path, images: np.ndarray, tmp_path: Path) -> None:
    model = onnx.load(lite)
    model.metadata_props.add(key="config", value="{}")
    onnx.save(model, lite)
    quantize_onnx(lite, tmp_path / "int8.onnx", images)
    expected, found = run(lite, images), run(tmp_path / "int8.onnx", images)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)
    np.testing.assert_array_equal(run(tmp_path / "int8.onnx", images[2:3])[0], found[2])
    assert "config" in [one.key for one in onnx.load(tmp_path / "int8.onnx").metadata_props]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it says that such a file is for this machine
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 5
    assert kinds.count("QLinearAdd") == 2
    assert kinds.count("QuantizeLinear") == 1
    assert {"Conv", "FusedConv", "Pad", "Mul"}.isdisjoint(kinds)
    assert kinds.count("Add") == 1  # before the sigmoid: normalisation is in the scale and zero point of the pixels


def test_normalisation_that_bytes_cannot_say_stays(images: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "imagenet.onnx", Pipeline(IMAGENET))
    quantize_onnx(path, tmp_path / "int8.onnx", images)
    assert "Mul" in [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    found = run(tmp_path / "int8.onnx", images)
    np.testing.assert_allclose(found, run(path, images), rtol=0, atol=0.015)


def test_kernels_and_pooling_pad_by_themselves(lite: Path, images: np.ndarray, tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.onnx", Pipeline(LITE), simplified=False)
    before, after = onnx.load(whole).graph, onnx.load(lite).graph
    for graph, pads, size in ((before, True, 4), (after, False, 3)):
        assert ("Pad" in [node.op_type for node in graph.node]) == pads
        assert (16, 3, size, size) in [tuple(one.dims) for one in graph.initializer]
    np.testing.assert_allclose(run(lite, images), run(whole, images), rtol=0, atol=1e-6)


def test_quantisation_is_silent(
    lite: Path, images: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    quantize_onnx(lite, tmp_path / "int8.onnx", images)
    assert capfd.readouterr() == ("", "")
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)


def test_what_cannot_be_quantised_says_why(
    lite: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swish, out = save(tmp_path / "swish.onnx", Pipeline(LITE, "swish")), tmp_path / "int8.onnx"
    with pytest.raises(InputError, match=r"swish.onnx: int8 is for the Lite detectors: .* swish and"):
        quantize_onnx(swish, out, images)
    monkeypatch.setattr("tinydet.quantize.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(InputError, match=r"int8.onnx: int8 needs onnxruntime; pip install 'tinydet\[onnx\]'"):
        quantize_onnx(lite, out, images)
    assert not out.exists()


def test_int8_is_refused_before_the_work(tmp_path: Path) -> None:
    weights = Weights(model_config("d0"), {}, {}, (), "d0.pt (tinydet d0)")
    with pytest.raises(InputError, match=r"d0.pt \(tinydet d0\): int8 is for the Lite detectors"):
        export_int8(weights, tmp_path / "a.onnx", tmp_path)
    lite = weights._replace(config=model_config("lite0"))
    with pytest.raises(InputError, match=r"AP counts scores from 0\.01 on, and 0\.3 would leave out"):
        export_int8(lite, tmp_path / "a.onnx", tmp_path, score_threshold=0.3)
    assert not [*tmp_path.iterdir()]


def test_int8_is_calibrated_on_train_and_scored_on_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_channels": 8, "fpn_repeats": 1, "head_repeats": 1}
    config = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(64, 96), **small)
    weights = weights_of(config, *params_and_buffers(EfficientDet(config)))
    names = [f"{i:06d}" for i in range(6)]
    data = write_kitti(tmp_path / "kitti", frames=6, lists={"train": names[:4], "val": names[4:]})
    seen: list[int] = []
    monkeypatch.setattr(tinydet.quantize, "CALIBRATION", 3)

    def fake(path: Path, out: Path, images: Iterable[np.ndarray]) -> None:
        assert path.read_text() == "5"
        seen.append(len([*images]))
        copy(path, out)

    monkeypatch.setattr(tinydet.quantize, "export_model", lambda _, out, *, format, max_detections: out.write_text("5"))
    monkeypatch.setattr(tinydet.quantize, "quantize_onnx", fake)
    monkeypatch.setattr(tinydet.quantize, "load_onnx", lambda out: weights if out.read_text() == "5" else None)
    found = export_int8(weights, tmp_path / "a.onnx", data, max_detections=5)
    assert seen == [3]
    assert found.metric == "Moderate R40"
    assert found.before == found.after

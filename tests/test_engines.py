"""An exported file is a detector as its weights are: loaded, evaluated, predicted with, in ONNX Runtime."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.checkpoints import small_weights
from tests.kitti_folders import write_kitti
from tinydet.detector import Detector, load
from tinydet.engines import TorchEngine
from tinydet.errors import InputError
from tinydet.evaluation import evaluate_detector
from tinydet.export import Pipeline, compare_detections, export_model, sample_image
from tinydet.weights.formats import Weights
from tinydet.weights.load import describe, load_detector, load_weights, select_classes
from tinydet.weights.onnx_file import load_onnx

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
CLASSES, SIZE = ("Car", "Pedestrian"), (64, 96)
LOW: dict[str, Any] = {"score_threshold": 0.02, "max_detections": 12}
ALL: dict[str, Any] = {"cell_anchors": 1, **LOW}  # every anchor competes, as in PyTorch


@pytest.fixture(scope="module")
def weights() -> Weights:
    return small_weights(CLASSES, SIZE)


@pytest.fixture(scope="module")
def path(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    difference = export_model(weights, path, format="onnx", image=sample_image(None, (80, 90)), **ALL)
    assert difference is not None
    assert difference.objects > 15
    assert difference.scores < 1e-4
    assert difference.boxes < 0.1
    return path


def test_a_file_runs_alone_on_any_images(weights: Weights, path: Path) -> None:
    assert [each.name for each in path.parent.iterdir()] == ["a.onnx"]
    session, pipeline = onnxruntime.InferenceSession(path), Pipeline(weights, **ALL)
    for batch, size in ((5, (80, 90)), (1, SIZE), (2, (300, 41))):
        images = np.stack([sample_image(None, size)] * batch)
        boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": images})
        assert boxes.shape == (batch, 12, 4)
        assert scores.dtype == np.float32
        assert set(labels.ravel()) <= {-1, 0, 1}
        expected = pipeline(torch.from_numpy(images))
        np.testing.assert_allclose(scores, expected[1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes, expected[0], rtol=0, atol=0.05)


def test_its_metadata_say_what_it_is(weights: Weights, path: Path) -> None:
    known = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    config = json.loads(known["config"])
    assert config["classes"] == list(CLASSES)
    assert config["image_size"] == list(SIZE)
    assert config["mean"] == list(weights.config.mean)
    suppression = json.loads(known["suppression"])
    assert {name: suppression[name] for name in ("method", "candidates", *LOW)} == {
        "method": "soft",
        "candidates": 400,
        **LOW,
    }
    assert describe(path)["suppression"] == suppression
    assert load_onnx(path).config == weights.config


def test_it_detects_what_its_weights_detect(weights: Weights, path: Path) -> None:
    """In images of several sizes in one batch, in tiles, and beside other weights."""
    images = [sample_image(None, size) for size in (SIZE, SIZE, (90, 100), SIZE, (40, 90))]
    detector, expected = load(path), Detector(weights)
    assert detector.classes == CLASSES
    assert "ONNX Runtime" in detector.source
    ways: list[dict[str, Any]] = [{}, {"tiles": (50, 60)}]
    for how in ways:
        found = list(detector.predict(images, batch_size=4, **LOW, **how))
        for one, other in zip(found, expected.predict(images, batch_size=4, **LOW, **how), strict=True):
            assert len(one) > 5
            if one.image.shape[:2] == SIZE and not how:  # others are scaled, and rounded where they are
                assert compare_detections(one.detections, other.detections).scores < 1e-3
            else:
                torch.testing.assert_close(one.scores[:1], other.scores[:1], rtol=0, atol=0.1)
    (every,), (few,) = (list(detector.predict(images[:1], **LOW, classes=one)) for one in (None, ["pedestrian"]))
    assert torch.equal(every.boxes[every.labels == 1], few.boxes)
    both = Detector([load_onnx(path), weights])(images[0], **LOW)
    assert compare_detections(both.detections, expected(images[0], **LOW).detections).scores < 0.02
    assert len(detector(images[0], score_threshold=0.02, max_detections=3)) == 3


def test_classes_are_selected_by_name(path: Path) -> None:
    file = load_onnx(path)
    chosen = select_classes(file, ("person", "CAR"))
    image, how = sample_image(None, SIZE), {"score_threshold": 0.02}
    before, after = Detector(file)(image, **how), Detector(chosen)(image, **how)
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(1 - before.labels, after.labels)
    assert chosen.digest() != file.digest() == load_onnx(path).digest()
    twice = Detector(select_classes(file, ("a", "b"), class_map={"a": "Car", "b": "Car"}))(image, **how)
    assert len(twice) == 2 * int((before.labels == 0).sum())
    with pytest.raises(InputError, match=r"a\.onnx \(lite0 in ONNX Runtime\) knows no dog; it knows Car, Pedestrian"):
        select_classes(file, ("Car", "dog"))


def test_evaluation_runs_it(path: Path, tmp_path: Path) -> None:
    write_kitti(tmp_path, frames=4)
    file = load_onnx(path)
    with pytest.raises(InputError, match=r"leaves out what scores below 0\.02, not 0\.01"):
        evaluate_detector(tmp_path, [file], split="val", batch_size=2)
    file = file._replace(suppression={**file.suppression, "score_threshold": 0.01})
    dataset, found = evaluate_detector(tmp_path, [file], split="val", batch_size=2)
    assert [len(one.labels) for one in found] == [12] * len(dataset)


def test_what_it_cannot_do_is_said_at_once(path: Path) -> None:
    detector = load(path)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"tta": True}, "has one input size; test-time augmentation needs the weights"),
        ({"method": "hard"}, "suppresses duplicate boxes by soft NMS, not hard"),
        ({"score_threshold": 0.01}, r"leaves out what scores below 0\.02, not 0\.01"),
    ]
    for how, text in refused:
        with pytest.raises(InputError, match=text):
            detector.predict([], **{"score_threshold": 0.5, **how})
    with pytest.raises(InputError, match="cannot be compiled"):
        load(path, compile=True)
    for function in (load_weights, load_detector):
        with pytest.raises(InputError, match=r"a\.onnx: an exported file only detects; give the weights that"):
            function(path)


def test_files_that_are_none(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.onnx"
    with pytest.raises(InputError, match=r"bad\.onnx: no such file"):
        load(bad)
    bad.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"bad\.onnx: ONNX Runtime cannot read it \("):
        load(bad)
    for key, value, text in (
        ("format", "other", "its metadata name the format 'other', not 'tinydet-onnx-1'"),
        ("config", "{}", "missing"),
        ("config", "[", "Expecting value"),
        ("suppression", "{}", "suppression: method must be text"),
    ):
        model = onnx.load(path)
        next(one for one in model.metadata_props if one.key == key).value = value
        onnx.save(model, bad)
        with pytest.raises(InputError, match=rf"bad\.onnx: not a file of tinydet export \(.*{text}.*export it again"):
            load(bad)
    with pytest.raises(InputError, match="onnxruntime does not run on xpu here; use --device cpu"):
        load(path, device="xpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"running it needs onnxruntime \(.*\); pip install 'tinydet\[onnx\]'"):
        load(path)


def test_an_exported_file_of_another_model(path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.onnx: holds a lite0, not a d3"):
        load(path, model="d3")


def test_a_network_that_cannot_be_compiled(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenError(RuntimeError):
        """As of Inductor."""

    BrokenError.__module__ = "torch._inductor.exc"
    engine: Any = TorchEngine(weights)
    engine.compiled = True
    batch = engine.prepare([np.zeros((8, 8, 3), np.uint8)], names=["image"])
    for error, kind in ((BrokenError("no g++\nat all"), InputError), (RuntimeError("no memory"), RuntimeError)):
        monkeypatch.setattr(engine, "infer", Mock(side_effect=error))
        with pytest.raises(kind, match=r"the network could not be compiled \(no g\+\+\)$|^no memory$"):
            engine.network(batch)

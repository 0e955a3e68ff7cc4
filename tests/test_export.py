"""An exported file detects what the detector detects, without tinydet."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.export
from tests.checkpoints import small_weights
from tinydet.data.images import letterbox, to_example
from tinydet.detector import Detector
from tinydet.errors import InputError
from tinydet.export import Difference, Pipeline, compare_detections, export_model, sample_image
from tinydet.model.postprocess import Detections
from tinydet.weights.formats import Weights

CLASSES = ("Car", "Pedestrian")
SIZE = (64, 96)
LOW: dict[str, Any] = {"score_threshold": 0.02, "max_detections": 12}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return small_weights(CLASSES, SIZE)


def test_the_pipeline_finds_what_the_detector_finds(weights: Weights) -> None:
    image = sample_image(None, SIZE)
    expected = Detector(weights)(image, **LOW)
    assert len(expected) == 12
    found = Pipeline(weights, candidates=5000, cell_anchors=1, **LOW)(torch.from_numpy(np.stack([image, image])))
    assert [tuple(field.shape) for field in found] == [(2, 12, 4), (2, 12), (2, 12)]
    for i in range(2):
        torch.testing.assert_close(found[0][i], expected.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found[1][i], expected.scores, rtol=1e-4, atol=0)
        assert torch.equal(found[2][i], expected.labels)


def test_the_best_anchor_of_a_cell_is_its_candidate(weights: Weights) -> None:
    images = torch.from_numpy(sample_image(None, SIZE))[None]
    settings: dict[str, Any] = {"score_threshold": 0.0, "max_detections": 500, "box_voting_iou": None}
    pipeline = Pipeline(weights, **settings)
    assert (pipeline(images)[2] >= 0).sum() == 129 * len(CLASSES)  # 8x12 + 4x6 + 2x3 + 1x2 + 1 cells
    assert pipeline.suppression["cell_anchors"] == 9


@pytest.mark.parametrize("size", [SIZE, (90, 100), (40, 90), (375, 1242), (3, 500)])
def test_images_are_scaled_as_the_detector_scales_them(weights: Weights, size: tuple[int, int]) -> None:
    """To the rounding of Pillow: to whole numbers, and of the weights of neighbours."""
    image = sample_image(None, size)
    expected = letterbox(to_example((image, [], []), ""), SIZE, pad_value=weights.config.pad_value)
    pixels = Pipeline(weights).letterbox(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    difference = np.abs(pixels - expected.image)
    assert pixels.shape == expected.image.shape
    assert difference.max() <= 1
    assert difference.mean() < 0.3


def test_rows_without_an_object_say_so(weights: Weights) -> None:
    pipeline = Pipeline(weights, score_threshold=1.0, max_detections=3)
    boxes, scores, labels = pipeline(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    assert boxes.shape == (1, 3, 4)
    assert not boxes.any()
    assert not scores.any()
    assert (labels == -1).all()


def test_a_torch_program_runs_alone_for_any_images(weights: Weights, tmp_path: Path) -> None:
    difference = export_model(weights, tmp_path / "a.pt2", format="torch", **LOW)
    assert difference is not None
    assert difference.objects > 15
    assert difference.scores < 1e-5
    np.save(tmp_path / "images.npy", np.stack([sample_image(None, (80, 90))] * 3))
    code = f"""if True:
        import sys
        import numpy as np, torch
        run = torch.export.load({str(tmp_path / "a.pt2")!r}).module()
        boxes, scores, labels = run(torch.from_numpy(np.load({str(tmp_path / "images.npy")!r})))
        assert boxes.shape == (3, 12, 4) and (scores[0] > 0).sum() > 5
        assert not [name for name in sys.modules if name.startswith("tinydet")]"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)


def test_a_file_whose_scores_differ_is_an_error(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = torch.zeros(1, 1, 4), torch.ones(1, 1), torch.ones(1, 1)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.export, "save", lambda *_: None)
    monkeypatch.setattr(torch.export, "load", lambda _: Mock(**{"module.return_value": lambda images: wrong}))
    with pytest.raises(InputError, match=r"a\.pt2: not written; its scores differ by inf from the detector's"):
        export_model(weights, tmp_path / "a.pt2", format="torch", max_detections=1)
    assert not [*tmp_path.iterdir()]


def test_differences() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.0]), torch.tensor([0, 1, -1])
    same = Detections(boxes, scores, labels)
    assert compare_detections(same, same) == Difference(0.0, 0.0, 2)
    moved = Detections(boxes + torch.tensor([0.0, 0, 2, 0]), scores - 0.25, labels)
    assert compare_detections(same, moved) == pytest.approx((2.0, 0.25, 2))
    swapped = Detections(*(field[[1, 0, 2]] for field in same))
    assert compare_detections(same, swapped) == Difference(0.0, 0.0, 2)
    missing = same._replace(scores=torch.tensor([0.9, 0.0, 0.0]))
    assert compare_detections(same, missing).scores == float("inf")
    assert compare_detections(missing, same).scores == float("inf")


def test_refusals_come_before_the_work(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinydet.export, "Pipeline", None)
    with pytest.raises(InputError, match="format must be one of onnx, torch; got 'onn'; did you mean onnx"):
        export_model(weights, tmp_path / "a", format="onn")
    monkeypatch.setattr(tinydet.export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ONNX needs onnx and onnxscript; pip install 'tinydet\[onnx\]'"):
        export_model(weights, tmp_path / "a.onnx", format="onnx")


def test_an_image_to_test_a_file_on(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "a.png")
    assert sample_image(tmp_path / "a.png", (10, 15)).shape == (20, 30, 3)
    noise = sample_image(None, (60, 90))
    assert noise.shape == (60, 90, 3)
    assert noise.std() > 30
    np.testing.assert_array_equal(noise, sample_image(None, (60, 90)))

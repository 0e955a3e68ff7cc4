"""A detector takes pictures in any form, and several views are better than none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import weights_of
from tinydet.detector import SEVERAL_VIEWS, Detector, as_image, load
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.detect import Detections
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import state
from tinydet.prediction import Prediction
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights

CLASSES = ("Car", "Pedestrian", "Tram")
LOW: dict[str, Any] = {"score_threshold": 0.02, "max_detections": 20}


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights that say something else of every picture."""
    torch.manual_seed(0)
    model = EfficientDet(model_config("lite0", classes=CLASSES, image_size=(64, 96)))
    torch.nn.init.normal_(model.class_net.predict.pointwise.weight, std=0.04)
    return weights_of(model.config, *state(model))


@pytest.fixture(scope="module")
def detector(weights: Weights) -> Detector:
    return Detector(weights)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


def assert_same(one: Detections, other: Detections) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_a_picture_in_any_form(detector: Detector, image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = detector(image, **LOW)
    assert isinstance(expected, Prediction)
    assert len(expected) == 20
    assert expected.names == [CLASSES[label] for label in expected.labels]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor):
        found = detector(picture, **LOW)
        assert_same(found.detections, expected.detections)
        np.testing.assert_array_equal(found.image, image)
    assert detector(tmp_path / "a.png").path == tmp_path / "a.png"


def test_several_pictures_in_any_form(detector: Detector, image: np.ndarray) -> None:
    other = image[::-1].copy()
    expected = [detector(one, **LOW).detections for one in (image, other)]
    both = np.stack([image, other])
    for pictures in ([image, other], (image, Image.fromarray(other)), both, torch.from_numpy(both).permute(0, 3, 1, 2)):
        found = detector(pictures, **LOW)
        assert [one.path.name for one in found] == ["picture-1", "picture-2"]
        for one, detections in zip(found, expected, strict=True):
            torch.testing.assert_close(one.scores, detections.scores, rtol=1e-4, atol=1e-6)
    assert detector([]) == []
    mixed = detector([image, image[:20]], **LOW)
    assert (mixed[1].boxes[:, 3] <= 20).all()


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((4, 4), np.uint8), r"an array must be uint8\[H W 3\], RGB; got uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), r"an array must be uint8\[H W 3\], RGB; got float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"a tensor must be uint8\[3 H W\], RGB; got torch.uint8 of shape"),
        (torch.zeros(3, 4, 4), r"a tensor must be uint8\[3 H W\], RGB; got torch.float32"),
        ("gone.png", r"gone\.png: not a readable picture"),
    ],
)
def test_what_is_no_picture_is_named(detector: Detector, picture: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        detector(picture)


def test_a_pil_picture_of_any_mode_is_turned_upright(image: np.ndarray) -> None:
    grey = Image.fromarray(image).convert("L")
    assert as_image(grey).shape == (50, 90, 3)
    assert grey.mode == "L"
    turned = Image.fromarray(image)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    assert as_image(turned).shape in ((90, 50, 3), (50, 90, 3))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_detections": 0}, "max_detections must be positive, got 0"),
        ({"score_threshold": 2}, r"score_threshold must be in \[0, 1\], got 2"),
        ({"method": "no"}, "method must be one of hard, soft; got 'no'"),
        ({"classes": ["Cow"]}, "a test finds no Cow; it finds Car, Pedestrian, Tram"),
    ],
)
def test_a_senseless_setting_is_named(detector: Detector, image: np.ndarray, setting: Any, said: str) -> None:
    for call in (lambda: detector(image, **setting), lambda: detector.run([], **setting)):
        with pytest.raises(InputError, match=said):
            call()


def test_other_classes_are_not_looked_for(detector: Detector, image: np.ndarray) -> None:
    everything = detector(image, score_threshold=0.0, max_detections=1000)
    cars = detector(image, score_threshold=0.0, max_detections=1000, classes=["car"])
    assert set(cars.names) == {"Car"}
    assert set(everything.names) == set(CLASSES)
    ours = everything.scores[everything.labels == 0]
    assert len(ours) > 50
    torch.testing.assert_close(cars.scores[:50], ours[:50])


def test_views_are_mirrored_back_and_joined(detector: Detector, image: np.ndarray) -> None:
    plain, several = detector(image, **LOW), detector(image, tta=True, **LOW)
    assert not torch.equal(plain.scores, several.scores)
    other = detector(image[:, ::-1].copy(), tta=True, **LOW)  # the same views, in another order
    back = torch.stack([90 - other.boxes[:, 2], other.boxes[:, 1], 90 - other.boxes[:, 0], other.boxes[:, 3]], 1)
    torch.testing.assert_close(other.scores, several.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(back, several.boxes, rtol=1e-4, atol=1e-3)
    assert len(SEVERAL_VIEWS) == 4
    assert (several.scores[:-1] >= several.scores[1:]).all()


def test_a_detector_is_loaded_from_a_file(weights: Weights, image: np.ndarray, tmp_path: Path) -> None:
    state_of = (weights.params, weights.buffers)
    save_checkpoint(tmp_path / "best.pt", Checkpoint(weights.config, *state_of, *state_of, {}))
    detector = load(tmp_path / "best.pt")
    assert detector.classes == CLASSES
    assert detector.source.startswith("best.pt (tinydet lite0")
    assert_same(detector(image, **LOW).detections, Detector(weights)(image, **LOW).detections)

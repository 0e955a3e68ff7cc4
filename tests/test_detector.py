"""A detector takes images in any form; predictions read back from every format; TTA."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import weights_of
from tests.random_detections import found
from tinydet.data.kitti import read_kitti_objects
from tinydet.detector import VIEWS, Detector, Prediction, as_image, load
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.model.postprocess import Detections
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights

CLASSES = ("Car", "Pedestrian", "Tram")
LOW: dict[str, Any] = {"score_threshold": 0.02, "max_detections": 20}


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights whose outputs differ from image to image."""
    torch.manual_seed(0)
    model = EfficientDet(model_config("lite0", classes=CLASSES, image_size=(64, 96)))
    torch.nn.init.normal_(model.class_net.predict.pointwise.weight, std=0.04)
    return weights_of(model.config, *params_and_buffers(model))


@pytest.fixture(scope="module")
def detector(weights: Weights) -> Detector:
    return Detector(weights)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


def assert_same(one: Detections, other: Detections) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_an_image_in_any_form(detector: Detector, image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = detector(image, **LOW)
    assert isinstance(expected, Prediction)
    assert len(expected) == 20
    assert expected.names == [CLASSES[label] for label in expected.labels]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor):
        found = detector(form, **LOW)
        assert_same(found.detections, expected.detections)
        np.testing.assert_array_equal(found.image, image)
    assert detector(tmp_path / "a.png").path == tmp_path / "a.png"


def test_several_images_in_any_form(detector: Detector, image: np.ndarray) -> None:
    other = image[::-1].copy()
    expected = [detector(one, **LOW).detections for one in (image, other)]
    both = np.stack([image, other])
    for images in ([image, other], (image, Image.fromarray(other)), both, torch.from_numpy(both).permute(0, 3, 1, 2)):
        found = detector(images, **LOW)
        assert [one.path.name for one in found] == ["image-1", "image-2"]
        for one, detections in zip(found, expected, strict=True):
            torch.testing.assert_close(one.scores, detections.scores, rtol=1e-4, atol=1e-6)
    assert detector([]) == []
    mixed = detector([image, image[:20]], **LOW)
    assert (mixed[1].boxes[:, 3] <= 20).all()


FORMS = r"an image must be a path, a PIL image, an array uint8\[H W 3\] or a tensor uint8\[3 H W\], RGB; got "


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), FORMS + r"uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), FORMS + r"float64 of shape \(4, 4, 3\)"),
        (np.zeros((0, 0, 3), np.uint8), FORMS + r"uint8 of shape \(0, 0, 3\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), FORMS + r"torch.uint8 of shape \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4), FORMS + r"torch.float32 of shape \(3, 4, 4\)"),
        (None, FORMS + "NoneType"),
        ([None], FORMS + "NoneType"),
        (b"bytes", FORMS + "bytes"),
        ("gone.png", r"gone\.png: not a readable image"),
    ],
)
def test_anything_else_is_an_error(detector: Detector, image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        detector(image)


def test_a_pil_image_of_any_mode_is_turned_upright(image: np.ndarray) -> None:
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
        ({"method": "no"}, "method must be one of soft, hard; got 'no'"),
        ({"classes": ["Cow"]}, "a test finds no Cow; it finds Car, Pedestrian, Tram"),
        ({"classes": "Cow"}, "a test finds no Cow; it finds Car, Pedestrian, Tram"),
    ],
)
def test_a_senseless_setting_is_named(detector: Detector, image: np.ndarray, setting: Any, said: str) -> None:
    for call in (lambda: detector(image, **setting), lambda: detector.detect([], **setting)):
        with pytest.raises(InputError, match=said):
            call()


@pytest.mark.parametrize("classes", [["tram"], "Tram", ["TRAM", "tram"]])
def test_other_classes_are_left_out(detector: Detector, image: np.ndarray, classes: Any) -> None:
    everything = detector(image, score_threshold=0.01, max_detections=1000)
    trams = detector(image, score_threshold=0.01, max_detections=1000, classes=classes)
    assert set(trams.names) == {"Tram"}
    assert set(everything.names) == set(CLASSES)
    ours = everything.labels == 2
    assert ours.sum() > 50
    torch.testing.assert_close(trams.scores[:50], everything.scores[ours][:50])
    torch.testing.assert_close(trams.boxes[:50], everything.boxes[ours][:50])


def test_several_classes_keep_their_labels(detector: Detector, image: np.ndarray) -> None:
    found = detector(image, **LOW, classes=["Tram", "Car"])
    assert set(found.names) == {"Car", "Tram"}
    several = detector(image, **LOW, classes=["Tram", "Car"], tta=True)
    assert set(several.names) == {"Car", "Tram"}


def test_views_are_mirrored_back_and_fused(detector: Detector, image: np.ndarray) -> None:
    plain, several = detector(image, **LOW), detector(image, tta=True, **LOW)
    assert not torch.equal(plain.scores, several.scores)
    other = detector(image[:, ::-1].copy(), tta=True, **LOW)  # the same views, in another order
    back = torch.stack([90 - other.boxes[:, 2], other.boxes[:, 1], 90 - other.boxes[:, 0], other.boxes[:, 3]], 1)
    torch.testing.assert_close(other.scores, several.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(back, several.boxes, rtol=1e-4, atol=1e-3)
    assert len(VIEWS) == 4
    assert (several.scores[:-1] >= several.scores[1:]).all()


def test_a_detector_is_loaded_from_a_file(weights: Weights, image: np.ndarray, tmp_path: Path) -> None:
    variables = weights.params, weights.buffers
    save_checkpoint(tmp_path / "best.pt", Checkpoint(weights.config, *variables, *variables, {}))
    detector = load(tmp_path / "best.pt")
    assert detector.classes == CLASSES
    assert detector.source.startswith("best.pt (tinydet lite0")
    assert_same(detector(image, **LOW).detections, Detector(weights)(image, **LOW).detections)


# Predictions

PAIR = ("Car", "Pedestrian")


def test_a_json_line_holds_all_of_a_prediction() -> None:
    one = Prediction(Path("folder/frame.png"), np.zeros((80, 120, 3), np.uint8), PAIR, *found(200))
    line = one.to_json()
    assert "\n" not in line
    read = json.loads(line)
    assert {name: read[name] for name in ("image", "width", "height")} == {
        "image": "folder/frame.png",
        "width": 120,
        "height": 80,
    }
    rows = read["detections"]
    assert_same(
        one.detections,
        Detections(
            torch.tensor([row["box"] for row in rows]),
            torch.tensor([row["score"] for row in rows]),
            torch.tensor([row["label"] for row in rows]),
        ),
    )
    assert [row["class"] for row in rows] == [PAIR[row["label"]] for row in rows]
    assert len(line) < 200 * 110  # no digits that a float32 does not have


def result_of(detections: Detections, classes: tuple[str, ...] = PAIR) -> Prediction:
    """A prediction in an image of 100x50."""
    return Prediction(Path("a.png"), np.zeros((50, 100, 3), np.uint8), classes, *detections)


ONE = Detections(torch.tensor([[10.0, 5, 30, 45]]), torch.tensor([0.5]), torch.tensor([1]))


def test_coco_results_have_sides_and_ids() -> None:
    assert result_of(ONE).to_coco(7) == [{"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 40], "score": 0.5}]
    assert result_of(ONE).to_coco(7, category_ids={"Pedestrian": 90})[0]["category_id"] == 90
    assert result_of(found(0)).to_coco(7) == []


def test_yolo_results_are_shares_of_the_image() -> None:
    assert result_of(ONE).to_yolo() == "1 0.2 0.5 0.2 0.8 0.5\n"
    assert result_of(found(0)).to_yolo() == ""


def test_a_prediction_says_what_it_holds() -> None:
    one = result_of(ONE)
    assert (len(one), one.names, one.labels.tolist()) == (1, ["Pedestrian"], [1])
    assert one.draw().size == (100, 50)
    assert np.asarray(one.draw()).any()


def test_a_kitti_result_reads_back(tmp_path: Path) -> None:
    detections = found(500)
    path = tmp_path / "000001.txt"
    path.write_text(result_of(detections, ("Car", "traffic light")).to_kitti())
    read = read_kitti_objects(path, scored=True)
    assert read.types == [("Car", "traffic_light")[label] for label in detections.labels.tolist()]
    assert read.scores is not None
    np.testing.assert_array_equal(read.boxes.astype(np.float32), detections.boxes.numpy())
    np.testing.assert_array_equal(read.scores.astype(np.float32), detections.scores.numpy())
    assert result_of(found(0)).to_kitti() == ""


def test_a_kitti_line_leaves_out_what_only_3d_detectors_know() -> None:
    one = Detections(torch.tensor([[712.4, 143, 810.73, 307.92]]), torch.tensor([0.87]), torch.tensor([1]))
    expected = "Pedestrian -1 -1 -10 712.4 143.0 810.73 307.92 -1 -1 -1 -1000 -1000 -1000 -10 0.87\n"
    assert result_of(one).to_kitti() == expected

"""A detector takes images in any form; views, tiles and several networks are one detection."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.engines
from tests.checkpoints import weights_of
from tinydet.detector import Detector, as_image, load
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.model.postprocess import Detections, normalize
from tinydet.ops.nms import weighted_boxes_fusion
from tinydet.prediction import Prediction
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights
from tinydet.weights.load import select_classes

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


FORMS = r"image-1 must be a path, a PIL image, an array uint8\[H W 3\] or a tensor uint8\[3 H W\], RGB; got "


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), FORMS + r"uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), FORMS + r"float64 of shape \(4, 4, 3\)"),
        (np.zeros((0, 0, 3), np.uint8), FORMS + r"uint8 of shape \(0, 0, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), FORMS + r"uint8 of shape \(0, 9, 3\)"),
        (np.full((4, 4, 3), np.nan, np.float32), FORMS + "float32 of shape"),
        (np.zeros((4, 4, 3), bool), FORMS + "bool of shape"),
        (np.zeros((4, 4, 3), np.uint16), FORMS + "uint16 of shape"),
        (np.full((4, 4, 3), 300), FORMS + "int64 of shape"),
        (np.zeros((4, 4, 3), object), FORMS + "object of shape"),
        (np.ma.masked_array(np.zeros((4, 4, 3), np.uint8)), FORMS + "MaskedArray"),
        (np.zeros((3, 4, 4), np.uint8), FORMS + r"uint8 of shape \(3, 4, 4\)"),
        (torch.zeros(3, 4, 4, requires_grad=True), FORMS + r"torch.float32 of shape \(3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), FORMS + r"torch.complex64 of shape \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), FORMS + r"torch.uint8 of shape \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4), FORMS + r"torch.float32 of shape \(3, 4, 4\)"),
        (None, FORMS + "NoneType"),
        ([None], FORMS + "NoneType"),
        ([np.zeros((4, 4, 3), np.uint8), None], "image-2 must be a path, .*; got NoneType"),
        (b"bytes", FORMS + "bytes"),
        (io.BytesIO(b"bytes"), FORMS + "BytesIO"),
        (np.zeros((2, 4, 4, 3)), FORMS + r"float64 of shape \(4, 4, 3\)"),
        (Image.new("RGB", (0, 0)), FORMS + r"uint8 of shape \(0, 0, 3\)"),
        (Image.new("F", (4, 4)), r"image-1: not a readable image \(floating point pixels have no known range\)"),
        ("gone.png", r"gone\.png: not a readable image"),
    ],
)
def test_anything_else_is_an_error(detector: Detector, image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        detector(image)


def test_an_image_in_any_order_of_memory_and_of_any_shape(detector: Detector, image: np.ndarray) -> None:
    frozen, line = image.copy(), np.repeat(image[:1, :1], 9000, axis=1)
    frozen.flags.writeable = False
    for view in (image[::-1, ::-1, ::-1], image[::2, ::3], np.asfortranarray(image), frozen, image[:1, :1]):
        assert_same(detector(view, **LOW).detections, detector(np.ascontiguousarray(view), **LOW).detections)
    for thin in (line, line.transpose(1, 0, 2)):
        (found,) = detector([thin], **LOW)
        assert len(found) > 0
        assert (found.boxes <= torch.tensor([*thin.shape[1::-1]] * 2)).all()


@pytest.mark.parametrize("views", [{}, {"tta": True}, {"tiles": (25, 90)}])
def test_an_output_that_is_not_finite_is_an_error_that_names_the_image(
    detector: Detector, weights: Weights, image: np.ndarray, views: dict[str, Any]
) -> None:
    """Whatever the weights are, since files of such weights are refused."""
    name = "box_net.predict.pointwise.bias"
    params = {**weights.params, name: torch.full_like(weights.params[name], torch.nan)}
    broken = Detector(weights._replace(params=params))
    with pytest.raises(FloatingPointError, match=r"^image image-1: the network's output is not finite"):
        broken([image, image], **views)
    with pytest.raises(FloatingPointError, match=r"^image image-1: "):
        next(broken.predict([image], classes="Car", **views))


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
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"overlap": 1.0}, r"overlap must be in \[0, 0\.9\], got 1.0"),
        ({"tiles": "large"}, r"tiles must be \(height, width\) in pixels or \"auto\", got 'large'"),
        ({"tiles": (0, 50)}, r"tiles must be .*, got \(0, 50\)"),
        ({"tiles": 64}, "tiles must be .*, got 64"),
        ({"classes": ["Cow"]}, r"a test finds no Cow; it finds Car, Pedestrian, Tram \(labels 0 to 2\)"),
        ({"classes": "Cow"}, "a test finds no Cow; it finds Car, Pedestrian, Tram"),
        ({"classes": [0, 3, -1]}, r"a test finds no 3, -1; it finds Car, Pedestrian, Tram \(labels 0 to 2\)"),
        ({"classes": []}, "a test finds no class of an empty list; it finds Car"),
    ],
)
def test_a_senseless_setting_is_named(detector: Detector, image: np.ndarray, setting: Any, said: str) -> None:
    for call in (lambda: detector(image, **setting), lambda: detector.predict([], **setting)):
        with pytest.raises(InputError, match=said):
            call()


@pytest.mark.parametrize("classes", [["tram"], "Tram", ["TRAM", "tram"], 2, [2]])
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
    several = detector(image, **LOW, classes=[2, "Car"], tta=True)
    assert set(several.names) == {"Car", "Tram"}


def test_views_are_mirrored_back_and_fused(detector: Detector, image: np.ndarray) -> None:
    plain, several = detector(image, **LOW), detector(image, tta=True, **LOW)
    assert not torch.equal(plain.scores, several.scores)
    other = detector(image[:, ::-1].copy(), tta=True, **LOW)  # the same views, in another order
    back = torch.stack([90 - other.boxes[:, 2], other.boxes[:, 1], 90 - other.boxes[:, 0], other.boxes[:, 3]], 1)
    torch.testing.assert_close(other.scores, several.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(back, several.boxes, rtol=1e-4, atol=1e-3)
    assert (several.scores[:-1] >= several.scores[1:]).all()


def test_a_detector_is_loaded_from_a_file(weights: Weights, image: np.ndarray, tmp_path: Path) -> None:
    variables = weights.params, weights.buffers
    save_checkpoint(tmp_path / "best.pt", Checkpoint(weights.config, *variables, *variables, {}))
    detector, two = load(tmp_path / "best.pt"), load([tmp_path / "best.pt", str(tmp_path / "best.pt")])
    assert two.source == f"{detector.source} and {detector.source}"
    assert detector.classes == CLASSES
    assert detector.source.startswith("best.pt (tinydet lite0")
    assert_same(detector(image, **LOW).detections, Detector(weights)(image, **LOW).detections)


# Tiles, and several networks


def test_a_tile_sees_what_its_crop_alone_would(detector: Detector, image: np.ndarray) -> None:
    tile, several = {"tiles": (50, 90), "overlap": 0.2}, {**LOW, "max_detections": 1000}
    assert_same(detector(image, **LOW, **tile).detections, detector(image, **LOW).detections)  # as large as the image
    assert_same(detector(image, **LOW, tiles="auto").detections, detector(image, **LOW).detections)
    large = np.concatenate([image, image[::-1]])
    left, right = detector(large[:, :60], **several), detector(large[:, 30:], **several)
    boxes = torch.cat([detector(large, **several).boxes, left.boxes, right.boxes + torch.tensor([30.0, 0, 30, 0])])
    found = detector(large, **several, tiles=(100, 60), overlap=0.5, batch_size=1)
    assert {tuple(box) for box in found.boxes.tolist()} < {tuple(box) for box in boxes.tolist()}
    assert len(detector(large, **several)) < len(found) < len(boxes)
    assert not torch.equal(detector(large, **LOW, tiles="auto").scores, detector(large, **LOW).scores)


def test_batches_are_no_larger_than_asked_for(
    detector: Detector, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(batch: Any, *args: Any, **settings: Any) -> Any:
        sizes.append(len(batch))
        return normalize(batch, *args, **settings)

    monkeypatch.setattr(tinydet.engines, "normalize", watched)
    large = np.tile(image, (2, 2, 1))
    how: dict[str, Any] = {"tiles": (50, 90), "overlap": 0.0, "tta": True}
    assert len([*detector.predict([large, large], batch_size=4, **how)]) == 2
    assert sizes == [4] * 10  # two scales of two images in five crops, mirrored too


def test_several_weights_are_fused_whatever_the_order_of_their_classes(weights: Weights, image: np.ndarray) -> None:
    other = weights._replace(
        config=replace(weights.config, classes=("tram", "Car", "Pedestrian"), image_size=(96, 128)), source="b"
    )
    config = replace(weights.config, image_size=(96, 128))
    alone = Detector(weights), Detector(select_classes(other, CLASSES)._replace(config=config))
    both = Detector([weights, other])
    assert (both.classes, both.source) == (CLASSES, "a test and b")
    found = both(image, **LOW)
    views = [one(image, **LOW).detections for one in alone]
    boxes, scores, labels = map(torch.cat, zip(*views, strict=True))
    sources = torch.tensor([0] * len(views[0].scores) + [1] * len(views[1].scores))
    expected = weighted_boxes_fusion(boxes, scores, labels, sources, count=2)
    keep = expected[1] >= LOW["score_threshold"]
    assert keep.sum() > 5
    assert_same(found.detections, Detections(*(field[keep][:20] for field in expected)))


def test_weights_of_other_classes_are_refused(weights: Weights) -> None:
    other = weights._replace(config=replace(weights.config, classes=("Car", "Pedestrian", "Bus")), source="b")
    with pytest.raises(InputError, match="b finds no Tram, as a test does; classes must be the same"):
        Detector([weights, other])
    fewer = weights._replace(config=replace(weights.config, classes=CLASSES[:2]), source="b")
    with pytest.raises(InputError, match="b finds no Tram, as a test does"):
        Detector([fewer, weights])
    with pytest.raises(InputError, match="a detector needs weights"):
        Detector([])


def test_any_iterable_of_images_is_detected_in_lazily(detector: Detector, image: np.ndarray) -> None:
    drawn: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for i in range(9):
            drawn.append(i)
            yield np.roll(image, i, 0)

    predictions = detector.predict(images(), workers=1, **LOW)
    assert drawn == []
    first = next(predictions)
    assert len(drawn) <= 3
    assert_same(first.detections, detector(image, **LOW).detections)
    assert [one.path.name for one in predictions] == [f"image-{i}" for i in range(2, 10)]
    batch = np.stack([image, image[::-1]])
    for one, other in zip(detector.predict(batch, batch_size=2, **LOW), detector(batch, **LOW), strict=True):
        assert_same(one.detections, other.detections)


def test_predictions_at_once_leave_the_number_of_threads_as_it_was(detector: Detector) -> None:
    before, images = torch.get_num_threads(), [np.zeros((32, 32, 3), np.uint8)] * 6
    torch.set_num_threads(4)
    try:
        held = detector.predict(images, batch_size=1)
        next(held)
        with ThreadPoolExecutor(1) as pool:  # as a server does for another request
            assert pool.submit(lambda: [*detector.predict(images)] and torch.get_num_threads()).result() == 4
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 4
        assert torch.get_num_threads() == 4
        torch.set_num_threads(2)
        assert detector.workers == 2
    finally:
        torch.set_num_threads(before)

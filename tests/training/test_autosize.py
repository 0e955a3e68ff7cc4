"""Anchor recall, and the input that it recommends."""

from pathlib import Path

import numpy as np
import pytest

from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.labels import IGNORE
from tinydet.model.config import model_config
from tinydet.training.autosize import AnchorRecall, anchor_recall, best_input, compare_inputs, input_sizes

CONFIG = model_config("lite0", classes=("cat", "dog", "cow"), image_size=(128, 128))


def dataset_of(sides: list[float], labels: list[int], *, size: tuple[int, int] = (256, 256)) -> DetectionDataset:
    """An image for each square object, in its middle."""
    middle = np.array([size[1] / 2, size[0] / 2] * 2)
    frames = []
    for side, label in zip(sides, labels, strict=True):
        box = (middle + side / 2 * np.array([-1, -1, 1, 1]))[None].astype(np.float32)
        frames.append(Frame("a", Path("a.png"), size, box, np.array([label])))
    return DetectionDataset(frames, classes=CONFIG.classes)


def test_recall_is_by_class_and_by_size_in_the_input() -> None:
    """At half the size, a side of 64 is an anchor of its own and one of 10 fits none."""
    dataset = dataset_of([64, 64, 10, 240, 10], [0, 0, 0, 1, IGNORE])
    found = anchor_recall(dataset, CONFIG)
    assert found.by_class == {"cat": pytest.approx(2 / 3), "dog": 1.0, "cow": pytest.approx(np.nan, nan_ok=True)}
    assert found.mean == pytest.approx((2 / 3 + 1) / 2)
    assert found.by_size["small"] == 0.0
    assert found.by_size["medium"] == 1.0
    assert found.by_size["large"] == 1.0
    assert (found.image_size, found.anchor_scale) == ((128, 128), CONFIG.anchor_scale)


def test_recall_is_of_a_sample_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of([64, *[10] * 8, 64], [0] * 10)
    assert anchor_recall(dataset, CONFIG).mean == pytest.approx(0.2)
    monkeypatch.setattr("tinydet.training.autosize.MAX_IMAGES", 2)
    assert anchor_recall(dataset, CONFIG).mean == 1.0


def test_inputs_have_the_shape_of_the_images() -> None:
    sizes = input_sizes((512, 512), aspect=3.0)
    areas = [height * width for height, width in sizes]
    assert areas == sorted(areas)
    assert all(height % 32 == width % 32 == 0 for height, width in sizes)
    assert all(2.5 < width / height < 3.5 for height, width in sizes)
    assert areas[0] < 512 * 512 < areas[-1]
    assert input_sizes((32, 32), aspect=1.0)[0] == (32, 32)


def test_small_objects_ask_for_small_anchors_or_large_inputs() -> None:
    small = compare_inputs(dataset_of([32.0] * 4, [0, 1, 2, 0]), CONFIG)
    large = compare_inputs(dataset_of([200.0] * 4, [0, 1, 2, 0]), CONFIG)
    assert best_input(small).mean == best_input(large).mean == 1.0
    assert best_input(small).anchor_scale < 3
    assert best_input(large).image_size < best_input(small).image_size


def test_the_smallest_input_with_enough_recall() -> None:
    found = [AnchorRecall((size, size), 2.0, mean, {}, {}) for size, mean in ((64, 0.5), (96, 0.96), (128, 0.99))]
    assert best_input(found).image_size == (96, 96)
    assert best_input(found[:1]).image_size == (64, 64)

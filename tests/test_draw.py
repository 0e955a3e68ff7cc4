"""Boxes are drawn in the colour of their class, where they are, on a copy of the image."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tinydet.data.images import resample
from tinydet.draw import BLACK, GREY, PALETTE, WHITE, draw, image_grid, place_tags, save_jpeg
from tinydet.labels import BACKGROUND, IGNORE

CLASSES = ("Car", "Pedestrian", "Cyclist")
BLANK = np.full((120, 300, 3), 255, dtype=np.uint8)
BOX = (100, 40, 200, 100)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(*args: Any, classes: Any = CLASSES, **settings: Any) -> np.ndarray:
    return np.array(draw(*args, classes=classes, **settings))


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """The tightest xyxy around all pixels that differ."""
    y, x = np.nonzero((before != after).any(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The texts drawn since, in their order, and their colours."""
    written: dict[str, Any] = {}
    write = ImageDraw.ImageDraw.text

    def spy(pen: Any, xy: Any, text: str, **settings: Any) -> None:
        written[text] = settings["fill"]
        write(pen, xy, text, **settings)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return written


def test_box_is_an_outline_in_its_class_colour() -> None:
    image = noise(120, 300)
    after = drawn(image, [BOX], [1])
    for x, y in ((100, 70), (199, 70), (150, 40), (150, 99)):
        assert tuple(after[y, x]) == PALETTE[1]
    np.testing.assert_array_equal(after[43:97, 103:197], image[43:97, 103:197])
    x1, y1, x2, y2 = changed(image, after)
    assert (x1, x2, y2) == (98, 202, 102)  # a line of its own and one of dark on either side
    assert 0 <= y1 < 35  # the tag


def test_inputs_are_unchanged_and_may_be_tensors() -> None:
    image, boxes, labels = noise(120, 300), np.array([[9.0, 9, 60, 60], [5, 5, 90, 90]]), np.array([IGNORE, 1])
    scores, truth = np.array([0.5, 0.4]), np.array([[10.0, 5, 80, 90]])
    inputs = (image, boxes, labels, scores, truth)
    before = [x.copy() for x in inputs]
    after = drawn(*inputs[:4], truth=truth)
    for x, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, was)
    tensors = [torch.from_numpy(x) for x in inputs[1:]]
    np.testing.assert_array_equal(drawn(image, *tensors[:3], truth=tensors[3]), after)


def test_no_boxes_leave_the_image_as_it_was() -> None:
    image = noise(20, 30)
    for boxes, labels in (([], []), ([(2, 2, 9, 9)], [BACKGROUND])):
        np.testing.assert_array_equal(drawn(image, boxes, labels), image)


@pytest.mark.parametrize("width", [75, 450])
def test_image_is_scaled_before_it_is_drawn_on(width: int) -> None:
    image, scale = noise(120, 300), width / 300
    small = resample(image, (0, 0, 300, 120), scale=scale)
    boxes = np.array([BOX, (0, 0, 40, 40)])
    expected = drawn(small, boxes * scale, [0, IGNORE], truth=boxes[:1] * scale)
    np.testing.assert_array_equal(drawn(image, boxes, [0, IGNORE], truth=boxes[:1], width=width), expected)


@pytest.mark.parametrize("count", [8, 90])
def test_class_has_one_colour_for_any_number_of_classes(count: int) -> None:
    names = [*CLASSES, *(f"class {i}" for i in range(3, count))]
    for label in (0, 2, count - 1):
        assert tuple(drawn(BLANK, [BOX], [label], classes=names)[70, 100]) == PALETTE[label % len(PALETTE)]
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.mark.parametrize("scores", [(0.874, 0.3, 0.5), (0.3, 0.874, 0.5)])
def test_highest_score_lies_on_top_with_name_and_score(texts: dict[str, Any], scores: tuple[float, ...]) -> None:
    after = drawn(BLANK, [BOX, BOX, (0, 0, 9, 9)], [0, 1, IGNORE], scores)
    best = int(scores[1] > scores[0])
    assert tuple(after[70, 100]) == PALETTE[best]
    assert list(texts) == [f"{CLASSES[1 - best]} 0.30", f"{CLASSES[best]} 0.87"]


def test_without_scores_the_smaller_box_lies_on_top(texts: dict[str, Any]) -> None:
    small = (100, 60, 150, 80)
    for boxes, labels in (([BOX, small], [0, 1]), ([small, BOX], [1, 0])):
        texts.clear()
        after = drawn(BLANK, boxes, labels)
        assert tuple(after[70, 100]) == PALETTE[1]
        assert tuple(after[90, 100]) == PALETTE[0]
        assert list(texts) == ["Car", "Pedestrian"]


def test_ignore_region_is_hatched_in_grey_without_a_tag(texts: dict[str, Any]) -> None:
    image = noise(120, 300)
    after = drawn(image, [BOX], [IGNORE], [0.9])
    assert changed(image, after) == BOX
    differs = (image != after).any(axis=2)
    assert (after[differs] == GREY).all()
    assert 0.1 < differs[40:100, 100:200].mean() < 0.3
    assert 0.5 < differs[40, 100:200].mean() < 0.8  # dashed
    assert not texts


def test_truth_is_dashed_over_lines_and_under_tags() -> None:
    missed = (20, 50, 60, 110)
    alone = drawn(BLANK // 2, [BOX], [1], [0.5])
    after = drawn(BLANK // 2, [BOX], [1], [0.5], truth=[BOX, missed])
    for y in (40, 99):
        edge = after[y, 100:200]
        white, coloured = (edge == 255).all(axis=1), (edge == PALETTE[1]).all(axis=1)
        assert 0.2 < white.mean() < 0.5
        assert coloured.mean() > 0.3  # the line shows between the dashes
    left = after[50:110, 20]
    assert {tuple(pixel) for pixel in left.tolist()} == {WHITE, BLACK, (127, 127, 127)}
    assert not (after[53:107, 23:57] != 127).any()
    np.testing.assert_array_equal(after[20:38, 100:200], alone[20:38, 100:200])  # the tag


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 150)),
    st.lists(st.tuples(*[st.floats(-50, 200)] * 4, st.sampled_from([0, 7, IGNORE, BACKGROUND])), max_size=6),
)
def test_any_box_can_be_drawn(size: tuple[int, int], rows: list[tuple[float, ...]]) -> None:
    boxes = [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2, _ in rows]
    after = drawn(noise(*size), boxes, [row[4] for row in rows], classes=["long name of a class"] * 8, truth=boxes)
    assert (after.shape, after.dtype) == ((*size, 3), np.uint8)


side = st.integers(0, 400)


@settings(deadline=None)
@given(st.lists(st.tuples(side, side, side, side, st.integers(1, 90), st.integers(1, 20)), max_size=12))
def test_tag_touches_its_box_within_the_image(rows: list[tuple[int, ...]]) -> None:
    boxes = np.array([(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d, *_ in rows], int)
    boxes = boxes.reshape(-1, 4)
    before = boxes.copy()
    tags = np.array(place_tags([(row[4], row[5]) for row in rows], boxes, size=(401, 402)), int).reshape(-1, 4)
    np.testing.assert_array_equal(boxes, before)
    np.testing.assert_array_equal(tags[:, 2:] - tags[:, :2], np.array([row[4:] for row in rows], int).reshape(-1, 2))
    assert (tags >= 0).all()
    assert (tags[:, 2:] <= (401, 402)).all()
    assert (tags[:, :2] <= boxes[:, 2:]).all()
    assert (boxes[:, :2] <= tags[:, 2:]).all()


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(50, 40, 90, 80)], (50, 30, 80, 40)),  # above on the left
        ([(50, 5, 90, 80)], (50, 80, 80, 90)),  # no room above
        ([(280, 40, 295, 80)], (270, 30, 300, 40)),  # none on the right
        ([(50, 0, 90, 120)], (90, 0, 120, 10)),  # neither above nor below
        ([(50, 60, 90, 100), (50, 20, 90, 60)], (50, 100, 80, 110)),  # above it is another box
        ([(50, 40, 90, 80), (50, 40, 90, 80)], (50, 80, 80, 90)),  # above is the tag of the better one
    ],
)
def test_tag_goes_where_it_hides_least(boxes: list[tuple[int, ...]], expected: tuple[int, ...]) -> None:
    tags = place_tags([(30, 10)] * len(boxes), np.array(boxes), size=(300, 120))
    assert tuple(tags[0]) == expected


@pytest.mark.parametrize("label", range(len(PALETTE)))
def test_text_contrasts_with_its_tag(texts: dict[str, Any], label: int) -> None:
    """WCAG's contrast ratio is at least 4.5, and black or white is chosen, whichever has more of it."""

    def luminance(rgb: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return (max(luminance(a), luminance(b)) + 0.05) / (min(luminance(a), luminance(b)) + 0.05)

    drawn(BLANK, [BOX], [label], classes=["x"] * len(PALETTE))
    assert contrast(texts["x"], PALETTE[label]) >= max(4.5, *(contrast(one, PALETTE[label]) for one in (BLACK, WHITE)))


def test_image_grid_has_every_image_above_its_caption() -> None:
    arrays = [noise(40, 256), noise(100, 256), noise(128, 256)]
    grid = image_grid([Image.fromarray(one) for one in arrays], ["one", "", "three"], columns=2)
    made = np.array(grid)
    gap, line = 4, 10
    assert made.shape == (gap + (100 + line + gap) + (128 + line + gap), gap + 2 * (256 + gap), 3)
    np.testing.assert_array_equal(made[4:44, 4:260], arrays[0])
    np.testing.assert_array_equal(made[4:104, 264:520], arrays[1])
    np.testing.assert_array_equal(made[118:246, 4:260], arrays[2])
    assert (made[44:54, 4:260] < 128).any()  # "one"
    assert (made[104:118, 264:520] == 255).all()  # no caption
    assert (made[246:, 4:260] < 128).any()  # "three"
    assert (made[118:, 260:] == 255).all()


def test_long_caption_loses_its_middle(texts: dict[str, Any]) -> None:
    image_grid([Image.fromarray(BLANK)] * 2, [f"a long name {'x' * 90}: 3 objects", "short"], columns=2)
    long, short = texts
    start, end = long.split("…")
    assert start == "a long name "
    assert end.endswith("xx: 3 objects")
    assert short == "short"


def test_interrupted_jpeg_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(40, 60))
    save_jpeg(image, tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    monkeypatch.setattr(Image.Image, "save", Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        save_jpeg(image, tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == before

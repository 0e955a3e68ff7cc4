"""Drawings show what they are given, where it is, and leave alone what they draw on."""

from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tinydet.draw import (
    DARK,
    GREY,
    LIGHT,
    PALETTE,
    Colour,
    draw,
    hatch,
    paint,
    place_tags,
    save_jpeg,
    sheet,
    text_colour,
)
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.detect import Detections

CLASSES = ("Car", "Pedestrian", "Cyclist")
WHITE = np.full((120, 300, 3), 255, dtype=np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """The tightest xyxy around all pixels that differ."""
    y, x = np.nonzero((before != after).any(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_a_box_is_a_line_in_its_classs_colour_and_hides_nothing_inside() -> None:
    image = noise(120, 300)
    drawn = draw(image, [(100, 40, 200, 100)], [1], classes=CLASSES)
    for x, y in ((100, 70), (199, 70), (150, 40), (150, 99)):
        assert tuple(drawn[y, x]) == PALETTE[1]
    np.testing.assert_array_equal(drawn[43:97, 103:197], image[43:97, 103:197])
    x1, y1, x2, y2 = changed(image, drawn)
    assert (x1, x2, y2) == (98, 202, 102)  # a line of its own and one of dark on either side
    assert 0 <= y1 < 35  # the tag


def test_what_is_given_stays_as_it_was() -> None:
    image, boxes, labels = noise(120, 300), np.array([[9.0, 9, 60, 60], [5, 5, 90, 90]]), np.array([IGNORE, 1])
    scores = np.array([0.5, 0.4])
    before = [x.copy() for x in (image, boxes, labels, scores)]
    drawn = draw(image, boxes, labels, scores, classes=CLASSES)
    for x, was in zip((image, boxes, labels, scores), before, strict=True):
        np.testing.assert_array_equal(x, was)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert not np.shares_memory(drawn, image)
    assert not np.shares_memory(hatch(image, boxes, line=2), image)


def test_nothing_found_is_the_picture_itself() -> None:
    image = noise(20, 30)
    for boxes, labels in (([], []), ([(2, 2, 9, 9)], [BACKGROUND])):
        np.testing.assert_array_equal(draw(image, boxes, labels, classes=CLASSES), image)


def test_tensors_draw_as_arrays_do() -> None:
    found = Detections(torch.tensor([[10.0, 20, 90, 100]]), torch.tensor([0.5]), torch.tensor([2]))
    arrays = [field.numpy() for field in found]
    np.testing.assert_array_equal(
        draw(WHITE, found.boxes, found.labels, found.scores, classes=CLASSES),
        draw(WHITE, arrays[0], arrays[2], arrays[1], classes=CLASSES),
    )


@pytest.mark.parametrize("count", [8, 90])
def test_a_class_keeps_its_colour_however_many_there_are(count: int) -> None:
    names = [*CLASSES, *(f"class {i}" for i in range(3, count))]
    for label in (0, 2, count - 1):
        drawn = draw(WHITE, [(100, 40, 200, 100)], [label], classes=names)
        assert tuple(drawn[70, 100]) == PALETTE[label % len(PALETTE)]
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts drawn since, in their order."""
    drawn: list[str] = []
    write = ImageDraw.ImageDraw.text

    def spy(pen: Any, xy: Any, text: str, **settings: Any) -> None:
        drawn.append(text)
        write(pen, xy, text, **settings)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return drawn


@pytest.mark.parametrize("scores", [(0.874, 0.3, 0.5), (0.3, 0.874, 0.5)])
def test_the_best_lies_on_top_and_says_its_name_and_score(texts: list[str], scores: tuple[float, ...]) -> None:
    box = (100, 40, 200, 100)
    drawn = draw(WHITE, [box, box, (0, 0, 9, 9)], [0, 1, IGNORE], scores, classes=CLASSES)
    best = int(scores[1] > scores[0])
    assert tuple(drawn[70, 100]) == PALETTE[best]
    assert texts == [f"{CLASSES[1 - best]} 0.30", f"{CLASSES[best]} 0.87"]


def test_without_scores_the_smaller_lies_on_top_and_says_its_name(texts: list[str]) -> None:
    large, small = (100, 40, 200, 100), (100, 60, 150, 80)
    for boxes, labels in (([large, small], [0, 1]), ([small, large], [1, 0])):
        drawn = draw(WHITE, boxes, labels, classes=CLASSES)
        assert tuple(drawn[70, 100]) == PALETTE[1]
        assert tuple(drawn[90, 100]) == PALETTE[0]
    assert texts == ["Car", "Pedestrian"] * 2


def test_an_ignore_region_is_hatched_in_grey_without_a_tag(texts: list[str]) -> None:
    image = noise(120, 300)
    drawn = draw(image, [(100, 40, 200, 100)], [IGNORE], [0.9], classes=CLASSES)
    assert changed(image, drawn) == (100, 40, 200, 100)
    differs = (image != drawn).any(axis=2)
    assert (drawn[differs] == GREY).all()
    assert 0.1 < differs[40:100, 100:200].mean() < 0.3
    assert 0.5 < differs[40, 100:200].mean() < 0.8  # dashed
    assert texts == []


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 150)),
    st.lists(st.tuples(*[st.floats(-50, 200)] * 4, st.sampled_from([0, 7, IGNORE, BACKGROUND])), max_size=6),
)
def test_any_box_can_be_drawn(size: tuple[int, int], rows: list[tuple[float, ...]]) -> None:
    boxes = [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2, _ in rows]
    drawn = draw(noise(*size), boxes, [row[4] for row in rows], classes=["long name of a class"] * 8)
    assert drawn.shape == (*size, 3)


side = st.integers(0, 400)


@settings(deadline=None)
@given(st.lists(st.tuples(side, side, side, side, st.integers(1, 90), st.integers(1, 20)), max_size=12))
def test_a_tag_touches_its_box_within_the_picture(rows: list[tuple[int, ...]]) -> None:
    size = (401, 402)
    boxes = [(min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1) for x1, y1, x2, y2, *_ in rows]
    given = np.array(boxes, dtype=int).reshape(-1, 4)
    before = given.copy()
    tags = place_tags([(row[4], row[5]) for row in rows], given, size=size)
    np.testing.assert_array_equal(given, before)
    for (x1, y1, x2, y2), box, row in zip(tags, boxes, rows, strict=True):
        assert (x2 - x1, y2 - y1) == row[4:]
        assert min(x1, y1) >= 0
        assert x2 <= size[0]
        assert y2 <= size[1]
        assert x1 <= box[2]
        assert box[0] <= x2
        assert y1 <= box[3]
        assert box[1] <= y2


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
def test_a_tag_goes_where_it_hides_least(boxes: list[tuple[int, ...]], expected: tuple[int, ...]) -> None:
    tags = place_tags([(30, 10)] * len(boxes), np.array(boxes), size=(300, 120))
    assert tuple(tags[0]) == expected


@pytest.mark.parametrize("colour", [*PALETTE, DARK, LIGHT, (GREY, GREY, GREY)])
def test_text_contrasts_with_its_tag(colour: Colour) -> None:
    def luminance(rgb: Colour) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    def contrast(a: Colour, b: Colour) -> float:
        return (max(luminance(a), luminance(b)) + 0.05) / (min(luminance(a), luminance(b)) + 0.05)

    assert contrast(text_colour(colour), colour) >= max(4.5, contrast(DARK, colour), contrast(LIGHT, colour))


def test_a_sheet_holds_every_picture_over_its_caption() -> None:
    images = [noise(40, 256), noise(100, 256), noise(80, 512)]
    before = [image.copy() for image in images]
    made = sheet(images, ["one", "", "three"], columns=2, width=256)
    gap, line = 4, 10
    assert made.shape == (gap + (100 + line + gap) + (40 + line + gap), gap + 2 * (256 + gap), 3)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[4:44, 4:260], images[0])
    np.testing.assert_array_equal(made[4:104, 264:520], images[1])
    assert (made[44:54, 4:260] < 128).any()  # "one"
    assert (made[104:118, 264:520] == 255).all()  # no caption
    assert abs(made[118:158, 4:260].astype(float).mean() - images[2].mean()) < 2  # half as large
    assert (made[158:, 4:260] < 128).any()  # "three"
    assert (made[118:, 260:] == 255).all()
    for image, was in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, was)


def test_truth_is_dashed_in_white_over_lines_and_under_tags() -> None:
    box, missed = (100, 40, 200, 100), (20, 50, 60, 110)
    alone = np.array(paint(WHITE // 2, [box], [1], [0.5], classes=CLASSES))
    drawn = np.array(paint(WHITE // 2, [box], [1], [0.5], classes=CLASSES, truth=[box, missed]))
    for y in (40, 99):
        edge = drawn[y, 100:200]
        white, coloured = (edge == 255).all(axis=1), (edge == PALETTE[1]).all(axis=1)
        assert 0.2 < white.mean() < 0.5
        assert coloured.mean() > 0.3  # the line shows between the dashes
    left = drawn[50:110, 20]
    assert {tuple(pixel) for pixel in left.tolist()} == {LIGHT, DARK, (127, 127, 127)}
    assert not (drawn[53:107, 23:57] != 127).any()
    np.testing.assert_array_equal(drawn[20:38, 100:200], alone[20:38, 100:200])  # the tag


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 90), st.integers(1, 150)), st.lists(st.tuples(*[st.floats(-50, 200)] * 4), max_size=4))
def test_any_truth_can_be_dashed(size: tuple[int, int], rows: list[tuple[float, ...]]) -> None:
    truth = np.array([(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in rows])
    image, before = noise(*size), truth.copy()
    drawn = paint(image, [], [], classes=CLASSES, truth=truth)
    assert drawn.size == size[::-1]
    np.testing.assert_array_equal(truth, before)
    np.testing.assert_array_equal(image, noise(*size))


def test_a_picture_that_is_not_whole_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    save_jpeg(noise(40, 60), path)
    before = path.read_bytes()
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (60, 40))
    assert [one.name for one in tmp_path.iterdir()] == ["a.jpg"]

    def full(picture: Image.Image, file: IO[bytes], **_: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_jpeg(noise(40, 60), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.jpg"]

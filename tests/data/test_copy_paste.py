"""Pasted objects are the ones they were, hide none of those that were there, and bring no hard edge along."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydet.data.augment import (
    MAX_HIDING,
    MAX_PASTED,
    MIN_PASTED_SIDE,
    copy_paste,
    crop_around,
    feather,
    max_overlap,
    separate_objects,
)
from tinydet.data.images import Example
from tinydet.data.kitti import KittiDataset
from tinydet.labels import IGNORE

HEIGHT, WIDTH = 90, 300


def image_of(boxes: list[tuple[float, ...]], labels: list[int], *, grey: int, size: tuple[int, int]) -> Example:
    """A grey image; the object in row i is one flat colour, red 100 + i, on a green surrounding."""
    image = np.full((*size, 3), grey, dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[max(0, int(y1) - 9) : int(y2) + 10, max(0, int(x1) - 9) : int(x2) + 10] = (0, 200, 0)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        image[int(y1) : int(y2), int(x1) : int(x2)] = (100 + i, 0, 0)
    return Example(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), "frame", size)


@st.composite
def images(draw: st.DrawFn, grey: int) -> Example:
    size = draw(st.integers(HEIGHT - 8, HEIGHT)), draw(st.integers(WIDTH - 40, WIDTH))
    boxes: list[tuple[float, ...]] = []
    for _ in range(draw(st.integers(0, 6))):
        side = draw(st.integers(4, 50)), draw(st.integers(4, 70))
        x, y = draw(st.integers(0, size[1] - side[0])), draw(st.integers(0, size[0] - side[1]))
        boxes.append((x, y, x + side[0], y + side[1]))
    return image_of(boxes, [draw(st.sampled_from([IGNORE, 0, 1, 2])) for _ in boxes], grey=grey, size=size)


@given(example=images(grey=30), other=images(grey=220), seed=st.integers(0, 2**32))
def test_what_is_pasted(example: Example, other: Example, seed: int) -> None:
    given = [example.image.copy(), example.boxes.copy(), other.image.copy()]
    out = copy_paste(example, other, rng=np.random.default_rng(seed))
    for before, after in zip(given, [example.image, example.boxes, other.image], strict=True):
        np.testing.assert_array_equal(before, after)

    old, height = len(example.boxes), example.image.shape[0]
    np.testing.assert_array_equal(out.boxes[:old], example.boxes)
    np.testing.assert_array_equal(out.labels[:old], example.labels)
    assert (out.boxes.dtype, out.labels.dtype, out.image.dtype) == (np.float32, np.int64, np.uint8)
    assert len(out.boxes) == len(out.labels) <= old + MAX_PASTED
    rows = separate_objects(other.boxes, other.labels)
    for n, (box, label) in enumerate(zip(out.boxes[old:], out.labels[old:], strict=True), start=old):
        assert (box >= 0).all()
        assert (box[2:] <= (out.image.shape[1], height)).all()
        assert max_overlap(box, out.boxes[:n]) <= MAX_HIDING
        same = [
            row
            for row in rows
            if other.labels[row] == label
            and np.array_equal(other.boxes[row, 2:] - other.boxes[row, :2], box[2:] - box[:2])
            and abs(other.boxes[row, 1] - box[1]) <= abs(height - other.image.shape[0]) + 1
        ]
        assert same, "an object of the other image, as large and as high up"
    assert (np.array_equal(out.image, example.image)) == (len(out.boxes) == old)


def test_the_pixels_of_an_object_come_along() -> None:
    example = image_of([], [], grey=30, size=(HEIGHT, WIDTH))
    other = image_of([(100, 20, 140, 70)], [2], grey=220, size=(HEIGHT, WIDTH))
    other.image[20:70, 100:110] = (0, 0, 255)  # its left side
    mirrored = set()
    for seed in range(20):
        out = copy_paste(example, other, rng=np.random.default_rng(seed))
        x1, y1, x2, y2 = out.boxes[0].astype(int)
        assert (x2 - x1, y1, y2, out.labels.tolist()) == (40, 20, 70, [2])
        inside = out.image[y1:y2, x1:x2]
        seen = inside if (left := inside[25, 5, 2] == 255) else inside[:, ::-1]
        np.testing.assert_array_equal(seen, other.image[20:70, 100:140])
        mirrored.add(not left)
        far = np.ones((HEIGHT, WIDTH), dtype=bool)
        far[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = False
        assert (out.image[far] == 30).all()
    assert mirrored == {True, False}


def test_edges_are_feathered() -> None:
    weight = feather(58, 48)[..., 0]
    assert weight.shape == (58, 48)
    assert weight[5:-5, 5:-5].min() == 1
    assert max(weight[0].max(), weight[:, -1].max()) < 0.25
    assert max(np.abs(np.diff(weight, axis=axis)).max() for axis in (0, 1)) < 0.25


@pytest.mark.parametrize(
    ("boxes", "labels", "rows"),
    [
        ([(10, 10, 40, 40), (60, 10, 90, 40)], [0, 1], [0, 1]),
        ([(10, 10, 40, 40), (60, 10, 90, 40)], [IGNORE, 1], [1]),
        ([(10, 10, 40, 40), (30, 10, 90, 40), (95, 10, 120, 40)], [0, 1, 2], [2]),
        ([(10, 10, 40, 40), (38, 10, 90, 40)], [0, IGNORE], [0]),  # a little
        ([(10, 10, 90, 60), (38, 20, 44, 30)], [0, 1], []),  # a small one before a large one
        ([(10, 10, 10 + MIN_PASTED_SIDE - 1, 40), (60, 10, 60 + MIN_PASTED_SIDE, 40)], [0, 0], [1]),
        ([], [], []),
    ],
)
def test_objects_that_are_taken(boxes: list[tuple[float, ...]], labels: list[int], rows: list[int]) -> None:
    found = separate_objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))
    assert found == rows


def test_a_margin_ends_with_the_image() -> None:
    assert crop_around(np.array([0.5, 10.2, 50.5, 60.2]), (64, 400)) == (0, 6, 55, 64)


def test_what_boxes_share() -> None:
    box = np.array([0.0, 0, 10, 10])
    assert max_overlap(box, np.zeros((0, 4))) == 0
    assert max_overlap(box, np.array([[10.0, 0, 20, 10]])) == 0
    assert max_overlap(box, np.array([[5.0, 0, 20, 10], [0, 0, 1, 1]])) == 1
    assert max_overlap(box, np.array([[5.0, 0, 20, 10]])) == 0.5


def test_an_object_that_is_too_large_is_left_out() -> None:
    small = image_of([], [], grey=30, size=(40, 60))
    other = image_of([(5, 5, 200, 80)], [0], grey=220, size=(HEIGHT, WIDTH))
    assert len(copy_paste(small, other, rng=np.random.default_rng(0)).boxes) == 0


def test_on_kitti(shared: Path) -> None:
    """Real images get objects."""
    kitti = KittiDataset(shared / "kitti")
    rng, gained = np.random.default_rng(0), 0
    for i in range(12):
        example = kitti[i]
        out = copy_paste(example, kitti[(i + 5) % len(kitti)], rng=rng)
        gained += len(out.labels) - len(example.labels)
    assert gained > 6

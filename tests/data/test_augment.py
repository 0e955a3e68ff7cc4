"""Augmentation moves boxes with their objects, loses none that can be seen, and depends on its seed alone."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinydet.data.augment import (
    MIN_SIDE,
    MIN_VISIBLE,
    augment,
    choose_crop,
    crop_boxes,
    flip_and_jitter,
    import_albumentations,
)
from tinydet.data.images import Example, letterbox_scale
from tinydet.data.kitti import KittiDataset
from tinydet.labels import IGNORE

PAD_VALUE = (124, 116, 104)
SIZE = (64, 160)
seeds = st.integers(0, 2**32 - 1)
import_albumentations()  # here, for no example of a property should take the seconds of an import


def coloured_objects(height: int, width: int, places: list[tuple[float, float]], side: int) -> Example:
    """A black image with a red, a green and a blue object, each in its own third, labelled 0, IGNORE and 2."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    boxes = []
    for channel, (x, y) in enumerate(places):
        left = int((channel + x * (1 - 3 * side / width)) * width / 3)
        top = int(y * (height - side))
        image[top : top + side, left : left + side, channel] = 255
        boxes.append((left, top, left + side, top + side))
    labels = np.array([0, IGNORE, 2])
    return Example(image, np.array(boxes, dtype=np.float32), labels, "frame", (height, width))


def seen_box(image: np.ndarray, channel: int) -> np.ndarray | None:
    """The frame of all pixels in which one primary colour dominates."""
    others = np.delete(image, channel, axis=2).max(axis=2).astype(int)
    rows = np.argwhere(image[:, :, channel].astype(int) - others > 60)
    return np.concatenate([rows.min(axis=0)[::-1], rows.max(axis=0)[::-1] + 1]) if len(rows) else None


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
    height=st.integers(40, 120),
    width=st.integers(120, 300),
    side=st.integers(12, 36),
    seed=seeds,
)
def test_every_object_that_can_be_seen_has_its_box(
    places: list[tuple[float, float]], height: int, width: int, side: int, seed: int
) -> None:
    example = coloured_objects(height, width, places, side)
    out = augment(example, SIZE, pad_value=PAD_VALUE, seed=seed)
    assert out.image.shape == (*SIZE, 3)
    assert out.boxes.dtype == np.float32
    assert len(out.boxes) == len(out.labels) <= 3
    assert (out.boxes >= 0).all()
    assert (out.boxes <= SIZE[::-1] * 2).all()
    assert (out.boxes[:, 2:] - out.boxes[:, :2] >= MIN_SIDE - 0.01).all()

    tolerance = 1 + out.scale / 2
    matched = set()
    for channel, label in enumerate(example.labels):
        seen = seen_box(out.image, channel)
        if seen is None or (seen[2:] - seen[:2]).min() <= MIN_SIDE + 2 * tolerance:
            continue  # too thin to measure; the arithmetic of that is tested below
        distance = np.abs(out.boxes - seen).max(axis=1)
        row = int(distance.argmin())
        assert distance[row] <= tolerance
        visible = (out.boxes[row, 2:] - out.boxes[row, :2]).prod() / (side * out.scale) ** 2
        assert out.labels[row] == (label if visible >= MIN_VISIBLE else IGNORE)
        matched.add(row)
    for row in set(range(len(out.labels))) - matched:
        assert (out.boxes[row, 2:] - out.boxes[row, :2]).min() <= MIN_SIDE + 3 * tolerance


def test_an_object_stays_whole_and_ignore_regions_have_no_say() -> None:
    boxes = np.array([[0, 0, 20, 20], [280, 40, 300, 60]], dtype=np.float32)
    image = np.zeros((60, 300, 3), dtype=np.uint8)
    example = Example(image, boxes, np.array([IGNORE, 1]), "frame", (60, 300))
    for seed in range(20):
        out = augment(example, (60, 100), pad_value=PAD_VALUE, seed=seed, scale_range=(3, 3))
        assert out.labels.tolist() == [1]
        np.testing.assert_allclose(out.boxes[0, 2:] - out.boxes[0, :2], 20, atol=1e-3)


@given(height=st.integers(20, 200), width=st.integers(20, 400), seed=seeds)
def test_what_the_image_leaves_free_is_exactly_the_pad_value(height: int, width: int, seed: int) -> None:
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    example = Example(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), "frame", (height, width))
    out = augment(example, SIZE, pad_value=PAD_VALUE, seed=seed, scale_range=(0.5, 1.5))
    assert 0.5 <= out.scale / letterbox_scale((height, width), SIZE) <= 1.5
    bottom, right = (min(room, round(side * out.scale)) for side, room in zip((height, width), SIZE, strict=True))
    assert (out.image[bottom:] == PAD_VALUE).all()
    assert (out.image[:, right:] == PAD_VALUE).all()
    assert (out.image[:bottom, :right] != PAD_VALUE).any(axis=2).all()
    assert (out.boxes.shape, out.labels.shape) == ((0, 4), (0,))


@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.02, 1)] * 2), max_size=4),
    image_size=st.tuples(st.integers(10, 400), st.integers(10, 400)),
    crop_size=st.tuples(st.floats(1, 500), st.floats(1, 500)),
    seed=seeds,
)
def test_a_crop_lies_in_the_image_and_holds_an_object(
    boxes: list, image_size: tuple[int, int], crop_size: tuple[float, float], seed: int
) -> None:
    height, width = image_size
    objects = np.array([(x, y, min(1, x + w), min(1, y + h)) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
    objects *= (width, height) * 2
    x1, y1, x2, y2 = choose_crop(objects, image_size, crop_size, rng=np.random.default_rng(seed))
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    assert x2 - x1 == pytest.approx(min(width, crop_size[1]))
    assert y2 - y1 == pytest.approx(min(height, crop_size[0]))
    slack = 1e-3
    held = [
        all(
            (low - slack <= start and end <= high + slack) or (start - slack <= low and high <= end + slack)
            for low, high, start, end in ((x1, x2, box[0], box[2]), (y1, y2, box[1], box[3]))
        )
        for box in objects
    ]
    assert any(held) or not held


def test_a_crop_goes_everywhere_that_holds_its_object() -> None:
    box = np.array([[40, 0, 50, 10]], dtype=np.float32)
    left = [choose_crop(box, (10, 100), (10, 30), rng=np.random.default_rng(seed))[0] for seed in range(300)]
    assert 20 <= min(left) < 21
    assert 39 < max(left) <= 40
    free = [choose_crop(box[:0], (10, 100), (10, 30), rng=np.random.default_rng(seed))[0] for seed in range(300)]
    assert min(free) < 2
    assert max(free) > 68


@given(
    boxes=st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 2, *[st.floats(1, 60, width=32)] * 2), max_size=6),
    corner=st.tuples(st.floats(0, 30), st.floats(0, 30)),
    scale=st.floats(0.2, 3),
)
def test_cropped_boxes_are_those_of_a_loop(boxes: list, corner: tuple[float, float], scale: float) -> None:
    table = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=np.float32).reshape(-1, 4)
    labels = np.arange(len(table))
    before = table.copy()
    height, width = 40, 70
    expected = []
    for label, (x1, y1, x2, y2) in enumerate(table.astype(float)):
        left, right = (min(max((x - corner[0]) * scale, 0), width) for x in (x1, x2))
        top, bottom = (min(max((y - corner[1]) * scale, 0), height) for y in (y1, y2))
        share = (right - left) * (bottom - top) / ((x2 - x1) * (y2 - y1) * scale**2)
        if abs(share - MIN_VISIBLE) < 1e-6 or min(abs(right - left - MIN_SIDE), abs(bottom - top - MIN_SIDE)) < 1e-6:
            return  # rounding decides
        if min(right - left, bottom - top) >= MIN_SIDE:
            expected.append(((left, top, right, bottom), label if share >= MIN_VISIBLE else IGNORE))
    crop = (*corner, corner[0] + width / scale, corner[1] + height / scale)
    cropped, kept = crop_boxes(table, labels, crop=crop, scale=scale, size=(height, width))
    assert kept.tolist() == [label for _, label in expected]
    np.testing.assert_allclose(cropped, np.array([box for box, _ in expected]).reshape(-1, 4), atol=1e-4)
    np.testing.assert_array_equal(table, before)


def noise(height: int = 50, width: int = 150) -> Example:
    image = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = np.array([[3, 4, 40, 40], [60, 10, 90, 45]], dtype=np.float32)
    return Example(image, boxes, np.array([0, 1]), "frame", (height, width))


def test_the_seed_decides_everything_and_the_inputs_stay() -> None:
    example, untouched = noise(), noise()
    states = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    first = augment(example, SIZE, pad_value=PAD_VALUE, seed=(1, 2, 3))
    augment(example, SIZE, pad_value=PAD_VALUE, seed=(1, 2, 4))
    again = augment(example, SIZE, pad_value=PAD_VALUE, seed=(1, 2, 3))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(example, untouched, strict=True):
        np.testing.assert_array_equal(a, b)
    assert states[:2] == (random.getstate(), pickle.dumps(np.random.get_state()))  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())
    scales = {augment(example, SIZE, pad_value=PAD_VALUE, seed=(1, 2, i)).scale for i in range(10)}
    assert len(scales) == 10


def test_flip_and_colours_are_drawn_apart() -> None:
    image = noise().image
    drawn = set()
    for seed in range(64):
        changed = flip_and_jitter(np.random.default_rng(seed))(image=image, bboxes=np.zeros((0, 4)), index=[])["image"]
        same, mirrored = ((np.abs(changed.astype(int) - other) <= 40).mean() for other in (image, image[:, ::-1]))
        drawn.add((bool(mirrored > same), bool(max((changed == image).mean(), (changed == image[:, ::-1]).mean()) < 1)))
    assert drawn == {(flipped, coloured) for flipped in (False, True) for coloured in (False, True)}


def test_grey_images_stay_grey_without_a_warning() -> None:
    grey = np.repeat(noise().image[:, :, :1], 3, axis=2)
    for seed in range(10):
        image = augment(noise()._replace(image=grey), SIZE, pad_value=(9, 9, 9), seed=seed).image
        assert (image == image[:, :, :1]).all()


def test_scales_add_up() -> None:
    half = noise()._replace(scale=0.5)
    of_half, of_whole = (augment(example, SIZE, pad_value=PAD_VALUE, seed=1) for example in (half, noise()))
    assert of_half.scale == of_whole.scale / 2


def test_the_import_neither_asks_the_network_nor_warns() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): asked.append(1); raise OSError\n"
        "asked = []; socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from tinydet.data import augment, checks, loader, open\n"
        "assert 'albumentations' not in sys.modules and 'cv2' not in sys.modules\n"
        "augment.import_albumentations()\n"
        "assert 'albumentations' in sys.modules\n"
        "assert not asked"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_real_frames(shared: Path) -> None:
    dataset = KittiDataset(shared / "kitti")
    whole = cut = 0
    for index in range(0, 468, 39):
        example = dataset[index]
        out = augment(example, (256, 896), pad_value=PAD_VALUE, seed=(0, 0, index))
        assert out.image.shape == (256, 896, 3)
        assert len(out.labels) <= len(example.labels)
        assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()
        assert (out.boxes <= (896, 256) * 2).all()
        whole += int((out.labels != IGNORE).sum())
        cut += len(example.labels) - len(out.labels)
    assert whole > 3 * cut

"""Anchors: counts, places worked by hand, a plain loop, the reference; the largest IoU against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference_models import swap_xy
from tinydet.ops.anchors import ASPECTS, anchors, feature_sizes, max_anchor_iou
from tinydet.ops.boxes import area, iou, xyxy_to_cxcywh

SIZES = [(1, 1), (1, 200), (7, 13), (127, 129), (333, 500), (375, 1242), (256, 896)]


def plain_anchors(image_size, scale, octaves, aspects, levels):
    """One anchor after another, in the terms of the paper."""
    height, width = image_size
    boxes = []
    for level in levels:
        rows, columns = math.ceil(height / 2**level), math.ceil(width / 2**level)
        for i in range(rows):
            for j in range(columns):
                for octave in range(octaves):
                    for aspect_w, aspect_h in aspects:
                        x, y = (j + 0.5) * width / columns, (i + 0.5) * height / rows
                        size = scale * 2 ** (octave / octaves)
                        w, h = size * aspect_w * width / columns, size * aspect_h * height / rows
                        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(boxes)


@pytest.mark.parametrize(
    ("image_size", "count"), [((512, 512), 49104), ((256, 896), 42966), ((384, 1280), 92070), ((1, 1), 45)]
)
def test_counts(image_size, count):
    assert anchors(image_size).shape == (count, 4)


def test_places_by_hand():
    boxes = anchors((512, 512))
    assert boxes.dtype == torch.float32
    expected = torch.tensor([[-12, -12, 20, 20], [-18.4, -7.2, 26.4, 15.2], [-7.2, -18.4, 15.2, 26.4]])
    torch.testing.assert_close(boxes[:3], expected)  # 32, 44.8 x 22.4, 22.4 x 44.8 about (4, 4)
    side = 32 * 2 ** (1 / 3)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes[3]), torch.tensor([4, 4, side, side]))
    torch.testing.assert_close(xyxy_to_cxcywh(boxes[9]), torch.tensor([12.0, 4, 32, 32]))  # the next column
    torch.testing.assert_close(xyxy_to_cxcywh(boxes[64 * 9]), torch.tensor([4.0, 12, 32, 32]))  # the next row
    torch.testing.assert_close(xyxy_to_cxcywh(boxes[64 * 64 * 9]), torch.tensor([8.0, 8, 64, 64]))  # the next level
    side = 512 * 2 ** (2 / 3)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes[-1]), torch.tensor([448, 448, 0.7 * side, 1.4 * side]))


def test_feature_sizes_by_hand():
    assert feature_sizes((500, 333)) == [(63, 42), (32, 21), (16, 11), (8, 6), (4, 3)]
    assert feature_sizes((1, 130), levels=(0, 7)) == [(1, 130), (1, 2)]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_feature_sizes_are_halved_and_rounded_up(height, width):
    for level, size in zip(range(10), feature_sizes((height, width), levels=range(10)), strict=True):
        assert size == (height, width), level
        height, width = (height + 1) // 2, (width + 1) // 2


@pytest.mark.parametrize("image_size", SIZES)
def test_anchors_are_the_plain_loop(image_size):
    boxes = anchors(image_size, dtype=torch.float64)
    assert boxes.dtype == torch.float64
    expected = plain_anchors(image_size, 4, 3, ASPECTS, (3, 4, 5, 6, 7))
    np.testing.assert_allclose(boxes, expected, rtol=1e-14, atol=1e-11)
    assert len(boxes) == 9 * sum(h * w for h, w in feature_sizes(image_size))
    assert torch.equal(anchors(image_size), boxes.float())


def test_settings_are_the_plain_loop():
    aspects = ((3.0, 1.0), (0.5, 2.0))
    boxes = anchors((90, 70), scale=2.5, octaves=2, aspects=aspects, levels=(2, 4), dtype=torch.float64)
    np.testing.assert_allclose(boxes, plain_anchors((90, 70), 2.5, 2, aspects, (2, 4)), rtol=1e-14, atol=1e-11)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300))
def test_anchors_are_spread_evenly_over_any_image(height, width):
    boxes = anchors((height, width), dtype=torch.float64)
    assert (area(boxes) > 0).all()
    start = 0
    for rows, columns in feature_sizes((height, width)):
        level = boxes[start : start + rows * columns * 9].view(rows, columns, 9, 4)
        turned = torch.tensor([width, height, width, height]) - level[..., [2, 3, 0, 1]]  # by 180 degrees
        torch.testing.assert_close(turned.flip(0, 1), level, rtol=0, atol=1e-9)
        start += rows * columns * 9
    assert start == len(boxes)
    centres = xyxy_to_cxcywh(boxes)[:, :2]
    assert centres.min() > 0
    assert (centres < torch.tensor([width, height])).all()


@pytest.mark.parametrize("image_size", [(0, 896), (256, 0), (-1, 5), (0, 0)])
def test_no_anchors_without_an_image(image_size):
    for function in (anchors, feature_sizes):
        with pytest.raises(ValueError, match=rf"image_size must be positive, got \({image_size[0]}, {image_size[1]}\)"):
            function(image_size)


@pytest.mark.parametrize("image_size", [(512, 512), (384, 1280), (640, 640), (500, 333)])
def test_reference(shared, image_size):
    data = np.load(shared / "reference" / "anchors.npz")
    name = f"{image_size[0]}x{image_size[1]}"
    np.testing.assert_allclose(swap_xy(anchors(image_size)), data[f"boxes_{name}"], rtol=1e-5, atol=1e-5)
    assert feature_sizes(image_size) == [tuple(size) for size in data[f"feat_{name}"][3:]]


def test_reference_settings(shared):
    data = np.load(shared / "reference" / "anchors.npz")
    aspects = [(math.sqrt(ratio), 1 / math.sqrt(ratio)) for ratio in (1, 2, 0.5)]
    boxes = anchors((512, 512), aspects=aspects)
    np.testing.assert_allclose(swap_xy(boxes), data["boxes_512x512_ratio123"], rtol=1e-5, atol=1e-5)
    boxes = anchors((320, 320), scale=3)
    np.testing.assert_allclose(swap_xy(boxes), data["boxes_320x320_scale3"], rtol=1e-5, atol=1e-5)


# Largest IoU


def objects(seed, count, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 120, (count, 2))
    return torch.tensor(np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], -1), dtype=dtype)


def test_max_anchor_iou_by_hand():
    boxes = anchors((128, 128))
    assert torch.equal(max_anchor_iou(boxes[100:140], boxes), torch.ones(40))  # anchors themselves
    # A 16 px square on the centre of a cell lies inside its smallest anchor, 22.4 x 44.8.
    torch.testing.assert_close(max_anchor_iou(torch.tensor([[52.0, 52, 68, 68]]), boxes), torch.tensor([256 / 1003.52]))
    assert max_anchor_iou(torch.tensor([[1e4, 1e4, 1e4 + 9, 1e4 + 9]]), boxes).item() == 0  # far away
    assert max_anchor_iou(torch.tensor([[5.0, 5, 5, 50]]), boxes).item() == 0  # empty


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 8, 9, 40]))
def test_max_anchor_iou_is_brute_force(seed, count):
    boxes, set_of_anchors = objects(seed, count), anchors((64, 96), dtype=torch.float64)
    result = max_anchor_iou(boxes, set_of_anchors)
    expected = [max(iou(box[None], anchor[None]).item() for anchor in set_of_anchors[::97]) for box in boxes[:3]]
    np.testing.assert_allclose(max_anchor_iou(boxes[:3], set_of_anchors[::97]), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result, iou(boxes, set_of_anchors).numpy().max(1), rtol=0, atol=1e-12)
    assert result.dtype == torch.float64
    assert 0 <= result.min() <= result.max() <= 1
    assert (max_anchor_iou(boxes, set_of_anchors[::2]) <= result).all()  # more anchors, no less


def test_max_anchor_iou_of_no_boxes_and_of_no_anchors():
    assert max_anchor_iou(torch.zeros(0, 4), anchors((64, 64))).shape == (0,)
    assert max_anchor_iou(torch.zeros(3, 4, dtype=torch.float64), torch.zeros(0, 4)).tolist() == [0, 0, 0]

"""Boxes: worked by hand, against numpy in float64, against the reference, and round about."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference_models import swap_xy
from tinydet.ops.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    decode,
    delta_giou,
    encode,
    intersection,
    iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

BOX = torch.tensor([2.0, 3.0, 6.0, 10.0])
SHAPES = [(), (5,), (2, 3), (0,), (2, 0, 3)]


def random_boxes(seed, shape, *, low=-50.0, high=50.0, dtype=torch.float64):
    """Boxes with sides of 1 to 41 px, some over the border of any image."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(low, high, (*shape, 2))
    return torch.tensor(np.concatenate([corner, corner + rng.uniform(1, 41, (*shape, 2))], -1), dtype=dtype)


def numpy_iou(a, b):
    """One pair after another."""
    result = np.zeros((len(a), len(b)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(a):
        for j, (bx1, by1, bx2, by2) in enumerate(b):
            shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
            union = max(ax2 - ax1, 0) * max(ay2 - ay1, 0) + max(bx2 - bx1, 0) * max(by2 - by1, 0) - shared
            result[i, j] = shared / union if union else 0
    return result


# Converters


@pytest.mark.parametrize(
    ("convert", "expected"),
    [(xyxy_to_xywh, [2, 3, 4, 7]), (xyxy_to_cxcywh, [4, 6.5, 4, 7])],
)
def test_converters_by_hand(convert, expected):
    assert convert(BOX).tolist() == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("there", "back"),
    [
        (xyxy_to_xywh, xywh_to_xyxy),
        (xywh_to_xyxy, xyxy_to_xywh),
        (xyxy_to_cxcywh, cxcywh_to_xyxy),
        (cxcywh_to_xyxy, xyxy_to_cxcywh),
    ],
)
def test_converters_round_trip(there, back, shape):
    boxes = random_boxes(0, shape)
    assert there(boxes).shape == boxes.shape
    torch.testing.assert_close(back(there(boxes)), boxes, rtol=0, atol=1e-12)


# Area, overlap, clip


def test_area_by_hand():
    boxes = torch.tensor([[2.0, 3, 6, 10], [-5, -5, -1, -2], [1, 1, 1, 9], [5, 0, 1, 4], [1, 5, 3, 2], [5, 5, 1, 1]])
    assert area(boxes).tolist() == [28, 12, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("other", "shared", "expected"),
    [
        ((0, 0, 10, 10), 100, 1),  # itself
        ((5, 5, 15, 15), 25, 1 / 7),
        ((2, 2, 4, 4), 4, 0.04),  # inside
        ((0, 0, 10, 5), 50, 0.5),
        ((-10, -10, 20, 20), 100, 1 / 9),  # around
        ((10, 0, 20, 10), 0, 0),  # touches
        ((30, 30, 40, 40), 0, 0),
        ((5, 5, 5, 5), 0, 0),  # a point
        ((8, 8, 2, 2), 0, 0),  # inverted
    ],
)
def test_overlap_by_hand(other, shared, expected):
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([other], dtype=torch.float32)
    assert intersection(a, b).tolist() == [[shared]]
    assert iou(a, b).item() == pytest.approx(expected, abs=1e-7)


def test_two_empty_boxes_do_not_overlap():
    empty = torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 100], [9, 9, 1, 1]])
    assert (iou(empty, empty) == 0).all()


def test_iou_of_empty_boxes_has_a_finite_gradient():
    empty = torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 100], [9, 9, 1, 1]])
    assert torch.func.grad(lambda a: iou(a, empty).sum())(empty).isfinite().all()


def test_iou_is_numpys():
    a, b = random_boxes(1, (40,)), random_boxes(2, (30,))
    result = iou(a, b)
    assert result.dtype == torch.float64
    assert (result > 0).sum() > 100
    np.testing.assert_allclose(result, numpy_iou(a.numpy(), b.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [(0, 3), (3, 0), (0, 0)])
def test_iou_of_no_boxes(count):
    n, m = count
    assert iou(torch.zeros(n, 4), torch.zeros(m, 4)).shape == (n, m)


def test_iou_of_a_batch_is_that_of_each():
    a, b = random_boxes(3, (2, 3, 5)), random_boxes(4, (2, 3, 4))
    result = iou(a, b)
    assert result.shape == (2, 3, 5, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(result[i, j], iou(a[i, j], b[i, j]))
    assert torch.equal(iou(a, b[0, 0]), iou(a, b[0, 0].expand(2, 3, 4, 4)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e6]), st.sampled_from([-1e6, 0.0, 1e3]))
def test_iou_is_symmetric_and_in_range(seed, scale, shift):
    boxes = random_boxes(seed, (40,), dtype=torch.float32) * scale + shift
    nearly = boxes + torch.rand(40, 4, generator=torch.Generator().manual_seed(seed)) * 1e-4 * scale
    result = iou(boxes, nearly)
    assert torch.equal(result, iou(nearly, boxes).T)
    assert 0 <= result.min() <= result.max() <= 1
    own = iou(boxes, boxes).diagonal()
    assert torch.equal(own, (area(boxes) > 0).float())


def test_clip_by_hand():
    boxes = torch.tensor([[-5.0, -6, 30, 40], [3, 4, 5, 6], [25, 2, 30, 4], [-9, -9, -1, -1]])
    assert clip(boxes, (10, 20)).tolist() == [[0, 0, 20, 10], [3, 4, 5, 6], [20, 2, 20, 4], [0, 0, 0, 0]]


def test_clip_of_a_batch_is_that_of_each():
    boxes, sizes = random_boxes(5, (3, 6)), torch.tensor([[30, 20], [5, 60], [10, 10]])
    each = [clip(b, tuple(size)) for b, size in zip(boxes, sizes.tolist(), strict=True)]
    assert torch.equal(clip(boxes, sizes), torch.stack(each))


@pytest.mark.parametrize("shape", SHAPES)
def test_clip_is_numpys_and_settles_at_once(shape):
    boxes = random_boxes(5, shape)
    clipped = clip(boxes, (30, 20))
    np.testing.assert_array_equal(clipped, np.clip(boxes.numpy(), 0, [20, 30, 20, 30]))
    assert torch.equal(clip(clipped, (30, 20)), clipped)


# The code


def test_code_by_hand():
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 5, 25, 15])  # centres (5, 10), (15, 10)
    deltas = torch.tensor([1.0, 0.0, math.log(2), -math.log(2)])
    torch.testing.assert_close(encode(box, anchor), deltas)
    torch.testing.assert_close(decode(deltas, anchor), box)
    assert torch.equal(encode(anchor, anchor), torch.zeros(4))
    assert torch.equal(decode(torch.zeros(4), anchor), anchor)


@pytest.mark.parametrize("shape", SHAPES)
def test_code_is_numpys_and_decodes_to_the_box(shape):
    boxes, anchors = random_boxes(6, shape), random_boxes(7, shape)
    deltas = encode(boxes, anchors)
    assert deltas.dtype == torch.float64
    assert deltas.shape == boxes.shape
    b, a = boxes.numpy(), anchors.numpy()
    size, anchor_size = b[..., 2:] - b[..., :2], a[..., 2:] - a[..., :2]
    offset = (b[..., 2:] + b[..., :2]) / 2 - (a[..., 2:] + a[..., :2]) / 2
    expected = np.concatenate([offset / anchor_size, np.log(size) - np.log(anchor_size)], -1)
    np.testing.assert_allclose(deltas, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(decode(deltas, anchors), boxes, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1e4))
def test_code_does_not_change_with_the_frame(seed, scale):
    boxes, anchors = random_boxes(seed, (20,)), random_boxes(seed + 1, (20,))
    torch.testing.assert_close(encode(boxes * scale, anchors * scale), encode(boxes, anchors), rtol=0, atol=1e-9)


def test_code_of_empty_and_inverted_boxes_is_finite():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 9], [9, 9, 1, 1]])
    anchors = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    assert encode(boxes, anchors).isfinite().all()
    torch.testing.assert_close(encode(boxes, anchors)[0, 2:], torch.full((2,), math.log(1e-9)))
    assert torch.func.grad(lambda b: encode(b, anchors).sum())(boxes).isfinite().all()


def test_one_anchor_set_serves_a_batch():
    boxes, anchors = random_boxes(8, (3, 6)), random_boxes(9, (6,))
    deltas = encode(boxes, anchors)
    assert torch.equal(deltas[1], encode(boxes[1], anchors))
    torch.testing.assert_close(decode(deltas, anchors), boxes, rtol=0, atol=1e-12)


def test_generalized_iou_by_hand():
    """Of two boxes of 10 x 10: 4 apart in a hull of 24 x 10; sharing half, in 15 x 10; equal."""
    anchor, box = torch.tensor([-3.0, 2, 9, 40]), torch.tensor([0.0, 0, 10, 10])
    others = box + torch.tensor([[14.0], [5.0], [0.0]]) * torch.tensor([1.0, 0, 1, 0])
    overlap, giou = delta_giou(encode(box.expand(3, 4), anchor), encode(others, anchor))
    torch.testing.assert_close(overlap, torch.tensor([0, 50 / 150, 1]))
    torch.testing.assert_close(giou, torch.tensor([-40 / 240, 50 / 150, 1]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_generalized_iou_is_that_of_the_decoded_boxes(seed):
    a, b, anchors = (random_boxes(seed + i, (20,)) for i in range(3))
    overlap, giou = delta_giou(encode(a, anchors), encode(b, anchors))
    expected = iou(a, b).diagonal()
    hull = area(torch.cat([torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])], 1))
    union = area(a) + area(b) - intersection(a, b).diagonal()
    torch.testing.assert_close(overlap, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(giou, expected - (hull - union) / hull, rtol=0, atol=1e-9)


def test_reference(shared):
    data = {k: torch.from_numpy(v) for k, v in np.load(shared / "reference" / "boxcoder.npz").items()}
    boxes, anchors = swap_xy(data["gt_yxyx"]), swap_xy(data["anchors_yxyx"])
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(deltas, swap_xy(data["encoded_tytxthtw"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(swap_xy(data["rel_codes"]), anchors), data["decoded_xyxy"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(deltas, anchors), swap_xy(data["roundtrip_yxyx"]), rtol=1e-5, atol=1e-4)

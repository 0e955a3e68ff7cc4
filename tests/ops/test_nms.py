"""Suppression against its definition, one pair after another, and against the reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tinydet.ops.nms import box_voting, fixed_shape_nms, nms, soft_nms, weighted_boxes_fusion


def plain_nms(boxes, scores, labels, iou_threshold):
    """The definition, over all pairs; exact, since boxes are whole numbers and the threshold a fraction."""
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    corner = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.maximum(corner[1] - corner[0], 0).prod(2)
    union = size[:, None] + size - shared
    over = shared * iou_threshold.denominator > iou_threshold.numerator * union
    over &= labels[:, None] == labels
    keep: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not over[i, keep].any():
            keep.append(i)
    return keep


def plain_iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b)]
    return shared / (sum(areas) - shared) if any(areas) else 0


def plain_soft_nms(boxes, scores, labels, sigma, score_threshold=0.001):
    """The paper's figure 2."""
    boxes, scores, left, keep = boxes.tolist(), scores.tolist(), list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i])
        if scores[best] <= score_threshold:
            break
        left.remove(best)
        keep.append((best, scores[best]))
        for i in left:
            if labels[i] == labels[best]:
                scores[i] *= math.exp(-(plain_iou(boxes[i], boxes[best]) ** 2) / sigma)
    return keep


def scene(seed, count, *, field=60, levels=5, classes=3, broken=0.0):
    """Whole-number boxes and scores of few levels, so that overlaps and scores tie; a share inverted or empty."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(-field, field, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (count, 2))], -1)
    if count:
        again = rng.random(count) < 0.1
        boxes[again] = boxes[rng.integers(0, count, again.sum())]
    wrong = rng.random(count) < broken
    boxes[wrong] = rng.integers(-field, field, (wrong.sum(), 4))
    boxes[rng.random(count) < broken, 2:] = 0
    empty = rng.random(count) < broken
    boxes[empty, 2] = boxes[empty, 0]
    return boxes, rng.integers(1, levels + 1, count) / levels, rng.integers(0, classes, count)


def tensors(boxes, scores, labels, dtype=torch.float32):
    return torch.tensor(boxes, dtype=dtype), torch.tensor(scores, dtype=dtype), torch.tensor(labels)


COUNTS = st.sampled_from([0, 1, 2, 30, 255, 256, 257, 400, 513, 600])  # around and beyond one block of 256
SEEDS = st.integers(0, 2**32 - 1)


# Greedy


def test_by_hand():
    # 1 overlaps 0 by 8/12, 2 overlaps 1 but not 0 by more than half: it stays, since 1 is gone.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    assert nms(boxes, scores).tolist() == [3, 0, 2]
    assert nms(boxes, scores, torch.tensor([0, 1, 0, 0])).tolist() == [3, 0, 1, 2]
    assert nms(boxes, scores, torch.tensor([0, 1, 1, 0])).tolist() == [3, 0, 1]
    assert nms(boxes, scores, iou_threshold=0.7).tolist() == [3, 0, 1, 2]
    assert nms(boxes, scores, iou_threshold=0.2).tolist() == [3, 0]


def test_a_box_at_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    assert nms(boxes, torch.tensor([1.0, 0.5])).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([1.0, 0.5]), iou_threshold=0.49).tolist() == [0]


def test_of_equal_scores_the_first_stays():
    boxes = torch.tensor([[1.0, 0, 11, 10], [0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 10]])
    assert nms(boxes, torch.full((4,), 0.5)).tolist() == [0, 3]
    assert nms(boxes.flip(0), torch.full((4,), 0.5)).tolist() == [0, 1]


def test_empty_boxes_stay_and_suppress_nothing():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [9, 9, 1, 1], [5, 0, 5, 10]])
    assert nms(boxes, torch.tensor([5.0, 4, 3, 2, 1]), iou_threshold=0).tolist() == [0, 1, 2, 3, 4]


def test_no_boxes():
    for labels in (None, torch.zeros(0, dtype=torch.int64)):
        keep = nms(torch.zeros(0, 4), torch.zeros(0), labels)
        assert keep.shape == (0,)
        assert keep.dtype == torch.int64


@settings(deadline=None, max_examples=40)
@given(SEEDS, COUNTS, st.sampled_from(["0", "3/10", "1/2", "7/10", "1"]), st.sampled_from([8, 60, 400]), st.booleans())
def test_greedy_is_its_definition(seed, count, iou_threshold, field, broken):
    boxes, scores, labels = scene(seed, count, field=field, broken=0.2 * broken)
    threshold = Fraction(iou_threshold)
    for classes in (labels, np.zeros(count, dtype=np.int64)):
        expected = plain_nms(boxes, scores, classes, threshold)
        for dtype in (torch.float32, torch.float64):
            result = nms(*tensors(boxes, scores, classes, dtype), iou_threshold=float(threshold))
            assert result.dtype == torch.int64
            assert result.tolist() == expected
    assert nms(*tensors(boxes, scores, labels)[:2], iou_threshold=float(threshold)).tolist() == expected


@pytest.mark.parametrize("count", [256, 700])
def test_a_chain_of_boxes_keeps_every_other(count):
    left = torch.arange(count) * 3.0  # each overlaps the next by 7/13, and the one after by 4/16
    boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], -1)
    assert nms(boxes, -left).tolist() == list(range(0, count, 2))


@settings(deadline=None, max_examples=25)
@given(SEEDS, COUNTS)
def test_classes_do_not_meet_wherever_and_however_large_the_boxes(seed, count):
    boxes, scores, labels = scene(seed, count)
    b, s, c = tensors(boxes, scores, labels)
    rows = [torch.nonzero(c == k)[:, 0] for k in range(3)]
    kept = torch.cat([r[nms(b[r], s[r])] for r in rows]).sort().values
    expected = kept[s[kept].argsort(descending=True, stable=True)]
    assert torch.equal(nms(b, s, c), expected)
    assert torch.equal(nms(b - 1e6, s, c), expected)  # whole numbers, still exact in float32
    assert torch.equal(nms(b * 2.0**20, s, c), expected)
    assert torch.equal(nms(b, s, c * 10**9), expected)
    assert torch.equal(nms(b, s, -1 - c), expected)


@settings(deadline=None, max_examples=25)
@given(SEEDS, COUNTS, st.booleans())
def test_fewer_detections_are_the_first_of_all(seed, count, by_class):
    boxes, scores, labels = tensors(*scene(seed, count, field=300))
    classes = labels if by_class else None
    everything = nms(boxes, scores, classes)
    for limit in (0, 1, 7, 255, 256, 257, 1000):
        assert torch.equal(nms(boxes, scores, classes, max_detections=limit), everything[:limit])


@settings(deadline=None, max_examples=25)
@given(SEEDS, COUNTS)
def test_what_stays_stays(seed, count):
    boxes, scores, labels = tensors(*scene(seed, count, broken=0.1))
    keep = nms(boxes, scores, labels)
    assert torch.equal(nms(boxes[keep], scores[keep], labels[keep]), torch.arange(len(keep)))


def test_memory_is_not_quadratic():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    boxes, scores, _ = tensors(*scene(0, 4000, field=2000, levels=1000))
    with Largest() as largest:
        keep = nms(boxes, scores)
    assert len(keep) > 3000
    assert 0 < largest.elements <= 256 * 4000


# Soft


def test_soft_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.5], dtype=torch.float64)
    keep, lowered = soft_nms(boxes, scores)
    assert keep.tolist() == [0, 2, 1]  # .8 exp(-.25 / .5) = .485
    assert lowered.tolist() == pytest.approx([0.9, 0.5, 0.8 * math.exp(-0.5)])
    keep, lowered = soft_nms(boxes, scores, torch.tensor([0, 1, 0]))
    assert keep.tolist() == [0, 1, 2]
    assert torch.equal(lowered, scores)
    keep, lowered = soft_nms(boxes, scores, score_threshold=0.5)  # at it or below is out
    assert keep.tolist() == [0]


def test_soft_of_equal_scores_takes_the_first():
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 0, 40, 10], [0, 0, 10, 10], [60, 0, 70, 10]])
    keep, lowered = soft_nms(boxes, torch.full((4,), 0.5))
    assert keep.tolist() == [0, 1, 3, 2]
    assert lowered.tolist() == pytest.approx([0.5] * 3 + [0.5 * math.exp(-2)])


@pytest.mark.parametrize("count", [0, 3])
def test_soft_of_none_and_of_none_above_the_threshold(count):
    keep, lowered = soft_nms(torch.rand(count, 4), torch.zeros(count))
    assert keep.shape == lowered.shape == (0,)
    assert keep.dtype == torch.int64
    assert lowered.dtype == torch.float32


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2, 20, 60]), st.sampled_from([0.1, 0.5, 2.0]))
def test_soft_is_its_definition(seed, count, sigma):
    boxes, _, labels = scene(seed, count, field=15, broken=0.1)
    scores = np.random.default_rng(seed).uniform(0, 1, count)
    keep, lowered = soft_nms(*tensors(boxes, scores, labels, torch.float64), sigma=sigma)
    expected = plain_soft_nms(boxes, scores, labels, sigma)
    assert keep.tolist() == [row for row, _ in expected]
    np.testing.assert_allclose(lowered, [score for _, score in expected], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([2, 15, 60]), st.booleans(), st.sampled_from([0.001, 0.3]))
def test_soft_scores_fall_and_fewer_are_the_first_of_all(seed, field, by_class, score_threshold):
    """Also where few of the boxes are looked at first: 4 of each that may be kept."""
    boxes, _, labels = scene(seed, 200, field=field)
    scores = np.random.default_rng(seed).random(200) ** 3
    boxes, scores, labels = tensors(boxes, scores, labels, torch.float64)
    labels = labels if by_class else None
    keep, lowered = soft_nms(boxes, scores, labels, score_threshold=score_threshold)
    assert len(keep.unique()) == len(keep)
    assert (lowered.diff() <= 0).all()
    assert (lowered <= scores[keep]).all()
    for limit in (0, 1, 7, 20, 100):
        first, first_lowered = soft_nms(boxes, scores, labels, score_threshold=score_threshold, max_detections=limit)
        assert torch.equal(first, keep[:limit])
        torch.testing.assert_close(first_lowered, lowered[:limit], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("apart", "sizes"), [(True, {40**2}), (False, {40**2, 200**2})])
def test_soft_looks_at_all_boxes_only_where_it_must(apart, sizes):
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.exp.default:
                seen.add(args[0].numel())
            return func(*args, **(kwargs or {}))

    boxes = torch.tensor([0.0, 0, 10, 10]) + 20.0 * apart * torch.arange(200)[:, None]
    with Watch():
        soft_nms(boxes, torch.linspace(1, 0.5, 200), max_detections=10)
    assert seen == sizes


# The reference


def test_reference(shared):
    data = {name: torch.from_numpy(value) for name, value in np.load(shared / "reference" / "nms.npz").items()}
    boxes, scores, labels = data["boxes_xyxy"], data["scores"], data["classes"]
    assert torch.equal(nms(boxes, scores, labels), data["hard_keep"])
    assert torch.equal(nms(boxes, scores), data["hard_agnostic_keep"])
    keep, lowered = soft_nms(boxes, scores, labels)
    assert torch.equal(keep, data["soft_gauss_idx"])
    torch.testing.assert_close(lowered, data["soft_gauss_scores"], rtol=0, atol=1e-5)


# Fixed shapes


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 35),
    st.sampled_from([0.3, 0.5]),
    st.sampled_from([0, 1024]),
)
def test_fixed_shape_nms_is_nms_and_soft_nms(seed, count, limit, iou_threshold, matrix):
    """A batch of two scenes; rows beyond the last box have score 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fixed_shape_nms.__globals__, "MATRIX", matrix)
        check_fixed_shape(seed, count, limit, iou_threshold)


def check_fixed_shape(seed, count, limit, iou_threshold):
    scenes = [tensors(*scene(seed + i, count, levels=10**6)) for i in range(2)]
    boxes, scores, labels = (torch.stack(fields) for fields in zip(*scenes, strict=True))
    boxes, scores = boxes.double(), scores.double()
    limits = {"max_detections": limit}
    keep, kept = fixed_shape_nms(boxes, scores, labels, method="hard", iou_threshold=iou_threshold, **limits)
    soft_keep, soft_kept = fixed_shape_nms(boxes, scores, labels, method="soft", **limits)
    assert keep.shape == kept.shape == soft_keep.shape == soft_kept.shape == (2, limit)
    for i in range(2):
        image = boxes[i], scores[i], labels[i]
        expected = nms(*image, iou_threshold=iou_threshold, **limits)
        assert keep[i][kept[i] > 0].tolist() == expected.tolist()
        assert kept[i][kept[i] > 0].tolist() == scores[i][expected].tolist()
        expected, lowered = soft_nms(*image, score_threshold=0, **limits)
        assert soft_keep[i][soft_kept[i] > 0].tolist() == expected.tolist()
        torch.testing.assert_close(soft_kept[i][soft_kept[i] > 0], lowered, rtol=1e-12, atol=0)


# Fusion and voting


def test_boxes_of_one_object_are_fused():
    """Two views see one car a little apart, one of them another; a pedestrian in the same place is another object."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60], [0, 0, 10, 10]])
    scores, labels, sources = torch.tensor([0.6, 0.3, 0.8, 0.1]), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    fused, score, label = weighted_boxes_fusion(boxes, scores, labels, sources, count=2)
    assert fused.tolist() == [[0, 0, 10, pytest.approx(10 + 2 / 3)], [50, 50, 60, 60], [0, 0, 10, 10]]
    assert score.tolist() == pytest.approx([0.45, 0.4, 0.05])
    assert label.tolist() == [0, 0, 1]


def test_fusion_joins_one_of_each_source_and_none_of_its_own():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 4)
    scores, sources = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 1])
    fused, score, _ = weighted_boxes_fusion(boxes, scores, torch.zeros(4, dtype=torch.int64), sources, count=2)
    assert score.tolist() == pytest.approx([0.8, 0.7])
    assert len(fused) == 2
    assert [
        len(field) for field in weighted_boxes_fusion(boxes[:0], scores[:0], sources[:0], sources[:0], count=2)
    ] == [0] * 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_fusion_of_a_single_source_changes_nothing(seed, count):
    boxes, scores, labels = tensors(*scene(seed, count, levels=10**6))
    scores = scores.abs() + 0.01
    fused, score, label = weighted_boxes_fusion(boxes, scores, labels, torch.zeros_like(labels), count=1)
    order = scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(fused, boxes[order])
    torch.testing.assert_close(score, scores[order])
    assert torch.equal(label, labels[order])


def plain_box_voting(boxes, scores, labels, keep, iou_threshold):
    refined = []
    for i in keep:
        near = [labels[j] == labels[i] and plain_iou(boxes[i], boxes[j]) > iou_threshold for j in range(len(boxes))]
        voters = [j for j in range(len(boxes)) if j == i or near[j]]
        total = sum(scores[j] for j in voters)
        refined.append([sum(scores[j] * boxes[j][side] for j in voters) / total for side in range(4)])
    return refined


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 40), st.sampled_from([0.3, 0.6]))
def test_box_voting_is_its_definition(seed, count, iou_threshold):
    """Of a batch of two, empty and inverted boxes among them."""
    made = [scene(seed + i, count, broken=0.2) for i in range(2)]
    scenes = [tensors(a, b, c, torch.float64) for a, b, c in made]
    boxes, scores, labels = (torch.stack(fields) for fields in zip(*scenes, strict=True))
    keep = torch.stack([torch.randperm(count)[: 1 + count // 2] for _ in range(2)])
    refined = box_voting(boxes, scores, labels, keep, iou_threshold=iou_threshold)
    for i, (a, b, c) in enumerate(made):
        expected = plain_box_voting(a.tolist(), b.tolist(), c.tolist(), keep[i].tolist(), iou_threshold)
        torch.testing.assert_close(refined[i], torch.tensor(expected, dtype=torch.float64))
        single = box_voting(boxes[i], scores[i], labels[i], keep[i], iou_threshold=iou_threshold)
        torch.testing.assert_close(single, refined[i])


def test_box_voting_of_none():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert box_voting(torch.zeros(0, 4), torch.zeros(0), nothing, nothing).shape == (0, 4)
    box = torch.tensor([[1.0, 2, 3, 4]])
    assert box_voting(box, torch.zeros(1), torch.tensor([0]), torch.tensor([0])).tolist() == box.tolist()

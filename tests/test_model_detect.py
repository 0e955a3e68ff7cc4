"""Outputs to detections: effdet's numbers, a slow version of the same, and what is legal."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tinydet.model.config import model_config
from tinydet.model.detect import best_pairs, detect, model_anchors
from tinydet.model.efficientdet import Outputs
from tinydet.ops.anchors import anchors as plain_anchors
from tinydet.ops.boxes import decode, iou, swap_xy

SIZE = (32, 48)
ANCHORS = plain_anchors(SIZE)


def random_outputs(seed, *, batch=2, classes=3, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, len(ANCHORS), classes, generator=generator) * spread - 2
    return Outputs(logits, torch.randn(batch, len(ANCHORS), 4, generator=generator) * 0.3)


# effdet's numbers


@pytest.fixture(scope="module")
def effdet(shared):
    """(npz, outputs, anchors) of effdet's post-processing."""
    with np.load(shared / "reference" / "postprocess.npz") as file:
        npz = {name: torch.from_numpy(value) for name, value in file.items()}

    def rows(prefix, last):
        maps = [npz[f"{prefix}_p{level}"] for level in range(3, 8)]
        return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, last) for x in maps], 1)

    return npz, Outputs(rows("class", 6), swap_xy(rows("box", 4))), swap_xy(npz["anchors"])


@pytest.mark.parametrize(
    ("name", "method", "score_threshold", "original"),
    [
        ("det_hard", "hard", 0.0, False),
        ("det_hard_info", "hard", 0.0, True),
        ("det_soft_info", "soft", 0.001, True),
    ],
)
def test_effdets_detections(effdet, name, method, score_threshold, original):
    npz, outputs, anchors = effdet
    frame = {"scales": 1 / npz["img_scale"], "sizes": npz["img_size_wh"].flip(1)} if original else {}
    found = detect(outputs, anchors, candidates=1000, method=method, score_threshold=score_threshold, **frame)
    assert len(found) == 2
    for detections, reference in zip(found, npz[name], strict=True):
        assert len(detections.boxes) == 100
        torch.testing.assert_close(detections.boxes, reference[:, :4], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(detections.scores, reference[:, 4], atol=1e-5, rtol=1e-5)
        assert detections.labels.tolist() == (reference[:, 5].long() - 1).tolist()


# A slow version


def slowly(logits, deltas, *, score_threshold, candidates, max_detections, scale, size):
    """One picture, hard suppression, one candidate at a time."""
    pairs = [(logits[a, k].item(), a, k) for a in range(logits.shape[0]) for k in range(logits.shape[1])]
    kept: list[tuple[torch.Tensor, float, int]] = []
    for logit, a, k in sorted(pairs, reverse=True)[:candidates]:
        score = 1 / (1 + math.exp(-logit))
        box = decode(deltas[a], ANCHORS[a]) / scale
        box = torch.minimum(box.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
        rivals = [other for other, _, label in kept if label == k and iou(other[None], box[None]) > 0.5]
        if score >= score_threshold and not rivals:
            kept.append((box, score, k))
    return kept[:max_detections]


@given(
    seed=st.integers(0, 999),
    candidates=st.sampled_from([1, 20, 60]),
    max_detections=st.sampled_from([1, 5, 100]),
    score_threshold=st.sampled_from([0.0, 0.3, 0.9]),
)
@settings(max_examples=12, deadline=None)
def test_detect_is_the_slow_version(seed, candidates, max_detections, score_threshold):
    outputs = random_outputs(seed)
    limits = {"candidates": candidates, "max_detections": max_detections, "score_threshold": score_threshold}
    scales, sizes = torch.tensor([0.5, 2.0]), torch.tensor([[60, 90], [15, 20]])
    found = detect(outputs, ANCHORS, scales=scales, sizes=sizes, **limits)
    for i, detections in enumerate(found):
        expected = slowly(
            outputs.logits[i], outputs.deltas[i], scale=scales[i].item(), size=tuple(sizes[i].tolist()), **limits
        )
        assert detections.labels.tolist() == [label for _, _, label in expected]
        assert detections.scores.tolist() == pytest.approx([score for _, score, _ in expected], rel=1e-5)
        if expected:
            torch.testing.assert_close(detections.boxes, torch.stack([box for box, _, _ in expected]))


# What is legal


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_nothing_found(method):
    outputs = Outputs(torch.full((2, len(ANCHORS), 3), -9.0), torch.zeros(2, len(ANCHORS), 4))
    frames: list[dict[str, Any]] = [{}, {"scales": torch.ones(2), "sizes": torch.tensor([SIZE, SIZE])}]
    for frame in frames:
        for found in detect(outputs, ANCHORS, method=method, **frame):
            assert found.boxes.shape == (0, 4)
            assert found.scores.shape == found.labels.shape == (0,)
            assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
            assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_what_comes_out(method):
    outputs = random_outputs(1, classes=4)
    sizes = torch.tensor([[60, 90], [15, 20]])
    before = Outputs(*(x.clone() for x in outputs)), ANCHORS.clone(), sizes.clone()
    found = detect(outputs, ANCHORS, sizes=sizes, score_threshold=0.2, max_detections=30, method=method)
    for now, then in zip((*outputs, ANCHORS, sizes), (*before[0], *before[1:]), strict=True):
        assert torch.equal(now, then)
    for detections, (height, width) in zip(found, sizes.tolist(), strict=True):
        assert 0 < len(detections.boxes) <= 30
        assert detections.boxes.shape == (len(detections.scores), 4)
        assert detections.labels.dtype == torch.int64
        assert set(detections.labels.tolist()) <= {0, 1, 2, 3}
        assert (detections.scores.diff() <= 0).all()
        assert (detections.scores >= 0.2).all()
        assert detections.scores.max() <= 1
        x1, y1, x2, y2 = detections.boxes.unbind(1)
        assert ((x1 >= 0) & (x1 <= x2) & (x2 <= width) & (y1 >= 0) & (y1 <= y2) & (y2 <= height)).all()


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_pictures_of_a_batch_do_not_see_each_other(method):
    outputs = random_outputs(2)
    scales, sizes = torch.tensor([0.5, 2.0]), torch.tensor([[60, 90], [15, 20]])
    both = detect(outputs, ANCHORS, scales=scales, sizes=sizes, method=method)
    for i in (0, 1):
        one = Outputs(*(x[i : i + 1] for x in outputs))
        (alone,) = detect(one, ANCHORS, scales=scales[i : i + 1], sizes=sizes[i : i + 1], method=method)
        assert all(torch.equal(a, b) for a, b in zip(both[i], alone, strict=True))


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_a_batch_needs_no_more_memory_at_a_time_than_a_picture(method):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = [x for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, torch.Tensor)]
            self.elements = max(self.elements, *(x.numel() for x in made), 0)
            return out

    anchors = plain_anchors((192, 192))
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, len(anchors), 30, generator=generator), torch.zeros(1, len(anchors), 4)
    largest = []
    for batch in (1, 3):
        outputs = Outputs(*(x.repeat(batch, 1, 1) for x in one))
        with Largest() as seen:
            found = detect(outputs, anchors, score_threshold=0, method=method)
        assert [len(x.scores) for x in found] == [100] * batch
        largest.append(seen.elements)
    assert 0 < largest[0] == largest[1] <= 256 * 5000


def test_original_frame():
    """A box that the network sees at half size comes back at full size; without sizes, it is not cut."""
    outputs = Outputs(torch.full((1, len(ANCHORS), 1), -9.0), torch.zeros(1, len(ANCHORS), 4))
    outputs.logits[0, 0, 0] = 3.0
    (plain,) = detect(outputs, ANCHORS)
    (scaled,) = detect(outputs, ANCHORS, scales=torch.tensor([0.5]))
    (cut,) = detect(outputs, ANCHORS, scales=torch.tensor([0.5]), sizes=torch.tensor([[25, 1000]]))
    torch.testing.assert_close(plain.boxes, ANCHORS[:1])
    torch.testing.assert_close(scaled.boxes, 2 * ANCHORS[:1])
    assert (ANCHORS[0] * 2).tolist() == [-24, -24, 40, 40]
    assert cut.boxes.tolist() == [[0, 0, 40, 25]]
    assert plain.scores.item() == pytest.approx(1 / (1 + math.exp(-3)))


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_half_precision(method):
    outputs = Outputs(*(x.bfloat16() for x in random_outputs(3)))
    rough = detect(outputs, ANCHORS, method=method)
    exact = detect(Outputs(*(x.float() for x in outputs)), ANCHORS, method=method)
    for a, b in zip(rough, exact, strict=True):
        assert (a.boxes.dtype, a.scores.dtype) == (torch.float32, torch.float32)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_double_precision_is_kept():
    (found,) = detect(Outputs(*(x.double() for x in random_outputs(3, batch=1))), ANCHORS.double())
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float64, torch.float64)


def test_hard_drops_what_soft_lowers():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 9]])
    logits = torch.tensor([[[2.0, -9], [1, -9], [-9, 0]]])  # the last is of another class
    outputs = Outputs(logits, torch.zeros(1, 3, 4))
    (hard,) = detect(outputs, anchors)
    (soft,) = detect(outputs, anchors, method="soft")
    (lenient,) = detect(outputs, anchors, iou_threshold=0.85)
    scores = [1 / (1 + math.exp(-logit)) for logit in (2, 1, 0)]
    assert hard.scores.tolist() == pytest.approx([scores[0], scores[2]])
    assert hard.labels.tolist() == [0, 1]
    assert soft.scores.tolist() == pytest.approx([scores[0], scores[2], scores[1] * math.exp(-(0.8**2) / 0.5)])
    assert soft.labels.tolist() == [0, 1, 0]
    assert lenient.scores.tolist() == pytest.approx(scores)


def test_unknown_method():
    with pytest.raises(ValueError, match=r"method must be one of .*hard.*, got 'diou'"):
        detect(random_outputs(0), ANCHORS, method="diou")


def test_model_anchors():
    config = model_config("lite0", octaves=2, aspects=((1, 1), (3, 1)), levels=(3, 4, 5, 6), image_size=(64, 96))
    own = model_anchors(config)
    expected: dict[str, Any] = {"scale": 3.0, "octaves": 2, "aspects": ((1, 1), (3, 1)), "levels": (3, 4, 5, 6)}
    assert torch.equal(own, plain_anchors((64, 96), **expected))
    assert torch.equal(model_anchors(config, (33, 70)), plain_anchors((33, 70), **expected))
    assert len(own) == 4 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    assert model_anchors(config, device="meta").is_meta


@given(
    anchors=st.integers(1, 60),
    classes=st.integers(1, 12),
    count=st.integers(1, 200),
    threshold=st.sampled_from([0.0, 0.21, 0.53, 0.91]),
    step=st.sampled_from([0.5, 1e-6]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200, deadline=None)
def test_best_pairs_are_the_top_of_all(anchors, classes, count, threshold, step, seed):
    """Any of equal scores may be among them, so the scores must be the same, and each its pair's own."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(anchors, classes, generator=generator) / step).round() * step
    score, row, label = best_pairs(logits, count, score_threshold=threshold)
    expected = logits.flatten().topk(min(count, logits.numel())).values.sigmoid()
    torch.testing.assert_close(score, expected[expected >= threshold])
    torch.testing.assert_close(logits[row, label].sigmoid(), score)
    assert len(set(zip(row.tolist(), label.tolist(), strict=True))) == len(score)

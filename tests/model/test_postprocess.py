"""Pre- and post-processing: effdet's numbers, a slow version of the same, and what must hold of any detections."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.reference_models import swap_xy
from tinydet.model.config import model_config
from tinydet.model.efficientdet import Outputs
from tinydet.model.postprocess import METHODS, detect, detect_padded, model_anchors, normalize, top_candidates
from tinydet.ops.anchors import anchors as plain_anchors
from tinydet.ops.boxes import decode, iou

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
    limits = {"candidates": 1000, "score_threshold": score_threshold, "box_voting_iou": None}
    found = detect(outputs, anchors, method=method, **limits, **frame)
    assert len(found) == 2
    for detections, reference in zip(found, npz[name], strict=True):
        assert len(detections.boxes) == 100
        torch.testing.assert_close(detections.boxes, reference[:, :4], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(detections.scores, reference[:, 4], atol=1e-5, rtol=1e-5)
        assert detections.labels.tolist() == (reference[:, 5].long() - 1).tolist()


# A slow version


def slowly(logits, deltas, *, score_threshold, candidates, max_detections, scale, size):
    """One image, hard suppression, one candidate at a time."""
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


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_of_a_cell_only_the_best_anchor_of_each_class_is_a_candidate(fixed_shape):
    outputs = random_outputs(3)
    cells = outputs.logits.unflatten(1, (-1, 3))
    alone = Outputs(cells.where(cells == cells.amax(2, keepdim=True), -30.0).flatten(1, 2), outputs.deltas)
    settings_ = {"candidates": 40, "score_threshold": 1e-6, "fixed_shape": fixed_shape}
    found, expected = (
        detect_padded(outputs, ANCHORS, cell_anchors=3, **settings_),
        detect_padded(alone, ANCHORS, **settings_),
    )
    assert (found.labels >= 0).sum() > 60
    for field, other in zip(found, expected, strict=True):
        torch.testing.assert_close(field, other)
    assert not torch.equal(found.scores, detect_padded(outputs, ANCHORS, **settings_).scores)


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
    settings_ = {"method": "hard", "box_voting_iou": None, **limits}
    found = detect(outputs, ANCHORS, scales=scales, sizes=sizes, **settings_)
    for i, detections in enumerate(found):
        expected = slowly(
            outputs.logits[i], outputs.deltas[i], scale=scales[i].item(), size=tuple(sizes[i].tolist()), **limits
        )
        assert detections.labels.tolist() == [label for _, _, label in expected]
        assert detections.scores.tolist() == pytest.approx([score for _, score, _ in expected], rel=1e-5)
        if expected:
            torch.testing.assert_close(detections.boxes, torch.stack([box for box, _, _ in expected]))


# What holds of any detections


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", [0, 1])
def test_an_output_that_is_not_finite_is_not_nothing_found(field, value, dtype):
    outputs = Outputs(*(x.to(dtype) for x in random_outputs(1, batch=3)))
    outputs[field][1, 7, 2] = value
    for names, said in ((None, 2), (["a.png", "b.png", "c.png"], "b.png")):
        with pytest.raises(FloatingPointError, match=f"^image {said}: the network's output is not finite"):
            detect(outputs, ANCHORS, names=names)
    assert len(detect(Outputs(*(x[::2] for x in outputs)), ANCHORS)) == 2
    large = Outputs(*(torch.full_like(x, 6e4) for x in outputs))  # of which the sum is beyond half precision
    assert len(detect(large, ANCHORS)) == 3


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_ranges_and_types(method):
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
def test_images_of_a_batch_do_not_see_each_other(method):
    outputs = random_outputs(2)
    scales, sizes = torch.tensor([0.5, 2.0]), torch.tensor([[60, 90], [15, 20]])
    both = detect(outputs, ANCHORS, scales=scales, sizes=sizes, method=method)
    for i in (0, 1):
        one = Outputs(*(x[i : i + 1] for x in outputs))
        (alone,) = detect(one, ANCHORS, scales=scales[i : i + 1], sizes=sizes[i : i + 1], method=method)
        assert all(torch.equal(a, b) for a, b in zip(both[i], alone, strict=True))


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_memory_is_that_of_the_outputs_or_of_one_image(method):
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
    for batch in (1, 3):
        outputs = Outputs(*(x.repeat(batch, 1, 1) for x in one))
        with Largest() as seen:
            found = detect(outputs, anchors, score_threshold=0, method=method)
        assert [len(x.scores) for x in found] == [100] * batch
        assert 0 < seen.elements <= max(outputs.logits.numel(), 256 * 5000)


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


def test_scales_of_double_precision_change_no_type():
    frame: dict[str, Any] = {
        "scales": torch.tensor([0.5, 2], dtype=torch.float64),
        "sizes": torch.tensor([[60.0, 90]]).double(),
    }
    for found in detect(random_outputs(3), ANCHORS, **frame):
        assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)


def test_double_precision_is_kept():
    (found,) = detect(Outputs(*(x.double() for x in random_outputs(3, batch=1))), ANCHORS.double())
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float64, torch.float64)


def test_hard_drops_what_soft_lowers():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 9]])
    logits = torch.tensor([[[2.0, -9], [1, -9], [-9, 0]]])  # the last is of another class
    outputs = Outputs(logits, torch.zeros(1, 3, 4))
    (hard,) = detect(outputs, anchors, method="hard")
    (soft,) = detect(outputs, anchors, method="soft")
    (lenient,) = detect(outputs, anchors, method="hard", iou_threshold=0.85)
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


def test_model_anchors_are_kept_and_usable_for_training_wherever_they_were_made_first():
    config = model_config("lite0", image_size=(32, 40))
    with torch.inference_mode():
        first = model_anchors(config)
    assert model_anchors(config, (32, 40), device="cpu") is first
    assert not first.is_inference()
    with torch.device("meta"):
        assert model_anchors(config).is_meta
    assert not model_anchors(config).is_meta


@given(
    anchors=st.integers(1, 60),
    classes=st.integers(1, 20),
    count=st.integers(1, 200),
    step=st.sampled_from([0.5, 1e-6]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200, deadline=None)
def test_top_candidates_are_the_top_of_all(anchors, classes, count, step, seed):
    """Any of equal logits may be among them, so the logits must be the same, and each its pair's own."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, anchors, classes, generator=generator) / step).round() * step
    logit, row, label = top_candidates(logits, count)
    expected = logits.flatten(1).topk(min(count, anchors * classes)).values
    assert torch.equal(logit, expected)
    for i in range(2):
        assert torch.equal(logits[i, row[i], label[i]], logit[i])
        assert len(set(zip(row[i].tolist(), label[i].tolist(), strict=True))) == logit.shape[1]


# Padded


def boxes_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("box_voting_iou", [None, 0.6])
@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("score_threshold", [0.001, 0.3])
def test_fixed_shapes_change_nothing(method, framed, box_voting_iou, score_threshold):
    outputs = random_outputs(5, batch=3, spread=1.5)
    outputs.logits[1] = -20  # nothing in the second image
    frame: dict[str, Any] = {}
    if framed:
        frame = {"scales": torch.tensor([0.5, 1, 2]), "sizes": torch.tensor([[60, 90], [32, 48], [15, 20]])}
    limits = {"candidates": 200, "max_detections": 70, "score_threshold": score_threshold}
    settings_ = {"method": method, "box_voting_iou": box_voting_iou, **limits, **frame}
    padded = detect_padded(outputs, ANCHORS, **settings_)
    fixed = detect_padded(outputs, ANCHORS, fixed_shape=True, **settings_)
    listed = detect(outputs, ANCHORS, **settings_)
    assert torch.equal(padded.labels, fixed.labels)
    boxes_near(padded, fixed)
    for i, detections in enumerate(listed):
        count = len(detections.scores)
        assert (0 if i == 1 else 1) <= count < 71
        assert all(torch.equal(field[i, :count], value) for field, value in zip(padded, detections, strict=True))
        assert (padded.labels[i, count:] == -1).all()
        assert not padded.scores[i, count:].any()
        assert not padded.boxes[i, count:].any()
    assert [x.shape for x in padded] == [(3, 70, 4), (3, 70), (3, 70)]


DEPENDS = [
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
    "item",
    "masked_scatter",
]


@pytest.mark.parametrize("box_voting_iou", [None, 0.6])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("candidates", [200, 1500])
def test_fixed_shapes_wait_for_no_value(method, box_voting_iou, candidates):
    """A GPU is read once, at the end."""

    class Watch(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            masks = (
                [x for x in args[1] if x is not None and x.dtype == torch.bool]
                if name.startswith("index") and isinstance(args[1], (list, tuple))
                else []
            )
            self.seen += name in DEPENDS or bool(masks)
            return func(*args, **(kwargs or {}))

    outputs = random_outputs(5, batch=3, classes=8)
    frame = {"scales": torch.tensor([0.5, 1, 2]), "sizes": torch.tensor([[60, 90], [32, 48], [15, 20]])}
    settings_ = {"method": method, "box_voting_iou": box_voting_iou, "candidates": candidates, **frame}
    with Watch() as fixed:
        found = detect_padded(outputs, ANCHORS, fixed_shape=True, **settings_)
    assert fixed.seen == 0
    with Watch() as dynamic:
        expected = detect_padded(outputs, ANCHORS, **settings_)
    assert dynamic.seen > 3
    assert torch.equal(found.labels, expected.labels)
    boxes_near(found, expected)
    meta = detect_padded(Outputs(*(x.to("meta") for x in outputs)), ANCHORS.to("meta"), method=method)
    assert meta.boxes.shape == (3, 100, 4)  # of what is not on the CPU, by default


def test_a_batch_of_none():
    assert detect(random_outputs(0, batch=0), ANCHORS) == []


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_threshold(method):
    outputs = random_outputs(6)
    settings_ = {"method": method, "max_detections": 1000}
    low, high = (detect(outputs, ANCHORS, score_threshold=t, **settings_)[0].scores for t in (0.01, 0.9))
    assert 0 < len(high) < len(low)
    assert torch.equal(high, low[: len(high)])


class Exported(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, logits, deltas):
        settings_ = {"candidates": 60, "max_detections": 8, "method": self.method}
        sizes, scales = torch.tensor([[30, 40]]), torch.tensor([0.7])
        return tuple(
            detect_padded(Outputs(logits, deltas), ANCHORS, sizes=sizes, scales=scales, fixed_shape=True, **settings_)
        )


@pytest.mark.parametrize("method", METHODS)
def test_fixed_shapes_export_with_a_dynamic_batch(method):
    batch = torch.export.Dim("batch", min=1, max=64)
    module = Exported(method)
    shapes = {"logits": {0: batch}, "deltas": {0: batch}}
    program = torch.export.export(module, tuple(random_outputs(7)), dynamic_shapes=shapes)
    for size in (1, 5):
        outputs = random_outputs(8, batch=size)
        torch.testing.assert_close(program.module()(*outputs), module(*outputs))


# Normalisation


@pytest.mark.parametrize("name", ["d0", "lite0"])
def test_normalize(name):
    config = model_config(name)
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    out = normalize(images, mean=config.mean, std=config.std)
    assert out.dtype == torch.float32
    assert torch.equal(images, before)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (config.mean, config.std))
    torch.testing.assert_close(out.double(), (images.double() / 255 - mean) / std, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["d0", "lite0"])
def test_pad_value_normalises_to_zero(name):
    config = model_config(name)
    pixel = torch.tensor(config.pad_value, dtype=torch.uint8)[None, :, None, None]
    out = normalize(pixel, mean=config.mean, std=config.std).flatten()
    for value, std in zip(out.tolist(), config.std, strict=True):
        assert abs(value) <= 0.5 / 255 / std + 1e-6  # half a step of uint8

"""Finite in, finite out, gradients too, for boxes of any size and place; and what is labelled away does not leak."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.ops.test_pure import OTHER, SMOOTH
from tinydet import ops
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops import kernels
from tinydet.ops.boxes import LARGEST_SCALE

FAR, NAN, INF = 1e15, float("nan"), float("inf")
# Of one side of a box: nothing, too little to be of use, ordinary, inverted, as far away and as wide as can be.
ORDINARY = [(0, 0), (7, 8), (3, 1003), (5, -5)]
WIDE = [*ORDINARY, (0, 1e-45), (0, 1e-12), (-FAR, FAR), (FAR, -FAR), (FAR, FAR), (-FAR, -FAR + 1e9)]
SHORT = [*ORDINARY, (-3e4, 3e4), (3e4, -3e4), (3e4, 3e4), (-3e4, -2.9e4)]  # float16 ends at 65504
INTERVALS = {torch.float32: WIDE, torch.float64: WIDE, torch.bfloat16: WIDE, torch.float16: SHORT}
IMAGE = (64, 96)
Cases = list[tuple[Callable[..., Any], list[Tensor]]]  # functions, and arguments whose first axis is of cases


def table(*values: Any, dtype: torch.dtype, repeat: int = 1) -> Tensor:
    """Every combination of values, one a row."""
    return torch.tensor([*product(values, repeat=repeat)], dtype=dtype)


def each(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Call a function for each case; the results stay apart."""
    return lambda *arguments: [function(*one) for one in zip(*arguments, strict=True)]


def box_cases(dtype: torch.dtype) -> dict[str, Cases]:
    """The functions of boxes alone."""
    boxes = torch.tensor([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in product(INTERVALS[dtype], repeat=2)], dtype=dtype)
    a, b = (boxes[i] for i in torch.cartesian_prod(*[torch.arange(len(boxes))] * 2).unbind(1))
    anchors = torch.tensor([(0, 0, 16, 16), (-30, 0, 60, 1000), (400, 30, 420, 31)], dtype=dtype)
    far = 10 if dtype == torch.float16 else 1e4
    deltas = table(0, 3, -far, far, 1e-30, dtype=dtype, repeat=4)
    if dtype == torch.float16:  # it cannot hold how far one side of such a box is from such another
        coded = boxes.repeat(3, 1), anchors.repeat_interleave(len(boxes), 0)
    else:
        coded, anchors = (a, b), torch.cat([anchors, boxes[::7]])
    one = {name: getattr(ops, name) for name in ("xyxy_to_xywh", "xywh_to_xyxy", "xyxy_to_cxcywh", "cxcywh_to_xyxy")}
    two = {name: torch.func.vmap(getattr(ops, name)) for name in ("intersection", "iou", "max_anchor_iou")}
    return {
        **{name: [(function, [boxes])] for name, function in one.items()},
        **{name: [(function, [a[:, None], b[:, None]])] for name, function in two.items()},
        "area": [(ops.area, [boxes])],
        "clip": [(partial(ops.clip, size=IMAGE), [boxes])],
        "encode": [(ops.encode, [*coded])],
        "delta_giou": [(ops.delta_giou, [deltas, deltas.roll(shift, 0)]) for shift in (0, 1, 7, 31)],
        "decode": [(ops.decode, [deltas, anchor.expand_as(deltas)]) for anchor in anchors],
        "kernels.max_anchor_iou": [(partial(kernels.max_anchor_iou, image_size=IMAGE), [boxes])],
    }


def object_cases(dtype: torch.dtype) -> dict[str, Cases]:
    """Assignment and suppression, of two boxes an image."""
    boxes = torch.tensor([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in product(INTERVALS[dtype], repeat=2)], dtype=dtype)
    pairs = torch.cartesian_prod(*[torch.arange(len(boxes))] * 2)[::61]
    two, zeros = boxes[pairs], torch.zeros_like(pairs)
    scores = table(1, 0.5, 1e-3, 1e-30, 0, dtype=dtype, repeat=2)[torch.arange(len(two)) % 25]
    anchors = ops.anchors(IMAGE, levels=(6, 7), dtype=dtype)
    labels = [torch.tensor(pair).expand_as(pairs) for pair in ([0, 1], [0, IGNORE], [BACKGROUND, 1])]
    adaptive: Any = {"anchors": ops.anchors(IMAGE, octaves=1, dtype=dtype), "image_size": IMAGE}
    cases: dict[str, Cases] = {
        "assign_batch": [(partial(ops.assign_batch, anchors=anchors), [two, each]) for each in labels],
        "assign_batch, adaptive": [(partial(ops.assign_batch, **adaptive), [two, each]) for each in labels],
        "kernels.assign_batch": [(partial(kernels.assign_batch, **adaptive), [two, each]) for each in labels],
    }
    cases["assign"] = [(torch.func.vmap(ops.assign), [two[::2], zeros[::2], two[1::2][: len(two[::2])]])]
    for name, function in (("nms", ops.nms), ("soft_nms", ops.soft_nms)):
        cases[name] = [(each(function), [two, scores, zeros])]
    for method in ("soft", "hard"):
        function = partial(ops.fixed_shape_nms, max_detections=2, method=method)
        cases[f"fixed_shape_nms, {method}"] = [(function, [two, scores, zeros])]
    keeps = (torch.tensor(keep).expand(len(two), -1) for keep in ([0], [0, 1]))
    cases["box_voting"] = [(ops.box_voting, [two, scores, zeros, keep]) for keep in keeps]
    fusion = partial(ops.weighted_boxes_fusion, count=2)
    cases["weighted_boxes_fusion"] = [(each(fusion), [two, scores, zeros, torch.tensor([0, 1]).expand_as(pairs)])]
    return cases


def loss_cases(dtype: torch.dtype) -> dict[str, Cases]:
    """The losses, of one anchor a case."""
    logits = table(0, 1, -1, 89, -104, 1e4, -1e4, dtype=dtype, repeat=2)
    if dtype == torch.float16:
        logits = logits.clamp(-100, 100)  # of which the sum is in its range
    labels = [torch.full((len(logits),), label) for label in (1, BACKGROUND, IGNORE)]
    cases: dict[str, Cases] = {}
    for name, function in (
        *(("focal_loss", ops.focal_loss), ("focal_loss_sum", ops.focal_loss_sum)),
        ("kernels.focal_loss_sum", kernels.focal_loss_sum),
    ):
        cases[name] = [
            (partial(function, gamma=gamma), [logits, each]) for gamma, each in product((0, 0.5, 1.5, 3), labels)
        ]
    quality = table(0, 1e-30, 0.5, 1, dtype=dtype).repeat(len(logits), 1)
    column = logits[:, :1].repeat_interleave(4, 0)
    cases["quality_focal_loss"] = [(partial(ops.quality_focal_loss, gamma=g), [column, quality]) for g in (1, 1.5, 3)]
    far = 1e4 if dtype == torch.float16 else 1e23  # what `encode` gives of what is far away
    errors = table(0, 1e-30, -1, 1e4, -far, far, dtype=dtype, repeat=2)
    cases["huber_loss"] = [(partial(ops.huber_loss, delta=delta), [*errors.T]) for delta in (1e-3, 0.1, 1.0)]
    deltas = table(0, 3, -1e4, 1e4, dtype=dtype, repeat=4)[:, None]
    logits = logits[torch.arange(len(deltas)) % len(logits), None]
    for name, focal_sum in (("", ops.focal_loss_sum), (", kernels", kernels.focal_loss_sum)):
        kinds = [torch.full((len(deltas), 1), label) for label in (1, BACKGROUND, IGNORE)]
        losses = [partial(ops.detection_loss, quality=quality, focal_sum=focal_sum) for quality in (False, True)]
        heads = [[logits, deltas, kind, deltas.roll(7, 0)] for kind in kinds]
        cases[f"detection_loss{name}"] = [*product(losses, heads)]
    return cases


def finite(function: Callable[..., Any], arguments: list[Tensor]) -> Tensor:
    """Say of each case whether its floating results and their gradients are finite. -> bool[N]"""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in arguments]
    result = function(*leaves)
    outputs = [x for x in pytree.tree_leaves(result) if x.is_floating_point()]
    grads = torch.autograd.grad(
        [x.sum() for x in outputs if x.requires_grad] or [leaves[0].sum()],
        [x for x in leaves if x.requires_grad],
        allow_unused=True,
        materialize_grads=True,
    )
    kept = torch.ones(len(arguments[0]), dtype=torch.bool)
    if isinstance(result, list):
        kept = torch.tensor([all(x.isfinite().all() for x in pytree.tree_leaves(one)) for one in result])
        outputs = []
    for x in (*outputs, *grads):
        kept = kept & (x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite())
    return kept


MAKERS = (box_cases, object_cases, loss_cases)


@pytest.mark.parametrize("dtype", INTERVALS, ids=str)
@pytest.mark.parametrize("make", MAKERS)
def test_finite_in_finite_out(make: Callable[..., dict[str, Cases]], dtype: torch.dtype) -> None:
    kept = {name: torch.cat([finite(*one) for one in cases]) for name, cases in make(dtype).items()}
    assert {name: f"{(~rows).sum()} of {len(rows)}" for name, rows in kept.items() if not rows.all()} == {}
    assert sum(map(len, kept.values())) > 500


def test_every_function_is_tried() -> None:
    tried = {name.split(",")[0] for make in MAKERS for name in make(torch.float32)}
    convs = {
        f"kernels.{name}" for name in ("depthwise_conv", "pointwise_conv", "pointwise_conv_norm", "gated_conv", "pad")
    }
    no_boxes = {"anchors", "feature_sizes", "nearest_cells", "adaptive_candidates", "match_anchors", *convs}
    assert tried == {name.split(",")[0] for name in SMOOTH | OTHER} - no_boxes


def test_a_box_is_decoded_to_no_more_than_62_times_its_anchor() -> None:
    anchor = torch.tensor([0.0, 0, 10, 20])
    deltas = torch.tensor([0.0, 0, LARGEST_SCALE, 1e4], requires_grad=True)
    box = ops.decode(deltas, anchor)
    torch.testing.assert_close(ops.xyxy_to_cxcywh(box), torch.tensor([5.0, 10, 625, 1250]))
    torch.testing.assert_close(ops.encode(box, anchor)[2:], torch.full((2,), LARGEST_SCALE))
    assert torch.autograd.grad(box.sum(), deltas)[0][3] == 0


# What is labelled away


@pytest.mark.parametrize("focal_sum", [ops.focal_loss_sum, kernels.focal_loss_sum])
@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_ignored_anchors_and_targets_of_none_never_reach_the_loss(
    junk: float, quality: bool, focal_sum: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 6)  # some without anything ignored
    generator = torch.Generator().manual_seed(0)
    logits, deltas, targets = (torch.randn(2, 9, width, generator=generator) for width in (3, 4, 4))
    labels = torch.tensor([[2, IGNORE, BACKGROUND, 0, 1, BACKGROUND, IGNORE, IGNORE, BACKGROUND]] * 2)

    def value_and_gradients(logits: Tensor, deltas: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        leaves = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
        losses = ops.detection_loss(*leaves, labels, targets, quality=quality, focal_sum=focal_sum)
        return *(x.detach() for x in losses), *torch.autograd.grad(losses.total, leaves)

    expected = value_and_gradients(logits, deltas, targets)
    logits, deltas, targets = logits.clone(), deltas.clone(), targets.clone()
    logits[labels == IGNORE] = junk
    deltas[labels < 0] = junk
    targets[labels < 0] = junk
    for found, value in zip(value_and_gradients(logits, deltas, targets), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    "function",
    [ops.assign_batch, *(partial(each, image_size=IMAGE) for each in (ops.assign_batch, kernels.assign_batch))],
)
@pytest.mark.parametrize("junk", [NAN, INF])
@pytest.mark.parametrize("label", [IGNORE, BACKGROUND])
def test_rows_of_no_object_never_reach_targets_or_gradients(label: int, junk: float, function: Any) -> None:
    anchors = ops.anchors(IMAGE)
    boxes = torch.tensor([[[junk] * 4, [10, 10, 50, 40], [junk] * 4], [[1, 2, 30, 60], [junk] * 4, [junk] * 4]])
    labels = torch.tensor([[label, 1, label], [0, label, label]])
    nothing = boxes.nan_to_num(0, 0)

    def targets_and_gradients(boxes: Tensor, labels: Tensor) -> list[Tensor]:
        leaves = boxes.requires_grad_(), anchors.clone().requires_grad_()
        targets = function(leaves[0], labels, leaves[1])
        return [*targets, *torch.autograd.grad(targets.deltas.sum(), leaves)]

    expected = targets_and_gradients(nothing, torch.where(labels >= 0, labels, BACKGROUND))
    for found, value in zip(targets_and_gradients(boxes, labels), expected, strict=True):
        assert torch.equal(found, value)

"""The functions of the wing change no argument, keep float64, and can be differentiated and mapped by torch.func."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import tinydet.ops
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops import kernels
from tinydet.ops.anchors import anchors, feature_sizes, max_anchor_iou
from tinydet.ops.assign import adaptive_candidates, assign, assign_batch, match_anchors, nearest_cells
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
from tinydet.ops.losses import detection_loss, focal_loss, focal_loss_sum, huber_loss, quality_focal_loss
from tinydet.ops.nms import METHODS, box_voting, fixed_shape_nms, nms, soft_nms, weighted_boxes_fusion

# torch itself scripts a few decompositions when forward-mode derivatives are first asked for.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")

GENERATOR = torch.Generator().manual_seed(0)
ANCHORS = anchors((16, 24), octaves=1, dtype=torch.float64)
LABELS = torch.tensor([1, 0, BACKGROUND, IGNORE, 2])


def values(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def boxes(*shape, seed=0):
    """Some over the border of a 16 x 24 image, none aligned with another."""
    corner, size = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corner = corner * 25 - 4
    return torch.cat([corner, corner + 3 + 12 * size], -1)


# Functions of tensors alone, whose floating results follow smoothly from their floating arguments, for a single
# example. The first axis of three is what vmap maps.
SMOOTH: dict[str, tuple[Any, ...]] = {
    "xyxy_to_xywh": (xyxy_to_xywh, boxes(3, 5)),
    "xywh_to_xyxy": (xywh_to_xyxy, boxes(3, 5)),
    "xyxy_to_cxcywh": (xyxy_to_cxcywh, boxes(3, 5)),
    "cxcywh_to_xyxy": (cxcywh_to_xyxy, boxes(3, 5)),
    "area": (area, boxes(3, 5)),
    "intersection": (intersection, boxes(3, 5), boxes(3, 4, seed=1)),
    "iou": (iou, boxes(3, 5), boxes(3, 4, seed=1)),
    "clip": (partial(clip, size=(16, 24)), boxes(3, 5)),
    "clip, each": (clip, boxes(3, 2, 5), torch.tensor([[16, 24], [9, 7]]).repeat(3, 1, 1)),
    "encode": (encode, boxes(3, 5), boxes(3, 5, seed=1)),
    "decode": (decode, values(3, 5, 4), boxes(3, 5)),
    "delta_giou": (delta_giou, 0.3 * values(3, 5, 4), 0.3 * values(3, 5, 4)),
    "max_anchor_iou": (max_anchor_iou, boxes(3, 5), ANCHORS + 0.1 * values(3, *ANCHORS.shape)),
    "assign": (assign, boxes(3, 5), LABELS.repeat(3, 1), ANCHORS[::3] + 0.1 * values(3, len(ANCHORS[::3]), 4)),
    "focal_loss": (focal_loss, values(3, 5, 3), LABELS.repeat(3, 1)),
    "focal_loss, gamma": (partial(focal_loss, gamma=2.0), values(3, 5, 3), LABELS.repeat(3, 1)),
    "quality_focal_loss": (quality_focal_loss, values(3, 5), values(3, 5).sigmoid()),
    "focal_loss_sum": (focal_loss_sum, values(3, 5, 3), LABELS.repeat(3, 1)),
    "huber_loss": (partial(huber_loss, delta=0.7), values(3, 5, 4), values(3, 5, 4)),
    "kernels.depthwise_conv": (
        partial(kernels.depthwise_conv, padding=2),
        values(3, 1, 2, 4, 5),
        values(3, 2, 1, 5, 5),
    ),
    "kernels.pointwise_conv": (kernels.pointwise_conv, values(3, 1, 2, 4, 5), values(3, 3, 2, 1, 1), values(3, 3)),
    "kernels.gated_conv": (
        kernels.gated_conv,
        *(values(3, 2, 2, 4, 5), values(3, 2, 2), values(3, 3, 2, 1, 1), values(3, 3)),
    ),
    "kernels.pointwise_conv_norm": (
        partial(kernels.pointwise_conv_norm, eps=0.1),
        *(values(3, 2, 2, 4, 5), values(3, 3, 2, 1, 1), values(3, 3), values(3, 3)),
    ),
    "kernels.pad": (partial(kernels.pad, left=0, right=1, top=2, bottom=0), values(3, 2, 2, 4, 5)),
    "detection_loss": (detection_loss, values(3, 5, 3), values(3, 5, 4), LABELS.repeat(3, 1), values(3, 5, 4)),
}
# The rest: no tensor arguments, or results that jump.
OTHER: dict[str, tuple[Any, ...]] = {
    "feature_sizes": (feature_sizes, (16, 24)),
    "anchors": (partial(anchors, dtype=torch.float64), (16, 24)),
    "assign_batch, adaptive": (partial(assign_batch, image_size=(16, 24)), boxes(3, 5), LABELS.repeat(3, 1), ANCHORS),
    "assign_batch": (assign_batch, boxes(3, 5), LABELS.repeat(3, 1), ANCHORS),
    "match_anchors": (
        match_anchors,
        *(values(5, len(ANCHORS)), values(5, len(ANCHORS)) > 0, torch.arange(len(ANCHORS)) % 2 == 0),
        *(boxes(3, 5)[0], LABELS, ANCHORS),
    ),
    "nearest_cells": (partial(nearest_cells, image_size=(16, 24)), boxes(3, 5)[0], ANCHORS),
    "adaptive_candidates": (adaptive_candidates, values(5, 9, 3).abs(), values(5, 9) > 0, values(5, 9) > 0),
    "kernels.assign_batch": (
        partial(kernels.assign_batch, image_size=(16, 24)),
        *(boxes(3, 5), LABELS.repeat(3, 1), ANCHORS),
    ),
    "kernels.focal_loss_sum": (kernels.focal_loss_sum, values(3, 5, 3), LABELS.repeat(3, 1)),
    "kernels.max_anchor_iou": (partial(kernels.max_anchor_iou, image_size=(16, 24)), boxes(3, 5)[0]),
    "nms": (nms, boxes(40), values(40), torch.arange(40) % 2),
    "soft_nms": (soft_nms, boxes(40), values(40).abs(), torch.arange(40) % 2),
    "soft_nms, few": (partial(soft_nms, max_detections=5), boxes(40), values(40).abs(), torch.arange(40) % 2),
    **{
        f"fixed_shape_nms, {method}": (
            partial(fixed_shape_nms, max_detections=4, method=method),
            *(boxes(3, 5), values(3, 5).abs(), LABELS.repeat(3, 1)),
        )
        for method in METHODS
    },
    "box_voting": (box_voting, boxes(3, 5), values(3, 5).abs(), LABELS.repeat(3, 1), torch.arange(3)[:, None] % 5),
    "weighted_boxes_fusion": (
        partial(weighted_boxes_fusion, count=2),
        *(boxes(40), values(40).abs(), torch.arange(40) % 2, torch.arange(40) // 20),
    ),
}


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def floats(result):
    """The floating leaves of a result."""
    return tuple(leaf for leaf in pytree.tree_leaves(result) if is_float(leaf))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=SMOOTH)
def smooth(request):
    """A function of its floating arguments alone, for one example, and those arguments."""
    function, *arguments = SMOOTH[request.param]
    arguments = [x[0].clone() for x in arguments]
    places = [i for i, x in enumerate(arguments) if is_float(x)]

    def of_floats(*given):
        filled = list(arguments)
        for i, x in zip(places, given, strict=True):
            filled[i] = x
        return floats(function(*filled))

    return of_floats, tuple(arguments[i] for i in places)


def test_the_tables_name_every_function():
    names = set()
    for module in pkgutil.iter_modules(tinydet.ops.__path__):
        contents = vars(importlib.import_module(f"tinydet.ops.{module.name}"))
        own = {k for k, v in contents.items() if inspect.isfunction(v) and v.__module__ == f"tinydet.ops.{module.name}"}
        names |= {f"kernels.{name}" if module.name == "kernels" else name for name in own if name[0] != "_"}
    others = {"at_least_float32", "check_labels", "kernels.relu6"}  # return or overwrite their argument, or nothing
    assert {name.split(",")[0] for name in [*SMOOTH, *OTHER]} == names - others


def test_names_of_the_wing_are_functions_whatever_was_loaded_before():
    for _ in range(2):
        for name in ("anchors", "assign", "nms"):
            module = importlib.import_module(f"tinydet.ops.{name}")
            assert inspect.ismodule(module)
            assert getattr(tinydet.ops, name) is getattr(module, name)
    assert all(inspect.isroutine(getattr(tinydet.ops, name)) or name.istitle() for name in tinydet.ops.__all__)


def test_functions_and_modules_of_one_name():
    code = """
import tinydet.ops.nms, tinydet.ops.assign
from tinydet.ops import anchors, assign, nms
from tinydet.ops.anchors import anchors as same
import tinydet.ops.anchors
from tinydet.ops import anchors as again, kernels
assert anchors is same is again and callable(assign) and callable(nms) and callable(kernels.assign_batch)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


HALF = {
    name: (SMOOTH | OTHER)[name]
    for name in SMOOTH | OTHER
    if not name.startswith(("focal", "quality", "huber", "kernels.d", "kernels.f", "kernels.g", "kernels.p"))
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_float32_rounded_once(name, dtype):
    """Boxes to 2000 pixels, whose areas float16 cannot hold; the image and its anchors grow with them."""
    function, *arguments = HALF[name]
    arguments = [x[0] for x in arguments] if name in SMOOTH else arguments
    is_box = [is_float(x) and x.shape[-1] == 4 for x in arguments]
    if name.startswith(("decode", "delta_giou")):
        is_box = [False, name == "decode"]  # deltas
    if name.startswith("kernels.max_anchor_iou"):
        function = partial(function, image_size=(1024, 1536))
    if name.startswith("detection_loss"):
        is_box = [False] * len(arguments)
    if name == "anchors":
        function = anchors
    half = [(64 * x if box else x).to(dtype) if is_float(x) else x for x, box in zip(arguments, is_box, strict=True)]
    found = pytree.tree_leaves(function(*half))
    expected = pytree.tree_leaves(function(*(x.float() if is_float(x) else x for x in half)))
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype in (dtype, b.dtype)
            assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("name", [*SMOOTH, *OTHER])
def test_arguments_stay_and_results_are_new(name):
    function, *arguments = (SMOOTH | OTHER)[name]
    if name in SMOOTH:
        arguments = [x[0] for x in arguments]
    given = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, arguments)
    result = function(*given)
    assert all(x.dtype == torch.float64 for x in floats(result))
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            leaf.fill_(7)  # would show through, were it a view of an argument
    for before, after in zip(arguments, given, strict=True):
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def test_derivatives_are_numeric_ones(smooth, request):
    function, arguments = smooth
    arguments = tuple(x.requires_grad_() for x in arguments)
    every = "kernels." not in request.node.name  # which are for the gradient of a step alone
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=every, check_batched_grad=every)


def test_torch_func_grad_is_autograds(smooth):
    function, arguments = smooth
    weights = [values(*x.shape) for x in function(*arguments)]

    def total(*given):
        return sum((w * x).sum() for w, x in zip(weights, function(*given), strict=True))

    gradients = torch.func.grad(total, argnums=tuple(range(len(arguments))))(*arguments)
    leaves = [x.clone().requires_grad_() for x in arguments]
    expected = torch.autograd.grad(total(*leaves), leaves, allow_unused=True, materialize_grads=True)
    close(gradients, expected)

    tangents = tuple(values(*x.shape) for x in arguments)
    slope = torch.func.jvp(total, arguments, tangents)[1]
    close(slope, sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))


@pytest.mark.parametrize("name", SMOOTH)
def test_vmap_is_the_loop(name):
    function, *arguments = SMOOTH[name]
    mapped = pytree.tree_leaves(torch.func.vmap(function)(*arguments))
    each = [pytree.tree_leaves(function(*(x[i] for x in arguments))) for i in range(3)]
    close(mapped, [torch.stack(leaves) for leaves in zip(*each, strict=True)])


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_each_example_by_vmap(name):
    function, *arguments = SMOOTH[name]

    def total(*given):
        return sum(x.sum() for x in floats(function(*given)))

    gradient = torch.func.grad(total, argnums=0)
    mapped = torch.func.vmap(gradient)(*arguments)
    close(mapped, torch.stack([gradient(*(x[i] for x in arguments)) for i in range(3)]))

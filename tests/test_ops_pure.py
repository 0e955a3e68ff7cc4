"""Every function of the wing changes no argument, keeps float64, and can be differentiated and mapped by torch.func."""

import importlib
import inspect
import pkgutil
from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree

import tinydet.ops
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops.anchors import anchors, coverage, coverage_nearby, feature_sizes
from tinydet.ops.assign import assign, assign_batch, assign_nearby
from tinydet.ops.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    decode,
    encode,
    intersection,
    iou,
    swap_xy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from tinydet.ops.depthwise import depthwise_conv
from tinydet.ops.fusion import METHODS, weighted_fusion
from tinydet.ops.losses import detection_loss, focal_loss, huber_loss
from tinydet.ops.nms import nms, nms_in_steps, soft_nms, soft_nms_best, vote, weighted_boxes_fusion

# torch itself scripts a few decompositions when forward-mode derivatives are first asked for.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")

GENERATOR = torch.Generator().manual_seed(0)
ANCHORS = anchors((16, 24), octaves=1, dtype=torch.float64)
LABELS = torch.tensor([1, 0, BACKGROUND, IGNORE, 2])


def values(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def boxes(*shape, seed=0):
    """Some over the border of a 16 x 24 picture, none aligned with another."""
    corner, size = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corner = corner * 25 - 4
    return torch.cat([corner, corner + 3 + 12 * size], -1)


def fuse(a, b, c, weights, *, method):
    return weighted_fusion([a, b, c], weights, method=method)


# Functions of tensors alone, whose floating results follow smoothly from their floating arguments, for a single
# example. The first axis of three is what vmap maps.
SMOOTH = {
    "xyxy_to_xywh": (xyxy_to_xywh, boxes(3, 5)),
    "xywh_to_xyxy": (xywh_to_xyxy, boxes(3, 5)),
    "xyxy_to_cxcywh": (xyxy_to_cxcywh, boxes(3, 5)),
    "cxcywh_to_xyxy": (cxcywh_to_xyxy, boxes(3, 5)),
    "swap_xy": (swap_xy, boxes(3, 5)),
    "area": (area, boxes(3, 5)),
    "intersection": (intersection, boxes(3, 5), boxes(3, 4, seed=1)),
    "iou": (iou, boxes(3, 5), boxes(3, 4, seed=1)),
    "clip": (partial(clip, size=(16, 24)), boxes(3, 5)),
    "encode": (encode, boxes(3, 5), boxes(3, 5, seed=1)),
    "decode": (decode, values(3, 5, 4), boxes(3, 5)),
    "coverage": (coverage, boxes(3, 5), ANCHORS + 0.1 * values(3, *ANCHORS.shape)),
    "assign": (assign, boxes(3, 5), LABELS.repeat(3, 1), ANCHORS + 0.1 * values(3, *ANCHORS.shape)),
    "focal_loss": (focal_loss, values(3, 5, 3), LABELS.repeat(3, 1)),
    "focal_loss, smooth": (partial(focal_loss, gamma=2.0, smoothing=0.1), values(3, 5, 3), LABELS.repeat(3, 1)),
    "huber_loss": (partial(huber_loss, delta=0.7), values(3, 5, 4), values(3, 5, 4)),
    "depthwise_conv": (partial(depthwise_conv, padding=2), values(3, 1, 2, 4, 5), values(3, 2, 1, 5, 5)),
    "detection_loss": (detection_loss, values(3, 5, 3), values(3, 5, 4), LABELS.repeat(3, 1), values(3, 5, 4)),
    **{
        f"weighted_fusion, {method}": (partial(fuse, method=method), *values(3, 3, 2, 4, 4), values(3, 3).abs())
        for method in METHODS
    },
}
# The rest: no tensor arguments, or results that jump.
OTHER = {
    "feature_sizes": (feature_sizes, (16, 24)),
    "anchors": (partial(anchors, dtype=torch.float64), (16, 24)),
    "assign_batch": (assign_batch, boxes(3, 5), LABELS.repeat(3, 1), ANCHORS),
    "assign_nearby": (assign_nearby, boxes(3, 5), LABELS.repeat(3, 1), ANCHORS),
    "detection_loss, once": (
        partial(detection_loss, once=True),
        *(values(3, 5, 3), values(3, 5, 4), LABELS.repeat(3, 1), values(3, 5, 4)),
    ),
    "nms": (nms, boxes(40), values(40), torch.arange(40) % 2),
    "soft_nms": (soft_nms, boxes(40), values(40).abs(), torch.arange(40) % 2),
    "soft_nms_best": (partial(soft_nms_best, max_detections=5), boxes(40), values(40).abs(), torch.arange(40) % 2),
    "coverage_nearby": (partial(coverage_nearby, image_size=(16, 24)), boxes(3, 5)[0]),
    "nms_in_steps": (partial(nms_in_steps, steps=4), boxes(3, 5), values(3, 5).abs(), LABELS.repeat(3, 1)),
    "vote": (vote, boxes(3, 5), values(3, 5).abs(), LABELS.repeat(3, 1), torch.arange(3)[:, None] % 5),
    "weighted_boxes_fusion": (
        partial(weighted_boxes_fusion, count=2),
        *(boxes(40), values(40).abs(), torch.arange(40) % 2, torch.arange(40) // 20),
    ),
    "soft_nms, linear": (partial(soft_nms, method="linear"), boxes(40), values(40).abs(), torch.arange(40) % 2),
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
        contents = vars(importlib.import_module(f"tinydet.ops.{module.name}")).items()
        names |= {k for k, v in contents if inspect.isfunction(v) and v.__module__.startswith("tinydet.ops")}
    assert {name.split(",")[0] for name in [*SMOOTH, *OTHER]} == {name for name in names if not name.startswith("_")}


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


def test_derivatives_are_numeric_ones(smooth):
    function, arguments = smooth
    arguments = tuple(x.requires_grad_() for x in arguments)
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)


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

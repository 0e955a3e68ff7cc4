"""The faster variants are what they are variants of, gradients and their gradients included."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops import anchors, assign, detection_loss, kernels
from tinydet.ops.anchors import max_anchor_iou
from tinydet.ops.kernels import depthwise_conv

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # torch's own forward mode
CASES = [(5, 1, 2, (9, 11)), (5, 2, 0, (13, 12)), (7, 1, 3, (8, 8)), (5, 2, 2, (8, 9)), (3, 1, 1, (5, 5))]
Conv = Callable[[Tensor, Tensor], Tensor]


# Depthwise convolution


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Conv, Conv, Tensor, Tensor]:
    """The function, its definition, and their arguments."""
    width, stride, padding, size = request.param
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    weight = torch.randn(6, 1, width, width, dtype=torch.float64)
    fast = lambda x, weight: depthwise_conv(x, weight, stride=stride, padding=padding)  # noqa: E731
    plain = lambda x, weight: F.conv2d(x, weight, None, stride, padding, groups=6)  # noqa: E731
    return fast, plain, x, weight


def test_depthwise_conv(case: tuple[Conv, Conv, Tensor, Tensor]) -> None:
    fast, plain, *arguments = case
    same_function(fast, plain, *arguments)
    assert torch.equal(fast(*arguments), plain(*arguments))


def same_function(fast: Callable[..., Any], plain: Callable[..., Any], *arguments: Tensor) -> None:
    """Compare values, gradients, by one argument alone too, their gradients, and the same by torch.func."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    torch.testing.assert_close(fast(*leaves), plain(*leaves))

    def loss(function: Callable[..., Any], *leaves: Tensor) -> Tensor:
        values = function(*leaves)
        return sum(y.sin().sum() for y in (values if isinstance(values, tuple) else (values,)))

    def gradients(function: Callable[..., Any]) -> list[Any]:
        first = torch.autograd.grad(loss(function, *leaves), leaves, create_graph=True)
        alone = torch.autograd.grad(loss(function, *(x.detach() for x in leaves[:-1]), leaves[-1]), leaves[-1])
        second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves, allow_unused=True)  # type: ignore[arg-type]
        return [first, alone, second]

    torch.testing.assert_close(gradients(fast), gradients(plain))
    by = tuple(range(len(leaves)))
    torch.testing.assert_close(
        torch.func.grad(lambda *x: loss(fast, *(y * 1 for y in x)), argnums=by)(*arguments),
        torch.autograd.grad(loss(plain, *leaves), leaves),
    )


def test_the_kernels_gradient_takes_no_wide_convolution() -> None:
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(depthwise_conv(x, weight, padding=2).sum(), weight)
    shapes = [event.input_shapes for event in profile.events() if event.name == "aten::convolution_backward"]
    assert [shape[2] for shape in shapes] == [[4, 1, 5, 3], [4, 1, 5, 2]]


# Pointwise convolutions, padding, relu6


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw tensors in float64, those of four axes in channels-last memory."""
    torch.manual_seed(0)
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in drawn]


def test_pointwise_conv() -> None:
    same_function(kernels.pointwise_conv, F.conv2d, *random((2, 3, 4, 5), (6, 3, 1, 1), (6,)))
    same_function(kernels.pointwise_conv, F.conv2d, *random((2, 3, 4, 5), (6, 3, 1, 1)))


def test_gated_conv() -> None:
    plain = lambda x, gate, *kernel: F.conv2d(x * gate[..., None, None], *kernel)  # noqa: E731
    for bias in [(3,)], []:
        same_function(kernels.gated_conv, plain, *random((2, 6, 4, 5), (2, 6), (3, 6, 1, 1), *bias))


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_pointwise_conv_norm(mean: float) -> None:
    def plain(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = F.conv2d(x, weight)
        var, expected = torch.var_mean(y, (0, 2, 3), unbiased=False)
        return F.batch_norm(y, None, None, scale, shift, training=True, eps=1e-2), expected, var

    x, *params = random((2, 3, 4, 5), (6, 3, 1, 1), (6,), (6,))
    same_function(partial(kernels.pointwise_conv_norm, eps=1e-2), plain, x + mean, *params)


def test_a_variance_that_cancels_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    along, turned = torch.randn(16, 1, generator=generator), torch.randn(512, 16, generator=generator)
    turned -= turned @ along @ along.mT / along.square().sum()  # orthogonal to the one direction in which x varies
    x = 1e3 * along * torch.randn(1, 64 * 64, generator=generator)
    kernel = turned[..., None, None]
    y, _, var = kernels.pointwise_conv_norm(x.view(1, 16, 64, 64), kernel, torch.ones(512), torch.zeros(512), eps=1e-3)
    assert var.min() == 0
    assert y.isfinite().all()


def test_pad() -> None:
    for border, value in (((0, 1, 2, 3), 0.0), ((2, 0, 0, 0), -torch.inf), ((0, 0, 0, 0), 1.0)):
        plain = lambda x, border=border, value=value: F.pad(x, border, value=value).exp()  # noqa: E731
        fast = lambda x, border=border, value=value: kernels.pad(x, *border, value=value).exp()  # noqa: E731
        same_function(fast, plain, *random((2, 3, 4, 5)))


def test_relu6_keeps_only_its_result() -> None:
    same_function(lambda x: kernels.relu6(5 * x), lambda x: F.relu6(5 * x), *random((2, 3, 4, 5)))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        argument = torch.randn(4, requires_grad=True) * 1
        result = kernels.relu6(argument)
    assert argument.data_ptr() == result.data_ptr() == kept[-1].data_ptr()


# Focal loss


@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(1, 1, 1), (2, 7, 3), (3, 50, 1), (1, 300, 5)]),
    gamma=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.7]),
    alpha=st.sampled_from([0.1, 0.25, 0.9]),
    spread=st.sampled_from([1.0, 30.0]),
    chunk=st.sampled_from([1, 16, 1 << 17]),
    quality=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_focal_loss_sum(seed, shape, gamma, alpha, spread, chunk, quality):
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    deltas, targets = (torch.randn(*shape[:2], 4, generator=generator, dtype=torch.float64) for _ in range(2))
    deltas.requires_grad_()
    labels = torch.randint(IGNORE, shape[-1], shape[:2], generator=generator)
    before = logits.detach().clone(), labels.clone()

    def value_and_gradients(**settings):
        how = {"alpha": alpha, "gamma": max(1.0, gamma) if quality else gamma, "quality": quality}
        losses = detection_loss(logits, deltas, labels, targets, **how, **settings)
        return losses, torch.autograd.grad(3 * losses.total, (logits, deltas))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CHUNK", chunk)
        losses, gradients = value_and_gradients(focal_sum=kernels.focal_loss_sum)
    expected, slow = value_and_gradients()
    atol = 1e-8 if quality else 1e-12  # torch's softplus is a line from 20 on, which shows where large losses cancel
    torch.testing.assert_close(tuple(losses), tuple(expected), rtol=1e-9, atol=atol)
    torch.testing.assert_close(gradients, slow, rtol=1e-9, atol=atol)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_focal_loss_sum_in_single_precision_at_the_ends():
    """Confident and right, confident and wrong, and neither: float32 against the definition in float64."""
    logits = torch.tensor([-300.0, -90, -20, -5, 0, 5, 20, 90, 300]).repeat(3, 1)[None]
    labels = torch.tensor([[BACKGROUND, 4, IGNORE]])

    def value_and_gradient(x, **settings):
        x = x.clone().requires_grad_()
        zeros = torch.zeros(1, 3, 4, dtype=x.dtype)
        value = detection_loss(x, zeros, labels, zeros, **settings).classification
        return value.detach().double(), torch.autograd.grad(value, x)[0].double()

    found, expected = value_and_gradient(logits, focal_sum=kernels.focal_loss_sum), value_and_gradient(logits.double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_focal_loss_sum_is_differentiable_once():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    value = kernels.focal_loss_sum(logits, torch.tensor([[0, BACKGROUND]]))
    (gradient,) = torch.autograd.grad(value.square(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# Anchors and assignment


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.sampled_from([(64, 64), (50, 130), (33, 7)]), st.floats(0.5, 6))
def test_max_anchor_iou(seed, count, image_size, scale):
    """Objects within the image and partly outside of it."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 120, (count, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], -1))
    boxes = boxes * torch.tensor([image_size[1], image_size[0]] * 2) / 64
    expected = max_anchor_iou(boxes, anchors(image_size, scale=scale, dtype=torch.float64))
    torch.testing.assert_close(kernels.max_anchor_iou(boxes, image_size, scale=scale), expected)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 8),
    whole=st.booleans(),
    image_size=st.sampled_from([(32, 48), (47, 33), (200, 64)]),
    last=st.integers(6, 8),
)
def test_assign_batch(seed, rows, whole, image_size, last):
    """Whole-number boxes for ties; some empty, inverted, duplicate, far away; padding that is no number."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(-12, 50, (3, rows, 2)), rng.uniform(-4, 40, (3, rows, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + side], -1))
    boxes = boxes.round() if whole else boxes
    labels = torch.tensor(rng.integers(IGNORE, 4, (3, rows)))
    if rows > 2:
        boxes[:, 2], boxes[1, 0] = boxes[:, 0], 1000
    boxes[labels == BACKGROUND] = torch.nan
    where = {"image_size": image_size, "levels": range(3, last + 1)}
    set_of_anchors = anchors(**where, octaves=2, dtype=torch.float64)
    result = kernels.assign_batch(boxes, labels, set_of_anchors, **where)
    for i, (b, k) in enumerate(zip(boxes, labels, strict=True)):
        expected = assign(b, k, set_of_anchors, **where)
        assert all(torch.equal(x[i], y) for x, y in zip(result, expected, strict=True))

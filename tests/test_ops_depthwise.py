"""The quick depthwise convolution is torch's own, gradients and their gradients included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.ops.depthwise import depthwise_conv

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # torch's own forward mode
CASES = [(5, 1, 2, (9, 11)), (5, 2, 0, (13, 12)), (7, 1, 3, (8, 8)), (5, 2, 2, (8, 9)), (3, 1, 1, (5, 5))]
Conv = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Conv, Conv, Tensor, Tensor]:
    """The function, its definition, and their arguments."""
    width, stride, padding, size = request.param
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    weight = torch.randn(6, 1, width, width, dtype=torch.float64)
    quick = lambda x, weight: depthwise_conv(x, weight, stride=stride, padding=padding)  # noqa: E731
    plain = lambda x, weight: F.conv2d(x, weight, None, stride, padding, groups=6)  # noqa: E731
    return quick, plain, x, weight


def test_value_and_gradients(case: tuple[Conv, Conv, Tensor, Tensor]) -> None:
    quick, plain, x, weight = case
    assert torch.equal(quick(x, weight), plain(x, weight))
    found, expected = (
        torch.func.grad(lambda x, weight, conv=conv: conv(x, weight).sin().sum(), argnums=(0, 1))(x, weight)
        for conv in (quick, plain)
    )
    torch.testing.assert_close(found, expected)


def test_gradient_of_the_kernel_alone(case: tuple[Conv, Conv, Tensor, Tensor]) -> None:
    quick, plain, x, weight = case
    leaf = weight.requires_grad_()
    found, expected = (torch.autograd.grad(conv(x, leaf).sin().sum(), leaf) for conv in (quick, plain))
    torch.testing.assert_close(found, expected)


def test_gradient_of_the_gradient(case: tuple[Conv, Conv, Tensor, Tensor]) -> None:
    quick, plain, x, weight = case
    tangent = torch.randn_like(weight)

    def curvature(conv: Conv) -> Tensor:
        def loss(weight: Tensor) -> Tensor:
            return conv(x, weight).sin().sum()

        return torch.func.jvp(torch.func.grad(loss), (weight,), (tangent,))[1]

    torch.testing.assert_close(curvature(quick), curvature(plain))


def test_the_kernels_gradient_takes_no_wide_convolution() -> None:
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(depthwise_conv(x, weight, padding=2).sum(), weight)
    shapes = [event.input_shapes for event in profile.events() if event.name == "aten::convolution_backward"]
    assert [shape[2] for shape in shapes] == [[4, 1, 5, 3], [4, 1, 5, 2]]

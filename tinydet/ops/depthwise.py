"""Depthwise convolution with wide kernels, made for training on CPU: a third of the time for the kernel's gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUICK_WIDTH = 3
"""The widest depthwise kernel for whose gradient oneDNN 3.12 has a routine; wider ones go the way of dense groups."""


class _DepthwiseConv(torch.autograd.Function):
    """`F.conv2d` with one kernel a channel. Its gradient by the kernel is put together from columns of the kernel, each
    three wide, over the picture moved to where those columns read it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, width = ctx.stride, ctx.padding, weight.shape[-1]
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = _gradient(grad, x, weight, stride, (padding, padding), by=0)
        if ctx.needs_input_grad[1]:
            columns = []
            for first in range(0, width, QUICK_WIDTH):
                some = weight[..., first : first + QUICK_WIDTH]
                left, reach = padding - first, (grad.shape[-1] - 1) * stride + some.shape[-1]
                moved = F.pad(x, (left, reach - left - x.shape[-1]))
                columns.append(_gradient(grad, moved, some, stride, (padding, 0), by=1))
            by_weight = torch.cat(columns, -1)
        return by_x, by_weight, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, weight_tangent: Tensor, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        conv = _DepthwiseConv.forward
        return conv(x_tangent, weight, ctx.stride, ctx.padding) + conv(x, weight_tangent, ctx.stride, ctx.padding)


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, by: int) -> Tensor:
    """The gradient of a depthwise convolution by its picture (0) or its kernels (1)."""
    mask = [by == 0, by == 1, False]
    settings = [stride, stride], padding, [1, 1], False, [0, 0], len(weight)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)[by]


def depthwise_conv(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """`F.conv2d(x, weight, None, stride, padding, groups=C)`, with a quicker gradient on CPU if kernels are wide.

    Args:
        x: float[B C H W].
        weight: float[C 1 k k], one kernel a channel.
        stride, padding: alike in both directions.

    Returns:
        float[B C H' W'].
    """
    quick = weight.shape[-1] <= QUICK_WIDTH or x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if quick or not torch.is_grad_enabled():
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))
    return _DepthwiseConv.apply(x, weight, stride, padding)

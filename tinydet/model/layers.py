"""The layers that every part of the network is made of."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.ops.depthwise import depthwise_conv


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x). float[...] -> float[...]. Reference: Ramachandran et al., Searching for Activation Functions."""
    return F.silu(x)


def _overwriting_swish(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


# Each is applied to a tensor that nothing else reads, so it may be overwritten: by relu6, whose gradient needs only its
# output, always, by swish where there is no gradient.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": _overwriting_swish,
    "relu6": partial(F.relu6, inplace=True),
}


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """How TensorFlow's SAME pads one axis before and after, so that ceil(size / stride) outputs come out."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float = 0.0) -> Tensor:
    """`x` padded at its border as SAME does. float[B C H W] -> float[B C H' W']."""
    top, bottom = same_padding(x.shape[-2], kernel_size, stride)
    left, right = same_padding(x.shape[-1], kernel_size, stride)
    return F.pad(x, (left, right, top, bottom), value=value)


class Conv(nn.Conv2d):
    """A convolution that keeps ceil(size / stride), by either convention of padding; they differ at stride 2 only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        padding: str = "same",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias
        )
        self.pads_right = padding == "same" and stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        padding = kernel_size // 2
        if self.pads_right and not torch.is_grad_enabled():
            # Padding alike on both sides, and zeros in front of the kernel where there is one pixel too many: the
            # picture is not copied. The gradient of the larger kernel would cost more than the copy.
            (top, bottom), (left, right) = (same_padding(size, kernel_size, stride) for size in x.shape[-2:])
            weight = F.pad(self.weight, (right - left, 0, bottom - top, 0))
            return F.conv2d(x, weight, self.bias, stride, (bottom, right), groups=self.groups)
        if self.pads_right:
            x, padding = pad_same(x, kernel_size, stride), 0
        if self.bias is None and 1 < self.groups == len(self.weight):
            return depthwise_conv(x, self.weight, stride=stride, padding=padding)
        return F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)


NORM_DECAY = 0.99
"""Of running batch-norm statistics. Reference: google/automl."""


class BatchNorm(nn.Module):
    """Batch normalisation that weighs each new batch by .01 in its running statistics, without a counter of batches.

    In training it updates its buffers in place; `tinydet.model.functional.apply` gives it copies and returns them.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> the same."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum=1 - NORM_DECAY,
            eps=self.eps,
        )


class SeparableConvBlock(nn.Module):
    """A depthwise 3x3 convolution, a pointwise one, and a batch norm if asked for. No activation."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.depthwise = Conv(in_channels, in_channels, 3, groups=in_channels)
        self.pointwise = Conv(in_channels, out_channels, bias=bias)
        self.norm = BatchNorm(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' H W]."""
        return self.norm(self.pointwise(self.depthwise(x)))


def downsample(x: Tensor, *, padding: str = "same") -> Tensor:
    """Max-pool 3x3 at stride 2, padded with what never wins. float[B C H W] -> float[B C ceil(H/2) ceil(W/2)]."""
    if padding == "symmetric":
        return F.max_pool2d(x, 3, 2, padding=1)
    return F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, 2)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: zero for a random share `rate` of the batch, the rest scaled to keep the mean.

    float[B ...] -> float[B ...]. Draws from torch's global generator. Reference: Huang et al., Deep Networks with
    Stochastic Depth.
    """
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep / (1 - rate)


def initialise(module: nn.Module) -> None:
    """Weights as published, drawn from torch's global generator: kernels with variance 2 / fan-out, biases zero.

    Reference: google/automl. Everything that a batch norm follows is insensitive to the scale.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
            draw_normal(layer.weight, std=(2 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def draw_normal(weight: Tensor, *, std: float) -> None:
    """Fill a weight in place from torch's global generator; not on the meta device, where the first takes a second."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)

"""The layers that every part of the network is made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.ops.kernels import depthwise_conv, pad, pointwise_conv, pointwise_conv_norm, relu6

PADDINGS = ("same", "symmetric")  # TensorFlow's, right and bottom heavier at stride 2; alike on both sides


def swish(x: Tensor) -> Tensor:
    """Compute x * sigmoid(x). float[...] -> float[...]. Reference: Ramachandran et al., Activation Functions."""
    return F.silu(x)


# Each is applied to a tensor that nothing else reads, which relu6 overwrites.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": swish, "relu6": relu6}


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Compute TensorFlow's SAME padding of one axis: before and after it."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float = 0.0) -> Tensor:
    """Pad the border as SAME does. float[B C H W] -> float[B C H' W']."""
    vertical, horizontal = (same_padding(size, kernel_size, stride) for size in x.shape[-2:])
    return pad(x, *horizontal, *vertical, value=value)


class Conv(nn.Conv2d):
    """A convolution to ceil(size / stride); the two kinds of padding differ at stride 2 only."""

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
        border = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=border, groups=groups, bias=bias)
        self.pads_right = padding == "same" and stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        kernel_size, stride, padding = self.kernel_size[0], self.stride[0], self.kernel_size[0] // 2
        if self.pads_right:
            x, padding = pad_same(x, kernel_size, stride), 0
        if self.bias is None and 1 < self.groups == self.out_channels:
            return depthwise_conv(x, self.weight, stride=stride, padding=padding)
        if kernel_size == stride == self.groups == 1:
            return pointwise_conv(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)


class BatchNorm(nn.Module):
    """Batch normalisation without a counter of batches; `momentum` is a batch's weight in the running statistics.

    In training it updates its buffers in place; `tinydet.model.functional.apply` gives it copies and returns them, and
    `all_reduce`, where the statistics are those of the images of several processes: it sums a tensor over them.
    """

    running_mean: Tensor
    running_var: Tensor
    all_reduce: Callable[[Tensor], Tensor] | None = None

    def __init__(self, num_channels: int, *, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> the same."""
        running = self.running_mean, self.running_var
        if not self.training or self.all_reduce is None:
            return F.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps)
        return _SyncedBatchNorm.apply(x, *running, self.weight, self.bias, self.momentum, self.eps, self.all_reduce)


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a pointwise convolution to more channels, and its batch norm. float[B C H W] -> float[B C' H W]."""
    slow = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.numel() == x.shape[1]  # which norm refuses
    if slow or not isinstance(norm, BatchNorm) or not norm.training or norm.all_reduce is not None:
        return norm(conv(x))
    y, mean, var = pointwise_conv_norm(x, conv.weight, norm.weight, norm.bias, eps=norm.eps)
    count = y.numel() // y.shape[1]
    norm.running_mean.lerp_(mean.detach(), norm.momentum)
    norm.running_var.lerp_(var.detach() * count / (count - 1), norm.momentum)
    return y


class _SyncedBatchNorm(torch.autograd.Function):
    """`F.batch_norm` of the images of all processes, each of which has some of them, or none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        momentum: float,
        eps: float,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> Tensor:
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)
        if len(x):  # the running ones are given for their type; it would write into them
            mean, var = torch.batch_norm_update_stats(x, mean, var, 0.0)
        mean, var = mean.double(), var.double()
        # Exact in one sum, for the moments are in float64.
        sums = all_reduce(torch.cat([count * mean, count * (var + mean * mean), count]))
        mean, square = sums[:-1].view(2, -1) / sums[-1]
        ctx.count, ctx.eps, ctx.all_reduce = sums[-1], eps, all_reduce
        var = (square - mean * mean).clamp(min=0)
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * ctx.count / (ctx.count - 1)).to(running_var), momentum)
        mean, var = mean.to(weight), var.to(weight)
        ctx.save_for_backward(x, weight, mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        x_grad, weight_grad, bias_grad = grad.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):
            given, every = (grad, x, weight, mean, var, None, None, False, ctx.eps), [True, True, True]
            x_grad, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(*given, every)
        # What is left is the gradient through the statistics: of the variance, in proportion to x, and of the mean.
        of_var, of_mean = ctx.all_reduce(torch.stack([weight_grad, bias_grad]))
        deviation = (var + ctx.eps).rsqrt()
        scale = weight * deviation / ctx.count.to(weight)
        slope = -scale * deviation * of_var
        shift = -scale * of_mean - slope * mean
        x_grad += torch.addcmul(shift[:, None, None], x, slope[:, None, None])
        return x_grad, None, None, weight_grad, bias_grad, None, None, None


class SeparableConvBlock(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, and a batch norm or none."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.depthwise = Conv(in_channels, in_channels, 3, groups=in_channels)
        self.pointwise = Conv(in_channels, out_channels, bias=bias)
        self.norm = BatchNorm(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' H W]."""
        return self.norm(self.pointwise(self.depthwise(x)))


def downsample(x: Tensor, *, padding: str = "same") -> Tensor:
    """Max-pool 3x3 at stride 2. float[B C H W] -> float[B C ceil(H/2) ceil(W/2)]."""
    if padding == "symmetric":
        return F.max_pool2d(x, 3, 2, padding=1)
    return F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, 2)


def drop_path(x: Tensor, draw: Tensor, rate: float) -> Tensor:
    """Drop what draws less than `rate`, and scale the rest to keep the mean. float[B ...], float[B] -> float[B ...].

    Draws are even in 0 to 1. Reference: Huang et al., Deep Networks with Stochastic Depth.
    """
    return x * (draw >= rate).view(-1, *[1] * (x.ndim - 1)) / (1 - rate)


def initialise(module: nn.Module) -> None:
    """Initialise convolutions in place: kernels with variance 2 / fan-out, biases zero. Reference: google/automl."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
            draw_normal(layer.weight, std=(2 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def draw_normal(weight: Tensor, *, std: float) -> None:
    """Fill a weight in place from torch's global generator."""
    if not weight.is_meta:  # the first on the meta device takes a second
        nn.init.normal_(weight, std=std)

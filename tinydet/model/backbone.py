"""EfficientNet and EfficientNet-Lite without their classifier: images to P3, P4, P5."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.model.layers import ACTIVATIONS, BatchNorm, Conv, conv_norm, drop_path, initialise
from tinydet.ops.kernels import gated_conv

# expansion, kernel size, stride, channels, repeats of each stage of B0. Reference: EfficientNet table 1.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),  # P3
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),  # P4
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),  # P5
)
OUTPUTS = (2, 4, 6)  # the stages whose outputs are P3, P4, P5: the last before the next stride

# width and depth multipliers of B0 to B7; Lite0 to Lite4 have those of B0 to B4.
# Reference: google/automl and tensorflow/tpu, efficientnet_builder and lite.
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
BACKBONES = {f"b{i}": scale for i, scale in enumerate(SCALES)}
BACKBONES |= {f"lite{i}": scale for i, scale in enumerate(SCALES[:5])}


def early_stages(model: nn.Module) -> frozenset[str]:
    """Name the modules of a detector's backbone up to P3: edges and textures, which most images have alike."""
    first = ("backbone.stem", *(f"backbone.stages.{stage}." for stage in range(OUTPUTS[0] + 1)))
    return frozenset(name for name, _ in model.named_modules() if name.startswith(first))


def scaled_channels(channels: int, width: float) -> int:
    """Scale channels to the nearest multiple of 8, at most a tenth below."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def scaled_stages(name: str) -> list[tuple[int, int, int, int, int]]:
    """Scale `STAGES` to a backbone; Lite's first and last never deepen."""
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
    width, depth = BACKBONES[name]
    fixed = (0, len(STAGES) - 1) if name.startswith("lite") else ()
    return [
        (expansion, kernel, stride, scaled_channels(channels, width), n if i in fixed else -int(-n * depth // 1))
        for i, (expansion, kernel, stride, channels, n) in enumerate(STAGES)
    ]


class SqueezeExcite(nn.Module):
    """Channel attention: the gate sigmoid(W2 act(W1 mean(x))), by which x is multiplied."""

    def __init__(self, channels: int, squeezed: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.squeeze = Conv(channels, squeezed, bias=True)
        self.excite = Conv(squeezed, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C]."""
        # Not x.mean: its gradient would be written out in full, and in another memory format. On maps of one pixel a
        # linear layer is several times as fast as a convolution.
        mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        squeezed = self.activation(F.linear(mean, self.squeeze.weight.flatten(1), self.squeeze.bias))
        return F.linear(squeezed, self.excite.weight.flatten(1), self.excite.bias).sigmoid()


class MBConv(nn.Module):
    """Mobile inverted bottleneck: expand, depthwise, squeeze-excite, project."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel_size: int,
        stride: int,
        excite: bool,
        activation: Callable[[Tensor], Tensor],
        padding: str,
        norm_eps: float,
        drop: float,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.activation, self.drop = activation, drop
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = Conv(in_channels, width) if expansion != 1 else None
        self.expand_norm = BatchNorm(width, eps=norm_eps) if expansion != 1 else None
        self.depthwise = Conv(width, width, kernel_size, stride=stride, groups=width, padding=padding)
        self.depthwise_norm = BatchNorm(width, eps=norm_eps)
        # The squeeze is to a quarter of the block's input, not of its expanded width.
        self.squeeze_excite = SqueezeExcite(width, in_channels // 4, activation) if excite else None
        self.project = Conv(width, out_channels)
        self.project_norm = BatchNorm(out_channels, eps=norm_eps)

    def forward(self, x: Tensor, draw: Tensor | None = None) -> Tensor:
        """float[B C H W], and float[B] for stochastic depth -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.activation(conv_norm(self.expand, self.expand_norm, y))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        if self.squeeze_excite is None:
            y = self.project(y)
        else:
            y = gated_conv(y, self.squeeze_excite(y), self.project.weight, self.project.bias)
        y = self.project_norm(y)
        if not self.residual:
            return y
        return x + (y if draw is None or not self.drop else drop_path(y, draw, self.drop))


class EfficientNetBackbone(nn.Module):
    """EfficientNet without its classifier; Lite has no squeeze-and-excite and a stem that does not widen.

    `stochastic_depth` is the chance of dropping the last residual block; earlier blocks in proportion. Reference: Tan
    and Le, EfficientNet; P3, P4, P5 as in EfficientDet section 3.
    """

    def __init__(
        self,
        name: str = "b0",
        *,
        activation: str = "swish",
        padding: str = "same",
        norm_eps: float = 1e-3,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        table, lite = scaled_stages(name), name.startswith("lite")
        channels = 32 if lite else scaled_channels(32, BACKBONES[name][0])
        self.activation = ACTIVATIONS[activation]
        self.stem = Conv(3, channels, 3, stride=2, padding=padding)
        self.stem_norm = BatchNorm(channels, eps=norm_eps)
        self.stages = nn.ModuleList()
        shared: dict[str, Any] = {"activation": self.activation, "padding": padding, "norm_eps": norm_eps}
        total, index = sum(row[-1] for row in table), 0
        for expansion, kernel_size, stride, out_channels, repeats in table:
            blocks = nn.Sequential()
            for _ in range(repeats):
                shape: Any = {"expansion": expansion, "kernel_size": kernel_size, "stride": stride, "excite": not lite}
                shared["drop"] = stochastic_depth * index / total
                blocks.append(MBConv(channels, out_channels, **shape, **shared))
                channels, stride, index = out_channels, 1, index + 1
            self.stages.append(blocks)
        self.out_channels = [table[stage][3] for stage in OUTPUTS]
        initialise(self)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(map(len, self.stages))  # type: ignore[arg-type]

    def forward(self, images: Tensor, draws: Tensor | None = None) -> list[Tensor]:
        """float[B 3 H W], normalised -> P3, P4, P5: float[B C ceil(H/2^l) ceil(W/2^l)].

        In training each block is dropped for the images whose draw, float[B depth], is less than its rate; without
        draws from torch's global generator.
        """
        if not self.training:
            draws = None
        elif draws is None:
            draws = torch.rand(len(images), self.depth, device=images.device)
        columns: Any = iter([None] * self.depth if draws is None else draws.unbind(1))
        x = self.activation(self.stem_norm(self.stem(images)))
        features = []
        for index, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, next(columns))
            if index in OUTPUTS:
                features.append(x)
        return features

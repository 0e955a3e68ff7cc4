"""EfficientNet and EfficientNet-Lite, up to the features that a detector needs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.model.layers import ACTIVATIONS, BatchNorm, Conv, drop_path, initialise

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
OUTPUTS = (2, 4, 6)
"""The stages whose outputs are P3, P4, P5: the last before the next stride."""

# width and depth multipliers. Reference: google/automl and tensorflow/tpu, efficientnet_builder and lite.
BACKBONES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}


def scaled_channels(channels: int, width: float) -> int:
    """Channels times width, to the nearest multiple of 8, never more than a tenth below."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def scaled_stages(name: str) -> list[tuple[int, int, int, int, int]]:
    """The stages of a backbone: `STAGES` with its channels and repeats. Lite's first and last stage never deepen."""
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
    width, depth = BACKBONES[name]
    fixed = (0, len(STAGES) - 1) if name.startswith("lite") else ()
    return [
        (expansion, kernel, stride, scaled_channels(channels, width), n if i in fixed else -int(-n * depth // 1))
        for i, (expansion, kernel, stride, channels, n) in enumerate(STAGES)
    ]


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole picture holds: x * sigmoid(W2 act(W1 mean(x)))."""

    def __init__(self, channels: int, squeezed: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.squeeze = Conv(channels, squeezed, bias=True)
        self.excite = Conv(squeezed, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> the same, in the memory of x where there is no gradient."""
        # Not x.mean: its gradient would be written out in full, and in another memory format. On maps of one pixel a
        # linear layer is several times as fast as a convolution.
        mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        squeezed = self.activation(F.linear(mean, self.squeeze.weight.flatten(1), self.squeeze.bias))
        gate = F.linear(squeezed, self.excite.weight.flatten(1), self.excite.bias).sigmoid()[..., None, None]
        return x * gate if torch.is_grad_enabled() else x.mul_(gate)


class MBConv(nn.Module):
    """Mobile inverted bottleneck: expand, depthwise, squeeze and excite, project; residual where the shape allows."""

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
        self.activation = activation
        self.residual = stride == 1 and in_channels == out_channels
        self.drop = drop
        self.expand = Conv(in_channels, width) if expansion != 1 else None
        self.expand_norm = BatchNorm(width, eps=norm_eps) if expansion != 1 else None
        self.depthwise = Conv(width, width, kernel_size, stride=stride, groups=width, padding=padding)
        self.depthwise_norm = BatchNorm(width, eps=norm_eps)
        # The squeeze is to a quarter of the block's input, not of its expanded width.
        self.squeeze_excite = SqueezeExcite(width, in_channels // 4, activation) if excite else None
        self.project = Conv(width, out_channels)
        self.project_norm = BatchNorm(out_channels, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.activation(self.expand_norm(self.expand(y)))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = self.project_norm(self.project(y))
        if not self.residual:
            return y
        return x + (drop_path(y, self.drop) if self.training and self.drop else y)


class EfficientNetBackbone(nn.Module):
    """EfficientNet without its classifier.

    Args:
        name: one of `BACKBONES`. Lite has no squeeze-and-excite and a stem that does not widen.
        activation: "swish" or "relu6".
        padding: "same" or "symmetric", see `tinydet.model.layers.Conv`.
        norm_eps: of the batch norms.
        stochastic_depth: chance of dropping the last residual block; earlier blocks in proportion.

    Reference: Tan and Le, EfficientNet; P3, P4, P5 as in EfficientDet section 3.
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
        table = scaled_stages(name)
        lite = name.startswith("lite")
        channels = 32 if lite else scaled_channels(32, BACKBONES[name][0])
        self.activation = ACTIVATIONS[activation]
        self.stem = Conv(3, channels, 3, stride=2, padding=padding)
        self.stem_norm = BatchNorm(channels, eps=norm_eps)
        self.stages = nn.ModuleList()
        total, index = sum(row[-1] for row in table), 0
        for expansion, kernel_size, stride, out_channels, repeats in table:
            blocks = nn.Sequential()
            for repeat in range(repeats):
                block = MBConv(
                    channels,
                    out_channels,
                    expansion=expansion,
                    kernel_size=kernel_size,
                    stride=stride if repeat == 0 else 1,
                    excite=not lite,
                    activation=self.activation,
                    padding=padding,
                    norm_eps=norm_eps,
                    drop=stochastic_depth * index / total,
                )
                blocks.append(block)
                channels, index = out_channels, index + 1
            self.stages.append(blocks)
        self.out_channels = [table[stage][3] for stage in OUTPUTS]
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """float[B 3 H W], normalised -> P3, P4, P5: float[B C ceil(H/2^l) ceil(W/2^l)]."""
        x = self.activation(self.stem_norm(self.stem(images)))
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in OUTPUTS:
                features.append(x)
        return features

"""The class and box heads. One stack of convolutions serves all levels."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.model.layers import ACTIVATIONS, BatchNorm, SeparableConvBlock, draw_normal, initialise


class Head(nn.Module):
    """Separable convolutions shared by the levels, each but the last with the level's own batch norm and activation."""

    def __init__(
        self,
        num_channels: int,
        num_repeats: int,
        num_outputs: int,
        *,
        num_anchors: int = 9,
        levels: int = 5,
        activation: str = "swish",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_outputs, self.activation = num_outputs, ACTIVATIONS[activation]
        conv, repeats = partial(SeparableConvBlock, num_channels, norm=False), range(num_repeats)
        self.convs = nn.ModuleList(conv(num_channels, bias=bias) for _ in repeats)
        self.norms = nn.ModuleList(nn.ModuleList(BatchNorm(num_channels) for _ in range(levels)) for _ in repeats)
        self.predict = conv(num_outputs * num_anchors)
        initialise(self)
        draw_normal(self.predict.pointwise.weight, std=0.01)  # no batch norm follows; RetinaNet's choice

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Levels float[B C H_l W_l] -> float[B A num_outputs], A in the order of `tinydet.ops.anchors.anchors`."""
        cells, last = [], self.predict.pointwise
        for level, x in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = self.activation(norms[level](conv(x)))  # type: ignore[index]
            cells.append(self.predict.depthwise(x).permute(0, 2, 3, 1).flatten(1, 2))
        # Joined before the last, pointwise convolution, whose outputs have several times as many channels.
        outputs = F.linear(torch.cat(cells, 1), last.weight.flatten(1), last.bias)
        return outputs.flatten(1).unflatten(1, (-1, self.num_outputs))


class ClassNet(Head):
    """The class head: a logit for each class, at first that of probability .01. Reference: RetinaNet."""

    def __init__(self, num_channels: int, num_repeats: int, num_classes: int, **settings: Any) -> None:
        super().__init__(num_channels, num_repeats, num_classes, **settings)
        nn.init.constant_(self.predict.get_parameter("pointwise.bias"), -math.log((1 - 0.01) / 0.01))


class BoxNet(Head):
    """The box head: the deltas of `encode`."""

    def __init__(self, num_channels: int, num_repeats: int, **settings: Any) -> None:
        super().__init__(num_channels, num_repeats, 4, **settings)

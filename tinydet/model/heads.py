"""The heads: what is at each anchor, and where exactly. One stack of convolutions serves all levels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinydet.model.layers import ACTIVATIONS, BatchNorm, SeparableConvBlock, draw_normal, initialise


class Head(nn.Module):
    """Separable convolutions shared by the levels, each followed by the level's own batch norm, and a last one bare.

    Args:
        num_channels: of the features.
        num_repeats: convolutions before the last.
        num_outputs: numbers said of each anchor.
        num_anchors: anchors a cell.
        levels: number of levels.
        activation: "swish" or "relu6".
        bias: whether convolutions before a batch norm have one.
    """

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
        self.num_outputs = num_outputs
        self.activation = ACTIVATIONS[activation]
        self.convs = nn.ModuleList(
            SeparableConvBlock(num_channels, num_channels, bias=bias, norm=False) for _ in range(num_repeats)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(BatchNorm(num_channels) for _ in range(levels)) for _ in range(num_repeats)
        )
        self.predict = SeparableConvBlock(num_channels, num_outputs * num_anchors, norm=False)
        initialise(self)
        draw_normal(self.predict.pointwise.weight, std=0.01)  # no batch norm follows; RetinaNet's choice

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Levels float[B C H_l W_l] -> float[B A num_outputs], A in the order of `tinydet.ops.anchors.anchors`."""
        outputs = []
        for level, x in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = self.activation(norms[level](conv(x)))  # type: ignore[index]
            outputs.append(self.predict(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.num_outputs))
        return torch.cat(outputs, 1)


class ClassNet(Head):
    """The head that says what is there: a logit for each class. Its bias starts where every class has probability .01.

    Settings are those of `Head`. Reference: EfficientDet section 3.4; the bias is RetinaNet's.
    """

    def __init__(self, num_channels: int, num_repeats: int, num_classes: int, **settings: Any) -> None:
        super().__init__(num_channels, num_repeats, num_classes, **settings)
        bias = self.predict.pointwise.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - 0.01) / 0.01))


class BoxNet(Head):
    """The head that says where: the four deltas of `tinydet.ops.boxes.encode`. Settings are those of `Head`."""

    def __init__(self, num_channels: int, num_repeats: int, **settings: Any) -> None:
        super().__init__(num_channels, num_repeats, 4, **settings)

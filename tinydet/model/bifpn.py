"""BiFPN: features of all levels, fused downwards and upwards, over and over."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.model.layers import ACTIVATIONS, BatchNorm, Conv, SeparableConvBlock, downsample, initialise
from tinydet.ops.fusion import weighted_fusion


def bifpn_edges(levels: int) -> list[tuple[int, tuple[int, ...]]]:
    """The graph of one cell: for each new node its level and the nodes it fuses.

    Nodes 0 .. levels - 1 are the inputs, finest first; new nodes count on from there. First down from the coarsest
    level but one to the finest, then up again, where a level in between also takes its input. The outputs are the last
    `levels` nodes, finest first. For P3 .. P7: (3,4) (2,5) (1,6) (0,7) (1,7,8) (2,6,9) (3,5,10) (4,11).

    Reference: EfficientDet figure 2d and section 3.3.
    """
    edges: list[tuple[int, tuple[int, ...]]] = []
    last, downward = levels - 1, {}
    for level in reversed(range(levels - 1)):
        edges.append((level, (level, last)))
        last = downward[level] = levels + len(edges) - 1
    for level in range(1, levels):
        edges.append((level, (level, downward[level], last) if level in downward else (level, last)))
        last = levels + len(edges) - 1
    return edges


def resize(x: Tensor, size: Sequence[int], *, padding: str) -> Tensor:
    """A feature map at a neighbouring level's size: max-pooled down, or its nearest values repeated.

    float[B C H W] -> float[B C *size].
    """
    if x.shape[-2:] == tuple(size):
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return downsample(x, padding=padding)
    return F.interpolate(x, size=tuple(size), mode="nearest")


class Lateral(nn.Module):
    """A backbone level brought to the BiFPN's channels."""

    def __init__(self, in_channels: int, num_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = Conv(in_channels, num_channels, bias=bias)
        self.norm = BatchNorm(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' H W]."""
        return self.norm(self.conv(x))


class BiFPNLayer(nn.Module):
    """One cell: `bifpn_edges` as a table, and at each node fusion, activation, separable convolution.

    Args:
        num_channels: of every level.
        in_channels: of those input levels, finest first, that come from the backbone. Each use of such a level has its
            own lateral convolution.
        levels: number of levels.
        fusion: a method of `tinydet.ops.fusion.weighted_fusion`; weights start at 1.
        activation, padding: as in `tinydet.model.config.ModelConfig`.
        bias: whether convolutions before a batch norm have one.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        in_channels: Sequence[int] = (),
        levels: int = 5,
        fusion: str = "fast",
        activation: str = "swish",
        padding: str = "same",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.levels, self.edges = levels, bifpn_edges(levels)
        self.fusion, self.activation, self.padding = fusion, ACTIVATIONS[activation], padding
        self.weights = nn.ParameterList()  # the paper's w: one scalar an input, a node
        if fusion != "sum":
            self.weights.extend(nn.Parameter(torch.ones(len(inputs))) for _, inputs in self.edges)
        self.laterals = nn.ModuleDict(
            {
                f"{node}_{source}": Lateral(in_channels[source], num_channels, bias=bias)
                for node, (_, inputs) in enumerate(self.edges)
                for source in inputs
                if source < len(in_channels)
            }
        )
        self.convs = nn.ModuleList(SeparableConvBlock(num_channels, num_channels, bias=bias) for _ in self.edges)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`levels` maps float[B C_l H_l W_l], finest first -> as many float[B C H_l W_l]."""
        if len(features) != self.levels:
            raise ValueError(f"a BiFPN of {self.levels} levels got {len(features)} maps")
        nodes = list(features)
        for node, (level, inputs) in enumerate(self.edges):
            size = features[level].shape[-2:]
            sources = []
            for source in inputs:
                key = f"{node}_{source}"
                x = self.laterals[key](nodes[source]) if key in self.laterals else nodes[source]
                sources.append(resize(x, size, padding=self.padding))
            weights = self.weights[node] if len(self.weights) else None
            fused = weighted_fusion(sources, weights, method=self.fusion)
            nodes.append(self.convs[node](self.activation(fused)))
        return nodes[-self.levels :]


class BiFPN(nn.Module):
    """Backbone features to as many cells as asked for: `BiFPN(64, 3, [40, 112, 320])` turns P3 .. P5 into P3 .. P7.

    P6 is a lateral convolution of P5, then max-pooled; P7 and on are P6 max-pooled.

    Args:
        num_channels: of every level that comes out.
        num_repeats: number of cells.
        backbone_out_channels: of P3, P4, P5.
        levels: number of levels that come out.
        fusion, activation, padding, bias: as for `BiFPNLayer`.
    """

    def __init__(
        self,
        num_channels: int,
        num_repeats: int,
        backbone_out_channels: Sequence[int],
        *,
        levels: int = 5,
        fusion: str = "fast",
        activation: str = "swish",
        padding: str = "same",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.levels, self.padding = levels, padding
        self.top = Lateral(backbone_out_channels[-1], num_channels, bias=bias)
        self.layers = nn.ModuleList(
            BiFPNLayer(
                num_channels,
                in_channels=backbone_out_channels if repeat == 0 else (),
                levels=levels,
                fusion=fusion,
                activation=activation,
                padding=padding,
                bias=bias,
            )
            for repeat in range(num_repeats)
        )
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """P3, P4, P5: float[B C_l H_l W_l] -> P3 .. P7: float[B C H_l W_l]."""
        pyramid = [*features, downsample(self.top(features[-1]), padding=self.padding)]
        while len(pyramid) < self.levels:
            pyramid.append(downsample(pyramid[-1], padding=self.padding))
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid

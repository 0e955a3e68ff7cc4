"""BiFPN: weighted bidirectional fusion of the feature levels, in repeated layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.model.layers import ACTIVATIONS, BatchNorm, Conv, SeparableConvBlock, downsample, initialise

FUSION_METHODS = ("fast", "softmax", "sum")


def weighted_fusion(inputs: Sequence[Tensor], weights: Tensor | None = None, *, method: str = "fast") -> Tensor:
    """Fuse N feature maps of one shape with learnt weights float[N].

    fast:     O = sum_i relu(w_i) / (eps + sum_j relu(w_j)) * I_i,  eps = 1e-4
    softmax:  O = sum_i exp(w_i) / sum_j exp(w_j) * I_i
    sum:      O = sum_i I_i

    Reference: EfficientDet section 3.3.
    """
    if method == "sum":
        return sum(inputs[1:], inputs[0])  # torch.stack would lose the memory format
    if method not in FUSION_METHODS:
        raise ValueError(f"method must be one of {FUSION_METHODS}, got {method!r}")
    if weights is None or weights.shape != (len(inputs),):
        raise ValueError(f"{len(inputs)} inputs need {len(inputs)} weights, got {weights}")
    if method == "fast":
        weights = weights.relu()
        weights = weights / (weights.sum() + 1e-4)
    else:
        weights = weights.softmax(0)
    total = inputs[0] * weights[0]
    for feature, weight in zip(inputs[1:], weights[1:], strict=True):
        total = torch.addcmul(total, feature, weight)
    return total


def bifpn_edges(levels: int) -> list[tuple[int, tuple[int, ...]]]:
    """List the nodes of one layer: the level and the inputs of each.

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
    """Resize to a neighbouring level: max-pooled down, or nearest values repeated. -> float[B C *size]."""
    if x.shape[-2:] == tuple(size):
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return downsample(x, padding=padding)
    return F.interpolate(x, size=tuple(size), mode="nearest")


class Lateral(nn.Module):
    """A backbone level brought to the BiFPN's channels. float[B C H W] -> float[B C' H W]."""

    def __init__(self, in_channels: int, num_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = Conv(in_channels, num_channels, bias=bias)
        self.norm = BatchNorm(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BiFPNLayer(nn.Module):
    """One layer: at each node fusion, activation, separable convolution.

    `in_channels` are those of the input levels, finest first, that come from the backbone: each use of such a level has
    its own lateral convolution. Fusion weights start at 1. `bias` is of the convolutions before a batch norm.
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
        self.laterals = nn.ModuleDict()
        for node, (_, inputs) in enumerate(self.edges):
            for source in inputs:
                if source < len(in_channels):
                    self.laterals[f"{node}_{source}"] = Lateral(in_channels[source], num_channels, bias=bias)
        self.convs = nn.ModuleList(SeparableConvBlock(num_channels, num_channels, bias=bias) for _ in self.edges)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`levels` maps float[B C_l H_l W_l], finest first -> as many float[B C H_l W_l]."""
        if len(features) != self.levels:
            raise ValueError(f"a BiFPN of {self.levels} levels got {len(features)} maps")
        nodes = list(features)
        for node, (level, inputs) in enumerate(self.edges):
            sources = []
            for source in inputs:
                key = f"{node}_{source}"
                x = self.laterals[key](nodes[source]) if key in self.laterals else nodes[source]
                sources.append(resize(x, features[level].shape[-2:], padding=self.padding))
            weights = self.weights[node] if len(self.weights) else None
            fused = weighted_fusion(sources, weights, method=self.fusion)
            nodes.append(self.convs[node](self.activation(fused)))
        return nodes[-self.levels :]


class BiFPN(nn.Module):
    """Repeated layers: `BiFPN(64, 3, [40, 112, 320])` of P3 .. P5 to P3 .. P7.

    P6 is a lateral convolution of P5, then max-pooled; P7 and on are P6 max-pooled; with `levels` 3 there is neither.
    Settings are those of `BiFPNLayer`.
    """

    def __init__(
        self, num_channels: int, num_repeats: int, backbone_out_channels: Sequence[int], **settings: Any
    ) -> None:
        super().__init__()
        first = BiFPNLayer(num_channels, in_channels=backbone_out_channels, **settings)
        self.levels, self.padding = first.levels, first.padding
        if self.levels > len(backbone_out_channels):
            self.top = Lateral(backbone_out_channels[-1], num_channels, bias=settings.get("bias", True))
        self.layers = nn.ModuleList([first, *(BiFPNLayer(num_channels, **settings) for _ in range(num_repeats - 1))])
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """P3, P4, P5: float[B C_l H_l W_l] -> P3 .. P7: float[B C H_l W_l]."""
        pyramid = list(features)
        while len(pyramid) < self.levels:
            last = self.top(pyramid[-1]) if len(pyramid) == len(features) else pyramid[-1]
            pyramid.append(downsample(last, padding=self.padding))
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid

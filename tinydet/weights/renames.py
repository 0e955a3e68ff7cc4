"""Other people's names of tensors and ours: each published format a table, in which the first pattern that matches a
whole key decides.

What a table makes of a block's place, `backbone.stages.PLACE.`, need not be ours: blocks may be counted through all
stages, or stages from one; `tinydet.weights.formats` puts the n-th block of a file where our n-th is.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

Renames = tuple[tuple[str, str], ...]

# What a detector has no use for: classifiers, counters of batches, anchors. Renamed to nothing: knowingly left out.
UNUSED = ""


def _rows(theirs: str, ours: str, names: Mapping[str, str]) -> Renames:
    """A row for each of the names, which follow the pattern `theirs` and, after a dot, the replacement `ours`."""
    leaf = r"(?P<leaf>weight|bias|running_mean|running_var)"
    return tuple((rf"{theirs}{re.escape(a)}\.{leaf}", rf"{ours}.{b}.\g<leaf>") for a, b in names.items())


_BLOCK = r"backbone.stages.\g<block>"
_COUNTERS = ((r"(.+\.)?num_batches_tracked", UNUSED),)


def _timm(theirs: str) -> Renames:
    """The trunk by timm's names after a prefix. Its first stage does not expand."""
    first = {"conv_dw": "depthwise", "bn1": "depthwise_norm", "conv_pw": "project", "bn2": "project_norm"}
    later = {"conv_pw": "expand", "bn1": "expand_norm", "conv_dw": "depthwise", "bn2": "depthwise_norm"}
    last = {"conv_pwl": "project", "bn3": "project_norm"}
    excite = {"se.conv_reduce": "squeeze_excite.squeeze", "se.conv_expand": "squeeze_excite.excite"}
    return (
        *_rows(theirs, "backbone", {"conv_stem": "stem", "bn1": "stem_norm"}),
        *_rows(theirs + r"blocks\.(?P<block>0\.\d+)\.", _BLOCK, first | excite),
        *_rows(theirs + r"blocks\.(?P<block>[1-6]\.\d+)\.", _BLOCK, later | last | excite),
    )


def _lukemelas(theirs: str, conv: str = "") -> Renames:
    """The trunk by efficientnet_pytorch's names after a prefix; `conv` follows those of convolutions."""
    convs = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
    convs |= {"_se_reduce": "squeeze_excite.squeeze", "_se_expand": "squeeze_excite.excite"}
    norms = {"_bn0": "expand_norm", "_bn1": "depthwise_norm", "_bn2": "project_norm"}
    names = {name + conv: ours for name, ours in convs.items()} | norms
    return (
        *_rows(theirs, "backbone", {"_conv_stem" + conv: "stem", "_bn0": "stem_norm"}),
        *_rows(theirs + r"_blocks\.(?P<block>\d+)\.", _BLOCK, names),
    )


_SEPARABLE = {"conv_dw": "depthwise", "conv_pw": "pointwise"}
_NODE = r"fpn\.cell\.(?P<cell>\d+)\.fnode\.(?P<node>\d+)\."

# https://github.com/huggingface/efficientdet-pytorch
EFFDET: Renames = (
    *_COUNTERS,
    (r"anchors\.boxes", UNUSED),
    *_timm(r"backbone\."),
    *_rows(r"fpn\.resample\.3\.conv\.", "bifpn.top", {"conv": "conv", "bn": "norm"}),
    (_NODE + r"combine\.edge_weights", r"bifpn.layers.\g<cell>.weights.\g<node>"),
    *_rows(
        _NODE + r"combine\.resample\.(?P<source>\d+)\.conv\.",
        r"bifpn.layers.\g<cell>.laterals.\g<node>_\g<source>",
        {"conv": "conv", "bn": "norm"},
    ),
    *_rows(_NODE + r"after_combine\.conv\.", r"bifpn.layers.\g<cell>.convs.\g<node>", _SEPARABLE | {"bn": "norm"}),
    *_rows(r"(?P<net>class|box)_net\.conv_rep\.(?P<repeat>\d+)\.", r"\g<net>_net.convs.\g<repeat>", _SEPARABLE),
    (r"(class|box)_net\.bn_rep\.(\d+\.\d+)\.bn\.(\w+)", r"\1_net.norms.\2.\3"),
    *_rows(r"(?P<net>class|box)_net\.predict\.", r"\g<net>_net.predict", _SEPARABLE),
)


def zylo117(levels: int = 5, *, weighted: bool = True) -> Renames:
    """https://github.com/zylo117/Yet-Another-EfficientDet-Pytorch

    Args:
        levels: of the pyramid.
        weighted: whether the fusion weights are used; D6 and above hold some that their forward pass leaves alone.
    """
    top = 2 + levels
    up, down = range(top - 1, 2, -1), range(4, top + 1)  # the levels of the nodes, in the order of our nodes
    nodes = [*(f"{level}_up" for level in up), *(f"{level}_down" for level in down)]
    weights = [*(f"p{level}_w1" for level in up), *(f"p{level}_w2" for level in down)]
    laterals = {f"p{level}_down_channel": f"{up.index(level)}_{level - 3}" for level in (3, 4, 5)} | {
        f"p{level}_down_channel_2": f"{len(up) + down.index(level)}_{level - 3}" for level in (4, 5)
    }
    separable = {"depthwise_conv.conv": "depthwise", "pointwise_conv.conv": "pointwise"}
    lateral = {"0.conv": "conv", "1": "norm"}
    cell, layer = r"bifpn\.(?P<cell>\d+)\.", r"bifpn.layers.\g<cell>"
    rows = [*_COUNTERS, *_lukemelas(r"backbone_net\.model\.", ".conv")]
    rows += _rows(r"bifpn\.0\.p5_to_p6\.", "bifpn.top", lateral)
    for name, place in laterals.items():
        rows += _rows(rf"bifpn\.(?P<cell>0)\.{name}\.", f"{layer}.laterals.{place}", lateral)
    for node, (name, weight) in enumerate(zip(nodes, weights, strict=True)):
        rows += _rows(rf"{cell}conv{name}\.", f"{layer}.convs.{node}", separable | {"bn": "norm"})
        rows.append((cell + weight, f"{layer}.weights.{node}" if weighted else UNUSED))
    for theirs, ours in (("classifier", "class_net"), ("regressor", "box_net")):
        rows += _rows(rf"{theirs}\.conv_list\.(?P<repeat>\d+)\.", rf"{ours}.convs.\g<repeat>", separable)
        rows.append((rf"{theirs}\.bn_list\.(\d+)\.(\d+)\.(\w+)", rf"{ours}.norms.\2.\1.\3"))  # there, level first
        rows += _rows(rf"{theirs}\.header\.", f"{ours}.predict", separable)
    return tuple(rows)


# https://github.com/huggingface/pytorch-image-models
TIMM: Renames = (*_COUNTERS, *_timm(""), (r"(conv_head|bn2|classifier)\.\w+", UNUSED))

# https://github.com/lukemelas/EfficientNet-PyTorch
LUKEMELAS: Renames = (*_COUNTERS, *_lukemelas(""), (r"_(conv_head|bn1|fc)\.\w+", UNUSED))

_EXCITE = {"fc1": "squeeze_excite.squeeze", "fc2": "squeeze_excite.excite"}

# https://github.com/pytorch/vision. A block is a list without gaps, so that all moves up in the first stage, which does
# not expand.
TORCHVISION: Renames = (
    *_COUNTERS,
    *_rows(r"features\.0\.", "backbone", {"0": "stem", "1": "stem_norm"}),
    *_rows(r"features\.(?P<block>1\.\d+)\.block\.0\.", _BLOCK, {"0": "depthwise", "1": "depthwise_norm"}),
    *_rows(r"features\.(?P<block>1\.\d+)\.block\.1\.", _BLOCK, _EXCITE),
    *_rows(r"features\.(?P<block>1\.\d+)\.block\.2\.", _BLOCK, {"0": "project", "1": "project_norm"}),
    *_rows(r"features\.(?P<block>[2-7]\.\d+)\.block\.0\.", _BLOCK, {"0": "expand", "1": "expand_norm"}),
    *_rows(r"features\.(?P<block>[2-7]\.\d+)\.block\.1\.", _BLOCK, {"0": "depthwise", "1": "depthwise_norm"}),
    *_rows(r"features\.(?P<block>[2-7]\.\d+)\.block\.2\.", _BLOCK, _EXCITE),
    *_rows(r"features\.(?P<block>[2-7]\.\d+)\.block\.3\.", _BLOCK, {"0": "project", "1": "project_norm"}),
    (r"(features\.8\.[01]|classifier\.1)\.\w+", UNUSED),
)


class Format(NamedTuple):
    """What somebody's files look like."""

    source: str
    marker: str
    """A key that no file of the formats further down has."""
    renames: Renames


FORMATS = (
    Format("effdet", "box_net.predict.conv_pw.bias", EFFDET),
    Format("zylo117", "bifpn.0.conv8_down.bn.weight", zylo117(6, weighted=False)),  # D7x
    Format("zylo117", "backbone_net.model._blocks.44._bn0.weight", zylo117(weighted=False)),  # D6 and D7
    Format("zylo117", "regressor.header.pointwise_conv.conv.bias", zylo117()),
    Format("timm", "conv_stem.weight", TIMM),
    Format("torchvision", "features.1.0.block.0.0.weight", TORCHVISION),
    Format("lukemelas", "_conv_stem.weight", LUKEMELAS),
)

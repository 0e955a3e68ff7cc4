"""Tensor names of published formats and ours, as tables: the first pattern that matches a whole key decides.

The place of a block in a renamed key, `backbone.stages.PLACE.`, need not be ours: blocks may be counted through all
stages, or stages from one; `tinydet.weights.formats` puts the n-th block of a file where our n-th is.
"""

import re
from collections.abc import Mapping

Renames = tuple[tuple[str, str], ...]

UNUSED = ""  # the new name of what a detector has no use for: classifiers, counters of batches, anchors
_COUNTERS = (r"(.+\.)?num_batches_tracked", UNUSED)  # a row of every format
_BLOCK = r"backbone.stages.\g<block>"


def rename(key: str, renames: Renames) -> str | None:
    """Return our name of a tensor; UNUSED; or None if the format has no such tensor."""
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in (_COUNTERS, *renames))
    return next((match.expand(name) for match, name in matches if match), None)


def _rows(theirs: str, ours: str, names: Mapping[str, str]) -> Renames:
    """Return a row for each name, which follows the pattern `theirs` and, after a dot, the replacement `ours`."""
    leaf = r"(?P<leaf>weight|bias|running_mean|running_var)"
    return tuple((rf"{theirs}{re.escape(a)}\.{leaf}", rf"{ours}.{b}.\g<leaf>") for a, b in names.items())


def _timm(theirs: str) -> Renames:
    """Return the backbone by timm's names after a prefix. Its first stage does not expand."""
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
    """Return the backbone by efficientnet_pytorch's names after a prefix; `conv` follows those of convolutions."""
    convs = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
    convs |= {"_se_reduce": "squeeze_excite.squeeze", "_se_expand": "squeeze_excite.excite"}
    norms = {"_bn0": "expand_norm", "_bn1": "depthwise_norm", "_bn2": "project_norm"}
    block = {name + conv: ours for name, ours in convs.items()} | norms
    stem = _rows(theirs, "backbone", {"_conv_stem" + conv: "stem", "_bn0": "stem_norm"})
    return stem + _rows(theirs + r"_blocks\.(?P<block>\d+)\.", _BLOCK, block)


_SEPARABLE = {"conv_dw": "depthwise", "conv_pw": "pointwise"}
_CONV = {"conv": "conv", "bn": "norm"}
_NODE, _LAYER = r"fpn\.cell\.(?P<cell>\d+)\.fnode\.(?P<node>\d+)\.", r"bifpn.layers.\g<cell>"
_LATERAL = r"combine\.resample\.(?P<source>\d+)\.conv\."

EFFDET: Renames = (
    (r"anchors\.boxes", UNUSED),
    *_timm(r"backbone\."),
    *_rows(r"fpn\.resample\.3\.conv\.", "bifpn.top", _CONV),
    (_NODE + r"combine\.edge_weights", _LAYER + r".weights.\g<node>"),
    *_rows(_NODE + _LATERAL, _LAYER + r".laterals.\g<node>_\g<source>", _CONV),
    *_rows(_NODE + r"after_combine\.conv\.", _LAYER + r".convs.\g<node>", _SEPARABLE | {"bn": "norm"}),
    *_rows(r"(?P<net>class|box)_net\.conv_rep\.(?P<repeat>\d+)\.", r"\g<net>_net.convs.\g<repeat>", _SEPARABLE),
    (r"(class|box)_net\.bn_rep\.(\d+\.\d+)\.bn\.(\w+)", r"\1_net.norms.\2.\3"),
    *_rows(r"(?P<net>class|box)_net\.predict\.", r"\g<net>_net.predict", _SEPARABLE),
)


def zylo117(levels: int = 5, *, weighted: bool = True) -> Renames:
    """Return the table of zylo117; D6 and above are not `weighted`: they hold fusion weights without using them."""
    top = 2 + levels
    up, down = range(top - 1, 2, -1), range(4, top + 1)  # the levels of the nodes, in the order of our nodes
    nodes = [(f"{level}_up", f"p{level}_w1") for level in up] + [(f"{level}_down", f"p{level}_w2") for level in down]
    laterals = {f"p{level}_down_channel": f"{up.index(level)}_{level - 3}" for level in (3, 4, 5)}
    laterals |= {f"p{level}_down_channel_2": f"{len(up) + down.index(level)}_{level - 3}" for level in (4, 5)}
    separable = {"depthwise_conv.conv": "depthwise", "pointwise_conv.conv": "pointwise"}
    lateral = {"0.conv": "conv", "1": "norm"}
    cell = r"bifpn\.(?P<cell>\d+)\."
    rows = [*_lukemelas(r"backbone_net\.model\.", ".conv"), *_rows(r"bifpn\.0\.p5_to_p6\.", "bifpn.top", lateral)]
    for name, place in laterals.items():
        rows += _rows(rf"bifpn\.(?P<cell>0)\.{name}\.", f"{_LAYER}.laterals.{place}", lateral)
    for node, (name, weight) in enumerate(nodes):
        rows += _rows(rf"{cell}conv{name}\.", f"{_LAYER}.convs.{node}", separable | {"bn": "norm"})
        rows.append((cell + weight, f"{_LAYER}.weights.{node}" if weighted else UNUSED))
    for theirs, ours in (("classifier", "class_net"), ("regressor", "box_net")):
        rows += _rows(rf"{theirs}\.conv_list\.(?P<repeat>\d+)\.", rf"{ours}.convs.\g<repeat>", separable)
        rows.append((rf"{theirs}\.bn_list\.(\d+)\.(\d+)\.(\w+)", rf"{ours}.norms.\2.\1.\3"))  # there, level first
        rows += _rows(rf"{theirs}\.header\.", f"{ours}.predict", separable)
    return tuple(rows)


# A block of torchvision's is a list without gaps: in the first stage, which does not expand, every index is one less.
_LATER = {"0.0": "expand", "0.1": "expand_norm", "1.0": "depthwise", "1.1": "depthwise_norm"}
_LATER |= {"2.fc1": "squeeze_excite.squeeze", "2.fc2": "squeeze_excite.excite", "3.0": "project", "3.1": "project_norm"}
_FIRST = {f"{int(name[0]) - 1}{name[1:]}": ours for name, ours in _LATER.items() if "expand" not in ours}
TORCHVISION: Renames = (
    *_rows(r"features\.0\.", "backbone", {"0": "stem", "1": "stem_norm"}),
    *_rows(r"features\.(?P<block>1\.\d+)\.block\.", _BLOCK, _FIRST),
    *_rows(r"features\.(?P<block>[2-7]\.\d+)\.block\.", _BLOCK, _LATER),
    (r"(features\.8\.[01]|classifier\.1)\.\w+", UNUSED),
)

# The source, a key that no file of a format further down has, and the table. The sources are on github.com
# huggingface/efficientdet-pytorch, zylo117/Yet-Another-EfficientDet-Pytorch (D7x, D6 and D7, the others),
# huggingface/pytorch-image-models, pytorch/vision and lukemelas/EfficientNet-PyTorch.
FORMATS: tuple[tuple[str, str, Renames], ...] = (
    ("effdet", "box_net.predict.conv_pw.bias", EFFDET),
    ("zylo117", "bifpn.0.conv8_down.bn.weight", zylo117(6, weighted=False)),
    ("zylo117", "backbone_net.model._blocks.44._bn0.weight", zylo117(weighted=False)),
    ("zylo117", "regressor.header.pointwise_conv.conv.bias", zylo117()),
    ("timm", "conv_stem.weight", (*_timm(""), (r"(conv_head|bn2|classifier)\.\w+", UNUSED))),
    ("torchvision", "features.1.0.block.0.0.weight", TORCHVISION),
    ("lukemelas", "_conv_stem.weight", (*_lukemelas(""), (r"_(conv_head|bn1|fc)\.\w+", UNUSED))),
)

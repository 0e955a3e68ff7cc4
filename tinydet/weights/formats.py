"""Other people's checkpoints: each format one table of renames."""

import re

from tinydet.errors import InputError
from tinydet.model.backbone import scaled_stages
from tinydet.model.functional import Tensors

Renames = tuple[tuple[str, str], ...]

# What a detector has no use for: classifiers, and counters of batches. Renamed to nothing, and so left out knowingly.
UNUSED = ""

_BLOCK = r"backbone\.blocks\.(\d+\.\d+)"

# effdet, https://github.com/huggingface/efficientdet-pytorch. The first pattern that matches a whole key decides.
EFFDET: Renames = (
    (r"backbone\.conv_stem\.(\w+)", r"backbone.stem.\1"),
    (r"backbone\.bn1\.(\w+)", r"backbone.stem_norm.\1"),
    (r"backbone\.blocks\.(0\.\d+)\.conv_dw\.(\w+)", r"backbone.stages.\1.depthwise.\2"),
    (r"backbone\.blocks\.(0\.\d+)\.bn1\.(\w+)", r"backbone.stages.\1.depthwise_norm.\2"),
    (r"backbone\.blocks\.(0\.\d+)\.conv_pw\.(\w+)", r"backbone.stages.\1.project.\2"),
    (r"backbone\.blocks\.(0\.\d+)\.bn2\.(\w+)", r"backbone.stages.\1.project_norm.\2"),
    (_BLOCK + r"\.conv_pw\.(\w+)", r"backbone.stages.\1.expand.\2"),
    (_BLOCK + r"\.bn1\.(\w+)", r"backbone.stages.\1.expand_norm.\2"),
    (_BLOCK + r"\.conv_dw\.(\w+)", r"backbone.stages.\1.depthwise.\2"),
    (_BLOCK + r"\.bn2\.(\w+)", r"backbone.stages.\1.depthwise_norm.\2"),
    (_BLOCK + r"\.conv_pwl\.(\w+)", r"backbone.stages.\1.project.\2"),
    (_BLOCK + r"\.bn3\.(\w+)", r"backbone.stages.\1.project_norm.\2"),
    (_BLOCK + r"\.se\.conv_reduce\.(\w+)", r"backbone.stages.\1.squeeze_excite.squeeze.\2"),
    (_BLOCK + r"\.se\.conv_expand\.(\w+)", r"backbone.stages.\1.squeeze_excite.excite.\2"),
    (r"fpn\.resample\.3\.conv\.conv\.(\w+)", r"bifpn.top.conv.\1"),
    (r"fpn\.resample\.3\.conv\.bn\.(\w+)", r"bifpn.top.norm.\1"),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.edge_weights", r"bifpn.layers.\1.weights.\2"),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.conv\.(\w+)",
        r"bifpn.layers.\1.laterals.\2_\3.conv.\4",
    ),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.bn\.(\w+)",
        r"bifpn.layers.\1.laterals.\2_\3.norm.\4",
    ),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.conv_dw\.(\w+)",
        r"bifpn.layers.\1.convs.\2.depthwise.\3",
    ),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.conv_pw\.(\w+)",
        r"bifpn.layers.\1.convs.\2.pointwise.\3",
    ),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.bn\.(\w+)", r"bifpn.layers.\1.convs.\2.norm.\3"),
    (r"(class|box)_net\.conv_rep\.(\d+)\.conv_dw\.(\w+)", r"\1_net.convs.\2.depthwise.\3"),
    (r"(class|box)_net\.conv_rep\.(\d+)\.conv_pw\.(\w+)", r"\1_net.convs.\2.pointwise.\3"),
    (r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(\w+)", r"\1_net.norms.\2.\3.\4"),
    (r"(class|box)_net\.predict\.conv_dw\.(\w+)", r"\1_net.predict.depthwise.\2"),
    (r"(class|box)_net\.predict\.conv_pw\.(\w+)", r"\1_net.predict.pointwise.\2"),
)

_FLAT = r"_blocks\.(\d+\.\d+)"

# efficientnet_pytorch, https://github.com/lukemelas/EfficientNet-PyTorch, whose blocks count through all stages: what
# matches here has had them counted stage by stage. The trunk alone.
LUKEMELAS: Renames = (
    (r".*\.num_batches_tracked", UNUSED),
    (r"_(conv_head|bn1|fc)\.\w+", UNUSED),
    (r"_conv_stem\.(\w+)", r"backbone.stem.\1"),
    (r"_bn0\.(\w+)", r"backbone.stem_norm.\1"),
    (_FLAT + r"\._expand_conv\.(\w+)", r"backbone.stages.\1.expand.\2"),
    (_FLAT + r"\._bn0\.(\w+)", r"backbone.stages.\1.expand_norm.\2"),
    (_FLAT + r"\._depthwise_conv\.(\w+)", r"backbone.stages.\1.depthwise.\2"),
    (_FLAT + r"\._bn1\.(\w+)", r"backbone.stages.\1.depthwise_norm.\2"),
    (_FLAT + r"\._se_reduce\.(\w+)", r"backbone.stages.\1.squeeze_excite.squeeze.\2"),
    (_FLAT + r"\._se_expand\.(\w+)", r"backbone.stages.\1.squeeze_excite.excite.\2"),
    (_FLAT + r"\._project_conv\.(\w+)", r"backbone.stages.\1.project.\2"),
    (_FLAT + r"\._bn2\.(\w+)", r"backbone.stages.\1.project_norm.\2"),
)


def rename(key: str, renames: Renames) -> str:
    """The name that we give to a tensor of another format, or UNUSED.

    Raises:
        InputError: the format has no such tensor.
    """
    for pattern, name in renames:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    raise InputError(f"unknown tensor {key!r}")


def blocks_by_stage(tensors: Tensors, backbone: str) -> Tensors:
    """Blocks that count through all stages, `_blocks.N`, renamed to `_blocks.STAGE.INDEX`."""
    places = [f"{stage}.{index}" for stage, row in enumerate(scaled_stages(backbone)) for index in range(row[-1])]
    counted = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(.+)", key)
        if match and int(match[1]) >= len(places):
            raise InputError(f"unknown tensor {key!r}: {backbone} has {len(places)} blocks")
        counted[f"_blocks.{places[int(match[1])]}.{match[2]}" if match else key] = tensor
    return counted


def lukemelas_trunk(tensors: Tensors, backbone: str) -> Tensors:
    """An efficientnet_pytorch checkpoint as our `backbone.*` tensors; shapes are the caller's to check."""
    counted = blocks_by_stage(tensors, backbone)
    renamed = {rename(key, LUKEMELAS): tensor for key, tensor in counted.items()}
    renamed.pop(UNUSED, None)
    return renamed

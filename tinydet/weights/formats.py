"""Other people's checkpoints: each format one table of renames."""

Renames = tuple[tuple[str, str], ...]

_BLOCK = r"backbone\.blocks\.(\d+\.\d+)"
_SEPARABLE = ((r"conv_dw", "depthwise"), (r"conv_pw", "pointwise"))

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

"""The backbones: published widths and depths, shapes at any size, and each block against its formula."""

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tinydet.model.backbone import (
    BACKBONES,
    EfficientNetBackbone,
    MBConv,
    SqueezeExcite,
    scaled_channels,
    scaled_stages,
)
from tinydet.model.layers import BatchNorm, swish
from tinydet.ops.anchors import feature_sizes

# name: stem channels; channels and repeats of the seven stages. google/automl, efficientnet_builder.
PUBLISHED = """
    b0    32  16 24 40 80 112 192 320    1 2 2 3 3 4 1
    b1    32  16 24 40 80 112 192 320    2 3 3 4 4 5 2
    b2    32  16 24 48 88 120 208 352    2 3 3 4 4 5 2
    b3    40  24 32 48 96 136 232 384    2 3 3 5 5 6 2
    b4    48  24 32 56 112 160 272 448   2 4 4 6 6 8 2
    b5    48  24 40 64 128 176 304 512   3 5 5 7 7 9 3
    b6    56  32 40 72 144 200 344 576   3 6 6 8 8 11 3
    b7    64  32 48 80 160 224 384 640   4 7 7 10 10 13 4
    lite0 32  16 24 40 80 112 192 320    1 2 2 3 3 4 1
    lite1 32  16 24 40 80 112 192 320    1 3 3 4 4 5 1
    lite2 32  16 24 48 88 120 208 352    1 3 3 4 4 5 1
    lite3 32  24 32 48 96 136 232 384    1 3 3 5 5 6 1
    lite4 32  24 32 56 112 160 272 448   1 4 4 6 6 8 1
"""


@functools.cache
def meta_backbone(name, **settings):
    with torch.device("meta"):
        return EfficientNetBackbone(name, **settings)


def test_published_widths_and_depths():
    found = []
    for name in BACKBONES:
        net = meta_backbone(name)
        rows = scaled_stages(name)
        assert [len(stage) for stage in net.stages] == [row[4] for row in rows]
        found.append([name, str(net.stem.out_channels), *(str(r[3]) for r in rows), *(str(r[4]) for r in rows)])
        assert net.out_channels == [rows[2][3], rows[4][3], rows[6][3]]
    assert found == [line.split() for line in PUBLISHED.strip().splitlines()]


def test_unknown_backbone():
    with pytest.raises(ValueError, match=r"backbone must be one of b0, .*; got 'resnet50'"):
        EfficientNetBackbone("resnet50")


@given(channels=st.integers(1, 700), width=st.floats(0.25, 4))
@settings(deadline=None)
def test_scaled_channels(channels, width):
    scaled = scaled_channels(channels, width)
    assert scaled % 8 == 0
    assert scaled >= max(8, 0.9 * channels * width)
    assert scaled <= max(8, channels * width + 8)
    assert scaled_channels(8 * channels, 1.0) == 8 * channels


@given(size=st.tuples(st.integers(1, 200), st.integers(1, 200)), padding=st.sampled_from(["same", "symmetric"]))
@settings(max_examples=8, deadline=None)
def test_shapes_at_any_size(size, padding):
    net = meta_backbone("lite0", activation="relu6", padding=padding)
    features = net(torch.empty(2, 3, *size, device="meta"))
    shapes = [(2, c, *hw) for c, hw in zip((40, 112, 320), feature_sizes(size, levels=(3, 4, 5)), strict=True)]
    assert [tuple(f.shape) for f in features] == shapes


@pytest.mark.parametrize(("name", "settings"), [("b0", {}), ("lite0", {"activation": "relu6"})])
def test_features_of_an_odd_image(name, settings):
    torch.manual_seed(0)
    net = EfficientNetBackbone(name, **settings).eval()
    x = torch.randn(2, 3, 65, 33)
    before = x.clone()
    with torch.no_grad():
        features, alone = net(x), net(x[1:])
    assert torch.equal(x, before)
    assert [tuple(f.shape[2:]) for f in features] == [(9, 5), (5, 3), (3, 2)]
    for f, g in zip(features, alone, strict=True):
        assert f.isfinite().all()
        assert f.std() > 0
        torch.testing.assert_close(f[1:], g, atol=1e-4, rtol=1e-4)  # images of a batch do not see each other


def test_squeeze_excite_is_its_formula():
    torch.manual_seed(0)
    layer: Any = SqueezeExcite(12, 3, swish)
    x = torch.randn(2, 12, 5, 4)
    squeeze, excite = layer.squeeze.weight[:, :, 0, 0], layer.excite.weight[:, :, 0, 0]
    hidden = swish(x.mean((2, 3)) @ squeeze.T + layer.squeeze.bias)
    expected = torch.sigmoid(hidden @ excite.T + layer.excite.bias)
    torch.testing.assert_close(layer(x), expected)


def block_of(in_channels=8, out_channels=8, *, expansion=6, kernel_size=5, stride=1, excite=True, drop=0.0, eps=1e-3):
    return MBConv(
        in_channels,
        out_channels,
        expansion=expansion,
        kernel_size=kernel_size,
        stride=stride,
        excite=excite,
        activation=swish,
        padding="same",
        norm_eps=eps,
        drop=drop,
    )


def test_block_is_its_formula():
    torch.manual_seed(0)
    block = block_of().eval()
    for module in block.modules():
        if isinstance(module, BatchNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)

    def norm(x, layer):
        mean, scale = layer.running_mean, layer.weight / (layer.running_var + 1e-3).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    x = torch.randn(2, 8, 6, 7)
    y = swish(norm(F.conv2d(x, block.expand.weight), block.expand_norm))
    y = swish(norm(F.conv2d(y, block.depthwise.weight, padding=2, groups=48), block.depthwise_norm))
    y = y * block.squeeze_excite(y)[..., None, None]
    assert block.squeeze_excite.squeeze.out_channels == 2  # a quarter of the block's 8 inputs
    y = norm(F.conv2d(y, block.project.weight), block.project_norm)  # linear: no activation after it
    torch.testing.assert_close(block(x), x + y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "residual"),
    [({}, True), ({"stride": 2}, False), ({"out_channels": 16}, False), ({"expansion": 1}, True)],
)
def test_residual_where_the_shape_allows(settings, residual):
    block = block_of(**settings).eval()
    torch.nn.init.zeros_(block.project.weight)
    x = torch.randn(2, 8, 5, 6)
    expected = x if residual else torch.zeros_like(block(x))
    assert torch.equal(block(x), expected)
    assert (block.expand is None) == (settings.get("expansion") == 1)


def test_stochastic_depth_grows_with_the_block():
    net = meta_backbone("b0", stochastic_depth=0.2)
    blocks = [block for stage in net.stages for block in stage]
    assert [block.drop for block in blocks] == pytest.approx([0.2 * i / 16 for i in range(16)])
    assert not any(block.drop for stage in meta_backbone("b0").stages for block in stage)


def test_a_block_is_dropped_for_the_images_that_draw_less_than_its_rate():
    torch.manual_seed(0)
    block, x, draw = block_of(drop=0.5), torch.randn(64, 8, 3, 3), torch.rand(64)
    dropped = (block(x, draw) == x).flatten(1).all(1)
    assert torch.equal(dropped, draw < 0.5)
    assert 0.2 < dropped.float().mean() < 0.8
    assert not (block(x) == x).flatten(1).all(1).any()


def test_stochastic_depth_only_in_training():
    torch.manual_seed(0)
    net = EfficientNetBackbone("lite0", stochastic_depth=0.5)
    x = torch.randn(8, 3, 32, 32)
    draws = torch.rand(8, net.depth)
    assert net.depth == len({name.rsplit(".", 1)[0] for name, _ in net.named_modules() if name.endswith(".project")})
    with torch.no_grad():
        drawn = net(x, draws)[-1]
        assert torch.equal(net(x, draws)[-1], drawn)
        assert not torch.equal(net(x, draws.flip(1))[-1], drawn)  # a draw for each block
        torch.manual_seed(3)
        first, second = net(x)[-1], net(x)[-1]
        torch.manual_seed(3)
        assert torch.equal(net(x)[-1], first)
        assert not torch.equal(first, second)
        net.eval()
        assert torch.equal(net(x, draws)[-1], net(x)[-1])


def test_fresh_weights_neither_die_nor_explode():
    torch.manual_seed(0)
    net = EfficientNetBackbone("b0").train()
    with torch.no_grad():
        features = net(torch.randn(4, 3, 64, 64))
    for f in features:
        assert 0.1 < f.std().item() < 10
        assert math.isfinite(f.abs().max().item())

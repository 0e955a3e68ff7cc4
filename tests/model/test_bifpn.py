"""BiFPN: its fusion, its graph, its sizes, and the layer written out line by line."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tinydet.model.bifpn import FUSION_METHODS, BiFPN, BiFPNLayer, bifpn_edges, resize, weighted_fusion
from tinydet.model.layers import BatchNorm, downsample, swish


def shuffled(module):
    """The module with every weight and statistic away from where it starts."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        with torch.no_grad():
            value.uniform_(0.3, 1.5) if name.endswith("running_var") or "weights" in name else value.normal_()
    return module.eval()


def pyramid(height, width, *, channels, batch=1, levels=5):
    """Random maps, each half of the one before, rounded up."""
    sizes = [(-(-height >> level), -(-width >> level)) for level in range(levels)]
    return [torch.randn(batch, channels, *size) for size in sizes]


# Fusion


def random_maps(seed, count, shape=(2, 3, 4, 5), dtype=torch.float64):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("fast", [1, 3], (1 * 10 + 3 * 20) / 4.0001),
        ("fast", [-5, 2], 2 * 20 / 2.0001),
        ("fast", [-1, -2], 0),  # all weights off: nothing, and no division by zero
        ("softmax", [0, 0], 15),
        ("softmax", [0, np.log(3)], 17.5),
        ("sum", [1, 3], 30),
    ],
)
def test_weighted_fusion_by_hand(method, weights, expected):
    inputs = [torch.full((1, 2, 2, 2), 10.0), torch.full((1, 2, 2, 2), 20.0)]
    result = weighted_fusion(inputs, torch.tensor(weights, dtype=torch.float32), method=method)
    torch.testing.assert_close(result, torch.full((1, 2, 2, 2), expected, dtype=torch.float32))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.sampled_from(FUSION_METHODS))
def test_fusion_is_numpys(seed, values, method):
    inputs, w = random_maps(seed, len(values)), np.array(values)
    share = {
        "fast": np.maximum(w, 0) / (1e-4 + np.maximum(w, 0).sum()),
        "softmax": np.exp(w) / np.exp(w).sum(),
        "sum": np.ones_like(w),
    }[method]
    result = weighted_fusion(list(inputs), torch.tensor(values, dtype=torch.float64), method=method)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, np.einsum("i,i...->...", share, inputs.numpy()), rtol=0, atol=1e-12)


def test_the_sum_needs_no_weights():
    inputs = random_maps(0, 3)
    torch.testing.assert_close(weighted_fusion(list(inputs), method="sum"), inputs.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", FUSION_METHODS)
def test_equal_maps_stay_as_they_are(method):
    one = random_maps(1, 1)[0]
    result = weighted_fusion([one, one], torch.tensor([0.3, 0.3]), method=method)
    factor = {"fast": 0.6 / 0.6001, "softmax": 1, "sum": 2}[method]
    torch.testing.assert_close(result, factor * one, rtol=1e-6, atol=0)


def test_a_negative_weight_has_no_gradient():
    inputs, weights = list(random_maps(2, 3)), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    gradient = torch.func.grad(lambda w: weighted_fusion(inputs, w).square().sum())(weights)
    assert gradient[1] == 0
    assert gradient[[0, 2]].all()


@pytest.mark.parametrize("method", FUSION_METHODS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_precision_and_memory_format_are_the_inputs(method, layout):
    inputs = [x.to(torch.bfloat16, memory_format=layout) for x in random_maps(3, 3, dtype=torch.float32)]
    result = weighted_fusion(inputs, torch.rand(3), method=method)  # weights stay float32 under autocast
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=layout)


def test_unusable_arguments_are_named():
    inputs = list(random_maps(4, 3))
    with pytest.raises(ValueError, match=r"method must be one of \('fast', 'softmax', 'sum'\), got 'mean'"):
        weighted_fusion(inputs, torch.ones(3), method="mean")
    for weights in (None, torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="3 inputs need 3 weights"):
            weighted_fusion(inputs, weights)


@pytest.mark.parametrize("method", FUSION_METHODS)
def test_weighted_fusion_is_pure(method):
    """Derivatives are numeric ones, vmap is the loop, and the maps stay as they were."""

    def fuse(a, b, c, weights):
        return weighted_fusion([a, b, c], weights, method=method)

    arguments = (*random_maps(5, 3, (2, 3, 2, 2)), torch.tensor([[0.2, 1, 0.7], [2, 0.1, 1]], dtype=torch.float64))
    before = [x.clone() for x in arguments]
    first = tuple(x[0].clone().requires_grad_() for x in arguments)
    assert torch.autograd.gradcheck(fuse, first)
    each = torch.stack([fuse(*(x[i] for x in arguments)) for i in range(2)])
    torch.testing.assert_close(torch.func.vmap(fuse)(*arguments), each)
    assert all(torch.equal(x, y) for x, y in zip(arguments, before, strict=True))


# The graph


def test_edges_of_five_levels():
    edges = bifpn_edges(5)
    assert [inputs for _, inputs in edges] == [
        (3, 4),
        (2, 5),
        (1, 6),
        (0, 7),
        (1, 7, 8),
        (2, 6, 9),
        (3, 5, 10),
        (4, 11),
    ]
    assert [level for level, _ in edges] == [3, 2, 1, 0, 1, 2, 3, 4]


def test_edges_of_six_levels():
    inputs = [inputs for _, inputs in bifpn_edges(6)]
    assert inputs[:5] == [(4, 5), (3, 6), (2, 7), (1, 8), (0, 9)]
    assert inputs[5:] == [(1, 9, 10), (2, 8, 11), (3, 7, 12), (4, 6, 13), (5, 14)]


@pytest.mark.parametrize("levels", range(2, 9))
def test_edges_of_any_height(levels):
    edges = bifpn_edges(levels)
    level_of = [*range(levels), *(level for level, _ in edges)]
    assert level_of[-levels:] == list(range(levels))  # the outputs, finest first
    for node, (level, inputs) in enumerate(edges, levels):
        assert all(source < node for source in inputs)
        assert all(abs(level_of[source] - level) <= 1 for source in inputs)
        assert len(inputs) == (3 if node >= 2 * levels - 1 and 0 < level < levels - 1 else 2)
    used = {source for _, inputs in edges for source in inputs}
    assert used >= set(range(2 * levels - 1))  # every input and every intermediate node matters


# Sizes


@given(height=st.integers(1, 70), width=st.integers(1, 70), padding=st.sampled_from(["same", "symmetric"]))
@settings(max_examples=25, deadline=None)
def test_sizes(height, width, padding):
    maps = pyramid(height, width, channels=4)
    for fusion in ("fast", "sum"):
        out = BiFPNLayer(4, fusion=fusion, padding=padding).eval()(maps)
        assert [o.shape for o in out] == [m.shape for m in maps]


def test_from_backbone_to_pyramid():
    torch.manual_seed(0)
    bifpn = BiFPN(64, 3, [40, 112, 320]).eval()
    maps = [torch.randn(2, c, h, w) for c, h, w in [(40, 33, 17), (112, 17, 9), (320, 9, 5)]]
    before = [m.clone() for m in maps]
    with torch.no_grad():
        out = bifpn(maps)
    assert [tuple(o.shape) for o in out] == [(2, 64, h, w) for h, w in [(33, 17), (17, 9), (9, 5), (5, 3), (3, 2)]]
    assert all(torch.equal(m, b) for m, b in zip(maps, before, strict=True))
    assert len(maps) == 3
    assert all(o.isfinite().all() for o in out)
    assert len(bifpn.layers) == 3


def test_layer_turns_five_into_five():
    layer = BiFPNLayer(64)
    maps = pyramid(16, 24, channels=64, batch=2)
    assert [o.shape for o in layer(maps)] == [m.shape for m in maps]


@pytest.mark.parametrize("levels", [3, 4, 6])
def test_other_heights(levels):
    bifpn = BiFPN(8, 2, [4, 5, 6], levels=levels).eval()
    out = bifpn([torch.randn(1, c, s, s) for c, s in [(4, 40), (5, 20), (6, 10)]])
    assert [o.shape[-1] for o in out] == [40, 20, 10, 5, 3, 2][:levels]
    assert hasattr(bifpn, "top") == (levels > 3)


@pytest.mark.parametrize("count", [4, 6])
def test_refuses_another_number_of_maps(count):
    with pytest.raises(ValueError, match=f"5 levels got {count} maps"):
        BiFPNLayer(4)(pyramid(32, 32, channels=4, levels=count))


def test_resize():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert resize(x, (2, 3), padding="same") is x
    up = resize(x, (4, 5), padding="same")  # to a target whose size is odd
    assert up[0, 0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5], [3, 3, 4, 4, 5]]
    assert torch.equal(resize(up, (2, 3), padding="same"), downsample(up))


# What it computes


def test_layer_is_the_papers():
    torch.manual_seed(0)
    layer = shuffled(BiFPNLayer(6))
    with torch.no_grad():
        layer.weights[4][1] = -0.7  # relu takes it out
    p3, p4, p5, p6, p7 = maps = pyramid(20, 13, channels=6, batch=2)
    count = iter(range(8))

    def node(*inputs):
        i = next(count)
        w, block = layer.weights[i].relu(), layer.convs[i]
        fused = sum(a * b for a, b in zip(w, inputs, strict=True)) / (w.sum() + 1e-4)
        x = F.conv2d(swish(fused), block.depthwise.weight, padding=1, groups=6)
        x = F.conv2d(x, block.pointwise.weight, block.pointwise.bias)
        norm = block.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)

    def up(x, like):
        rows = torch.arange(like.shape[2]) * x.shape[2] // like.shape[2]
        columns = torch.arange(like.shape[3]) * x.shape[3] // like.shape[3]
        return x[:, :, rows][:, :, :, columns]

    td6 = node(p6, up(p7, p6))
    td5 = node(p5, up(td6, p5))
    td4 = node(p4, up(td5, p4))
    out3 = node(p3, up(td4, p3))
    out4 = node(p4, td4, downsample(out3))
    out5 = node(p5, td5, downsample(out4))
    out6 = node(p6, td6, downsample(out5))
    out7 = node(p7, downsample(out6))
    for ours, written in zip(layer(maps), (out3, out4, out5, out6, out7), strict=True):
        torch.testing.assert_close(ours, written, atol=1e-4, rtol=1e-4)


def test_first_layer_has_a_lateral_for_each_use():
    bifpn = BiFPN(8, 2, [4, 5, 6])
    layers: Any = bifpn.layers
    first, second = layers
    shapes = {key: lateral.conv.in_channels for key, lateral in first.laterals.items()}
    assert shapes == {"3_0": 4, "2_1": 5, "4_1": 5, "1_2": 6, "5_2": 6}  # and `top` is P5's third
    assert not len(second.laterals)
    lateral = first.laterals["4_1"]
    assert lateral.norm is not first.laterals["2_1"].norm
    assert bifpn.top.conv.in_channels == 6


def test_top_levels_are_pooled():
    torch.manual_seed(0)
    bifpn = shuffled(BiFPN(8, 1, [4, 5, 6]))
    seen = []
    bifpn.layers[0].register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    maps = [torch.randn(1, c, s, s) for c, s in [(4, 12), (5, 6), (6, 3)]]
    bifpn(maps)
    p6 = downsample(bifpn.top(maps[-1]))
    torch.testing.assert_close(seen, [*maps, p6, downsample(p6)])


def test_fusion_weights():
    layer = BiFPNLayer(4)
    assert [w.tolist() for w in layer.weights] == [[1, 1]] * 4 + [[1, 1, 1]] * 3 + [[1, 1]]
    assert not len(BiFPNLayer(4, fusion="sum").weights)
    softmax = BiFPNLayer(4, fusion="softmax").eval()
    softmax.load_state_dict(layer.state_dict())
    maps = pyramid(8, 8, channels=4)
    for a, b in zip(layer.eval()(maps), softmax(maps), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)  # equal weights: apart by fast fusion's epsilon


@pytest.mark.parametrize("bias", [True, False])
def test_bias_before_norm(bias):
    bifpn = BiFPN(8, 2, [4, 5, 6], bias=bias)
    convs = [module for module in bifpn.modules() if isinstance(module, nn.Conv2d)]
    biased = [conv for conv in convs if conv.bias is not None]
    assert len(biased) == (2 * 8 + 5 + 1 if bias else 0)  # pointwise ones and laterals; depthwise never
    assert all(conv.kernel_size == (1, 1) for conv in biased)
    assert all(module.eps == 1e-3 for module in bifpn.modules() if isinstance(module, BatchNorm))

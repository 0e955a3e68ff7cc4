"""The layers against torch's own, and against windows placed by hand."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tinydet.model.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    SeparableConvBlock,
    conv_norm,
    downsample,
    drop_path,
    initialise,
    pad_same,
    same_padding,
    swish,
)


def window_starts(size, kernel_size, stride):
    """Where each window begins, by the two cases of TensorFlow's documentation of SAME."""
    total = max(kernel_size - stride, 0) if size % stride == 0 else max(kernel_size - size % stride, 0)
    return range(-(total // 2), size, stride)[: -(-size // stride)]


def windows(x, kernel_size, stride):
    """Every window of one map, row by row, cut to the image: (row, column, rows of the window, columns of it)."""
    for i, top in enumerate(window_starts(x.shape[0], kernel_size, stride)):
        for j, left in enumerate(window_starts(x.shape[1], kernel_size, stride)):
            rows = [y for y in range(top, top + kernel_size) if 0 <= y < x.shape[0]]
            columns = [z for z in range(left, left + kernel_size) if 0 <= z < x.shape[1]]
            yield i, j, top, left, rows, columns


def conv_by_hand(x, kernel, stride):
    """SAME convolution of one map float[H W] with one kernel float[k k]."""
    out = torch.zeros(-(-x.shape[0] // stride), -(-x.shape[1] // stride))
    for i, j, top, left, rows, columns in windows(x, len(kernel), stride):
        out[i, j] = sum(x[y, z] * kernel[y - top, z - left] for y in rows for z in columns)
    return out


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(size=SIZES, kernel_size=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_same_convolution_by_hand(size, kernel_size, stride):
    x, kernel = torch.randn(size), torch.randn(kernel_size, kernel_size)
    conv = Conv(1, 1, kernel_size, stride=stride)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        out = conv(x[None, None])[0, 0]
    torch.testing.assert_close(out, conv_by_hand(x, kernel, stride), atol=1e-5, rtol=1e-5)


def test_same_pads_right_and_bottom_heavier():
    assert same_padding(512, 3, 2) == (0, 1)
    assert same_padding(512, 5, 2) == (1, 2)
    assert same_padding(513, 3, 2) == (1, 1)
    assert same_padding(513, 5, 2) == (2, 2)
    assert same_padding(7, 3, 1) == (1, 1)
    padded = pad_same(torch.ones(1, 1, 4, 5), 3, 2, value=7.0)
    assert padded[0, 0].tolist() == [[7, 1, 1, 1, 1, 1, 7]] * 4 + [[7.0] * 7]


@given(
    size=SIZES, kernel_size=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]), groups=st.sampled_from([1, 4])
)
@settings(max_examples=40, deadline=None)
def test_symmetric_convolution_is_torchs(size, kernel_size, stride, groups):
    conv = Conv(4, 8, kernel_size, stride=stride, groups=groups, bias=True, padding="symmetric")
    same = Conv(4, 8, kernel_size, stride=stride, groups=groups, bias=True)
    torchs = nn.Conv2d(4, 8, kernel_size, stride, kernel_size // 2, groups=groups)
    for other in (conv, same):
        other.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(conv(x), torchs(x))
    assert same(x).shape == torchs(x).shape
    if stride == 1 or (size[0] % 2 and size[1] % 2):  # an odd size needs as much on both sides
        torch.testing.assert_close(same(x), torchs(x))
    elif kernel_size > 1 and min(size) > 1:
        assert not torch.allclose(same(x), torchs(x))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@given(size=SIZES)
@settings(max_examples=30, deadline=None)
def test_downsample_pads_with_what_never_wins(padding, size):
    x = -1 - torch.rand(size)
    out = downsample(x[None, None], padding=padding)[0, 0]
    assert out.shape == (-(-size[0] // 2), -(-size[1] // 2))
    assert (out < 0).all()
    if padding == "same":
        for i, j, _, _, rows, columns in windows(x, 3, 2):
            assert out[i, j] == x[rows][:, columns].max()
    else:
        assert torch.equal(out, nn.MaxPool2d(3, 2, 1)(x[None])[0])


def test_activations():
    x = torch.linspace(-9, 9, 101)
    torch.testing.assert_close(swish(x), x * torch.sigmoid(x))
    assert torch.equal(ACTIVATIONS["swish"](x), swish(x))
    assert torch.equal(ACTIVATIONS["relu6"](x.clone()), x.clamp(0, 6))  # it may overwrite its argument


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path(dtype):
    torch.manual_seed(0)
    x = torch.rand(4000, 2, 1, 3).add(1).to(dtype)
    before = x.clone()
    draw = torch.rand(4000)
    out = drop_path(x, draw, 0.25)
    assert torch.equal(x, before)
    assert out.dtype == dtype
    dropped = (out == 0).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))  # a sample goes as a whole or not at all
    rate = dropped[:, 0].float().mean().item()
    assert rate == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    kept = ~dropped[:, 0]
    assert torch.equal(kept, draw >= 0.25)
    torch.testing.assert_close(out[kept], x[kept] / (1 - 0.25))
    assert out.float().mean().item() == pytest.approx(x.float().mean().item(), rel=0.05)
    assert torch.equal(drop_path(x, torch.rand(4000), 0.0), x)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_batch_norm_is_torchs(eps):
    torch.manual_seed(0)
    ours: Any = BatchNorm(6, eps=eps)
    torchs: Any = nn.BatchNorm2d(6, momentum=0.01, eps=eps)
    start = {"weight": torch.rand(6) + 0.5, "bias": torch.randn(6), "running_mean": torch.randn(6)}
    start["running_var"] = torch.rand(6) + 0.5
    ours.load_state_dict(start)
    torchs.load_state_dict(start, strict=False)  # torch's counts its batches besides
    batches = [torch.randn(3, 6, 4, 5) * 2 + 1 for _ in range(3)]
    for x in batches:
        for module in (ours, torchs):
            module.zero_grad()
        a, b = ours(x), torchs(x)
        assert torch.equal(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        for (_, p), (_, q) in zip(ours.named_parameters(), torchs.named_parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    assert torch.equal(ours.running_mean, torchs.running_mean)
    assert torch.equal(ours.running_var, torchs.running_var)
    assert not torch.equal(ours.running_var, start["running_var"])
    learnt = copy.deepcopy(ours.state_dict())
    assert torch.equal(ours.eval()(batches[0]), torchs.eval()(batches[0]))
    assert all(torch.equal(learnt[name], value) for name, value in ours.state_dict().items())
    assert list(learnt) == ["weight", "bias", "running_mean", "running_var"]


def test_batch_norm_weighs_a_batch_by_its_momentum():
    norm = BatchNorm(1)
    assert norm.momentum == 0.01
    norm(torch.tensor([1.0, 3.0])[:, None, None, None])
    assert norm.running_mean.item() == pytest.approx(0.02)
    assert norm.running_var.item() == pytest.approx(0.99 + 0.01 * 2)  # the unbiased variance of 1 and 3
    norm.momentum = 0.5
    norm(torch.tensor([3.0, 5.0])[:, None, None, None])
    assert norm.running_mean.item() == pytest.approx(0.01 + 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_separable_conv_block(bias, norm):
    block: Any = SeparableConvBlock(3, 5, bias=bias, norm=norm).eval()
    x = torch.randn(2, 3, 7, 4)
    depthwise = torch.cat([F.conv2d(x[:, [c]], block.depthwise.weight[[c]], padding=1) for c in range(3)], 1)
    pointwise = torch.einsum("oc,bchw->bohw", block.pointwise.weight[:, :, 0, 0], depthwise)
    if bias:
        pointwise = pointwise + block.pointwise.bias[:, None, None]
    expected = pointwise / (1 + 1e-3) ** 0.5 if norm else pointwise  # fresh statistics: mean 0, variance 1
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in block.parameters()) == 27 + 15 + 5 * bias + 10 * norm


def test_initialise():
    torch.manual_seed(0)
    net: Any = nn.Sequential(Conv(40, 60, 3, bias=True), BatchNorm(60), SeparableConvBlock(400, 90))
    initialise(net)
    wide, separable = net[0], net[2]
    assert wide.weight.std().item() == pytest.approx((2 / (60 * 9)) ** 0.5, rel=0.03)
    assert separable.depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.06)  # fan-out of one channel
    assert separable.pointwise.weight.std().item() == pytest.approx((2 / 90) ** 0.5, rel=0.03)
    assert not wide.bias.any()
    assert not separable.pointwise.bias.any()
    assert torch.equal(net[1].weight, torch.ones(60))
    before = copy.deepcopy(net.state_dict())
    initialise(net)
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
    torch.manual_seed(1)
    initialise(net)
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    initialise(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_one_value_a_channel_has_no_statistics() -> None:
    conv, norm = nn.Conv2d(2, 8, 1, bias=False), BatchNorm(8).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        conv_norm(conv, norm, torch.randn(1, 2, 1, 1))
    assert norm.running_var.isfinite().all()

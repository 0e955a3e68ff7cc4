"""The heads: their first outputs, what the levels share, and that their rows are the anchors' rows."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tinydet.model.heads import BoxNet, ClassNet, Head
from tinydet.model.layers import BatchNorm

SIZES = [(7, 5), (4, 3), (2, 2), (1, 1), (1, 1)]
CELLS = sum(height * width for height, width in SIZES)


def maps(channels=8, batch=2):
    return [torch.randn(batch, channels, *size) for size in SIZES]


def test_starts_at_one_in_a_hundred():
    net = ClassNet(8, 3, 6).eval()
    zeros = [torch.zeros(1, 8, *size) for size in SIZES]
    torch.testing.assert_close(net(zeros).sigmoid(), torch.full((1, 9 * CELLS, 6), 0.01))
    assert not BoxNet(8, 3).eval()(zeros).any()
    for wide in (ClassNet(64, 1, 90), BoxNet(64, 1)):  # and near it for any image
        assert wide.predict.pointwise.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("num_anchors", [9, 2])
def test_rows_are_level_row_column_anchor(num_anchors):
    torch.manual_seed(0)
    head = Head(8, 0, 3, num_anchors=num_anchors)
    features = maps()
    out = head(features)
    assert out.shape == (2, CELLS * num_anchors, 3)
    row = 0
    for x in features:
        raw = head.predict(x)
        assert raw.shape[1] == num_anchors * 3
        for y in range(x.shape[2]):
            for z in range(x.shape[3]):
                for anchor in range(num_anchors):
                    torch.testing.assert_close(out[:, row], raw[:, 3 * anchor : 3 * anchor + 3, y, z])
                    row += 1
    assert row == out.shape[1]


def test_head_is_its_formula():
    torch.manual_seed(0)
    net: Any = BoxNet(8, 2, activation="relu6")
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        value.data.uniform_(0.5, 1.5) if name.endswith("running_var") else value.data.normal_()
    features = maps()
    expected = []
    for level, x in enumerate(features):
        for conv, norms in zip(net.convs, net.norms, strict=True):
            x = F.conv2d(x, conv.depthwise.weight, padding=1, groups=8)
            x = F.conv2d(x, conv.pointwise.weight, conv.pointwise.bias)
            norm = norms[level]
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)
            x = x.clamp(0, 6)
        x = F.conv2d(x, net.predict.depthwise.weight, padding=1, groups=8)
        x = F.conv2d(x, net.predict.pointwise.weight, net.predict.pointwise.bias)
        expected.append(x.flatten(2).transpose(1, 2).reshape(2, -1, 4))
    torch.testing.assert_close(net.eval()(features), torch.cat(expected, 1), atol=1e-4, rtol=1e-4)


def test_norms_belong_to_levels():
    torch.manual_seed(0)
    net: Any = ClassNet(8, 2, 3).eval()
    features = maps()
    before = net(features)
    with torch.no_grad():
        net.norms[1][2].bias += 1
    changed = (net(features) != before).flatten(2).any(2)[0]
    rows = torch.cat([torch.full((9 * h * w,), level) for level, (h, w) in enumerate(SIZES)])
    assert set(rows[changed].tolist()) == {2}
    with torch.no_grad():
        net.convs[0].pointwise.weight += 1
    changed = (net(features) != before).flatten(2).any(2)[0]
    assert set(rows[changed].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("bias", [True, False])
def test_layers(bias):
    net = ClassNet(8, 3, 5, levels=6, bias=bias)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 2 * (3 + 1)
    assert sum(isinstance(module, BatchNorm) for module in net.modules()) == 3 * 6
    assert [conv.bias is not None for conv in convs] == [False, bias] * 3 + [False, True]  # the last always has one
    assert net.predict.pointwise.out_channels == 45
    assert BoxNet(8, 3).predict.pointwise.out_channels == 36


def test_inputs_are_left_alone():
    features = maps()
    before = [x.clone() for x in features]
    ClassNet(8, 1, 2).eval()(features)
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))

"""Fusion: worked by hand, against the formulas in numpy, and for what it must not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydet.ops.fusion import METHODS, weighted_fusion


def maps(seed, count, shape=(2, 3, 4, 5), dtype=torch.float64):
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
def test_by_hand(method, weights, expected):
    inputs = [torch.full((1, 2, 2, 2), 10.0), torch.full((1, 2, 2, 2), 20.0)]
    result = weighted_fusion(inputs, torch.tensor(weights, dtype=torch.float32), method=method)
    torch.testing.assert_close(result, torch.full((1, 2, 2, 2), expected, dtype=torch.float32))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.sampled_from(METHODS))
def test_fusion_is_numpys(seed, values, method):
    inputs, w = maps(seed, len(values)), np.array(values)
    share = {
        "fast": np.maximum(w, 0) / (1e-4 + np.maximum(w, 0).sum()),
        "softmax": np.exp(w) / np.exp(w).sum(),
        "sum": np.ones_like(w),
    }[method]
    result = weighted_fusion(list(inputs), torch.tensor(values, dtype=torch.float64), method=method)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, np.einsum("i,i...->...", share, inputs.numpy()), rtol=0, atol=1e-12)


def test_the_sum_needs_no_weights():
    inputs = maps(0, 3)
    torch.testing.assert_close(weighted_fusion(list(inputs), method="sum"), inputs.sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_equal_maps_stay_what_they_are(method):
    one = maps(1, 1)[0]
    result = weighted_fusion([one, one], torch.tensor([0.3, 0.3]), method=method)
    factor = {"fast": 0.6 / 0.6001, "softmax": 1, "sum": 2}[method]
    torch.testing.assert_close(result, factor * one, rtol=1e-6, atol=0)


def test_a_weight_that_is_off_is_not_taught_through_relu():
    inputs, weights = list(maps(2, 3)), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    gradient = torch.func.grad(lambda w: weighted_fusion(inputs, w).square().sum())(weights)
    assert gradient[1] == 0
    assert gradient[[0, 2]].all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_precision_and_memory_format_are_the_inputs(method, layout):
    inputs = [x.to(torch.bfloat16, memory_format=layout) for x in maps(3, 3, dtype=torch.float32)]
    result = weighted_fusion(inputs, torch.rand(3), method=method)  # weights stay float32 under autocast
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=layout)


def test_unusable_arguments_are_named():
    inputs = list(maps(4, 3))
    with pytest.raises(ValueError, match=r"method must be one of \('fast', 'softmax', 'sum'\), got 'mean'"):
        weighted_fusion(inputs, torch.ones(3), method="mean")
    for weights in (None, torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="3 inputs need 3 weights"):
            weighted_fusion(inputs, weights)

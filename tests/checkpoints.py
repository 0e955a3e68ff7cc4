"""Checkpoints for the tests: hollow ones of the right names and shapes, and whether two are the same."""

from typing import Any

import torch
from torch import Tensor

from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import Params, params_and_buffers
from tinydet.weights.checkpoint import Checkpoint
from tinydet.weights.formats import Weights


def hollow(config: ModelConfig, *, training: dict[str, Any] | None = None) -> Checkpoint:
    """Return a checkpoint in which every number is the same, and the averaged weights are the last ones."""
    model = meta_model(config)
    params = {name: torch.full(x.shape, 0.5) for name, x in model.named_parameters()}
    buffers = {name: torch.full(x.shape, 0.5) for name, x in model.named_buffers()}
    return Checkpoint(config, params, buffers, params, buffers, training or {})


def weights_of(config: ModelConfig, params: Params, buffers: Params) -> Weights:
    """Return tensors as if they had been read from a file that has our own names."""
    return Weights(config, params, buffers, (), "a test")


def assert_same(a: Any, b: Any) -> None:
    """Assert that two nested values are equal in value and in type."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, Tensor):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        assert torch.equal(a, b)
    else:
        assert a == b


def small_weights(classes: tuple[str, ...], image_size: tuple[int, int]) -> Weights:
    """Make random weights of a narrow Lite0 that detects much in noise."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_channels": 16, "fpn_repeats": 1, "head_repeats": 1}
    model = EfficientDet(model_config("lite0", classes=classes, image_size=image_size, **small))
    torch.nn.init.normal_(model.class_net.predict.pointwise.weight, std=0.08)
    return weights_of(model.config, *params_and_buffers(model))

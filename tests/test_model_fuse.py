"""Without its batch norms a model says what it said with them, and changes nothing of what it was given."""

import dataclasses
import shutil

import pytest
import torch

from tinydet.errors import InputError
from tinydet.model.config import MODELS, ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import Tensors, apply, state
from tinydet.model.fuse import fuse, fused_skeleton, network, norms_of
from tinydet.model.layers import BatchNorm


def weights_of(config: ModelConfig) -> tuple[Tensors, Tensors]:
    """Random weights and statistics, float64: ReLU6 makes more of rounding than any tolerance would forgive."""
    torch.manual_seed(0)
    params, buffers = state(EfficientDet(config))
    params = {name: (x + 0.05 * torch.randn_like(x)).double() for name, x in params.items()}
    return params, {name: (x + 0.5 * torch.rand_like(x)).double() for name, x in buffers.items()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("d0", {}),
        ("lite0", {"classes": ("a",)}),
        ("d0-symmetric", {"num_channels": 8, "head_repeats": 1}),
        ("d7x", {"backbone": "b0", "num_channels": 8, "fpn_repeats": 2, "head_repeats": 2}),
    ],
)
def test_a_fused_model_says_the_same(name: str, changes: dict) -> None:
    config = model_config(name, **changes)
    params, buffers = weights_of(config)
    before = {key: x.clone() for key, x in {**params, **buffers}.items()}
    model = fused_skeleton(config)
    fused = fuse(params, buffers, config=config)
    assert {**params, **buffers}.keys() == before.keys()
    assert all(torch.equal(x, before[key]) for key, x in {**params, **buffers}.items())
    images = torch.randn(2, 3, 65, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, _ = apply(EfficientDet(config), params, buffers, images)
        outputs, _ = apply(model, fused, {}, images)
    torch.testing.assert_close(tuple(outputs), tuple(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_no_norm_is_left_and_every_norm_has_had_its_convolution(name: str) -> None:
    config = model_config(name)
    with torch.device("meta"):
        model = EfficientDet(config)
    before, fused = norms_of(model), fused_skeleton(config)
    assert {key for key, module in model.named_modules() if isinstance(module, BatchNorm)} == before.keys()
    assert not any(isinstance(module, BatchNorm) for module in fused.modules())
    assert not list(fused.buffers())
    assert not fused.training
    for norm, conv in before.items():
        channels = model.get_parameter(f"{norm}.weight").shape[0]
        assert model.get_parameter(f"{conv}.weight").shape[0] == channels
    heads = [conv for norm, conv in before.items() if ".norms." in norm]
    assert len(heads) == 2 * config.head_repeats * len(config.levels)
    assert len({*before.values()} - {*heads}) == len(before) - len(heads)


def test_fused_weights_are_those_of_the_fused_skeleton() -> None:
    config = dataclasses.replace(model_config("lite0"), num_channels=8, classes=("a", "b"))
    fused = fuse(*weights_of(config), config=config)
    shapes = {name: x.shape for name, x in fused_skeleton(config).named_parameters()}
    assert {name: x.shape for name, x in fused.items()} == shapes


def both(**settings: bool) -> tuple[Outputs, Outputs]:
    """What `network` says of two pictures, and what the model says; float32."""
    config = model_config("lite0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("a",))
    params, buffers = ({name: x.float() for name, x in part.items()} for part in weights_of(config))
    images = torch.randn(2, 3, 64, 96)
    found = network(params, buffers, config=config, **settings)(images)
    with torch.no_grad():
        expected, _ = apply(EfficientDet(config), params, buffers, images)
    return found, expected


def test_the_network_says_what_the_model_says_without_gradients() -> None:
    found, expected = both()
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-3)
    assert not any(x.requires_grad for x in found)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_compiled_it_says_the_same() -> None:
    found, expected = both(compile=True)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-3)


def test_compiling_without_a_compiler_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no C\+\+ compiler no-such-compiler"):
        both(compile=True)

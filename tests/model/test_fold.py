"""Folding batch norms leaves outputs as they were, and its arguments too."""

import dataclasses
import sys
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tinydet.model.fold
from tinydet.errors import InputError
from tinydet.model.config import MODELS, ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, Outputs, meta_model
from tinydet.model.fold import FoldedConv, fold_batch_norm, folded_model, inference_fn, norm_to_conv, onednn_fuses
from tinydet.model.functional import Variables, apply, params_and_buffers
from tinydet.model.layers import BatchNorm, Conv


def weights_of(config: ModelConfig) -> Variables:
    """Random weights and statistics, float64: ReLU6 makes more of rounding than any tolerance would forgive."""
    torch.manual_seed(0)
    params, buffers = params_and_buffers(EfficientDet(config))
    params = {name: (x + 0.05 * torch.randn_like(x)).double() for name, x in params.items()}
    return Variables(params, {name: (x + 0.5 * torch.rand_like(x)).double() for name, x in buffers.items()})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("d0", {}),
        ("lite0", {"classes": ("a",)}),
        ("d0-symmetric", {"num_channels": 8, "head_repeats": 1}),
        ("d7x", {"backbone": "b0", "num_channels": 8, "fpn_repeats": 2, "head_repeats": 2}),
        ("lite0", {"num_channels": 8, "fpn_repeats": 2, "levels": (3, 4, 5)}),
    ],
)
def test_the_folded_model_has_the_same_outputs(name: str, changes: dict) -> None:
    config = model_config(name, **changes)
    params, buffers = weights_of(config)
    before = {key: x.clone() for key, x in {**params, **buffers}.items()}
    model = folded_model(config)
    folded = fold_batch_norm(Variables(params, buffers), config)
    assert {**params, **buffers}.keys() == before.keys()
    assert all(torch.equal(x, before[key]) for key, x in {**params, **buffers}.items())
    images = torch.randn(2, 3, 65, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, _ = apply(EfficientDet(config), params, buffers, images)
        outputs, _ = apply(model, folded, {}, images)
    torch.testing.assert_close(tuple(outputs), tuple(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_no_norm_is_left_and_every_norm_had_its_convolution(name: str) -> None:
    config = model_config(name)
    model = meta_model(config)
    before, folded = norm_to_conv(model), folded_model(config)
    assert {key for key, module in model.named_modules() if isinstance(module, BatchNorm)} == before.keys()
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    assert not list(folded.buffers())
    assert not folded.training
    for norm, conv in before.items():
        channels = model.get_parameter(f"{norm}.weight").shape[0]
        assert model.get_parameter(f"{conv}.weight").shape[0] == channels
    heads = [conv for norm, conv in before.items() if ".norms." in norm]
    assert len(heads) == 2 * config.head_repeats * len(config.levels)
    assert len({*before.values()} - {*heads}) == len(before) - len(heads)


def test_folded_weights_are_those_of_the_folded_model() -> None:
    config = dataclasses.replace(model_config("lite0"), num_channels=8, classes=("a", "b"))
    folded = fold_batch_norm(weights_of(config), config)
    shapes = {name: x.shape for name, x in folded_model(config).named_parameters()}
    assert {name: x.shape for name, x in folded.items()} == shapes


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(8, 9), (7, 6), (5, 5), (1, 2)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_padding_the_kernel_is_padding_the_image(padding: str, size: tuple[int, int], kernel_size: int) -> None:
    torch.manual_seed(0)
    plain = Conv(4, 4, kernel_size, stride=2, groups=4, bias=True, padding=padding)
    folded = FoldedConv(4, 4, kernel_size, stride=2, groups=4, bias=True, padding=padding)
    folded.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(folded(x), plain(x))


def both(**settings: bool) -> tuple[Outputs, Outputs]:
    """Outputs of `inference_fn` and of the model for two images; float32."""
    config = model_config("lite0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("a",))
    variables = Variables(*({name: x.float() for name, x in part.items()} for part in weights_of(config)))
    images = torch.randn(2, 3, 64, 96)
    found = inference_fn(variables, config=config, **settings)(images)
    with torch.no_grad():
        expected, _ = apply(EfficientDet(config), *variables, images)
    return found, expected


def test_inference_has_the_outputs_of_the_model_without_gradients() -> None:
    found, expected = both()
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-3)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize("name", ["d0", "lite0"])
@pytest.mark.parametrize("fuses", [True, False])
def test_any_batch_size_and_type_has_the_outputs_of_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str, fuses: bool
) -> None:
    """Kernels are packed for the first shape alone."""
    if not fuses:
        monkeypatch.setattr(tinydet.model.fold, "onednn_fuses", lambda: False)
    config = model_config(name, num_channels=8, fpn_repeats=1, head_repeats=1, classes=("a",))
    variables = Variables(*({name: x.float() for name, x in part.items()} for part in weights_of(config)))
    infer, threads = inference_fn(variables, config=config), torch.get_num_threads()
    for shape in [(1, 3, 64, 96), (1, 3, 64, 96), (3, 3, 64, 96), (1, 3, 65, 70), (0, 3, 64, 96)]:
        images = torch.randn(shape)
        expected = apply(EfficientDet(config), *variables, images)[0]
        for count in (1, threads):
            torch.set_num_threads(count)
            torch.testing.assert_close(tuple(infer(images)), tuple(x.detach() for x in expected), rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert infer(torch.randn(1, 3, 64, 96)).logits.dtype == torch.bfloat16


def test_kernels_are_packed_once_and_then_used() -> None:
    class Packed(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.mkldnn._reorder_convolution_weight.default
            return func(*args, **(kwargs or {}))

    if not onednn_fuses():
        pytest.skip("this PyTorch has no oneDNN")
    config = model_config("d0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("a",))
    infer = inference_fn(
        Variables(*({name: x.float() for name, x in part.items()} for part in weights_of(config))), config=config
    )
    for packed in (32, 0):  # the stem, 16 depthwise and 15 that expand
        with Packed() as seen:
            infer(torch.randn(1, 3, 32, 32))
        assert seen.count == packed


def test_a_pytorch_without_the_private_operations_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError

    state = torch.get_rng_state()
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", missing)
    assert not onednn_fuses.__wrapped__()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_compiled_inference_has_the_same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the C++ code, which takes a minute."""
    monkeypatch.setenv("CXX", sys.executable)
    torch._dynamo.reset()  # what other tests compiled, or shapes would be symbols
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found, expected = both(compile=True)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-3)


def test_compiling_without_a_compiler_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no C\+\+ compiler no-such-compiler"):
        both(compile=True)

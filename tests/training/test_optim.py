"""Optimizers agree with torch.optim, and leave what they are given as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from tinydet.model.config import model_config
from tinydet.model.efficientdet import meta_model
from tinydet.model.functional import Params
from tinydet.training.optim import Optimizer, adamw, sgd

SHAPES = {
    "conv.weight": (8, 4, 3, 3),
    "conv.bias": (8,),
    "norm.weight": (8,),
    "fusion": (3,),
    "last.weight": (2, 8, 1, 1),
}


def tensors(seed: int, *, scale: float = 1.0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def clone(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: clone(one) for name, one in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def oracle(params: Params, name: str, weight_decay: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=1.0)


@pytest.mark.parametrize(("name", "optimizer"), [("adamw", adamw(weight_decay=0.1)), ("sgd", sgd(weight_decay=0.1))])
def test_fifty_steps_are_those_of_torch_optim(name: str, optimizer: Optimizer) -> None:
    params, theirs = tensors(0), {key: nn.Parameter(value) for key, value in tensors(0).items()}
    moments, expected = optimizer.init(params), oracle(dict(theirs), name, 0.1)
    for step in range(50):
        lr, grads = 1e-2 * (1 + step % 7), tensors(step + 1, scale=0.1 + step % 3)
        for key, param in theirs.items():
            param.grad = grads[key].clone()
        for group in expected.param_groups:
            group["lr"] = lr
        expected.step()
        params, moments = optimizer.update(params, grads, moments, lr)
    for key, param in theirs.items():
        torch.testing.assert_close(params[key], param.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(params[key], tensors(0)[key])


@pytest.mark.parametrize("optimizer", [adamw(), sgd()])
def test_updates_leave_their_arguments_as_they_were(optimizer: Optimizer) -> None:
    params, grads = tensors(0), tensors(1)
    _, moments = optimizer.update(params, grads, optimizer.init(params), 0.1)
    before = clone((lambda *each: dict(enumerate(each)))(params, grads, moments))
    first, second = optimizer.update(params, grads, moments, 0.1), optimizer.update(params, grads, moments, 0.1)
    assert_equal(before, {0: params, 1: grads, 2: moments})
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("optimizer", [adamw(weight_decay=0.5), sgd(weight_decay=0.5)])
def test_weight_decay_shrinks_kernels_only(optimizer: Optimizer) -> None:
    model = meta_model(model_config("d0"))
    params = {name: torch.ones(param.shape) for name, param in model.named_parameters()}
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    updated, _ = optimizer.update(params, zeros, optimizer.init(params), 0.1)
    shrunk = {name for name, param in updated.items() if (param < 1).all()}
    assert shrunk == {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    assert all(torch.equal(updated[name], params[name]) for name in params.keys() - shrunk)
    assert all(float(updated[name].flatten()[0]) == pytest.approx(0.95) for name in shrunk)


def test_parameters_without_gradient_are_not_updated() -> None:
    params = tensors(0)
    some = {name: grad for name, grad in tensors(1).items() if name.startswith("conv")}
    updated, moments = adamw().update(params, some, adamw().init({name: params[name] for name in some}), 0.1)
    assert updated.keys() == some.keys()
    assert moments["mean"].keys() == some.keys()

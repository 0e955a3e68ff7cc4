"""The model as a function: purity, results, and that torch.func agrees."""

import copy
import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, grad_and_value, jvp, vmap
from torch.testing import assert_close

from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import Variables, apply, ema_update, params_and_buffers, value_and_grad
from tinydet.model.layers import BatchNorm

CONFIG = model_config("d0", num_channels=8, fpn_repeats=1, head_repeats=1, classes=("a", "b"))
# Forward-mode derivatives still go through torch.jit inside of torch.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return meta_model(CONFIG)


@pytest.fixture(scope="module")
def weights():
    """(params, buffers) of a real model, away from where they start."""
    torch.manual_seed(0)
    params, buffers = params_and_buffers(EfficientDet(CONFIG))
    params = {name: p + 0.05 * torch.randn_like(p) for name, p in params.items()}
    return params, {name: b + 0.1 * torch.rand_like(b) for name, b in buffers.items()}


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def real(config, params, buffers):
    """An ordinary module with these weights."""
    net = EfficientDet(config)
    net.load_state_dict({**params, **buffers})
    return net


def scalar(outputs):
    """A loss that every output enters."""
    return outputs.logits.sin().mean() + outputs.deltas.square().mean()


assert_equal = functools.partial(assert_close, rtol=0, atol=0)


# apply


def test_params_and_buffers_are_copies():
    net = EfficientDet(CONFIG)
    params, buffers = variables = params_and_buffers(net)
    assert isinstance(variables, Variables)
    assert list(params) == [name for name, _ in net.named_parameters()]
    assert list(buffers) == [name for name, _ in net.named_buffers()]
    assert not any(t.requires_grad for t in [*params.values(), *buffers.values()])
    before = copy.deepcopy((params, buffers))
    with torch.no_grad():
        for t in [*net.parameters(), *net.buffers()]:
            t.add_(1)
    assert_equal((params, buffers), before)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_apply_is_the_module(weights, images, train, drop):
    params, buffers = weights
    config = dataclasses.replace(CONFIG, stochastic_depth=drop)
    net = real(config, params, buffers).train(train)
    torch.manual_seed(2)
    outputs, after = apply(meta_model(config), params, buffers, images, train=train)
    torch.manual_seed(2)
    expected = net(images)
    assert_equal(outputs, expected)
    assert_close(after, dict(net.named_buffers()), rtol=1e-5, atol=1e-6)
    moved = [not torch.equal(after[name], b) for name, b in buffers.items()]
    assert all(moved) if train else not any(moved)


@pytest.mark.parametrize("train", [False, True])
def test_apply_changes_nothing(model, weights, images, train):
    params, buffers = weights
    before = copy.deepcopy((params, buffers, images))
    _, after = apply(model, params, buffers, images, train=train)
    assert_equal((params, buffers, images), before)
    assert all(t.is_meta for t in model.state_dict().values())
    if train:
        addresses = {b.data_ptr() for b in buffers.values()}
        assert not addresses & {b.data_ptr() for b in after.values()}
    else:
        assert after is buffers


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_momentum_is_of_the_call(model, weights, images, momentum):
    params, buffers = weights
    one = {name: x.clone() for name, x in buffers.items()}
    _, before = apply(model, params, buffers, images, train=True)
    _, after = apply(model, params, buffers, images, train=True, momentum=momentum)
    for name, start in buffers.items():
        batch = start + (before[name] - start) / 0.01
        assert_close(after[name], (1 - momentum) * start + momentum * batch, rtol=1e-3, atol=2e-3)
    assert_equal(buffers, one)
    assert_equal(apply(model, params, buffers, images, train=True)[1], before)  # nothing is left behind
    net = real(CONFIG, params, buffers)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.momentum = momentum
    net.train()(images)
    assert_close(after, dict(net.named_buffers()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_frozen_modules_are_in_evaluation(model, weights, images, train):
    """Two of the batch norms and one block: as in a module whose owner has put these in evaluation by hand."""
    params, buffers = weights
    evaluated = ["backbone.stem_norm", "backbone.stages.1.0.project_norm", "bifpn.top.norm"]
    net = real(CONFIG, params, buffers).train(train)
    for name in evaluated:
        net.get_submodule(name).eval()
    expected = net(images)
    outputs, after = apply(model, params, buffers, images, train=train, evaluated=evaluated)
    assert_equal(tuple(outputs), tuple(expected))
    assert_close(after, {name: b.detach() for name, b in net.named_buffers()}, rtol=1e-5, atol=1e-6)
    changed = {name.rpartition(".")[0] for name in buffers if not torch.equal(after[name], buffers[name])}
    norms = {name.rpartition(".")[0] for name in buffers}
    assert changed == (norms - set(evaluated) if train else set())
    # A call leaves nothing behind for the next one.
    again, after = apply(model, params, buffers, images, train=train)
    assert_equal(tuple(again), tuple(real(CONFIG, params, buffers).train(train)(images)))
    assert all(torch.equal(after[name], buffers[name]) != train for name in buffers)


def test_apply_ignores_the_modules_own_weights(weights, images):
    params, buffers = weights
    net = EfficientDet(CONFIG)
    own = copy.deepcopy(net.state_dict())
    outputs, _ = apply(net, params, buffers, images, train=True)
    assert_equal(net.state_dict(), own)
    assert_equal(outputs, real(CONFIG, params, buffers).train()(images))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("which", ["params", "buffers"])
def test_apply_wants_every_name_and_no_other(model, weights, images, train, which):
    params, buffers = map(dict, weights)
    chosen = params if which == "params" else buffers
    name = next(iter(chosen))
    value = chosen.pop(name)
    with pytest.raises(RuntimeError, match=name):
        apply(model, params, buffers, images, train=train)
    chosen[name], chosen["stray"] = value, value
    with pytest.raises(RuntimeError, match="stray"):
        apply(model, params, buffers, images, train=train)


# value_and_grad


def polynomial(params, x, *, power=1):
    return (params["a"] * x**power).sum() + params["b"].square().sum()


@given(a=st.floats(-3, 3), b=st.floats(-3, 3), power=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_value_and_grad_is_torch_funcs(a, b, power):
    params = {"a": torch.tensor([a, 1.0]), "b": torch.tensor(b), "unused": torch.ones(2, 2)}
    before = copy.deepcopy(params)
    x = torch.tensor([2.0, -1.0])
    value, grads = value_and_grad(polynomial)(params, x, power=power)
    their_grads, their_value = grad_and_value(polynomial)(params, x, power=power)
    assert_close(value, their_value)
    assert_close(grads, their_grads)
    assert grads["unused"].tolist() == [[0, 0], [0, 0]]
    assert_equal(params, before)
    assert not any(t.requires_grad for t in [value, *grads.values(), *params.values()])


def test_value_and_grad_with_aux():
    def function(params, x):
        return polynomial(params, x), {"x": x, "twice": 2 * params["a"]}

    params, x = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}, torch.tensor([2.0, -1.0])
    (value, aux), grads = value_and_grad(function, has_aux=True)(params, x)
    their_grads, (their_value, their_aux) = grad_and_value(function, has_aux=True)(params, x)
    assert_close(value, their_value)
    assert_close(grads, their_grads)
    assert aux["x"] is x
    assert_close(aux["twice"].detach(), their_aux["twice"])
    assert not value.requires_grad


def test_value_and_grad_where_gradients_are_off_or_wanted_elsewhere():
    params = {"a": torch.ones(2, requires_grad=True), "b": torch.tensor(3.0)}
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        _, grads = value_and_grad(polynomial)(params, x)
    assert grads["a"].tolist() == [1, 1]
    assert grads["b"].item() == 6
    assert params["a"].grad is None
    assert x.grad is None
    assert not params["b"].requires_grad


def test_training_gradients_are_torch_funcs(model, weights, images):
    params, buffers = weights

    def loss(params, images):
        outputs, after = apply(model, params, buffers, images, train=True)
        return scalar(outputs), after

    (value, after), grads = value_and_grad(loss, has_aux=True)(params, images)
    their_grads, (their_value, their_after) = grad_and_value(loss, has_aux=True)(params, images)
    assert_close(value, their_value)
    largest = max(g.abs().max().item() for g in their_grads.values())
    assert_close(grads, their_grads, rtol=0, atol=1e-4 * largest)
    assert_close(after, their_after)
    assert not any(b.requires_grad for b in after.values())
    assert sum(g.any().item() for g in grads.values()) > 0.5 * len(grads)


# The rest of torch.func, through the whole model


def test_gradients_of_each_image(model, weights, images):
    params, buffers = weights

    def loss(params, image):
        return scalar(apply(model, params, buffers, image[None])[0])

    each = vmap(grad(loss), in_dims=(None, 0))(params, images)
    largest = max(g.abs().max().item() for g in each.values())
    for i, image in enumerate(images):
        _, alone = value_and_grad(loss)(params, image)
        assert_close({name: g[i] for name, g in each.items()}, alone, rtol=0, atol=1e-4 * largest)


def test_an_ensemble_at_once(model, weights, images):
    params, buffers = weights
    pair = {name: torch.stack([p, 0.9 * p]) for name, p in params.items()}
    both = vmap(lambda params: tuple(apply(model, params, buffers, images)[0]))(pair)
    for i in range(2):
        alone, _ = apply(model, {name: p[i] for name, p in pair.items()}, buffers, images)
        for a, b in zip(both, alone, strict=True):
            assert_close(a[i], b, atol=1e-4, rtol=1e-4)


@forward_mode
@pytest.mark.parametrize("train", [False, True])
def test_forward_mode_is_the_gradient(model, weights, images, train):
    params, buffers = ({name: t.double() for name, t in tensors.items()} for tensors in weights)
    generator = torch.Generator().manual_seed(3)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}

    def loss(params):
        return scalar(apply(model, params, buffers, images.double(), train=train)[0])

    value, derivative, *_ = jvp(loss, (params,), (direction,))
    their_value, grads = value_and_grad(loss)(params)
    assert_close(value, their_value)
    assert_close(derivative, torch.stack([(grads[name] * direction[name]).sum() for name in grads]).sum())


@forward_mode
def test_relu6_overwrites_nothing_that_is_needed():
    torch.manual_seed(0)
    net = EfficientDet(
        model_config("lite0", num_channels=8, fpn_repeats=2, head_repeats=1, classes=("a", "b"))
    ).double()
    params, buffers = params_and_buffers(net)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)

    def loss(params, image):
        return scalar(apply(net, params, buffers, image[None])[0])

    each = vmap(grad(loss), in_dims=(None, 0))(params, images)
    for i, image in enumerate(images):
        value, grads = value_and_grad(loss)(params, image)
        assert_close({name: g[i] for name, g in each.items()}, grads)
        again, derivative, *_ = jvp(lambda params, image=image: loss(params, image), (params,), (params,))
        assert_close(again, value)
        assert_close(derivative, torch.stack([(grads[name] * params[name]).sum() for name in grads]).sum())


# Averages


@given(decay=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_ema_update(decay, seed):
    generator = torch.Generator().manual_seed(seed)
    ema, new = ({n: torch.randn(s, generator=generator) for n, s in [("a", (2, 3)), ("b", ())]} for _ in range(2))
    before = copy.deepcopy((ema, new))
    after = ema_update(ema, dict(reversed(new.items())), decay=decay)  # by name, in whatever order
    assert_close(after, {name: decay * ema[name] + (1 - decay) * new[name] for name in ema})
    assert_equal((ema, new), before)
    assert after["a"].data_ptr() not in (ema["a"].data_ptr(), new["a"].data_ptr())


def test_ema_update_ends():
    ema, new = {"a": torch.tensor([1.0, 1e8])}, {"a": torch.tensor([3.0, 1e-8])}
    assert torch.equal(ema_update(ema, new, decay=1.0)["a"], ema["a"])
    assert torch.equal(ema_update(ema, new, decay=0.0)["a"], new["a"])
    with pytest.raises(KeyError, match="a"):
        ema_update(ema, {"b": torch.zeros(2)}, decay=0.5)

"""A step of training does what the plain PyTorch loop does, to nothing but what it says."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.config import model_config
from tinydet.model.detect import model_anchors
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import Tensors, apply, normalize, state
from tinydet.model.layers import NORM_DECAY, BatchNorm
from tinydet.ops.assign import assign_batch
from tinydet.ops.losses import Losses, detection_loss
from tinydet.step import State, frozen_modules, lr_factor, make_optimizer, train_step, trainable
from tinydet.weights.checkpoint import skeleton

CONFIG = model_config(
    "lite0",
    classes=("Car", "Cyclist"),
    image_size=(64, 96),
    num_channels=8,
    fpn_repeats=1,
    head_repeats=1,
    stochastic_depth=0.2,
)
MODEL, ANCHORS = skeleton(CONFIG), model_anchors(CONFIG)


class Double(EfficientDet):
    """The network in float64: AdamW makes steps of full length of gradients that are nothing but float32's rounding."""

    def forward(self, images: Tensor) -> Outputs:
        return super().forward(images.double())


def batch_of(seed: int) -> Batch:
    """Two pictures of noise, with an object or two, an ignore region and padding."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 3, 2, generator=generator) * torch.tensor([60.0, 30.0])
    boxes = torch.cat([corner, corner + 8 + 20 * torch.rand(2, 3, 2, generator=generator)], -1)
    labels = torch.tensor([[0, 1, IGNORE], [1, BACKGROUND, BACKGROUND]])
    return Batch(
        images=torch.randint(256, (2, 3, *CONFIG.image_size), generator=generator).to(torch.uint8),
        boxes=boxes.where((labels != BACKGROUND)[..., None], 0),
        labels=labels,
        scales=torch.ones(2),
        sizes=torch.tensor([CONFIG.image_size] * 2),
        names=[f"frame {seed}a", f"frame {seed}b"],
    )


def normalized(batch: Batch) -> Tensor:
    return normalize(batch.images, mean=CONFIG.mean, std=CONFIG.std)


def copied(tensors: Tensors) -> Tensors:
    return {name: x.clone() for name, x in tensors.items()}


def initial(step: int = 0) -> State:
    torch.manual_seed(0)
    params, buffers = state(EfficientDet(CONFIG))
    return State(params, buffers, copied(params), copied(buffers), step)


def parts(now: State) -> list[Tensors]:
    return [now.params, now.buffers, now.ema_params, now.ema_buffers]


def double(now: State) -> State:
    params, buffers, ema_params, ema_buffers = ({name: x.double() for name, x in part.items()} for part in parts(now))
    return State(params, buffers, ema_params, ema_buffers, now.step)


def assert_equal(a: Tensors, b: Tensors) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# The same as a plain loop


def use_torch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Put torch's batch norms in place of the house's own, and return them."""
    norms = []
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            norm = nn.BatchNorm2d(len(child.weight), eps=child.eps)
            norm.weight, norm.bias, norm.num_batches_tracked = child.weight, child.bias, None
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            setattr(module, name, norm)
            norms.append(norm)
        else:
            norms += use_torch_norms(child)
    return norms


def plain_loop(
    begin: State, batches: Sequence[Batch], *, name: str, lr: float, weight_decay: float, clip: float, ema_decay: float
) -> tuple[State, list[Losses]]:
    """A module with state of its own and torch's batch norms, backward(), clip_grad_norm_, the averages by hand."""
    model = Double(CONFIG).double().train()
    model.load_state_dict({**begin.params, **begin.buffers})
    norms = use_torch_norms(model)
    kernels = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    others = [param for param in model.parameters() if all(param is not kernel for kernel in kernels)]
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": weight_decay}]
    groups += [{"params": others, "weight_decay": 0}]
    optimizer = AdamW(groups, lr=lr) if name == "adamw" else SGD(groups, lr=lr, momentum=0.9)
    average = {**begin.ema_params, **begin.ema_buffers}
    terms = []
    torch.manual_seed(1)
    for step, batch in enumerate(batches):
        ramp = (1 + step) / (10 + step)
        for norm in norms:
            norm.momentum = 1 - min(0.99, ramp)
        outputs = model(normalized(batch))
        targets = assign_batch(batch.boxes, batch.labels, ANCHORS)
        losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        terms.append(losses)
        decay = min(ema_decay, ramp)
        average = {key: decay * average[key] + (1 - decay) * x.detach() for key, x in model.state_dict().items()}
    ema_params, ema_buffers = ({key: average[key] for key in part} for part in (begin.params, begin.buffers))
    return State(*state(model), ema_params, ema_buffers, len(batches)), terms


@pytest.mark.parametrize(("name", "lr", "clip"), [("adamw", 1e-3, 10.0), ("sgd", 1e-2, 100.0), ("sgd", 1e-1, 0.1)])
def test_steps_are_those_of_a_plain_loop(name: str, lr: float, clip: float) -> None:
    settings: dict[str, Any] = {"clip": clip, "ema_decay": 0.2}  # which the ramp reaches at the third step
    batches = [batch_of(seed) for seed in range(3)]
    expected, terms = plain_loop(double(initial()), batches, name=name, lr=lr, weight_decay=0.5, **settings)
    now, model = double(initial()), Double(CONFIG).to("meta")
    optimizer = make_optimizer(now.params, name=name, lr=lr, weight_decay=0.5)
    torch.manual_seed(1)
    for batch, want in zip(batches, terms, strict=True):
        now, losses = train_step(now, batch, model=model, anchors=ANCHORS, optimizer=optimizer, **settings)
        torch.testing.assert_close(tuple(losses), tuple(x.detach() for x in want), rtol=1e-9, atol=0)
    assert now.step == expected.step == 3
    for field in State._fields[:-1]:
        torch.testing.assert_close(getattr(now, field), getattr(expected, field), rtol=1e-9, atol=1e-9)


def test_the_plain_loop_moves_far_enough_to_tell() -> None:
    """Each of the settings above makes a difference many times the tolerance."""
    begin, batches = double(initial()), [batch_of(0)]
    base: dict[str, Any] = {"name": "sgd", "lr": 1e-2, "weight_decay": 0.5, "clip": 100.0, "ema_decay": 0.2}
    expected, _ = plain_loop(begin, batches, **base)
    for change in ({"weight_decay": 0.0}, {"clip": 0.1}, {"ema_decay": 0.0}, {"name": "adamw"}, {"lr": 2e-2}):
        other, _ = plain_loop(begin, batches, **base | change)
        differences = [(other.ema_params[key] - x).abs().max().item() for key, x in expected.ema_params.items()]
        assert max(differences) > 1e-4, change


# What changes, and what does not


def test_a_step_updates_params_in_place_and_nothing_else() -> None:
    now, batch, anchors = initial(), batch_of(0), ANCHORS.clone()
    params, others = copied(now.params), [copied(part) for part in (now.buffers, now.ema_params, now.ema_buffers)]
    optimizer = make_optimizer(now.params, name="adamw", lr=1e-3, weight_decay=1e-2)
    later, losses = train_step(
        now, batch, model=MODEL, anchors=anchors, optimizer=optimizer, clip=10.0, ema_decay=0.9998
    )
    for before, after in zip(others, (now.buffers, now.ema_params, now.ema_buffers), strict=True):
        assert_equal(before, after)
    assert torch.equal(anchors, ANCHORS)
    for one, again in zip(batch[:-1], batch_of(0)[:-1], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(again))
    assert later.params is now.params
    for old, new in zip([params, *parts(now)[1:]], parts(later), strict=True):
        assert old.keys() == new.keys()
        assert not any(torch.equal(old[name], new[name]) for name in old if old[name].ndim > 1 or "running" in name)
    assert not any(x.requires_grad for part in parts(later) for x in part.values())
    assert not any(x.requires_grad for x in losses)
    assert all(x.is_meta for x in MODEL.state_dict().values())


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 0.55), (10**6, 0.9998)])
def test_averages_follow_fast_at_first(step: int, decay: float) -> None:
    now = initial(step)
    old = copied(now.ema_params), copied(now.ema_buffers)
    torch.manual_seed(1)
    seen = apply(MODEL, now.params, now.buffers, normalized(batch_of(0)), train=True)[1]  # .99 old + .01 of the batch
    optimizer = make_optimizer(now.params, name="sgd", lr=1e-2, weight_decay=0.0)
    torch.manual_seed(1)
    later, _ = train_step(
        now, batch_of(0), model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=10.0, ema_decay=0.9998
    )
    assert later.step == step + 1
    for name, x in later.buffers.items():
        batch = (seen[name].double() - NORM_DECAY * now.buffers[name]) / (1 - NORM_DECAY)
        expected = min(decay, NORM_DECAY) * now.buffers[name] + (1 - min(decay, NORM_DECAY)) * batch
        torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-5)
    pairs = zip(old, (later.params, later.buffers), (later.ema_params, later.ema_buffers), strict=True)
    for before, latest, averaged in pairs:
        for name, x in averaged.items():
            expected = decay * before[name].double() + (1 - decay) * latest[name].double()
            torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["the loss", "only its gradient"])
def test_a_loss_that_is_not_finite_updates_nothing(case: str) -> None:
    now = initial(step=7)
    if case == "the loss":
        now.params["class_net.predict.pointwise.bias"][0] = torch.nan
    else:  # two factors of one product, so that the gradient of the second is as large as the first
        now.params["class_net.predict.depthwise.weight"] *= 1e30
        now.params["class_net.predict.pointwise.weight"] *= 1e-30
    optimizer = make_optimizer(now.params, name="adamw", lr=1e-3, weight_decay=1e-2)
    before = [copied(part) for part in parts(now)]
    expected = (
        r"^step 8: the loss is not finite \(total (\S+), classification \S+, box [\d.]+, gradient norm (inf|nan)\) "
        r"on frame 3a, frame 3b$"
    )
    with pytest.raises(FloatingPointError, match=expected) as caught:
        train_step(now, batch_of(3), model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=10.0, ema_decay=0.9998)
    assert ("total nan" in str(caught.value)) == (case == "the loss")
    for old, part in zip(before, parts(now), strict=True):
        for name, x in part.items():
            torch.testing.assert_close(x, old[name], rtol=0, atol=0, equal_nan=True)
    assert not optimizer.state_dict()["state"]


# Frozen


@pytest.mark.parametrize("freeze", ["trunk", "norms"])
def test_what_is_frozen_stays_and_the_rest_moves(freeze: str) -> None:
    now, batch = initial(step=20), batch_of(0)
    for name in now.buffers:  # statistics of something else than this batch
        now.buffers[name] += 0.5
        now.ema_buffers[name] += 0.5
    before = [copied(part) for part in parts(now)]
    frozen = frozen_modules(MODEL, freeze, known=[*now.params, *now.buffers])
    learning = trainable(now.params, frozen)
    optimizer = make_optimizer(learning, name="sgd", lr=1e-2, weight_decay=1e-2)
    torch.manual_seed(1)
    later, losses = train_step(
        now, batch, model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=1e9, ema_decay=0.5, frozen=frozen
    )
    fixed = {
        name
        for name in (*now.params, *now.buffers)
        if (name.startswith("backbone.") if freeze == "trunk" else "norm" in name)
    }
    assert {*now.params} - {*learning} == fixed & {*now.params}
    for old, new in zip(before, parts(later), strict=True):
        same = {name for name in old if torch.equal(old[name], new[name])}
        assert not any(old[name].ndim > 1 or "running" in name for name in same - fixed)
        assert fixed & {*old} <= same

    # The plain way: switched off by hand in a module with state of its own.
    net = EfficientDet(CONFIG).train()
    net.load_state_dict({**before[0], **before[1]})
    for name, module in net.named_modules():
        if any(key.startswith(f"{name}.") for key in fixed) and name in frozen:
            module.training = False
    for name, param in net.named_parameters():
        param.requires_grad_(name not in fixed)
    torch.manual_seed(1)
    targets = assign_batch(batch.boxes, batch.labels, ANCHORS)
    outputs = net(normalized(batch))
    expected = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas)
    expected.total.backward()
    torch.testing.assert_close(losses.total, expected.total.detach(), rtol=1e-6, atol=0)
    largest = max(param.grad.abs().max() for param in net.parameters() if param.grad is not None)
    for name, param in net.named_parameters():
        if name in fixed:
            assert param.grad is None
            assert now.params[name].grad is None
        else:
            torch.testing.assert_close(now.params[name].grad, param.grad, rtol=1e-3, atol=1e-5 * float(largest))


def test_only_what_was_learned_can_be_frozen() -> None:
    everything = [*state(EfficientDet(CONFIG))[0], *state(EfficientDet(CONFIG))[1]]
    trunk = [name for name in everything if name.startswith("backbone.")]
    assert frozen_modules(MODEL, "none", known=[]) == frozenset()
    of_trunk, of_all = (frozen_modules(MODEL, "norms", known=known) for known in (trunk, everything))
    assert of_trunk == {name for name in of_all if name.startswith("backbone.")}
    assert {"bifpn.top.norm", "class_net.norms.0.4", "backbone.stem_norm"} <= of_all
    assert frozen_modules(MODEL, "trunk", known=trunk) > of_trunk
    for freeze in ("trunk", "norms"):
        with pytest.raises(InputError, match=f"freeze {freeze}: the run begins with random weights"):
            frozen_modules(MODEL, freeze, known=[])


# The optimiser


@pytest.mark.parametrize("model", ["d0", "lite0", "d0-symmetric"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_kernels_decay_and_nothing_else(model: str, name: str) -> None:
    network = skeleton(model_config(model))
    params = {key: torch.zeros(()).expand(x.shape) for key, x in network.named_parameters()}
    optimizer = make_optimizer(params, name=name, lr=0.25, weight_decay=0.125)
    assert isinstance(optimizer, SGD if name == "sgd" else AdamW)
    found: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert group.get("momentum") == (0.9 if name == "sgd" else None)
        found |= {id(param): group["weight_decay"] for param in group["params"]}
    decayed = {key for key, param in params.items() if found[id(param)]}
    assert decayed == {f"{key}.weight" for key, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {found[id(params[key])] for key in decayed} == {0.125}
    assert len(found) == len(params)


# The learning rate


@pytest.mark.parametrize(
    ("step", "warmup", "total", "factor"),
    [
        *[(0, 4, 20, 0.25), (3, 4, 20, 1.0), (4, 4, 20, 1.0), (12, 4, 20, 0.5), (20, 4, 20, 0.0)],
        *[(0, 0, 10, 1.0), (5, 0, 10, 0.5), (9, 0, 10, 0.5 * (1 + math.cos(0.9 * math.pi))), (10, 0, 10, 0.0)],
        *[(0, 1, 1, 1.0), (1, 1, 1, 1.0), (0, 0, 1, 1.0), (0, 0, 0, 1.0)],
    ],
)
def test_the_learning_rate_at_its_corners(step: int, warmup: int, total: int, factor: float) -> None:
    assert lr_factor(step, warmup=warmup, total=total) == pytest.approx(factor, abs=1e-12)


@given(st.integers(0, 30), st.integers(1, 100))
def test_the_learning_rate_goes_up_then_down(warmup: int, rest: int) -> None:
    factors = [lr_factor(step, warmup=warmup, total=warmup + rest) for step in range(warmup + rest)]
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert max(factors) == 1
    assert min(factors) > 0

"""A step of training does what the plain PyTorch loop does, to nothing but what it says."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
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
from tinydet.training.step import (
    PRECISIONS,
    State,
    choose_precision,
    frozen_modules,
    make_optimizer,
    train_step,
    trainable,
)
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
        now, (losses, *_) = train_step(now, batch, model=model, anchors=ANCHORS, optimizer=optimizer, **settings)
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
    later, (losses, *_) = train_step(
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
    later, (losses, *_) = train_step(
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


# A batch in parts


def frozen_norms() -> frozenset[str]:
    """All batch norms: with statistics of their own they would see the difference between a batch and its parts."""
    return frozen_modules(MODEL, "norms", known=[*initial().params, *initial().buffers])


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_add_up_to_the_batch(parts: int) -> None:
    """Also where the last part is smaller, and a part has no object."""
    batch = batch_of(0)
    images, boxes, labels, scales, sizes = (torch.cat([x, x, x])[:5] for x in batch[:5])
    batch = Batch(images, boxes, labels, scales, sizes, [*"abcde"])
    labels = batch.labels.clone()
    labels[:2] = BACKGROUND
    batch = batch._replace(labels=labels)
    found = []
    for cut in (1, parts):
        now = double(initial())
        optimizer = make_optimizer(trainable(now.params, frozen_norms()), name="sgd", lr=1e-2, weight_decay=0.0)
        found.append(
            train_step(
                now,
                batch,
                model=Double(model_config(**{**CONFIG.__dict__, "stochastic_depth": 0.0})).to("meta"),
                anchors=ANCHORS,
                optimizer=optimizer,
                clip=1e9,
                ema_decay=0.5,
                frozen=frozen_norms(),
                parts=cut,
            )
        )
    (whole, of_whole), (cut_up, of_parts) = found
    torch.testing.assert_close(tuple(of_parts.losses), tuple(of_whole.losses), rtol=1e-9, atol=0)
    torch.testing.assert_close(of_parts.norm, of_whole.norm, rtol=1e-9, atol=0)
    assert torch.equal(of_parts.matches, of_whole.matches)
    torch.testing.assert_close(cut_up.params, whole.params, rtol=1e-9, atol=1e-12)


def test_statistics_of_parts_are_a_mean_of_theirs() -> None:
    """Of the first step, which counts nine tenths: between what the parts have, never beyond."""
    now, batch = initial(), batch_of(0)
    seen = []
    for i in range(2):
        torch.manual_seed(1)
        seen.append(
            apply(MODEL, now.params, now.buffers, normalized(batch)[i : i + 1].repeat(2, 1, 1, 1), train=True)[1]
        )
    optimizer = make_optimizer(now.params, name="sgd", lr=0.0, weight_decay=0.0)
    images, boxes, labels, scales, sizes = (x.repeat_interleave(2, 0) for x in batch[:5])
    both = Batch(images, boxes, labels, scales, sizes, [*"aabb"])
    torch.manual_seed(1)
    later, _ = train_step(
        now, both, model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=1.0, ema_decay=0.0, parts=2
    )
    name = "backbone.stem_norm.running_var"  # before anything that draws
    parts_of = [(x[name] - NORM_DECAY * now.buffers[name]) / (1 - NORM_DECAY) for x in seen]
    weights = torch.tensor([NORM_DECAY, 1.0]) / (1 + NORM_DECAY)
    expected = 0.1 * now.buffers[name] + 0.9 * (weights[0] * parts_of[0] + weights[1] * parts_of[1])
    torch.testing.assert_close(later.buffers[name], expected, rtol=1e-3, atol=1e-4)
    assert all((x > 0).all() for key, x in later.buffers.items() if key.endswith("running_var"))


def test_matches_are_counted_by_class() -> None:
    now, batch = initial(), batch_of(0)
    optimizer = make_optimizer(now.params, name="sgd", lr=0.0, weight_decay=0.0)
    _, seen = train_step(now, batch, model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=1.0, ema_decay=0.0)
    labels = assign_batch(batch.boxes, batch.labels, ANCHORS).labels
    assert seen.matches.tolist() == [int((labels == label).sum()) for label in range(2)]
    assert min(seen.matches.tolist()) > 0


def test_no_average_is_the_weights_themselves() -> None:
    now = initial(step=5)
    optimizer = make_optimizer(now.params, name="sgd", lr=1e-2, weight_decay=0.0)
    later, _ = train_step(now, batch_of(0), model=MODEL, anchors=ANCHORS, optimizer=optimizer, clip=1.0, ema_decay=0.0)
    assert_equal(later.ema_params, later.params)
    assert_equal(later.ema_buffers, later.buffers)


# Half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_nearly_the_same(precision: str) -> None:
    """And the loss's scale, which only float16 has, leaves no trace."""
    found = {}
    for kind in ("off", precision):
        now = initial()
        optimizer = make_optimizer(now.params, name="sgd", lr=1e-2, weight_decay=0.0)
        torch.manual_seed(1)
        found[kind] = train_step(
            now,
            batch_of(0),
            model=MODEL,
            anchors=ANCHORS,
            optimizer=optimizer,
            clip=10.0,
            ema_decay=0.0,
            precision=kind,
            scaler=GradScaler("cpu", enabled=kind == "fp16", init_scale=256.0),
        )
    (full, exact), (half, rounded) = found["off"], found[precision]
    torch.testing.assert_close(tuple(rounded.losses), tuple(exact.losses), rtol=0.02, atol=1e-3)
    torch.testing.assert_close(rounded.norm, exact.norm, rtol=0.5, atol=0)
    assert not torch.equal(rounded.losses.total, exact.losses.total)
    moved = [(full.params[name] - x).abs().max().item() for name, x in half.params.items()]
    assert 0 < max(moved) < 0.05
    assert all(x.dtype == torch.float32 for part in parts(half) for x in part.values())
    assert all(x.dtype == torch.float32 for x in rounded.losses)


def test_an_overflow_of_the_scaled_gradient_costs_one_step() -> None:
    now = initial(step=3)
    before = [copied(part) for part in parts(now)]
    optimizer = make_optimizer(now.params, name="adamw", lr=1e-2, weight_decay=0.0)
    scaler = GradScaler("cpu", init_scale=2.0**127)
    settings: dict[str, Any] = {"model": MODEL, "anchors": ANCHORS, "optimizer": optimizer, "clip": 1.0}
    later, seen = train_step(now, batch_of(0), ema_decay=0.5, precision="fp16", scaler=scaler, **settings)
    assert not seen.norm.isfinite()
    assert seen.losses.total.isfinite()
    assert later.step == 4
    for old, new in zip(before, parts(later), strict=True):
        assert_equal(old, new)
    assert scaler.get_scale() == 2.0**126


def test_where_the_matrix_units_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose_precision(amp, "cpu") for amp in ("auto", *PRECISIONS)] == ["off", *PRECISIONS]
    assert choose_precision("auto", "mps") == "off"
    for known, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, known=known: known)
        assert choose_precision("auto", "cuda:1") == name

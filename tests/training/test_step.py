"""A training step does what the plain PyTorch loop does, and leaves the state that it is given as it was."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from tests.checkpoints import assert_same
from tinydet.data.loader import Batch
from tinydet.errors import InputError
from tinydet.evaluation import validate
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.backbone import MBConv
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet, Outputs, meta_model
from tinydet.model.functional import Variables, apply, params_and_buffers
from tinydet.model.layers import BatchNorm
from tinydet.model.postprocess import model_anchors, normalize
from tinydet.ops import kernels
from tinydet.ops.assign import assign_batch
from tinydet.ops.losses import Losses, detection_loss
from tinydet.training.choices import evaluated_modules, frozen_modules
from tinydet.training.optim import Optimizer, adamw, sgd
from tinydet.training.state import State, initial_state, trainable
from tinydet.training.step import StepMetrics, stochastic_draws, train_step

CONFIG = model_config(
    "lite0",
    classes=("Car", "Cyclist"),
    image_size=(64, 96),
    num_channels=8,
    fpn_repeats=1,
    head_repeats=1,
    stochastic_depth=0.2,
)
MODEL, ANCHORS = meta_model(CONFIG), model_anchors(CONFIG)
SGD_PLAIN = sgd(weight_decay=0.0)


class Double(EfficientDet):
    """The network in float64: AdamW makes steps of full length of gradients that are nothing but float32's rounding."""

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Outputs:
        return super().forward(images.double(), draws)


def batch_of(seed: int) -> Batch:
    """Return two images of noise, with an object or two, an ignore region and padding."""
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


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(*(field[rows] for field in batch))  # type: ignore[arg-type]


def normalized(batch: Batch) -> Tensor:
    return normalize(batch.images, mean=CONFIG.mean, std=CONFIG.std)


def draws_of(names: Sequence[str], *, step: int, seed: int = 0) -> Tensor:
    """Draw for one image after another."""
    return torch.cat([stochastic_draws([name], MODEL.backbone.depth, seed=seed, step=step) for name in names])


def initial(optimizer: Optimizer = SGD_PLAIN, *, step: int = 0, frozen: frozenset[str] = frozenset()) -> State:
    torch.manual_seed(0)
    state = initial_state(params_and_buffers(EfficientDet(CONFIG)), optimizer=optimizer, frozen=frozen)
    return state._replace(step=step)


def convert(value: Any, function: Any) -> Any:
    """Apply a function to every tensor of a nested value."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: convert(one, function) for name, one in value.items()}
    if isinstance(value, tuple):
        return type(value)(*(convert(one, function) for one in value))
    return value


def double(state: State) -> State:
    return convert(state, lambda x: x.double() if x.is_floating_point() else x)


def clone(value: Any) -> Any:
    return convert(value, torch.clone)


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
    """Train a module with state of its own and torch's batch norms, backward(), clip_grad_norm_, averages by hand."""
    model = Double(CONFIG).double().train()
    model.load_state_dict({**begin.params, **begin.buffers})
    norms = use_torch_norms(model)
    kernels = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    others = [param for param in model.parameters() if all(param is not kernel for kernel in kernels)]
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": weight_decay}]
    groups += [{"params": others, "weight_decay": 0}]
    optimizer = AdamW(groups, lr=lr) if name == "adamw" else SGD(groups, lr=lr, momentum=0.9)
    average = {**begin.ema.params, **begin.ema.buffers}
    terms = []
    for step, batch in enumerate(batches):
        ramp = (1 + step) / (10 + step)
        for norm in norms:
            norm.momentum = max(0.01, 1 - ramp)
        outputs = model(normalized(batch), draws_of(batch.names, step=step, seed=7))
        targets = assign_batch(batch.boxes, batch.labels, ANCHORS, image_size=CONFIG.image_size)
        losses = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas, quality=True)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        terms.append(losses)
        decay = min(ema_decay, ramp)
        average = {key: decay * average[key] + (1 - decay) * x.detach() for key, x in model.state_dict().items()}
    ema = Variables(*({key: average[key] for key in part} for part in (begin.params, begin.buffers)))
    return State(*params_and_buffers(model), {}, ema, len(batches)), terms


@pytest.mark.parametrize(("name", "lr", "clip"), [("adamw", 1e-3, 10.0), ("sgd", 1e-2, 100.0), ("sgd", 1e-1, 0.1)])
def test_steps_are_those_of_a_plain_loop(name: str, lr: float, clip: float) -> None:
    optimizer = (adamw if name == "adamw" else sgd)(weight_decay=0.5)
    settings: dict[str, Any] = {"clip": clip, "ema_decay": 0.2}  # which the ramp reaches at the third step
    batches = [batch_of(seed) for seed in range(3)]
    expected, terms = plain_loop(double(initial()), batches, name=name, lr=lr, weight_decay=0.5, **settings)
    state, model = double(initial(optimizer)), Double(CONFIG).to("meta")
    for batch, want in zip(batches, terms, strict=True):
        state, metrics = train_step(state, batch, model=model, lr=lr, optimizer=optimizer, seed=7, **settings)
        torch.testing.assert_close(tuple(metrics.losses), tuple(x.detach() for x in want), rtol=1e-9, atol=0)
    assert state.step == expected.step == 3
    for field in ("params", "buffers", "ema"):
        torch.testing.assert_close(getattr(state, field), getattr(expected, field), rtol=1e-9, atol=1e-9)


def test_the_plain_loop_moves_far_enough_to_tell() -> None:
    """Each of the settings above makes a difference many times the tolerance."""
    begin, batches = double(initial()), [batch_of(0)]
    base: dict[str, Any] = {"name": "sgd", "lr": 1e-2, "weight_decay": 0.5, "clip": 100.0, "ema_decay": 0.2}
    expected, _ = plain_loop(begin, batches, **base)
    for change in ({"weight_decay": 0.0}, {"clip": 0.1}, {"ema_decay": 0.0}, {"name": "adamw"}, {"lr": 2e-2}):
        other, _ = plain_loop(begin, batches, **base | change)
        differences = [(other.ema.params[key] - x).abs().max().item() for key, x in expected.ema.params.items()]
        assert max(differences) > 1e-4, change


# Purity


@pytest.mark.parametrize("optimizer", [adamw(), sgd()])
def test_a_step_leaves_its_arguments_as_they_were(optimizer: Optimizer) -> None:
    """Bit for bit, whatever the model draws; and the same step twice gives the same result."""
    state, batch = initial(optimizer), batch_of(0)
    state, _ = train_step(state, batch_of(1), model=MODEL, lr=1e-3, optimizer=optimizer)  # moments that are not zero
    before, anchors = clone((lambda *x: dict(enumerate(x)))(state, batch)), ANCHORS.clone()
    global_state = torch.get_rng_state()
    first = train_step(state, batch, model=MODEL, lr=1e-3, optimizer=optimizer)
    assert torch.equal(global_state, torch.get_rng_state())
    torch.manual_seed(123)
    second = train_step(state, batch, model=MODEL, lr=1e-3, optimizer=optimizer)
    assert_same(before, {0: state, 1: batch})
    assert_same(first, second)
    assert torch.equal(anchors, ANCHORS)
    assert all(x.is_meta for x in MODEL.state_dict().values())


def test_everything_moves_and_nothing_holds_a_graph() -> None:
    state, optimizer = initial(), sgd(weight_decay=0.1)  # which moves kernels of blocks that are dropped
    later, metrics = train_step(state, batch_of(0), model=MODEL, lr=1e-2, optimizer=optimizer)
    for old, new in zip(
        (state.params, state.buffers, *state.ema), (later.params, later.buffers, *later.ema), strict=True
    ):
        assert old.keys() == new.keys()
        assert not any(torch.equal(old[name], new[name]) for name in old if old[name].ndim > 1 or "running" in name)
        assert not any(x.requires_grad for x in new.values())
    assert not any(x.requires_grad for x in (*metrics.losses, metrics.grad_norm))


def test_another_seed_draws_another_stochastic_depth() -> None:
    found = [train_step(initial(), batch_of(0), model=MODEL, lr=0.0, optimizer=SGD_PLAIN, seed=s)[1] for s in range(4)]
    assert len({float(metrics.losses.total) for metrics in found}) > 1


def test_an_image_draws_by_its_name_the_step_and_the_seed_alone() -> None:
    names = [f"{i:06d}" for i in range(300)]
    draws = stochastic_draws(names, 16, seed=1, step=2)
    assert (draws.shape, draws.dtype) == ((300, 16), torch.float32)
    assert torch.equal(stochastic_draws(names[7:3:-1], 16, seed=1, step=2), draws[4:8].flip(0))
    assert stochastic_draws([], 16, seed=1, step=2).shape == (0, 16)
    assert len(draws.unique()) > 0.99 * draws.numel()
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 1}, {"seed": 2, "step": 1}):
        assert not (stochastic_draws(names, 16, **other) == draws).all(1).any()
    shares = [float((draws < rate).float().mean()) for rate in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shares == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=0.02)  # three standard deviations


# Nothing of it depends on values


class Counter(TorchDispatchMode):
    """Counts operations whose result a GPU would have to be waited for."""

    WAITING = re.compile("_local_scalar_dense|nonzero|masked_select|unique|bincount|repeat_interleave|equal|is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
        if self.WAITING.search(func.overloadpacket.__name__) or (
            by_mask and any(x is not None and x.dtype == torch.bool for x in args[1])
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_step_waits_for_no_value(monkeypatch: pytest.MonkeyPatch, precision: torch.dtype, on_cpu: bool) -> None:
    """As it is elsewhere than on a CPU; there, where that costs nothing, it looks for objects and into labels."""
    if not on_cpu:
        monkeypatch.setattr(kernels, "_on_cpu", lambda x: False)
        monkeypatch.setattr(kernels, "check_labels", lambda labels, classes: None)
    begin = initial(adamw())._replace(loss_scale=256.0 if precision == torch.float16 else 1.0)
    how: dict[str, Any] = {"model": MODEL, "lr": 1e-3, "precision": precision}
    with Counter() as counter:
        train_step(begin, batch_of(0), check=False, **how)
    assert bool(counter.found) == on_cpu, counter.found


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_step_of_a_gpu_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch, precision: torch.dtype) -> None:
    begin, how = initial(), {"model": MODEL, "lr": 1e-3, "optimizer": SGD_PLAIN, "precision": precision}
    expected, measured = train_step(begin, batch_of(0), **how)  # type: ignore[arg-type]
    monkeypatch.setattr(kernels, "_on_cpu", lambda x: False)
    found, metrics = train_step(begin, batch_of(0), **how)  # type: ignore[arg-type]
    torch.testing.assert_close(tuple(metrics.losses), tuple(measured.losses), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-3, atol=1e-3)
    assert torch.equal(metrics.positives, measured.positives)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_network_is_one_graph_that_is_compiled_once() -> None:
    """Whatever step it is; and the compiled network trains as the other does."""
    torch._dynamo.reset()  # what other tests compiled
    compiled, state = meta_model(CONFIG), initial()
    compiled.compile(fullgraph=True, backend="aot_eager")
    expected, found = state, state
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            how: dict[str, Any] = {"lr": 1e-3, "optimizer": SGD_PLAIN}
            expected, told = train_step(expected, batch_of(seed), model=MODEL, **how)
            found, metrics = train_step(found, batch_of(seed), model=compiled, **how)
            torch.testing.assert_close(tuple(metrics.losses), tuple(told.losses), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.buffers, expected.buffers, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-2, atol=1e-3)


# Averages


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 0.55), (10**6, 0.9998)])
def test_averages_follow_fast_at_first(step: int, decay: float) -> None:
    state, draws = initial(step=step), draws_of(batch_of(0).names, step=step)
    momentum, inputs = max(0.01, 1 - (1 + step) / (10 + step)), (normalized(batch_of(0)), draws)
    _, seen = apply(MODEL, state.params, state.buffers, *inputs, train=True, momentum=momentum)
    later, _ = train_step(state, batch_of(0), model=MODEL, lr=1e-2, optimizer=SGD_PLAIN)
    assert later.step == step + 1
    assert_same(later.buffers, seen)
    pairs = zip(state.ema, (later.params, later.buffers), later.ema, strict=True)
    for before, latest, averaged in pairs:
        for name, x in averaged.items():
            expected = decay * before[name].double() + (1 - decay) * latest[name].double()
            torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-7)


def test_without_averaging_the_averages_are_the_weights() -> None:
    later, _ = train_step(initial(step=5), batch_of(0), model=MODEL, lr=1e-2, optimizer=SGD_PLAIN, ema_decay=0.0)
    assert_same(later.ema, Variables(later.params, later.buffers))


# Losses that are not finite


@pytest.mark.parametrize("case", ["the loss", "only its gradient"])
def test_a_loss_that_is_not_finite_stops_with_the_images(case: str) -> None:
    state = initial(step=7)
    if case == "the loss":
        state.params["class_net.predict.pointwise.bias"][0] = torch.nan
    else:  # two factors of one product, so that the gradient of the second is as large as the first
        state.params["class_net.predict.depthwise.weight"] *= 1e30
        state.params["class_net.predict.pointwise.weight"] *= 1e-30
    expected = (
        r"^step 8: the loss is not finite \(total (\S+), classification \S+, box [\d.]+, gradient norm (inf|nan)\) "
        r"on frame 3a, frame 3b$"
    )
    with pytest.raises(FloatingPointError, match=expected) as caught:
        train_step(state, batch_of(3), model=MODEL, lr=1e-3, optimizer=SGD_PLAIN)
    assert ("total nan" in str(caught.value)) == (case == "the loss")


# Frozen modules


def test_labels_that_count_from_1_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(0)
    batch = batch._replace(labels=batch.labels.where(batch.labels < 0, batch.labels + 1))
    with pytest.raises(InputError, match=r"^label 2: there are 2 classes"):
        train_step(initial(), batch, model=MODEL, lr=0.1, optimizer=SGD_PLAIN)
    monkeypatch.setattr(kernels, "check_labels", lambda labels, classes: None)
    with pytest.raises(InputError, match=r"^a label of frame 0a, frame 0b is beyond the 2 classes"):
        train_step(initial(), batch, model=MODEL, lr=0.1, optimizer=SGD_PLAIN)


@pytest.mark.parametrize("freeze", ["early", "backbone", "norms"])
def test_frozen_modules_stay_and_the_rest_moves(freeze: str) -> None:
    batch, begin, config = batch_of(0), initial(), dataclasses.replace(CONFIG, stochastic_depth=0.0)
    model, optimizer = meta_model(config), sgd(weight_decay=0.1)  # which moves kernels without gradient, too
    frozen = frozen_modules(MODEL, freeze, loaded=[*begin.params, *begin.buffers])
    evaluated = evaluated_modules(freeze, frozen)
    assert evaluated == (frozenset() if freeze == "early" else frozen)
    state = initial(step=20, frozen=frozen)
    for name in state.buffers:  # statistics of something else than this batch
        state.buffers[name] += 0.05
    learning = trainable(state.params, frozen)
    how: Any = {"model": model, "optimizer": optimizer, "clip": 1e9, "frozen": frozen, "evaluated": evaluated}
    later, metrics = train_step(state, batch, lr=1e-2, **how)
    names, early = [*state.params, *state.buffers], ("backbone.stem", *(f"backbone.stages.{i}." for i in range(3)))
    fixed = {
        "early": {name for name in state.params if name.startswith(early)},
        "backbone": {name for name in names if name.startswith("backbone.")},
        "norms": {name for name in names if "norm" in name},
    }[freeze]
    assert {*state.params} - {*learning} == fixed & {*state.params}
    assert later.moments["velocity"].keys() == learning.keys()
    for old, new in ((state.params, later.params), (state.buffers, later.buffers)):
        same = {name for name in old if torch.equal(old[name], new[name])}
        assert not any(old[name].ndim > 1 or "running" in name for name in same - fixed)
        assert fixed & {*old} <= same

    # The plain way: switched off by hand in a module with state of its own.
    net = EfficientDet(config).train()
    net.load_state_dict({**state.params, **state.buffers})
    for name, module in net.named_modules():
        module.training = name not in evaluated
    for name, param in net.named_parameters():
        param.requires_grad_(name not in fixed)
    targets = assign_batch(batch.boxes, batch.labels, ANCHORS, image_size=CONFIG.image_size)
    outputs = net(normalized(batch))
    expected = detection_loss(outputs.logits, outputs.deltas, targets.labels, targets.deltas, quality=True)
    expected.total.backward()
    torch.testing.assert_close(metrics.losses.total, expected.total.detach(), rtol=1e-6, atol=0)
    grads = {name: param.grad for name, param in net.named_parameters() if param.grad is not None}
    assert grads.keys() == learning.keys()
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for name, grad in grads.items():
        decayed = grad + 0.1 * state.params[name] if grad.ndim > 1 else grad
        torch.testing.assert_close(later.moments["velocity"][name], decayed, rtol=1e-3, atol=1e-5 * largest)


# Micro-batches


def frozen_norms() -> frozenset[str]:
    """Name all batch norms: their statistics would tell a batch from its parts."""
    return frozen_modules(MODEL, "norms", loaded=[*initial().params, *initial().buffers])


def five_images() -> Batch:
    """Return five images, of which the first two have no object."""
    images, boxes, labels, scales, sizes = (torch.cat([x, x, x])[:5] for x in batch_of(0)[:5])
    labels = labels.clone()
    labels[:2] = BACKGROUND
    return Batch(images, boxes, labels, scales, sizes, [*"abcde"])


def double_step(batch: Batch, state: State, frozen: frozenset[str], **settings: Any) -> tuple[State, StepMetrics]:
    """Make a step in float64, where parts add up exactly, with stochastic depth that drops blocks of each image."""
    model = Double(dataclasses.replace(CONFIG, stochastic_depth=0.9)).to("meta")
    draws = stochastic_draws(batch.names, model.backbone.depth, seed=0, step=state.step)
    blocks = [module for module in model.modules() if isinstance(module, MBConv)]
    rates = torch.tensor([block.drop if block.residual else 0.0 for block in blocks])
    assert (draws < rates).any(1).all()
    settings |= {"lr": 1e-2, "optimizer": SGD_PLAIN, "clip": 1e9, "frozen": frozen, "evaluated": frozen}
    return train_step(state, batch, model=model, **settings)


@pytest.mark.parametrize("micro_batches", [2, 3, 9])
def test_micro_batches_add_up_to_the_batch(micro_batches: int) -> None:
    """Also with stochastic depth, where one is smaller or has no object, and where there are fewer images."""
    begin = double(initial(frozen=frozen_norms())), frozen_norms()
    whole, expected = double_step(five_images(), *begin)
    parts, found = double_step(five_images(), *begin, micro_batches=micro_batches)
    torch.testing.assert_close(tuple(found.losses), tuple(expected.losses), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-9, atol=0)
    assert torch.equal(found.positives, expected.positives)
    torch.testing.assert_close(parts.params, whole.params, rtol=1e-9, atol=1e-12)


def test_statistics_pass_from_one_micro_batch_to_the_next() -> None:
    state, batch = initial(step=30), batch_of(0)
    images, boxes, labels, scales, sizes = (x.repeat_interleave(2, 0) for x in batch[:5])
    doubled = Batch(images, boxes, labels, scales, sizes, [*"aabb"])
    later, _ = train_step(state, doubled, model=MODEL, lr=0.0, optimizer=SGD_PLAIN, micro_batches=2)
    buffers, momentum = state.buffers, max(0.01, 1 - 31 / 40)
    for i in range(2):
        inputs = normalized(batch)[i : i + 1].repeat(2, 1, 1, 1), draws_of("ab"[i] * 2, step=30)
        _, buffers = apply(MODEL, state.params, buffers, *inputs, train=True, momentum=momentum)
    torch.testing.assert_close(later.buffers, buffers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quality", [True, False])
def test_positives_are_counted_by_class(quality: bool) -> None:
    batch, size = batch_of(0), CONFIG.image_size if quality else None
    _, metrics = train_step(initial(), batch, model=MODEL, lr=0.0, optimizer=SGD_PLAIN, quality=quality)
    labels = assign_batch(batch.boxes, batch.labels, ANCHORS, image_size=size).labels
    assert metrics.positives.tolist() == [int((labels == label).sum()) for label in range(2)]
    assert min(metrics.positives.tolist()) > 0


@pytest.mark.parametrize("last", [5, 6, 8])
def test_a_model_may_have_other_levels(last: int) -> None:
    """As d7x has one more: its positives are those of its own anchors, in a step and in validation."""
    levels = tuple(range(3, last + 1))
    config, batch = dataclasses.replace(CONFIG, levels=levels, stochastic_depth=0.0), batch_of(0)
    torch.manual_seed(0)
    state = initial_state(params_and_buffers(EfficientDet(config)), optimizer=SGD_PLAIN)
    _, metrics = train_step(state, batch, model=meta_model(config), lr=0.0, optimizer=SGD_PLAIN)
    where: Any = {"image_size": config.image_size, "levels": levels}
    labels = assign_batch(batch.boxes, batch.labels, model_anchors(config), **where).labels
    assert metrics.positives.tolist() == [int((labels == label).sum()) for label in range(2)]
    assert validate(state.ema, iter([batch]), config=config).losses.total.isfinite()


# Half precision


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearly_the_same(precision: torch.dtype) -> None:
    """And the loss scale, which only float16 has, leaves no trace."""
    scale = 256.0 if precision == torch.float16 else 1.0
    full, exact = train_step(initial(), batch_of(0), model=MODEL, lr=1e-2, optimizer=SGD_PLAIN)
    begin = initial()._replace(loss_scale=scale)
    half, rounded = train_step(begin, batch_of(0), model=MODEL, lr=1e-2, optimizer=SGD_PLAIN, precision=precision)
    torch.testing.assert_close(tuple(rounded.losses), tuple(exact.losses), rtol=0.02, atol=1e-3)
    torch.testing.assert_close(rounded.grad_norm, exact.grad_norm, rtol=0.5, atol=0)
    assert not torch.equal(rounded.losses.total, exact.losses.total)
    moved = [(full.params[name] - x).abs().max().item() for name, x in half.params.items()]
    assert 0 < max(moved) < 0.05
    assert all(x.dtype == torch.float32 for each in (half.params, *half.ema, half.buffers) for x in each.values())
    assert all(x.dtype == torch.float32 for x in rounded.losses)
    assert (half.loss_scale > scale) == (precision == torch.float16)


def test_an_overflow_of_the_scaled_gradient_costs_one_step() -> None:
    state = initial(step=3)._replace(loss_scale=2.0**127)
    later, metrics = train_step(state, batch_of(0), model=MODEL, lr=1e-2, optimizer=SGD_PLAIN, precision=torch.float16)
    assert not metrics.grad_norm.isfinite()
    assert metrics.losses.total.isfinite()
    assert_same(later, state._replace(step=4, loss_scale=2.0**126))


def test_the_loss_scale_doubles_in_two_thousand_steps() -> None:
    later, _ = train_step(
        initial()._replace(loss_scale=4.0),
        batch_of(0),
        model=MODEL,
        lr=0.0,
        optimizer=SGD_PLAIN,
        precision=torch.float16,
    )
    assert (later.loss_scale / 4) ** 2000 == pytest.approx(2)

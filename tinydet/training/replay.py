"""A step whose loss was not finite: saved, run again, and searched for the first layer that is not finite."""

import dataclasses
import math
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.data.loader import Batch
from tinydet.distributed import World
from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.labels import BACKGROUND
from tinydet.model.efficientdet import meta_model
from tinydet.model.functional import Params
from tinydet.ops.losses import Losses
from tinydet.reading import check_field
from tinydet.training.settings import TrainSettings
from tinydet.training.start import Run, build_step
from tinydet.training.state import State, restore, save
from tinydet.weights.checkpoint import load_checkpoint

FAILED: dict[str, Any] = {"batch": dict, "lr": float, "micro_batches": float, "frozen": [str]}
FAILED = {"settings": dict, "failed": FAILED}


class Replay(NamedTuple):
    """What a step comes to when it is run again."""

    step: int
    images: list[str]
    lr: float
    terms: dict[str, float]  # of the loss, and the norm of its gradient
    layer: str  # the first whose output, or else whose gradient, is not finite, with its largest numbers; "" if none


def save_step(out: Path, run: Run, state: State, batch: Batch, *, lr: float, micro_batches: int) -> Path:
    """Save the state before a step, and its batch, all of it, as failed-step.pt."""
    path, images = out / "failed-step.pt", whole_batch(batch.to("cpu"), run.world)._asdict()
    parts = micro_batches if run.sync_bn else run.world.size * micro_batches  # what a batch norm sees
    failed = {"batch": images, "lr": lr, "micro_batches": parts, "frozen": sorted(run.frozen)}
    if run.world.rank == 0:
        save(path, state, run.config, settings=dataclasses.asdict(run.settings), weights=run.weights, failed=failed)
    return path


def whole_batch(batch: Batch, world: World) -> Batch:
    """Collect the images of a batch that several processes share."""
    rows = max(world.exchange(batch.boxes.shape[1])) - batch.boxes.shape[1]
    boxes, labels = F.pad(batch.boxes, (0, 0, 0, rows)), F.pad(batch.labels, (0, rows), value=BACKGROUND)
    tensors = (batch.images, boxes, labels, batch.scales, batch.sizes)
    names = [*chain(*world.exchange(batch.names))]
    return Batch._make([*(torch.cat(world.gather(x)) for x in tensors), names])


def replay(path: PathLike, *, device: torch.device | str = "cpu") -> Replay:
    """Run a step again that a run saved as failed-step.pt.

    Raises:
        InputError: the file is not of such a step.
    """
    device = torch.device(device)
    checkpoint = load_checkpoint(path, device=device)
    if "failed" not in checkpoint.training:
        raise InputError(f"{path}: holds no step to run again; a run saves failed-step.pt where its loss is not finite")
    check_field(checkpoint.training, FAILED, where=f"{path}: training")
    failed, state = checkpoint.training["failed"], restore(checkpoint)
    batch, lr = Batch(*(failed["batch"][name] for name in Batch._fields)), failed["lr"]
    model, layers, sums = meta_model(checkpoint.config), list[str](), Params()

    def look(name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not layers and not all(x.isfinite().all() for x in tensors(outputs)):
            kind = f"{name} ({type(module).__name__})"
            layers.append(f"{kind}: numbers up to {largest(inputs):.3g} in, up to {largest(outputs):.3g} out")

    def record(summed: Params) -> Params:
        sums.update(summed)
        return summed

    for name, module in model.named_modules():
        module.register_forward_hook(partial(look, name))
    step = build_step(TrainSettings(**checkpoint.training["settings"]), model, frozen=failed["frozen"], device=device)
    shown: Any = {"reduce": record, "all_reduce": lambda x: x}  # batch norms apart from their convolutions
    with suppress(FloatingPointError):  # this is what is looked into
        step(state, batch, lr=lr, micro_batches=failed["micro_batches"], **shown)
    terms = {name: sums[name].item() for name in Losses._fields}
    grads = {name: grad for name, grad in sums.items() if name in state.params}
    terms["gradient norm"] = torch.nn.utils.get_total_norm(grads.values()).item()
    if not math.isfinite(terms["gradient norm"]):
        worst = max(reversed(grads), key=lambda name: rank(largest(grads[name])))  # of several the last layer's
        layers += [f"gradient of {worst}: numbers up to {largest(grads[worst]):.3g}"]
    return Replay(state.step + 1, batch.names, lr, terms, next(iter(layers), ""))


def tensors(values: Any) -> list[Tensor]:
    """List the tensors in nested sequences."""
    return [values] if isinstance(values, Tensor) else [x for value in values for x in tensors(value)]


def largest(values: Any) -> float:
    """Find the largest magnitude in nested sequences of tensors; NaN where there is one."""
    return max((x.detach().abs().max().item() for x in tensors(values)), key=rank)


def rank(number: float) -> tuple[bool, float]:
    """Order numbers, NaN last."""
    return math.isnan(number), number

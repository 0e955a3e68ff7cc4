"""Runs of tinydet by torchrun; and as a module that torchrun starts, processes that are killed, refused or compared."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
THREADS = max(1, (os.cpu_count() or 1) // 2)  # of a process of two; the last bits of a sum depend on their number
PAIR = ("--nproc-per-node=2",)


class Kill(NamedTuple):
    """A signal that a process sends before a step, to itself or to torchrun."""

    number: int
    rank: int
    step: int
    restart: int = 0
    torchrun: bool = False


def command(*arguments: str | Path, launcher: Sequence[str] = PAIR, module: str = "tinydet") -> list[str]:
    """The words that start a module by torchrun."""
    return [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment of each of two processes: the cores are shared, and the package found."""
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}


def torchrun(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a module by torchrun to its end."""
    return subprocess.run(command(*arguments, **how), capture_output=True, text=True, timeout=120, env=environment())


def train(kills: str) -> None:
    """Train by the arguments of the command line; on the way send the signals, a JSON list of `Kill`."""
    from tinydet.cli import main
    from tinydet.training import start

    train_step, (rank, restart) = start.train_step, (int(os.environ[k]) for k in ("RANK", "TORCHELASTIC_RESTART_COUNT"))

    def killed(state: Any, *args: Any, **settings: Any) -> Any:
        for kill in (Kill(*one) for one in json.loads(kills)):
            if (kill.rank, kill.restart, kill.step) == (rank, restart, state.step + 1):
                os.kill(os.getppid() if kill.torchrun else os.getpid(), kill.number)
        return train_step(state, *args, **settings)

    start.train_step = killed
    main()


def refuse(runs: str) -> list[tuple[Any, str]]:
    """Start runs of the processes with arguments of each, a JSON list by run and rank; return status and stderr."""
    import torch.distributed as dist

    from tinydet.cli import main

    said = list[tuple[Any, str]]()
    for number, arguments in enumerate(json.loads(runs)):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = f"run {number}"  # or they would meet the keys of the one before
        with redirect_stderr(StringIO()) as error:
            try:
                main(arguments[int(os.environ["RANK"])])
            except SystemExit as end:
                said.append((end.code, error.getvalue()))
        if dist.is_initialized():
            dist.destroy_process_group()
    return said


def compare(weights: str) -> float:
    """Compute a gradient here and by torch's DistributedDataParallel; return the largest difference, of the largest."""
    from torch.nn.parallel import DistributedDataParallel

    from tinydet.distributed import launched_world
    from tinydet.model.efficientdet import EfficientDet
    from tinydet.model.functional import Params, Variables
    from tinydet.model.layers import BatchNorm
    from tinydet.model.postprocess import model_anchors, normalize
    from tinydet.ops.assign import assign_batch
    from tinydet.ops.losses import detection_loss
    from tinydet.training.choices import frozen_modules
    from tinydet.training.memory import random_batch
    from tinydet.training.optim import adamw
    from tinydet.training.state import initial_state
    from tinydet.training.step import stochastic_draws, train_step
    from tinydet.weights.load import load_weights

    loaded, summed = load_weights(weights, model=None), Params()
    config, variables = loaded.config, Variables(loaded.params, loaded.buffers)
    whole = random_batch(3, config.image_size, torch.device("cpu"))._replace(names=["a", "b", "c"])
    anchors, model = model_anchors(config), EfficientDet(config)
    where: Any = {"image_size": config.image_size, "levels": config.levels}
    targets = assign_batch(whole.boxes, whole.labels, anchors, **where)
    positives = (targets.labels >= 0).sum()
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "compare"
    with launched_world() as world:
        rows = slice(*(2, 3) if world.rank else (0, 2))
        part = whole._replace(
            names=whole.names[rows], **{k: x[rows] for k, x in whole._asdict().items() if k != "names"}
        )
        frozen = frozen_modules(model, "norms", loaded=[*variables.params, *variables.buffers])

        def reduce(tensors: Params) -> Params:
            summed.update(world.sum(tensors))
            return summed

        state = initial_state(variables, optimizer=adamw(), frozen=frozen)
        how: Any = {"lr": 0.1, "frozen": frozen, "evaluated": frozen, "reduce": reduce}
        train_step(state, part, model=EfficientDet(config), **how)

        model.load_state_dict({**variables.params, **variables.buffers})
        for module in model.train().modules():
            if isinstance(module, BatchNorm):
                module.eval().requires_grad_(False)
        pixels = normalize(part.images, mean=config.mean, std=config.std)
        draws = stochastic_draws(part.names, model.backbone.depth, seed=0, step=0)
        parallel = DistributedDataParallel(model)  # which sums as long as it lives
        logits, deltas = parallel(pixels, draws)
        truth: Any = targets.labels[rows], targets.deltas[rows]
        losses = detection_loss(logits, deltas, *truth, positives=positives, quality=True)
        (world.size * losses.total).backward()  # it takes the mean over the processes
    grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    assert {*grads} == {*summed} & {*variables.params}
    worst = max((grad - summed[name]).abs().max().item() for name, grad in grads.items())
    return worst / max(grad.abs().max().item() for grad in grads.values())


if __name__ == "__main__":
    what, argument = sys.argv.pop(1), sys.argv.pop(1)
    if what == "train":
        train(argument)
    else:
        weights, folder = sys.argv[1:]
        report = {"said": refuse(argument), "difference": compare(weights)}
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(report))

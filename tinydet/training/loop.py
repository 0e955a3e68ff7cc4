"""The training loop: learning rate, step, validation, save; resume, the clock and memory in plain sight."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydet.data.loader import Batch, dead_worker, val_batches
from tinydet.data.transforms import transforms_to_dict
from tinydet.distributed import ALONE, World
from tinydet.errors import InputError, LostProcessError, SharedError
from tinydet.evaluation import Scores, Validation, evaluate, validate
from tinydet.files import check_writable
from tinydet.model.postprocess import Detections
from tinydet.ops.losses import Losses
from tinydet.training.autosize import anchor_recall
from tinydet.training.diagnose import data_notes, diagnose, diagnose_overfit, diagnose_start, everything_found
from tinydet.training.events import Event, Message, Started, Stepped, Stopped, Validated
from tinydet.training.folder import RUNS, claim_folder, new_folder, publish, write_start
from tinydet.training.memory import out_of_memory, too_many_images
from tinydet.training.pipeline import run_steps
from tinydet.training.schedule import (
    Spent,
    best_row,
    finished,
    learning_rate,
    rank_key,
    share_done,
    should_validate,
    warmup_share,
)
from tinydet.training.settings import TrainSettings
from tinydet.training.start import Run, compile_step, start_run, training_batches, weights_of
from tinydet.training.state import State, save

FOREVER = 10**6  # epochs of a run that ends by the clock
SLACK = 3.0  # seconds kept back, besides the last validation, for writing its results
PER_PROCESS = {"data", "val", "workers", "processes"}  # settings in which processes may differ
Row = dict[str, Any]


class EpochSums(NamedTuple):
    """Sums over the steps of an epoch; the checkpoint of one that was stopped holds them."""

    losses: list[float]  # the terms
    positives: list[int]  # of each class
    lr: float = 0.0  # of the last step
    seconds: float = 0.0
    waited: float = 0.0  # of them, for batches


class StopTraining(RuntimeError):
    """The run was asked to stop."""


def train(
    settings: TrainSettings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    command: str | None = None,
    progress: bool = False,
    augment: Any = None,
    on_epoch: Callable[[Row], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    world: World = ALONE,
) -> Iterator[Event]:
    """Train on a data set and validate the averaged weights after every epoch.

    Every epoch writes `last.pt` and adds a line to `metrics.jsonl`; where its primary metric is the best yet, or equal
    with a lower loss, `best.pt` is the same file.

    Args:
        settings: of the run; with `resume`, those it started with.
        out: the run's folder; made where it is missing, and without `resume` it must not hold a run. A new one in runs/
            when None. One process at a time trains in it.
        resume: go on with the run in `out` after `last.pt`; where that is damaged, after the newest other checkpoint.
        device: where to compute.
        command: what repeats the run; goes to `command.txt`.
        progress: whether to show the progress of a download on stderr.
        augment: an albumentations Compose in place of flip and colour jitter; it becomes part of the settings.
        on_epoch: called with an epoch's row of metrics.jsonl after its validation, such as a logger's function; of
            several processes in the first, for which the others wait five minutes at most.
        stop: called before every step and every batch of a validation; where it returns true, `last.pt` is written in
            mid-epoch and the run ends. Resumed, it comes to the same weights as one that was not stopped.
        clock: seconds, which measure a run of so many minutes from this call on.
        world: the processes that train together, each of which calls this; the first of them writes, by its clock.

    Yields:
        Started once, Stepped for each step, Validated for each epoch, Message in between; Stopped if it was.

    Raises:
        InputError: the data, the settings or the folder cannot be used; a worker died; a file cannot be written.
        FloatingPointError: the loss of a step or of a validation is not finite; the last checkpoint stays as it was.
            `failed-step.pt` then holds the step, for `tinydet.training.replay.replay`.
    """
    began = clock()
    if augment is not None:
        settings = dataclasses.replace(settings, augment=transforms_to_dict(augment))
    with ExitStack() as held:
        with world.together():
            given = dataclasses.asdict(settings)
            world.agree(lambda: {"resume": resume, **{name: given[name] for name in given if name not in PER_PROCESS}})
            if out is None:
                check_writable(RUNS)
            elif world.rank == 0:
                held.enter_context(claim_folder(Path(out), resume=resume))
            how: Any = {"resume": resume, "device": device, "progress": progress, "world": world}
            run, state, training = start_run(settings, None if out is None else Path(out), **how)
            if world.rank == 0:
                if out is None:
                    held.enter_context(claim_folder(out := new_folder(run.config.name), new=True))
                if not resume:
                    save(Path(out, "last.pt"), state, run.config, **training)
                write_start(Path(out), run.config, training, step=state.step, command=command)
            out = Path(world.first(str(out)))
        notes = list[str]()
        if world.rank == 0:
            size, overfit = run.config.image_size, bool(settings.overfit)
            notes = data_notes(run.train_set, run.val_set, image_size=size, overfit=overfit)
        recall = anchor_recall(run.train_set, run.config).by_class
        yield Started(out, run, recall, training["history"], state.step)
        yield from map(Message, [*notes, *diagnose_start(recall, run.config)])
        asked = clock()
        if settings.compile:
            yield Message("the network is compiled first, which takes minutes; --minutes begin after it")
            try:
                run = compile_step(run, state, micro_size=int(training["micro_size"]))
            except Exception as error:
                why = " ".join(f"{type(error).__name__}: {error}".split("\n\n")[0].split())
                yield Message(f"the network could not be compiled ({why:.300}); trains without")
        began += clock() - asked - training["elapsed"]
        events = run_epochs(run, state, training, out, on_epoch=on_epoch, stop=stop, clock=lambda: clock() - began)
        del state, training  # or they would be held until the end
        yield from events


def run_epochs(
    run: Run,
    state: State,
    training: dict[str, Any],
    out: Path,
    *,
    on_epoch: Callable[[Row], None] | None,
    stop: Callable[[], bool],
    clock: Callable[[], float],
) -> Iterator[Event]:
    """Train and validate what `start_run` returns until it is finished or stopped; other arguments as for `train`.

    The clock gives the seconds since the run began, without those in which it was stopped.
    """
    settings, config, budget, world = run.settings, run.config, run.budget, run.world
    history, micro_size = training["history"], int(training["micro_size"])
    first = history[-1]["step"] if history else 0
    none = EpochSums([0.0] * len(Losses._fields), [0] * len(config.classes))
    sums = EpochSums(**training["epoch"]) if training["epoch"] else none
    epoch, skip = divmod(state.step, budget.epoch_steps)
    train_loader = training_batches(run, range(epoch, FOREVER if budget.seconds else budget.epochs), skip=skip)
    loading: dict[str, Any] = {"workers": settings.workers, "pin_memory": run.device.type == "cuda", "world": world}
    val_loader = val_batches(run.val_set, config, batch_size=settings.batch_size or 1, **loading)
    batches, found, stopped = stoppable(train_loader, run, stop), list[Detections](), False
    spent = spend(run, history, state.step, elapsed=clock(), seconds=sums.seconds)
    try:
        while state.step > first or not (stops_early(history, settings) or finished(budget, spent)):
            began = clock() - sums.seconds
            rates = partial(next_lr, run, history, began=began, clock=clock)
            how: Any = {"late": run.device.type == "cuda", "next_lr": rates, "clock": clock}
            for done in run_steps(run, state, batches, out, micro_size=micro_size, **how):
                if isinstance(done, Message):
                    yield done
                    continue
                state, metrics, lr, waited, micro_size = done
                losses = [*map(add, sums.losses, torch.stack(metrics.losses).tolist())]
                positives = [*map(add, sums.positives, metrics.positives.tolist())]
                sums = EpochSums(losses, positives, lr, clock() - began, sums.waited + waited)
                yield Stepped(state.step, metrics.losses)

            seconds, validating = clock() - began, clock()
            world.agree(partial(weights_of, state))
            how = {"config": config, "world": world, "quality": settings.loss == "quality"}
            validation = validate(state.ema, stoppable(val_loader, run, stop), **how)
            row = {
                "epoch": math.ceil(state.step / budget.epoch_steps),
                "step": state.step,
                "lr": sums.lr,
                "train": {k: v / (state.step - first) for k, v in zip(Losses._fields, sums.losses, strict=True)},
                **(validation_row(run, validation, step=state.step) if world.rank == 0 else {}),
                "positives": dict(zip(config.classes, sums.positives, strict=True)),
                "train_seconds": round(seconds, 2),
                "wait_seconds": round(sums.waited, 2),
                "val_seconds": round(clock() - validating, 2),
            }
            row = world.first(row)
            best = not history or rank_key(row) > rank_key(best_row(history))
            history, first, sums, found = [*history, row], state.step, none, validation.detections
            training |= {"history": history, "micro_size": micro_size, "elapsed": clock(), "epoch": None}
            if world.rank == 0:
                save(out / "last.pt", state, config, **training)
                publish(out, training, step=state.step)
                if on_epoch is not None:
                    on_epoch(row)
            yield Validated(row, best, found)
            if settings.overfit is None:
                yield from map(Message, diagnose(history, settings))
            spent = spend(run, history, state.step, elapsed=clock())
    except FloatingPointError as error:  # of all processes
        raise (SharedError(str(error)) if world.rank else error) from None
    except RuntimeError as error:
        died = dead_worker(error, train_loader, val_loader)
        stopped = isinstance(error, (StopTraining, LostProcessError)) or (died is not None and stop())
        # The others are in the middle of the step, which cannot be made smaller now.
        short = world.size > 1 and micro_size > 1 and out_of_memory(error)
        if not (stopped or short):  # a signal may have ended the workers too
            raise died or error from None
        training |= {"micro_size": micro_size, "elapsed": clock(), "epoch": sums._asdict()}
        if world.rank == 0:
            save(out / "last.pt", state, config, **training)
        if isinstance(error, LostProcessError):
            raise
        if short:
            raise InputError(too_many_images(micro_size, settings.grad_accumulation)) from None
    if settings.overfit is not None and found:
        yield from map(Message, diagnose_overfit(run.val_set, found, config, history))
    if stopped:
        yield Stopped()


def stoppable(batches: Iterable[Batch], run: Run, stop: Callable[[], bool]) -> Iterator[Batch]:
    """Pass batches on; raise StopTraining in all processes once one of them should stop."""
    for batch in batches:
        if run.world.any(stop()):
            raise StopTraining
        yield batch


def next_lr(run: Run, history: list[Row], step: int, *, began: float, clock: Callable[[], float]) -> float | None:
    """Choose the learning rate of the next step after so many, or None to validate first."""
    elapsed = clock()
    spent = spend(run, history, step, elapsed=elapsed, seconds=elapsed - began)
    if step > (history[-1]["step"] if history else 0) and should_validate(run.budget, spent):
        return None
    progress = share_done(run.budget, spent), warmup_share(run.budget, spent)
    return learning_rate(run.settings, history, *progress)


def spend(run: Run, history: list[Row], step: int, *, elapsed: float, seconds: float = 0.0) -> Spent:
    """Measure what is spent of a run's budget, `seconds` of it since the last validation.

    Earlier validations, or a guess, tell how long the last one takes. The clock of the first process counts.
    """
    validated = history[-1]["step"] if history else 0
    if step == validated:
        seconds, validated = sum(row["train_seconds"] for row in history), 0
    step_seconds = seconds / max(1, step - validated)
    if history:
        validation = max(row["val_seconds"] for row in history)
    else:  # a forward pass takes about a third of a step
        pixels = math.prod(run.config.image_size) / math.prod(run.crop)
        validation = step_seconds / 3 * pixels * len(run.val_set) / run.settings.step_size
    spent = Spent(step, elapsed, step_seconds, reserve=1.1 * validation + SLACK, validated=validated)
    return Spent(*run.world.first(spent)) if run.budget.seconds else spent


def stops_early(history: list[Row], settings: TrainSettings) -> bool:
    """Decide whether a run need not go on: its few images are fitted, or too many epochs were no better."""
    if not history:
        return False
    if settings.overfit is not None:
        return everything_found(history[-1])
    return (
        settings.early_stop is not None and len(history) - 1 - history.index(best_row(history)) >= settings.early_stop
    )


def validation_row(run: Run, found: Validation, *, step: int) -> Row:
    """Score a validation; a few images that are overfitted by COCO's metrics alone: KITTI's need 41 objects.

    Raises:
        FloatingPointError: the validation loss is not finite.
    """
    if not found.losses.total.isfinite():
        raise FloatingPointError(f"after step {step}: the validation loss is not finite ({found.losses.total:g})")
    scores = evaluate(run.val_set, found)
    if run.settings.overfit is not None:
        scores = Scores({"COCO": scores["COCO"]})
    losses = {name: term.item() for name, term in found.losses._asdict().items()}
    return {"val": losses, "metric": scores.metric, "ap": scores.ap, "ap_by_class": scores.by_class, **scores}

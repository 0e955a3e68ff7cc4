"""The training loop: learning rate, step, validation, save; resume, the clock and memory in plain sight."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydet.data.checks import duplicate_boxes, small_objects, train_val_leakage
from tinydet.data.loader import train_batches, val_batches
from tinydet.data.transforms import transforms_to_dict
from tinydet.evaluation import Scores, Validation, evaluate, validate
from tinydet.files import atomic_write
from tinydet.metrics.coco import CocoTruth, crowded_notes
from tinydet.model.postprocess import Detections
from tinydet.ops.losses import Losses
from tinydet.training.autosize import anchor_recall
from tinydet.training.diagnose import diagnose, diagnose_overfit, diagnose_start, everything_found
from tinydet.training.memory import out_of_memory
from tinydet.training.schedule import (
    Spent,
    best_row,
    constant,
    cosine,
    finished,
    plateau,
    rank_key,
    share_done,
    should_validate,
    warmup_share,
)
from tinydet.training.settings import TrainSettings
from tinydet.training.start import Run, start_run
from tinydet.training.state import State, save

RUNS = Path("runs")
"""Folder of the runs whose folder nobody named."""
FOREVER = 10**6  # epochs of a run that ends by the clock
SLACK = 3.0  # seconds kept back, besides the last validation, for writing its results
Row = dict[str, Any]


class Started(NamedTuple):
    """The beginning of a run, before its first step."""

    out: Path
    run: Run
    recall: dict[str, float]  # by class: share of training objects that an anchor overlaps with an IoU of .5 or more
    history: list[Row]  # of the epochs already done


class Stepped(NamedTuple):
    """One step of training."""

    step: int
    losses: Losses


class Validated(NamedTuple):
    """One epoch, trained and validated."""

    row: Row  # of metrics.jsonl
    best: bool  # whether `best.pt` is now this epoch's
    detections: list[Detections]  # of each validation image, in original pixels, on the CPU


class Message(NamedTuple):
    """Something that the user should know, in one line."""

    text: str


Event = Started | Stepped | Validated | Message


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
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Train on a data set and validate the averaged weights after every epoch.

    Every epoch adds a line to `metrics.jsonl` and writes `last.pt`; `best.pt` too where its primary metric is the best
    yet, or equal with a lower loss.

    Args:
        settings: of the run; with `resume`, those it started with.
        out: the run's folder; made where it is missing, and without `resume` it must not hold a run. A new one in runs/
            when None.
        resume: go on after the last epoch in `out`.
        device: where to compute.
        command: what repeats the run; goes to `command.txt`.
        progress: whether to show the progress of a download on stderr.
        augment: an albumentations Compose in place of flip and colour jitter; it becomes part of the settings.
        on_epoch: called with an epoch's row of metrics.jsonl after its validation, such as a logger's function.
        clock: seconds, which measure a run of so many minutes from this call on.

    Yields:
        Started once, Stepped for each step, Validated for each epoch, Message in between.

    Raises:
        InputError: the data, the settings or the folder cannot be used.
        FloatingPointError: the loss is not finite; the last epoch's checkpoints stay as they were.
    """
    began = clock()
    out = None if out is None else Path(out)
    if augment is not None:
        settings = dataclasses.replace(settings, augment=transforms_to_dict(augment))
    run, state, training = start_run(settings, out, resume=resume, device=device, progress=progress)
    settings, config, budget = run.settings, run.config, run.budget
    history, micro_batches, began = training["history"], training["micro_batches"], began - training["elapsed"]
    out = out or new_folder(config.name)
    write_start(out, run, command=command, resume=resume)
    recall = anchor_recall(run.train_set, config).by_class
    yield Started(out, run, recall, history)
    yield from map(Message, [*data_notes(run), *diagnose_start(recall, config)])

    loading: dict[str, Any] = {"workers": settings.workers, "pin_memory": run.device.type == "cuda"}
    epochs = range(state.step // budget.epoch_steps, FOREVER if budget.seconds else budget.epochs)
    batches = iter(training_batches(run, epochs))
    val_loader = val_batches(run.val_set, config, batch_size=settings.batch_size or 1, **loading)
    found: Validation | None = None
    spent = spend(run, history, state.step, elapsed=clock() - began)
    while not stops_early(history, settings) and not finished(budget, spent):
        started, first, waited = clock(), state.step, 0.0
        losses, positives = torch.zeros(3, dtype=torch.float64), torch.zeros(len(config.classes), dtype=torch.int64)
        while state.step == first or not should_validate(budget, spent):
            asked = clock()
            batch = next(batches).to(run.device)
            waited += clock() - asked
            lr = learning_rate(settings, history, share_done(budget, spent), warmup_share(budget, spent))
            while True:
                try:
                    state, metrics = run.step(state, batch, lr=lr, micro_batches=micro_batches)
                    break
                except RuntimeError as error:
                    if not out_of_memory(error) or micro_batches >= len(batch.images):
                        raise
                micro_batches = min(2 * micro_batches, len(batch.images))
                yield Message(less_memory(len(batch.images), micro_batches))
            losses += torch.stack(metrics.losses).cpu()
            positives += metrics.positives.cpu()
            yield Stepped(state.step, metrics.losses)
            step_seconds = (clock() - started) / (state.step - first)
            spent = spend(run, history, state.step, elapsed=clock() - began, step_seconds=step_seconds)

        seconds, validating = clock() - started, clock()
        found = validate(state.ema, val_loader, config=config)
        row = {
            "epoch": math.ceil(state.step / budget.epoch_steps),
            "step": state.step,
            "lr": lr,
            "train": dict(zip(Losses._fields, (losses / (state.step - first)).tolist(), strict=True)),
            **validation_row(run, found, step=state.step),
            "positives": dict(zip(config.classes, positives.tolist(), strict=True)),
            "train_seconds": round(seconds, 2),
            "wait_seconds": round(waited, 2),
            "val_seconds": round(clock() - validating, 2),
        }
        best = not history or rank_key(row) > rank_key(best_row(history))
        history = [*history, row]
        training = {**training, "history": history, "micro_batches": micro_batches, "elapsed": clock() - began}
        write_epoch(out, run, state, training, best=best)
        if on_epoch is not None:
            on_epoch(row)
        yield Validated(row, best, found.detections)
        if settings.overfit is None:
            yield from map(Message, diagnose(history, settings))
        spent = spend(run, history, state.step, elapsed=clock() - began)
    if settings.overfit is not None and found is not None:
        yield from map(Message, diagnose_overfit(run.val_set, found.detections, config, history))


def learning_rate(settings: TrainSettings, history: list[Row], progress: float, warmup: float) -> float:
    """Compute the learning rate of the next step."""
    rate = settings.peak_lr * (cosine if settings.schedule == "cosine" else constant)(progress, warmup=warmup)
    if settings.schedule == "plateau":
        rate *= plateau([row["val"]["total"] for row in history if row["epoch"] >= settings.warmup_epochs])
    return rate


def training_batches(run: Run, epochs: range, *, batch_size: int | None = None, workers: int | None = None) -> Any:
    """Load the batches of a run, one a step; in another size for those who only look."""
    settings = run.settings
    return train_batches(
        run.train_set,
        run.config,
        batch_size=batch_size or settings.step_size,
        epochs=epochs,
        crop=run.crop,
        scale_range=None if settings.overfit else settings.scale_range,
        copy_paste=0.0 if settings.overfit else settings.copy_paste or 0.0,
        augment=settings.augment,
        seed=settings.seed,
        workers=settings.workers if workers is None else workers,
        pin_memory=run.device.type == "cuda",
    )


def spend(run: Run, history: list[Row], step: int, *, elapsed: float, step_seconds: float | None = None) -> Spent:
    """Measure what is spent of a run's budget; earlier validations, or a guess, tell how long the last one takes."""
    if step_seconds is None:
        step_seconds = sum(row["train_seconds"] for row in history) / max(1, step)
    if history:
        validation = max(row["val_seconds"] for row in history)
    else:  # a forward pass takes about a third of a step
        pixels = math.prod(run.config.image_size) / math.prod(run.crop)
        validation = step_seconds / 3 * pixels * len(run.val_set) / run.settings.step_size
    validated = history[-1]["step"] if history else 0
    return Spent(step, elapsed, step_seconds, reserve=1.1 * validation + SLACK, validated=validated)


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


def less_memory(images: int, micro_batches: int) -> str:
    """Say that memory ran out, and which settings would have done the same."""
    each = math.ceil(images / micro_batches)
    return (
        f"out of memory: from here on the {images} images of a step go through the network {each} at a time, as with "
        f"--batch-size {each} --grad-accumulation {micro_batches}; only batch norms see the difference"
    )


def data_notes(run: Run) -> list[str]:
    """Say what is odd about the data; `tinydet check` says more."""
    notes = [*run.train_set.notes, *run.val_set.notes, *small_objects(run.train_set, run.config.image_size)]
    notes += crowded_notes(CocoTruth(*run.val_set.coco_annotations()))
    if found := duplicate_boxes(run.train_set):
        notes.append(f"{found[0]}" + (f", and {len(found) - 1} more; tinydet check names them" if found[1:] else ""))
    return notes if run.settings.overfit is not None else [*notes, *train_val_leakage(run.train_set, run.val_set)]


def new_folder(model: str) -> Path:
    """Name the first of runs/MODEL-1, runs/MODEL-2, ... that does not exist yet."""
    number = 1
    while (out := RUNS / f"{model}-{number}").exists():
        number += 1
    return out


def write_start(out: Path, run: Run, *, command: str | None, resume: bool) -> None:
    """Write a run's settings, its model, the source of its weights, and the command that repeats it."""
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        content = {"settings": dataclasses.asdict(run.settings), "model": dataclasses.asdict(run.config)}
        text = json.dumps({**content, "weights": run.weights}, indent=2)
        (out / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if command:
        with open(out / "command.txt", "a", encoding="utf-8") as file:
            print(command, file=file)


def write_epoch(out: Path, run: Run, state: State, training: Row, *, best: bool) -> None:
    """Write an epoch's checkpoints; `last.pt` at the end, so that a run that stops before it repeats the epoch."""
    history, epoch = training["history"], training["history"][-1]["epoch"]
    content = {**training, "settings": dataclasses.asdict(run.settings)}
    if best:
        save(out / "best.pt", state, run.config, **content)
    if run.settings.keep is not None and epoch % run.settings.keep == 0:
        save(out / f"epoch-{epoch}.pt", state, run.config, **content)
    with atomic_write(out / "metrics.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in history).encode())
    save(out / "last.pt", state, run.config, **content)

"""Train: epochs that end with a validation, each written down, and what happens said as it happens."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch

from tinydet.data.suspicious import doubles, tiny, twins
from tinydet.evaluate import Validation, validate
from tinydet.files import replacing
from tinydet.ops.losses import Losses
from tinydet.score import Scores, headline, score_detections
from tinydet.training.epoch import Trained, run_pace, train_epoch, warming_up
from tinydet.training.events import Event, Noted, Started, Validated
from tinydet.training.fit import reach
from tinydet.training.history import best_row, standing
from tinydet.training.overfit import REPEATS, overfit_verdict
from tinydet.training.schedule import is_over
from tinydet.training.settings import TrainSettings, new_run
from tinydet.training.start import Run, start, training_batches, validation_batches
from tinydet.training.watch import watch, watch_start
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.fetch import Progress

RUNS = Path("runs")
"""Where runs are kept whose folder nobody named."""
FOREVER = 10**6  # epochs of a run that ends by the clock


def train(
    settings: TrainSettings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    command: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Train on a data set, and say what happens as it happens.

    After every epoch the averaged weights are validated, a line goes to `metrics.jsonl`, and `last.pt` is written;
    `best.pt` too when its AP, that of `tinydet.score.headline`, is the best yet, or equal with a lower loss.

    Args:
        settings: of the run; with `resume`, those it began with.
        out: the run's folder; made if need be, and without `resume` it must not hold a run. A new one in runs/ when
            None.
        resume: go on after the last epoch of `out`.
        device: where to compute.
        progress: called with bytes done and in all while pretrained weights are downloaded.
        command: what the run can be repeated with; goes to `command.txt`.
        clock: seconds, by which a run of so many minutes is measured from this call on.

    Yields:
        Started once, Stepped for each step, Validated for each epoch, Noted in between.

    Raises:
        InputError: the data, the settings or the folder are no good.
        FloatingPointError: the loss is not finite; the last epoch's checkpoints are left as they were.
    """
    began = clock()
    out = None if out is None else Path(out)
    run, now, training = start(settings, out, resume=resume, device=device, progress=progress)
    began -= training["elapsed"]
    out = out or new_run(RUNS, run.config.name)
    _write_beginning(out, run, command=command, resume=resume)
    reached = reach(run.train_set, run.config).by_class
    yield Started(out, run, reached, training["history"])
    yield from map(Noted, [*data_notes(run), *watch_start(reached, config=run.config)])

    found: Validation | None = None
    epochs = range(now.step // run.plan.steps, FOREVER if run.plan.seconds else run.plan.epochs)
    stream, val_loader = iter(training_batches(run, epochs)), validation_batches(run)
    while not ends_early(training["history"], run.settings):
        pace = run_pace(run, training["history"], step=now.step, elapsed=clock() - began)
        if is_over(run.plan, pace):
            break
        trained = yield from train_epoch(run, now, stream, training, elapsed=lambda: clock() - began)
        now, validating = trained.state, clock()
        found = validate(now.ema_params, now.ema_buffers, val_loader, config=run.config)
        row = _row(run, trained, found, epoch=math.ceil(now.step / run.plan.steps))
        row["val_seconds"] = round(clock() - validating, 2)
        if run.settings.schedule == "plateau" and not warming_up(run, pace):
            run.plateau.step(row["val"]["total"])
        better = standing(row) > tuple(training["best"])
        training = {
            **training,
            "settings": dataclasses.asdict(run.settings),
            "step": now.step,
            "parts": trained.parts,
            "elapsed": clock() - began,
            "history": [*training["history"], row],
            "best": standing(row) if better else training["best"],
            "optimizer": run.optimizer.state_dict(),
            "plateau": run.plateau.state_dict(),
            "scaler": run.scaler.state_dict(),
        }
        _save(out, Checkpoint(run.config, *now[:4], training), better=better, keep=run.settings.keep)
        yield Validated(row, better, found.detections)
        if run.settings.overfit is None:
            yield from map(Noted, watch(training["history"], run.settings))
    if run.settings.overfit is not None and found is not None:
        yield from map(Noted, overfit_verdict(run.val_set, found.detections, run.config, training["history"]))


def data_notes(run: Run) -> list[str]:
    """What should be said of the data; `tinydet check` says more."""
    notes = [*run.train_set.notes, *run.val_set.notes, *tiny(run.train_set, run.config.image_size)]
    if found := doubles(run.train_set):
        notes.append(f"{found[0]}" + (f", and {len(found) - 1} more; tinydet check names them" if found[1:] else ""))
    return notes if run.settings.overfit is not None else [*notes, *twins(run.train_set, run.val_set)]


def ends_early(history: Sequence[dict[str, Any]], settings: TrainSettings) -> bool:
    """Whether a run has no reason to go on: all there is was learned by heart, or too many epochs were no better."""
    if not history:
        return False
    if settings.overfit is not None and history[-1]["ap"] == 100:
        return True
    since = len(history) - 1 - history.index(best_row(history))
    return settings.early_stop is not None and since >= settings.early_stop


def _score(run: Run, found: Validation) -> Scores:
    """AP; of a few pictures learned by heart as if each were there many times, for few objects cap it."""
    times = REPEATS if run.settings.overfit is not None else 1
    frames = run.val_set.take([*range(len(run.val_set))] * times)
    return score_detections(frames, [*chain.from_iterable(repeat(found.detections, times))])


def _row(run: Run, trained: Trained, found: Validation, *, epoch: int) -> dict[str, Any]:
    """What an epoch came to, but for how long its validation took.

    Raises:
        FloatingPointError: the validation loss is not finite.
    """
    if not found.losses.total.isfinite():
        step, total = trained.state.step, found.losses.total
        raise FloatingPointError(f"after step {step}: the validation loss is not finite ({total:g})")
    scores = _score(run, found)
    number = headline(scores)
    return {
        "epoch": epoch,
        "step": trained.state.step,
        "lr": run.optimizer.param_groups[0]["lr"],
        "train": dict(zip(Losses._fields, trained.losses.tolist(), strict=True)),
        "val": {name: term.item() for name, term in found.losses._asdict().items()},
        "metric": number.metric,
        "ap": number.ap,
        "ap_by_class": number.by_class,
        **{name: values for name, values in scores.items() if name != "n_gt"},
        "matches": dict(zip(run.config.classes, trained.matches.tolist(), strict=True)),
        "train_seconds": round(trained.seconds, 2),
        "wait_seconds": round(trained.waited, 2),
    }


def _write_beginning(out: Path, run: Run, *, command: str | None, resume: bool) -> None:
    """What a run is, for people: its settings, the model that they came to, what it starts from, how to repeat it."""
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        content = {"settings": dataclasses.asdict(run.settings), "model": dataclasses.asdict(run.config)}
        text = json.dumps({**content, "weights": run.weights}, indent=2)
        (out / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if command:
        with open(out / "command.txt", "a", encoding="utf-8") as file:
            print(command, file=file)


def _save(out: Path, checkpoint: Checkpoint, *, better: bool, keep: int | None) -> None:
    """Write what an epoch came to; `last.pt` at the end, so that a run that stops before it does the epoch again."""
    history = checkpoint.training["history"]
    if better:
        save_checkpoint(out / "best.pt", checkpoint)
    epoch = history[-1]["epoch"]
    if keep is not None and epoch % keep == 0:
        save_checkpoint(out / f"epoch-{epoch}.pt", checkpoint)
    with replacing(out / "metrics.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in history).encode())
    save_checkpoint(out / "last.pt", checkpoint)

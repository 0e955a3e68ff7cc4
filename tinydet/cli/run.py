"""A run on the terminal: trained as one of some processes, shown by the first, stopped by a signal."""

import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tinydet.cli.base import echo, erase, on_terminal, progress_bar
from tinydet.cli.text import epoch_head, epoch_row, run_header, weights_lines
from tinydet.distributed import World, processes_here
from tinydet.errors import InputError, LostProcessError
from tinydet.files import run_files
from tinydet.run_images import (
    GRID_IMAGES,
    log_epoch,
    matplotlib_problem,
    open_tensorboard,
    save_epoch_images,
    save_train_grid,
)
from tinydet.training.events import Event, Message, Started, Stepped, Stopped, Validated
from tinydet.training.folder import read_settings, resumed_settings
from tinydet.training.loop import train as train_loop
from tinydet.training.settings import TrainSettings
from tinydet.training.start import training_batches


def launcher(world: World) -> list[str]:
    """Return the words that start tinydet as this process was: by torchrun, on one machine or several, or by itself."""
    if world.size == 1:
        return ["tinydet"]
    nodes = world.size // processes_here()
    machines = [f"--nnodes={nodes}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:PORT"] if nodes > 1 else []
    return ["torchrun", *machines, f"--nproc-per-node={processes_here()}", "-m", "tinydet"]


def run_training(
    settings: TrainSettings,
    out: Path | None,
    world: World,
    *,
    resume: str | None,
    fixed: Sequence[str],
    device: str,
    kept: Sequence[str],
    weights_report: bool,
) -> int:
    """Train as one of some processes, the first of which shows the run; return the exit status."""
    first, caught, parent = world.rank == 0, list[int](), os.getppid()
    with world.together():
        world.agree(lambda: {"out": str(out), "resume": resume})
        if out is not None and (resume == "yes" or (resume and world.first(bool(run_files(out))))):
            started_with = world.first(read_settings(out) if first else {})
            settings = resumed_settings(started_with, settings, fixed=fixed, out=out)
        else:
            resume = None
    events = train_loop(
        settings,
        out,
        resume=bool(resume),
        device=device,
        command=shlex.join([*launcher(world), *sys.argv[1:]]),
        progress=first and on_terminal(),
        stop=lambda: bool(caught) or (world.size > 1 and os.getppid() != parent),  # torchrun was killed
        world=world,
    )
    started = next(events)
    assert isinstance(started, Started)
    if first and weights_report and started.run.report:
        echo("\n".join(weights_lines(started.run.report)))
    if first:
        echo(run_header(started))
    again = shlex.join([*launcher(world), "train", settings.data, *kept, "--out", str(started.out), "--resume"])
    try:
        with first_signal(caught, world):
            last = show_run(started, events) if first else next(iter(deque(events, maxlen=1)), None)
    except (InputError, LostProcessError) as error:
        raise type(error)(f"{error}; then go on with: {again}") from error
    except BrokenPipeError:
        echo(f"standard output was closed; go on with: {again}", err=True)
        raise
    if not caught and not isinstance(last, Stopped):
        if first:
            echo(f"best epoch in {started.out / 'best.pt'}, last epoch in {started.out / 'last.pt'}")
        return 0
    if first:
        echo(f"stopped; go on with: {again}", err=True)
    return 128 + (caught[0] if caught else signal.SIGTERM)


@contextmanager
def first_signal(caught: list[int], world: World) -> Iterator[None]:
    """Collect the first SIGINT or SIGTERM in a list; a second one ends the process at once.

    Not a second SIGTERM of one of several processes, to each of which a scheduler and torchrun both send it.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if world.size > 1 else signal.SIG_DFL)
        with suppress(OSError):  # nobody may listen any more
            os.write(2, b"" if world.rank else b"\nends after this step; again to end at once\n")

    before = [signal.signal(each, catch) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def show_run(started: Started, events: Iterator[Event]) -> Event | None:
    """Print the events of a run, save its images, curves and logs; return the last event, if there is one."""
    run, folder, history = started.run, started.out, started.history
    epoch, epoch_steps = started.step // run.budget.epoch_steps, run.budget.epoch_steps
    writer = open_tensorboard(folder, step=started.step)
    count = min(GRID_IMAGES, len(run.train_set))
    batches = training_batches(run, range(epoch, epoch + 1), batch_size=count, workers=0)
    save_train_grid(folder, next(iter(batches)), classes=run.config.classes)
    if problem := matplotlib_problem():
        echo(f"note: {problem}", err=True)
    head, bar, event = epoch_head(run.config.classes), None, None
    for event in events:
        if isinstance(event, Stepped):
            if head:
                echo(head)
                head = ""
            if bar is None:
                bar = progress_bar(epoch_steps, show=lambda losses: losses and f"loss {losses.total:.3f}")
                bar.update((event.step - 1) % epoch_steps)
            bar.update(1, event.losses)
            if writer:
                writer.add_scalar("step/total", event.losses.total, event.step)
            continue
        erase(bar)
        bar = None
        if isinstance(event, Message):
            echo(f"note: {event.text}", err=True)
        elif isinstance(event, Validated):
            history = [*history, event.row]
            save_epoch_images(folder, history, run.val_set, event.detections, best=event.best)
            if writer:
                log_epoch(writer, event.row)
            echo(epoch_row(event.row, run.config.classes, best=event.best))
    erase(bar)
    if writer:
        writer.close()
    return event

"""What all verbs of the command line have in common: errors, progress, and the group that they are in."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tinydet import __version__
from tinydet.cli.options import choose_device
from tinydet.errors import InputError
from tinydet.memory import keep_freed_memory


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What is wrong with the input as one line and exit status 2; a diverged loss as one line and status 1.

    Warnings are a line each.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: click.echo(f"warning: {message}", err=True)
            yield
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except FloatingPointError as error:
        click.echo(f"stopped: {error}", err=True)
        sys.exit(1)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A verb whose errors are one line."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        with one_line_errors():
            function(*args, **kwargs)

    return guarded


def progress(length: int, *, show: Callable[[Any], str | None] | None = None) -> Any:
    """A bar on stderr, where that is a terminal; `erase` takes it away."""
    return click.progressbar(length=length, file=sys.stderr, item_show_func=show, hidden=not sys.stderr.isatty())


def erase(bar: Any) -> None:
    """Clear the line of a bar, and show the cursor that it hid."""
    if bar is not None and not bar.hidden:
        click.echo("\r\033[K\033[?25h", nl=False, err=True)


@contextmanager
def counting(text: Callable[[int], str]) -> Iterator[Callable[[int, int | None], None]]:
    """What shows on stderr how far something is that counts up, once it does; `text` is beside the bar."""
    bar: Any = None

    def show(done: int, total: int | None) -> None:
        nonlocal bar
        bar = bar or progress(total or 0, show=lambda said: said)
        bar.update(done - bar.pos, text(done))

    try:
        yield show
    finally:
        erase(bar)


def megabytes(done: int) -> str:
    """How much of a download is there."""
    return f"downloading, {done / 1e6:.1f} MB"


def load(weights: str, *, model: str | None, device: str) -> Any:
    """The detector that --weights and --model name."""
    from tinydet.predict import newest_weights
    from tinydet.weights.load import load_detector

    source: str | Path = weights
    if weights == "auto":
        source = newest_weights() or "coco"
        if source == "coco":
            click.echo("note: no run in runs/; using a published detector of COCO's classes", err=True)
    with counting(megabytes) as downloading:
        return load_detector(source, model=model, progress=downloading, device=choose_device(device))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """EfficientDet: train on your pictures, measure, predict, export."""
    keep_freed_memory()

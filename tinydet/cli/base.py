"""Parts that all commands share: one-line errors, option types, options read from `TrainSettings`, progress bars."""

import dataclasses
import io
import os
import signal
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from tinydet import __version__
from tinydet.cli.machine import start_computing
from tinydet.errors import InputError, LostProcessError, SharedError, nearest, visible
from tinydet.training.settings import TrainSettings

PATH, FILE = click.Path(path_type=Path), click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(1, 2**31 - 1)
MOST_PIXELS = 16_384  # of a side
option = partial(click.option, show_default=True)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Group(click.Group):
    """A group of commands whose errors are one line, and that suggests the nearest name for an unknown one."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by who started it; files would get its number
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        with one_line_errors():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            echo("\nstopped", err=True)
            ctx.exit(128 + signal.SIGINT)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], self.commands)}")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Train, evaluate and run EfficientDet on your images.

    \b
    Examples:
      tinydet check kitti/
      tinydet train kitti/ --minutes 30
      tinydet predict img.png
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe on Windows knows no Chinese; stderr escapes it by itself


def echo(text: str, *, err: bool = False) -> None:
    """Print lines of text to stdout or stderr: no name in them can move the cursor or change colours."""
    try:
        click.echo("\n".join(map(visible, text.split("\n"))), err=err)
    except BrokenPipeError:  # which click expects
        raise
    except OSError as error:
        raise InputError(f"standard {'error' if err else 'output'}: {error.strerror}") from None


def first_process() -> bool:
    """Say whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error of input or output as one line and exit with status 2, a diverged loss with 1; warn in a line.

    What all of several processes raise, the first of them prints.
    """
    rank = "" if first_process() else f"rank {os.environ['RANK']}: "
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: echo(f"warning: {message}", err=True)
            yield
    except InputError as error:
        if first_process() or not isinstance(error, SharedError):
            echo("\n".join(f"error: {rank}{line}" for line in str(error).split("\n")), err=True)
        sys.exit(2)
    except OSError as error:  # of which no writer said what is left
        echo(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", err=True)
        sys.exit(2)
    except (FloatingPointError, LostProcessError) as error:
        if first_process() or not isinstance(error, LostProcessError):
            echo(f"stopped: {rank}{error}", err=True)
        sys.exit(1)


def command(*, computes: bool = True, long: bool = False) -> Decorator:
    """Register a command; the allocator is tuned for those that compute, and long ones say where cores are in use."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def tuned(*args: Any, **kwargs: Any) -> None:
            if computes and (note := start_computing()) and long:
                echo(f"note: {note}", err=True)
            function(*args, **kwargs)

        return main.command()(tuned)

    return decorate


class Parsed(click.ParamType):
    """A type of option that a function parses; its ValueError becomes "... is not" what was wanted."""

    def __init__(self, name: str, parse: Callable[[str], Any], wanted: str) -> None:
        self.name, self.parse, self.wanted = name, parse, wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not {self.wanted}", param, ctx)


def parse_size(text: str) -> tuple[int, int]:
    height, width = (positive(int(side)) for side in text.split("x"))
    if max(height, width) > MOST_PIXELS:
        raise ValueError
    return height, width


def parse_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len({name.lower() for name in names}) != len(names):
        raise ValueError
    return names


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(name.strip() for name in pair.split("=")) for pair in text.split(",")]
    if not all(map(all, pairs)):
        raise ValueError
    return tuple((new, old) for new, old in pairs)


def parse_range(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    return low, high


def positive(number: int) -> int:
    if number < 1:
        raise ValueError
    return number


def parse_shard(text: str) -> tuple[int, int]:
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return number, count


SIZE = Parsed("HxW", parse_size, f"HEIGHTxWIDTH in pixels, at most {MOST_PIXELS}, such as 256x896")
SHARD = Parsed("I/N", parse_shard, "I/N, part I of N, such as 1/8 for the first of eight")
NAMES = Parsed("A,B,...", parse_names, "a list of different names, separated by commas")
TYPES = {
    "classes": NAMES,
    "image_size": Parsed("HxW|auto", lambda text: text if text == "auto" else parse_size(text), SIZE.wanted),
    "class_map": Parsed("NEW=OLD,...", parse_pairs, "NEW=OLD, separated by commas, such as Cyclist=bicycle,Van=car"),
    "batch_size": Parsed("N|auto", lambda text: None if text == "auto" else positive(int(text)), "a number or auto"),
    "crop": SIZE,
    "scale_range": Parsed("LOW,HIGH", parse_range, "LOW,HIGH, such as 0.8,1.8"),
    "augment": click.Path(dir_okay=False, path_type=Path),
}
FLAGS = {"image_size": ("--size",), "weights": ("--weights", "--from")}


class Choice(click.Choice[str]):
    """A choice that suggests the nearest one for an unknown one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}{nearest(value, self.choices)}", param, ctx)


FIELDS = {field.name: field for field in dataclasses.fields(TrainSettings)}


def setting_options(*names: str) -> Decorator:
    """Add the options of these settings, with the help, default and choices that `TrainSettings` declares."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            field, choices = FIELDS[name], FIELDS[name].metadata["choices"]
            plain = next(iter(typing.get_args(field.type)), field.type)
            kind = TYPES.get(name) or (Choice(choices) if choices else plain)
            here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # processes that torchrun started
            cores = (os.cpu_count() or 2) // (int(here) if here.isdecimal() and int(here) else 1)
            default = max(1, min(4, cores // 2)) if name == "workers" else field.default
            shown = default not in (None, ()) and name != "workers" and plain is not bool
            flags = FLAGS.get(name, (f"--{name.replace('_', '-')}",))
            how = {"default": default, "show_default": shown, "help": field.metadata["help"], "is_flag": plain is bool}
            function = option(*flags, name, type=kind, **how)(function)
        return function

    return decorate


device_option = option("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")
weights_option = option(
    "--weights",
    default="auto",
    help="Checkpoint of tinydet, effdet or zylo117, or coco, or an exported .onnx; auto is the newest run's best.pt, "
    "else coco. Several, as A,B, are fused into one detector.",
)
score_option = option(
    "--score",
    "score_threshold",
    default=0.3,
    type=click.FloatRange(0, 1),
    help="Leave out detections that score lower.",
)
max_detections_option = option("--max-detections", default=100, type=COUNT, help="Largest number of boxes an image.")
json_option = option("--json", "as_json", is_flag=True, help="Print JSON.")


def choose_device(name: str) -> str:
    """Resolve a device; "auto" is a GPU where there is one, of its own for each process that torchrun starts."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        rank, count = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
        if name != "cuda" or not rank.isdecimal():
            return name
        if int(rank) >= count:
            few = "start fewer processes on this machine, or where each sees a GPU of its own give --device cuda"
            raise InputError(f"LOCAL_RANK {rank}, of GPUs 0 to {count - 1}; {few}")
        return f"cuda:{rank}"
    if name == "cuda" and torch.cuda.device_count() > 1 and os.environ.get("LOCAL_RANK", "").isdecimal():
        return choose_device("auto")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def on_terminal() -> bool:
    """Say whether stderr is a terminal, where progress is shown."""
    return sys.stderr.isatty()


def progress_bar(length: int, *, show: Callable[[Any], str | None] | None = None) -> Any:
    """Show a bar on stderr, where that is a terminal; `erase` takes it away."""
    return click.progressbar(length=length, file=sys.stderr, item_show_func=show, hidden=not on_terminal())


def erase(bar: Any) -> None:
    """Clear the line of a bar, and show the cursor that it hid."""
    if bar is not None and not bar.hidden:
        click.echo("\r\033[K\033[?25h", nl=False, err=True)


@contextmanager
def counting(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show on stderr how many of all are done, once the function that this yields is called."""
    bar: Any = None

    def show(done: int, total: int | None) -> None:
        nonlocal bar
        bar = bar or progress_bar(total or 0, show=lambda text: text)
        bar.update(done - bar.pos, f"{done} {unit}")

    try:
        yield show
    finally:
        erase(bar)

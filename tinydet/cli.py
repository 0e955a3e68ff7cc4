"""The command line: options to arguments, results to stdout, progress to stderr."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

import click

from tinydet import __version__
from tinydet.errors import InputError
from tinydet.memory import keep_freed_memory
from tinydet.options import Names, Size, choose_device, class_map_option, device_option, model_option, weights_option


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
    """EfficientDet: train on a KITTI folder, measure, predict."""
    keep_freed_memory()


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--train", default=240, show_default=True, help="Training scenes.")
@click.option("--val", default=60, show_default=True, help="Validation scenes.")
@click.option("--seed", default=0, show_default=True, help="Decides every scene.")
@command
def scenes(directory: Path, train: int, val: int, seed: int) -> None:
    """Draw street scenes to try things on, in KITTI's layout."""
    from tinydet.data.scenes import draw_scenes

    with counting(lambda done: f"{done} scenes") as drawing:
        draw_scenes(directory, train=train, val=val, seed=seed, progress=drawing)
    click.echo(f"{train} training and {val} validation scenes in {directory}")


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@model_option
@click.option("--classes", type=Names(), default="Car,Pedestrian,Cyclist", show_default=True, help="What to find.")
@click.option("--size", "image_size", type=Size(), help="Input in pixels; by the shape of the pictures when left out.")
@click.option("--anchor-scale", type=float, help="Anchor size in strides; by the input when left out.")
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="What to start from: coco (a published detector), imagenet (a trunk), none, or a file: a checkpoint of "
    "tinydet, effdet or zylo117, or an EfficientNet of timm, torchvision or lukemelas. auto is imagenet if it can be "
    "had, else none.",
)
@class_map_option
@click.option("--weights-report", is_flag=True, help="Print what became of every tensor of the weights.")
@click.option(
    "--freeze",
    default="none",
    show_default=True,
    type=click.Choice(["none", "trunk", "norms"]),
    help="Leave the trunk as it began, or the batch norms: for batches of one or two pictures.",
)
@click.option("--epochs", default=50, show_default=True, help="Passes over the training frames.")
@click.option("--batch-size", default=8, show_default=True, help="Pictures a step.")
@click.option(
    "--optimizer", default="adamw", show_default=True, type=click.Choice(["adamw", "sgd"]), help="torch.optim's."
)
@click.option("--lr", type=float, help="Peak learning rate; by the optimizer and the batch when left out.")
@click.option("--weight-decay", type=float, help="Of convolution kernels; by the optimizer when left out.")
@click.option(
    "--schedule",
    default="cosine",
    show_default=True,
    type=click.Choice(["cosine", "plateau"]),
    help="Down in a cosine, or by ten whenever the validation loss has not fallen for three epochs.",
)
@click.option("--warmup-epochs", default=1.0, show_default=True, help="At most a tenth of the run.")
@click.option("--clip", default=10.0, show_default=True, help="Largest norm of the gradient.")
@click.option("--ema-decay", default=0.9998, show_default=True, help="Of the averaged weights.")
@click.option("--seed", default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option(
    "--workers",
    default=max(1, min(4, (os.cpu_count() or 2) // 2)),
    show_default="half the cores, 1 to 4",
    help="Processes that load pictures.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; a new one in runs/ when left out.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with the settings it began with.")
@device_option
@click.pass_context
@command
def train(
    ctx: click.Context,
    data: Path,
    out: Path | None,
    resume: bool,
    weights_report: bool,
    device: str,
    **options: Any,
) -> None:
    """Train on DATA, a folder in KITTI's layout; measure after every epoch."""
    from tinydet.settings import TrainSettings, resumed_settings
    from tinydet.terminal import epoch_head, epoch_row, run_header, weights_lines
    from tinydet.train import Started, Stepped, train

    device = choose_device(device)
    settings = TrainSettings(data=str(data), **options)
    if resume:
        if out is None:
            raise InputError("--resume: say by --out which run to go on with")
        typed = [n for n in options if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE]
        settings = resumed_settings(out, settings, fixed=["data", *typed])
    total, bar = 0, None
    with counting(megabytes) as downloading:
        events = train(settings, out, resume=resume, device=device, progress=downloading)
        first = next(events)
    for event in chain([first], events):
        if isinstance(event, Started):
            if weights_report and event.report:
                click.echo("\n".join(weights_lines(event.report)))
            click.echo(run_header(event, device=device))
            click.echo(epoch_head(event.config.classes))
            total, folder = event.steps, event.out
        elif isinstance(event, Stepped):
            bar = bar or progress(total, show=lambda losses: losses and f"loss {losses.total:.3f}")
            bar.update(1, event.losses)
        else:
            erase(bar)
            bar = None
            click.echo(epoch_row(event.row, best=event.best))
    click.echo(f"the best epoch is {folder / 'best.pt'}, the last {folder / 'last.pt'}")


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@weights_option
@model_option
@class_map_option
@click.option("--predictions", type=click.Path(path_type=Path), help="Score KITTI result files in this folder instead.")
@click.option("--split", default="val", show_default=True, type=click.Choice(["train", "val"]), help="Of DATA.")
@click.option("--classes", type=Names(), help="What to score; what the weights find, or Car,Pedestrian,Cyclist.")
@click.option("--batch-size", default=8, show_default=True, help="Pictures at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@device_option
@command
def evaluate(
    data: Path,
    weights: str,
    model: str | None,
    class_map: tuple,
    predictions: Path | None,
    split: str,
    classes: tuple[str, ...] | None,
    batch_size: int,
    as_json: bool,
    device: str,
) -> None:
    """Official KITTI AP on DATA: a KITTI folder, or with --predictions also a bare folder of label files."""
    from tinydet.data.kitti import CLASSES
    from tinydet.evaluate import score_predictions, score_weights
    from tinydet.terminal import ap_table

    if predictions is not None:
        if weights != "auto":
            raise InputError("--weights and --predictions: give one of them")
        scores, missing = score_predictions(data, predictions, classes=classes or CLASSES, split=split)
        if missing:
            text = f"note: {len(missing)} frames have no result file and count as frames without detections: "
            click.echo(text + ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""), err=True)
    else:
        detector = load(weights, model=model, device=device)
        scores = score_weights(
            data, detector, split=split, batch_size=batch_size, classes=classes, class_map=dict(class_map)
        )
    if as_json:
        click.echo(json.dumps(scores))
    else:
        click.echo(ap_table(scores))


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@weights_option
@model_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("predictions"), show_default=True, help="A folder."
)
@click.option("--score", default=0.3, show_default=True, help="Leave out what scores lower.")
@click.option("--max-detections", default=100, show_default=True, help="Boxes a picture.")
@click.option("--nms", default="hard", show_default=True, type=click.Choice(["hard", "soft"]), help="Suppression.")
@click.option("--batch-size", default=1, show_default=True, help="Pictures at a time.")
@click.option("--compile", is_flag=True, help="Spend a minute on making the network faster, for many pictures.")
@device_option
@command
def predict(
    images: tuple[Path, ...],
    weights: str,
    model: str | None,
    out: Path,
    score: float,
    max_detections: int,
    nms: str,
    batch_size: int,
    compile: bool,
    device: str,
) -> None:
    """Find objects in IMAGES, files and folders: drawn pictures, JSON lines and KITTI result files in --out."""
    from tinydet.predict import collect_pictures, predict, save_predictions
    from tinydet.terminal import counted

    pictures = collect_pictures(images)
    detector = load(weights, model=model, device=device)
    if compile:
        click.echo("note: compiling the network, which takes about a minute", err=True)
    found = predict(
        pictures,
        detector,
        batch_size=batch_size,
        score_threshold=score,
        max_detections=max_detections,
        method=nms,
        compile=compile,
    )
    counts = save_predictions(found, out, classes=detector.config.classes)
    click.echo(f"{counted(counts)} with {detector.source}")
    click.echo(f"pictures in {out / 'pictures'}, boxes in {out / 'predictions.jsonl'} and {out / 'kitti'}")

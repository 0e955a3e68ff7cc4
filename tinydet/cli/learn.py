"""The verbs about training: a run, the list of runs, two of them side by side."""

import json
import os
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import click

from tinydet.cli.options import BatchSize, Names, Size, choose_device, class_map_option, device_option, model_option
from tinydet.cli.shell import command, counting, erase, main, megabytes, progress
from tinydet.errors import InputError


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@model_option
@click.option("--val", type=click.Path(), help="Data to validate on; all of DATA is for training then.")
@click.option("--classes", type=Names(), help="What to find; Car,Pedestrian,Cyclist of KITTI data, else all there is.")
@click.option(
    "--size",
    "image_size",
    type=Size(auto=True),
    help="Input in pixels; by the shape of the pictures when left out; auto: what `tinydet check` finds best, and the "
    "anchors for it.",
)
@click.option("--anchor-scale", type=float, help="Anchor size in strides; by the input when left out.")
@click.option(
    "--weights",
    "--from",
    "weights",
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
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    type=click.Choice(["default", "paper"]),
    help="What the settings are that you leave out: what wins, or the paper's.",
)
@click.option("--epochs", default=50, show_default=True, help="Passes over the training frames.")
@click.option("--minutes", type=float, help="How long to take instead, the last validation included.")
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="4",
    show_default=True,
    help="Pictures at a time; auto: all that memory holds.",
)
@click.option("--grad-accumulation", default=1, show_default=True, help="Batches for one step.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="torch.optim's; by the recipe when left out.")
@click.option("--lr", type=float, help="Peak learning rate; by the optimizer and the batch when left out.")
@click.option("--weight-decay", type=float, help="Of convolution kernels; by the optimizer when left out.")
@click.option(
    "--schedule",
    default="cosine",
    show_default=True,
    type=click.Choice(["cosine", "plateau", "constant"]),
    help="Down in a cosine, or by ten whenever the validation loss has not fallen for three epochs, or never.",
)
@click.option("--warmup-epochs", default=1.0, show_default=True, help="At most a tenth of the run.")
@click.option("--clip", default=10.0, show_default=True, help="Largest norm of the gradient.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Whether to average the weights.")
@click.option("--ema-decay", default=0.9998, show_default=True, help="Of the averaged weights.")
@click.option(
    "--amp",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "bf16", "fp16", "off"]),
    help="What the network computes in; auto is bf16 on a GPU that knows it, fp16 on another, off elsewhere.",
)
@click.option("--crop", type=Size(), help="Part of the input that a step sees of a picture; by the recipe.")
@click.option("--paste", type=float, help="Chance of a picture to get objects of another; by the recipe.")
@click.option("--early-stop", type=click.IntRange(1), help="End after so many epochs without a better one.")
@click.option("--keep", type=click.IntRange(1), help="Keep the checkpoint of every so many epochs as epoch-N.pt.")
@click.option(
    "--overfit",
    type=click.IntRange(1),
    help="Train on so many pictures, unchanged, until all in them is found; the first thing to try on new data.",
)
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
    ema: bool,
    device: str,
    **options: Any,
) -> None:
    """Train on DATA, a KITTI or YOLO folder or COCO annotations; measure after every epoch."""
    from tinydet.cli.terminal import epoch_head, epoch_row, run_header, weights_lines
    from tinydet.pictures import illustrated, tensorboarded
    from tinydet.train import train
    from tinydet.training.events import Noted, Started, Stepped
    from tinydet.training.settings import TrainSettings, resumed_settings

    device = choose_device(device)
    typed = {n for n in ctx.params if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE}
    if {"epochs", "minutes"} <= typed:
        raise InputError("--epochs and --minutes: give one of them")
    if not ema:
        options["ema_decay"] = 0.0
    if options["image_size"] == "auto":
        options |= {"image_size": None, "auto_size": True}
    settings = TrainSettings(data=str(data), **options)
    if resume:
        if out is None:
            raise InputError("--resume: say by --out which run to go on with")
        fixed = [*({"ema": "ema_decay"}.get(name, name) for name in typed & {*options, "ema"}), "data"]
        settings = resumed_settings(out, settings, fixed=fixed)
    repeated = shlex.join(["tinydet", *sys.argv[1:]])
    total, bar = 0, None
    with counting(megabytes) as downloading:
        events = train(settings, out, resume=resume, device=device, progress=downloading, command=repeated)
        first = next(events)
    for event in tensorboarded(illustrated(chain([first], events))):
        if isinstance(event, Started):
            run, folder = event.run, event.out
            if weights_report and run.report:
                click.echo("\n".join(weights_lines(run.report)))
            click.echo(run_header(event))
            click.echo(epoch_head(run.config.classes))
            total = run.plan.steps
        elif isinstance(event, Stepped):
            bar = bar or progress(total, show=lambda losses: losses and f"loss {losses.total:.3f}")
            bar.update(1, event.losses)
        else:
            erase(bar)
            bar = None
            if isinstance(event, Noted):
                click.echo(f"note: {event.text}", err=True)
            else:
                click.echo(epoch_row(event.row, run.config.classes, best=event.best))
    click.echo(f"the best epoch is {folder / 'best.pt'}, the last {folder / 'last.pt'}")


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--val", type=click.Path(), help="Data to validate on; all of DATA is for training then.")
@click.option("--classes", type=Names(), help="What to find; Car,Pedestrian,Cyclist of KITTI data, else all there is.")
@model_option
@click.option("--size", "image_size", type=Size(), help="Input in pixels; what training would have when left out.")
@click.option("--anchor-scale", type=float, help="Anchor size in strides; what training would have when left out.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with pictures too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@command
def check(
    ctx: click.Context,
    data: Path,
    val: str | None,
    classes: tuple[str, ...] | None,
    model: str | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what DATA hold, how well anchors reach it, and what is wrong with it; errors make the exit status 1."""
    from tinydet.check import as_json as plain
    from tinydet.check import as_page, check
    from tinydet.cli.terminal import check_lines
    from tinydet.model.config import model_config
    from tinydet.training.settings import TrainSettings, fit_model

    settings, base = TrainSettings(data=str(data), **options), model_config(model or "d0")

    def fit(dataset: Any) -> Any:
        return fit_model(settings, dataset.sizes, classes=dataset.classes, base=base)

    with counting(lambda done: f"{done} pictures") as reading:
        found = check(data, val=val, classes=classes, fit=fit, progress=reading)
    click.echo(json.dumps(plain(found)) if as_json else check_lines(found))
    if html is not None:
        html.write_text(as_page(found), encoding="utf-8")
        click.echo(f"page in {html}", err=True)
    if any(problem.level == "error" for problem in found.problems):
        ctx.exit(1)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@command
def runs(folder: Path) -> None:
    """List the runs in FOLDER, runs/ if left out, with what they came to."""
    from tinydet.runs import list_runs, runs_table

    click.echo(runs_table(list_runs(folder)))


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the two curves to this PNG; needs matplotlib.")
@command
def compare(a: Path, b: Path, plot: Path | None) -> None:
    """Show how two runs went, and the settings that differ."""
    from tinydet.runs import compare, comparison

    compared = compare(a, b)
    click.echo(comparison(compared))
    if plot is not None:
        try:
            from tinydet.plots import score_curves
        except ModuleNotFoundError:
            raise InputError("--plot: needs matplotlib; pip install 'tinydet[plot]'") from None
        score_curves({str(run.path): run.rows for run in (compared.a, compared.b)}, plot)
        click.echo(f"both curves in {plot}")

"""Commands of training: train, check, runs, compare."""

import json
from pathlib import Path
from typing import Any

import click

from tinydet.cli.base import (
    FIELDS,
    PATH,
    Choice,
    choose_device,
    command,
    counting,
    device_option,
    echo,
    first_process,
    json_option,
    option,
    setting_options,
)
from tinydet.cli.output import Output
from tinydet.errors import InputError
from tinydet.files import write_file
from tinydet.training.settings import TrainSettings


@command(long=True)
@click.argument("data", type=PATH, required=False)
@setting_options(*(name for name in FIELDS if name not in ("data", "processes")))
@option("--no-ema", is_flag=True, help="Do not average the weights: --ema-decay 0.")
@option("--weights-report", is_flag=True, help="List the tensors that the weights lack or that the model lacks.")
@option("--out", type=PATH, help="Folder of the run; default: a new one in runs/.")
@option(
    "--resume",
    is_flag=False,
    flag_value="yes",
    type=Choice(["yes", "auto"]),
    help="Go on with the run in --out, with the settings it started with; auto: where there is one.",
)
@option(
    "--replay", "failed", type=PATH, help="Run the step again in this failed-step.pt of a run, and show where it fails."
)
@device_option
@click.pass_context
def train(
    ctx: click.Context,
    data: Path | None,
    no_ema: bool,
    weights_report: bool,
    out: Path | None,
    resume: str | None,
    failed: Path | None,
    device: str,
    **options: Any,
) -> None:
    """Train a detector on DATA.

    DATA is a KITTI, YOLO or Pascal VOC folder, or COCO annotations. The averaged weights are validated after every
    epoch. A run's folder holds the checkpoints best.pt and last.pt, metrics.jsonl with one line an epoch, and images
    and curves of the run. Ctrl-C ends it after the step, and --resume goes on from there; a second one ends it at once.

    \b
    Examples:
      tinydet train kitti/
      tinydet train kitti/ --minutes 30
      tinydet train mydata/ --model lite0 --size auto --batch-size auto
      tinydet train mydata/ --overfit 4
      tinydet train mydata/ --weights coco --freeze backbone
      tinydet train kitti/ --out runs/d0-1 --resume
      torchrun --nproc-per-node=4 -m tinydet train kitti/
      tinydet train --replay runs/d0-1/failed-step.pt
    """
    from tinydet.cli.run import run_training
    from tinydet.cli.text import replay_lines
    from tinydet.data.transforms import read_transforms
    from tinydet.distributed import launched_world
    from tinydet.training.replay import replay

    device = choose_device(device)
    typed = {n for n in ctx.params if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE}
    if failed is not None:
        if others := typed - {"failed", "device"}:
            flags = [param.opts[0] for param in ctx.command.params if param.name in others]
            raise InputError(f"--replay takes everything from its file; leave out {', '.join(flags)}")
        if first_process():
            echo(replay_lines(replay(failed, device=device)))
        return
    if data is None:
        raise click.MissingParameter(ctx=ctx, param=ctx.command.params[0])
    fixed = [name for name in options if name in typed] + ["ema_decay"] * ("no_ema" in typed)
    kept = ["--device", device] * ("device" in typed) + ["--compile"] * options["compile"]
    with launched_world() as world:
        with world.together():
            if {"epochs", "minutes"} <= typed:
                raise InputError("--epochs and --minutes: give one of them")
            if resume and out is None:
                raise InputError("--resume: name the run to resume by --out")
            if no_ema:
                options["ema_decay"] = 0.0
            if options["augment"] is not None:
                options["augment"] = read_transforms(options["augment"])
            settings = TrainSettings(data=str(data), **options)
        how: dict[str, Any] = {"resume": resume, "fixed": fixed, "device": device, "weights_report": weights_report}
        status = run_training(settings, out, world, kept=kept, **how)
    ctx.exit(status)


@command()
@click.argument("data", type=PATH)
@setting_options("val", "classes", "model", "image_size", "anchor_scale")
@option("--html", type=Output(".html"), help="Write a page with images to this file too.")
@json_option
@click.pass_context
def check(ctx: click.Context, data: Path, html: Path | None, as_json: bool, **options: Any) -> None:
    """Check DATA for errors, and its anchor recall.

    Counts objects, measures their sizes and the anchor recall, and names every line, box and image that is wrong. The
    exit status is 1 where there are errors.

    \b
    Examples:
      tinydet check kitti/
      tinydet check mydata/ --model lite0 --size 320x320
      tinydet check mydata/ --html check.html
    """
    from tinydet.check import as_json as plain
    from tinydet.check import as_page, check_data
    from tinydet.cli.text import check_lines
    from tinydet.model.config import model_config

    base = model_config(options["model"] or "d0")
    with counting("images") as reading:
        found = check_data(TrainSettings(data=str(data), **options), base=base, progress=reading)
    echo(json.dumps(plain(found)) if as_json else check_lines(found))
    if html is not None:
        write_file(html, as_page(found))
        echo(f"page in {html}", err=True)
    if any(problem.level == "error" for problem in found.problems):
        ctx.exit(1)


@command(computes=False)
@click.argument("folder", type=PATH, default=Path("runs"))
def runs(folder: Path) -> None:
    """List runs and their best scores.

    FOLDER holds the runs; runs/ by default.

    \b
    Examples:
      tinydet runs
      tinydet runs experiments/
    """
    from tinydet.runs import list_runs, runs_table

    echo(runs_table(list_runs(folder)))


@command(computes=False)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@option("--plot", type=Output(".png", ".svg", ".pdf"), help="Draw both curves to this file; needs matplotlib.")
def compare(a: Path, b: Path, plot: Path | None) -> None:
    """Compare two runs and their settings.

    \b
    Examples:
      tinydet compare runs/d0-1 runs/d0-2
      tinydet compare runs/d0-1 runs/d0-2 --plot curves.png
    """
    from tinydet.runs import compare as compare_runs
    from tinydet.runs import comparison

    compared = compare_runs(a, b)
    echo(comparison(compared))
    if plot is not None:
        try:
            from tinydet.plots import save_figure, score_curves
        except ModuleNotFoundError:
            raise InputError("--plot needs matplotlib: pip install 'tinydet[plot]'") from None
        save_figure(score_curves({str(run.path): run.rows for run in (compared.a, compared.b)}), plot)
        echo(f"both curves in {plot}")

"""The verbs that use a detector, and that draw something to train one on."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tinydet.cli.options import Names, class_map_option, device_option, model_option, weights_option
from tinydet.cli.shell import command, counting, load, main
from tinydet.errors import InputError


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
@weights_option
@model_option
@class_map_option
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Score this folder of KITTI result files instead, or this JSON file of COCO results.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "all"]),
    help="Of DATA; val when left out, but all of a single file of annotations.",
)
@click.option("--classes", type=Names(), help="What to score; what the weights find, or what DATA has.")
@click.option("--batch-size", default=8, show_default=True, help="Pictures at a time.")
@click.option("--tta", is_flag=True, help="Look at each picture mirrored and larger too; five times the work.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with curves and the worst mistakes too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@device_option
@command
def evaluate(
    data: Path,
    weights: str,
    model: str | None,
    class_map: tuple,
    predictions: Path | None,
    split: str | None,
    classes: tuple[str, ...] | None,
    batch_size: int,
    tta: bool,
    report: Path | None,
    as_json: bool,
    device: str,
) -> None:
    """AP on DATA: COCO's, and of a KITTI folder also the official KITTI AP.

    DATA is a KITTI or YOLO folder, or COCO annotations; with --predictions a KITTI folder, a bare folder of its label
    files, or a JSON file of COCO annotations, all of which is scored.
    """
    from tinydet.cli.terminal import ap_table
    from tinydet.evaluate import detect_in
    from tinydet.report import report_page
    from tinydet.score import score_detections, score_files

    split = split or ("all" if data.suffix == ".json" else "val")
    if predictions is not None:
        if weights != "auto" or report:
            raise InputError("--predictions goes neither with --weights nor with --report, which need a detector")
        scores, notes = score_files(data, predictions, classes=classes, split=split)
        for note in notes:
            click.echo(f"note: {note}", err=True)
    else:
        detector = load(weights, model=model, device=device)
        dataset, found = detect_in(
            *(data, detector),
            split=split,
            batch_size=batch_size,
            classes=classes,
            class_map=dict(class_map),
            tta=tta,
        )
        click.echo(f"{dataset.kind}: {dataset.split_note}", err=True)
        scores = score_detections(dataset, found)
        if report is not None:
            report.write_text(report_page(dataset, found, scores, source=detector.source), encoding="utf-8")
            click.echo(f"report in {report}", err=True)
    if as_json:
        click.echo(json.dumps(scores))
    else:
        click.echo(ap_table(scores))


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(allow_dash=True))
@weights_option
@model_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("predictions"), show_default=True, help="A folder."
)
@click.option("--score", default=0.3, show_default=True, help="Leave out what scores lower.")
@click.option("--classes", type=Names(), help="Look for these alone; all that the weights find when left out.")
@click.option("--max-detections", default=100, show_default=True, help="Boxes a picture.")
@click.option("--nms", default="hard", show_default=True, type=click.Choice(["hard", "soft"]), help="Suppression.")
@click.option("--tta", is_flag=True, help="Look at each picture mirrored and larger too; five times the work.")
@click.option("--batch-size", default=1, show_default=True, help="Pictures at a time.")
@click.option("--compile", is_flag=True, help="Spend a minute on making the network faster, for many pictures.")
@click.option(
    "--coco", type=click.Path(path_type=Path), help="COCO annotations whose ids of pictures and classes coco.json has."
)
@device_option
@click.pass_context
@command
def predict(
    ctx: click.Context,
    images: tuple[str, ...],
    weights: str,
    model: str | None,
    out: Path,
    score: float,
    classes: tuple[str, ...] | None,
    max_detections: int,
    nms: str,
    tta: bool,
    batch_size: int,
    compile: bool,
    coco: Path | None,
    device: str,
) -> None:
    """Find objects in IMAGES: files, folders, globs, or - for standard input, a picture or a list of paths.

    In --out: drawn pictures, JSON lines, COCO results, KITTI and YOLO result files. What cannot be read is said and
    left out, and the exit status is 1.
    """
    from tinydet.cli.terminal import counted
    from tinydet.data.coco_file import read_coco
    from tinydet.detector import Detector
    from tinydet.predict import collect_pictures, predict, readable, save_predictions, streamed

    unread: list[InputError] = []

    def unreadable(error: InputError) -> None:
        unread.append(error)
        click.echo(f"error: {error}", err=True)

    folder = ctx.with_resource(TemporaryDirectory())
    listed = (path for one in images for path in (streamed(sys.stdin.buffer, folder) if one == "-" else [one]))
    pictures = readable(collect_pictures(listed), unreadable)
    ids = read_coco(coco) if coco is not None else None
    detector = Detector(load(weights, model=model, device=device), compile=compile)
    if compile:
        click.echo("note: compiling the network, which takes about a minute", err=True)
    found = predict(
        pictures,
        detector,
        batch_size=batch_size,
        tta=tta,
        unreadable=unreadable,
        score_threshold=score,
        max_detections=max_detections,
        method=nms,
        classes=classes,
    )
    counts = save_predictions(
        found,
        out,
        classes=detector.classes,
        image_ids=ids and {Path(str(one["file_name"])).name: i for i, one in ids.images.items()},
        category_ids=ids and {name: i for i, name in ids.categories.items()},
    )
    click.echo(f"{counted(counts)} with {detector.source}")
    click.echo(f"pictures in {out / 'pictures'}, boxes in {out / 'predictions.jsonl'}, coco.json, kitti and yolo")
    if unread:
        click.echo(f"{len(unread)} pictures could not be read", err=True)
        ctx.exit(1)

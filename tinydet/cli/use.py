"""The verbs that use a detector, and that draw something to train one on."""

import json
from pathlib import Path

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
    from tinydet.cli.terminal import ap_table
    from tinydet.data.kitti import CLASSES
    from tinydet.evaluate import score_predictions, score_weights

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
    from tinydet.cli.terminal import counted
    from tinydet.predict import collect_pictures, predict, save_predictions

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

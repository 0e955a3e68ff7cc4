"""The verbs about files of weights: what one is, a smaller one, one for other programs."""

import json
from pathlib import Path

import click

from tinydet.cli.options import Size
from tinydet.cli.shell import command, main
from tinydet.errors import InputError


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command
def info(weights: Path, as_json: bool) -> None:
    """Say what WEIGHTS are: classes, sizes, what they were trained on, and their score."""
    from tinydet.cli.terminal import info_lines
    from tinydet.info import describe

    known = describe(weights)
    click.echo(json.dumps(known) if as_json else info_lines(known))


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="A file; NAME-slim.pt beside WEIGHTS when left out.")
@command
def slim(weights: Path, out: Path | None) -> None:
    """Write a checkpoint without what only training needs: the averaged weights alone."""
    from tinydet.info import slim

    out = out or weights.with_name(f"{weights.stem}-slim.pt")
    if out.exists():
        raise InputError(f"{out}: is there already")
    before, after = slim(weights, out)
    click.echo(f"{out}, {after / 1e6:.1f} MB of {before / 1e6:.1f} MB")


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--format", default="onnx", show_default=True, type=click.Choice(["onnx", "torch"]), help="Of the file.")
@click.option("--out", type=click.Path(path_type=Path), help="A file; beside WEIGHTS when left out.")
@click.option("--picture", type=click.Path(path_type=Path), help="One to test the file on; a drawn one when left out.")
@click.option("--size", type=Size(), help="Of the pictures it will be given; that of --picture, or the input.")
@click.option("--score", default=0.3, show_default=True, help="Leave out what scores lower.")
@click.option("--max-detections", default=100, show_default=True, help="Boxes a picture.")
@command
def export(
    weights: Path,
    format: str,
    out: Path | None,
    picture: Path | None,
    size: tuple[int, int] | None,
    score: float,
    max_detections: int,
) -> None:
    """Write WEIGHTS as one file that runs without tinydet: uint8 pictures in; boxes, scores and labels out."""
    from tinydet.export import FORMATS, export, sample_picture
    from tinydet.weights.load import load_detector

    detector = load_detector(weights)
    out = out or weights.with_suffix(FORMATS[format])
    image = sample_picture(picture, size or (None if picture else detector.config.image_size))
    settings = {"score_threshold": score, "max_detections": max_detections}
    difference = export(detector, out, format=format, image=image, **settings)  # type: ignore[arg-type]
    height, width = image.shape[:2]
    click.echo(f"{out}, {out.stat().st_size / 1e6:.1f} MB: images uint8[B {height} {width} 3] -> boxes, scores, labels")
    click.echo(f"labels: {', '.join(f'{i} {name}' for i, name in enumerate(detector.config.classes))}")
    if difference is None:
        click.echo("note: not tested, for onnxruntime is not installed", err=True)
    else:
        boxes, scores, count = difference
        click.echo(
            f"tested on {picture or 'a drawn picture'}: {count} objects; largest difference from eager PyTorch: "
            f"boxes {boxes:.2g} pixels, scores {scores:.2g}"
        )

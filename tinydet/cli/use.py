"""Commands that use weights: evaluate, predict, export, info, strip."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tinydet.cli.base import (
    NAMES,
    OUTPUT,
    PATH,
    SIZE,
    Choice,
    choose_device,
    command,
    device_option,
    echo,
    json_option,
    on_terminal,
    option,
    setting_options,
    weights_option,
)
from tinydet.errors import InputError

score_option = option("--score", "score_threshold", default=0.3, help="Leave out detections that score lower.")
max_detections_option = option("--max-detections", default=100, help="Largest number of boxes an image.")
tta_option = option("--tta", is_flag=True, help="Test-time augmentation: mirrored and larger too; five times the work.")


def load_weights(weights: str, *, model: str | None, device: str) -> Any:
    """Load the detector that --weights and --model name."""
    from tinydet.predict import newest_weights
    from tinydet.weights.load import load_detector

    source: str | Path = weights
    if weights == "auto":
        source = newest_weights() or "coco"
        if source == "coco":
            echo("note: there is no run in runs/; using a published detector of COCO's classes", err=True)
    return load_detector(source, model=model, device=choose_device(device), progress=on_terminal())


@command()
@click.argument("data", type=PATH)
@weights_option
@setting_options("model", "class_map")
@option(
    "--predictions",
    type=PATH,
    help="Score this folder of KITTI result files, or this JSON file of COCO results, instead of a detector.",
)
@option(
    "--split",
    type=Choice(["train", "val", "all"]),
    help="Split of DATA; default: val, or all of a single file of annotations.",
)
@option("--classes", type=NAMES, help="Class names to score; default: those of the weights, or of DATA.")
@option("--batch-size", default=8, type=click.IntRange(1), help="Images in a batch.")
@tta_option
@option("--report", type=OUTPUT, help="Write a page with curves and errors to this file.")
@json_option
@device_option
def evaluate(
    data: Path,
    weights: str,
    model: str | None,
    class_map: tuple[tuple[str, str], ...],
    predictions: Path | None,
    split: str | None,
    classes: tuple[str, ...] | None,
    report: Path | None,
    as_json: bool,
    device: str,
    **options: Any,
) -> None:
    """Compute average precision on DATA.

    COCO's AP, and of a KITTI folder also the official KITTI AP. DATA is a KITTI, YOLO or Pascal VOC folder, or COCO
    annotations; with --predictions a KITTI folder, a folder of its label files, or a JSON file of COCO annotations.

    \b
    Examples:
      tinydet evaluate kitti/
      tinydet evaluate mydata/ --weights best.pt --report report.html
      tinydet evaluate kitti/ --predictions results/ --json
      tinydet evaluate instances_val.json --predictions detections.json
    """
    from tinydet.cli.text import ap_table
    from tinydet.evaluation import evaluate as score
    from tinydet.evaluation import evaluate_detector, scores_by_name
    from tinydet.result_files import evaluate_files

    split = split or ("all" if data.suffix == ".json" else "val")
    if predictions is not None:
        if weights != "auto" or report:
            raise InputError("--predictions goes neither with --weights nor with --report, which need a detector")
        numbers, notes = evaluate_files(data, predictions, classes=classes, split=split)
        for note in notes:
            echo(f"note: {note}", err=True)
        scores = scores_by_name(numbers)
    else:
        detector = load_weights(weights, model=model, device=device)
        dataset, found = evaluate_detector(
            data, detector, split=split, classes=classes, class_map=dict(class_map), **options
        )
        echo(f"{dataset.kind}: {dataset.split_note}", err=True)
        numbers = scores = score(dataset, found)
        for note in scores.get("notes", []):
            echo(f"note: {note}", err=True)
        if report is not None:
            from tinydet.report import report_page

            report.write_text(report_page(dataset, found, scores, source=detector.source), encoding="utf-8")
            echo(f"report in {report}", err=True)
    echo(json.dumps(numbers) if as_json else ap_table(scores))


@command()
@click.argument("images", nargs=-1, required=True, type=click.Path(allow_dash=True))
@weights_option
@setting_options("model")
@option("--out", type=PATH, default=Path("predictions"), help="Output folder.")
@score_option
@option("--classes", type=NAMES, help="Class names to detect; default: all of the weights.")
@max_detections_option
@option("--nms", "method", default="soft", type=Choice(["soft", "hard"]), help="Suppression method.")
@tta_option
@option("--batch-size", default=1, help="Images in a batch.")
@option("--compile", is_flag=True, help="Compile the network first, which takes a minute: for many images.")
@option("--coco", type=PATH, help="COCO annotations whose image and category ids coco.json gets.")
@device_option
@click.pass_context
def predict(
    ctx: click.Context,
    images: tuple[str, ...],
    weights: str,
    model: str | None,
    out: Path,
    compile: bool,
    coco: Path | None,
    device: str,
    **settings: Any,
) -> None:
    """Detect objects in images.

    IMAGES are files, folders, globs, or - for standard input: an image, or a list of paths. The output folder gets
    drawn images, JSON lines, COCO results, KITTI and YOLO result files. Images that cannot be read are named and left
    out, and the exit status is 1.

    \b
    Examples:
      tinydet predict img.png
      tinydet predict photos/ --out found --score 0.5 --classes Car
      tinydet predict "clips/*.jpg" --weights coco --tta
      find . -name "*.jpg" | tinydet predict -
    """
    from tinydet.cli.text import counted
    from tinydet.data.coco_file import read_coco
    from tinydet.detector import Detector
    from tinydet.predict import collect_images, predict_images, read_stdin, save_predictions

    unread: list[InputError] = []

    def on_error(error: InputError) -> None:
        unread.append(error)
        echo(f"error: {error}", err=True)

    folder = ctx.with_resource(TemporaryDirectory())
    listed = (path for one in images for path in (read_stdin(sys.stdin.buffer, folder) if one == "-" else [one]))
    paths = collect_images(listed, on_error=on_error)
    ids = read_coco(coco) if coco is not None else None
    detector = Detector(load_weights(weights, model=model, device=device), compile=compile)
    if compile:
        echo("note: compiling the network, which takes about a minute", err=True)
    found = predict_images(paths, detector, on_error=on_error, **settings)
    counts = save_predictions(
        found,
        out,
        classes=settings["classes"] or detector.classes,
        image_ids=ids and {Path(name).name: i for name, i in zip(ids.file_names, ids.image_ids.tolist(), strict=True)},
        category_ids=ids and {name: i for i, name in ids.categories.items()},
    )
    echo(f"{counted(counts)} with {detector.source}")
    echo(f"images in {out / 'images'}, boxes in {out / 'predictions.jsonl'}, coco.json, kitti and yolo")
    if unread:
        echo(f"{len(unread)} images could not be read", err=True)
        ctx.exit(1)


@command()
@click.argument("weights", type=PATH)
@option("--format", default="onnx", type=Choice(["onnx", "torch"]), help="Format of the file.")
@option("--out", type=OUTPUT, help="Output file; default: beside WEIGHTS.")
@option("--image", type=PATH, help="Image to test the file on; default: noise.")
@option("--size", type=SIZE, help="Size of the images it will be given; default: of --image, or of the input.")
@score_option
@max_detections_option
def export(
    weights: Path, format: str, out: Path | None, image: Path | None, size: tuple[int, int] | None, **settings: Any
) -> None:
    """Export a detector to ONNX or torch.export.

    The file runs without tinydet: uint8 images in; boxes, scores and labels out.

    \b
    Examples:
      tinydet export best.pt
      tinydet export best.pt --size 375x1242 --image img.png
      tinydet export best.pt --format torch
    """
    from tinydet.export import FORMATS, export_model, sample_image
    from tinydet.weights.load import load_detector

    detector = load_detector(weights)
    out = out or weights.with_suffix(FORMATS[format])
    sample = sample_image(image, size or (None if image else detector.config.image_size))
    difference = export_model(detector, out, format=format, image=sample, **settings)
    height, width = sample.shape[:2]
    echo(f"{out}, {out.stat().st_size / 1e6:.1f} MB: images uint8[B {height} {width} 3] -> boxes, scores, labels")
    echo(f"labels: {', '.join(f'{i} {name}' for i, name in enumerate(detector.config.classes))}")
    if difference is None:
        echo("note: not tested, because onnxruntime is not installed", err=True)
    elif not difference.objects:
        echo("note: not tested, because nothing was detected; give an image by --image", err=True)
    else:
        boxes, scores, count = difference
        echo(
            f"tested on {image or 'noise'}: {count} objects; largest difference from eager PyTorch: "
            f"boxes {boxes:.2g} pixels, scores {scores:.2g}"
        )


@command()
@click.argument("weights", type=PATH)
@json_option
def info(weights: Path, as_json: bool) -> None:
    """Show what a file of weights holds.

    Model, classes, input size, training data and score.

    \b
    Examples:
      tinydet info best.pt
      tinydet info best.pt --json
    """
    from tinydet.cli.text import info_lines
    from tinydet.weights.load import describe

    known = describe(weights)
    echo(json.dumps(known) if as_json else info_lines(known))


@command()
@click.argument("weights", type=PATH)
@option("--format", default="torch", type=Choice(["torch", "safetensors"]), help="Format of the file.")
@option("--out", type=OUTPUT, help="Output file; default: NAME-stripped.pt or .safetensors beside WEIGHTS.")
def strip(weights: Path, format: str, out: Path | None) -> None:
    """Strip a checkpoint of its training state.

    The averaged weights stay: a quarter of the size. It loads everywhere, but a run cannot be resumed from it. With
    --format safetensors, a model card, README.md, is written beside it.

    \b
    Examples:
      tinydet strip runs/d0-1/best.pt
      tinydet strip runs/d0-1/best.pt --out detector.pt
      tinydet strip runs/d0-1/best.pt --format safetensors --out hub/detector.safetensors
    """
    from tinydet.cli.text import model_card
    from tinydet.weights.checkpoint import SAFETENSORS
    from tinydet.weights.checkpoint import strip as strip_checkpoint
    from tinydet.weights.load import describe

    safe = format == "safetensors"
    out = out or weights.with_name(f"{weights.stem}-stripped{SAFETENSORS if safe else '.pt'}")
    if safe != (out.suffix == SAFETENSORS):
        raise InputError(f"{out}: --format {format} writes {'only ' if safe else 'no '}files named *{SAFETENSORS}")
    if safe and not find_spec("safetensors"):
        raise InputError("--format safetensors needs the safetensors package: pip install safetensors")
    card = out.with_name("README.md") if safe else None
    for file in filter(None, (out, card)):
        if file.exists():
            raise InputError(f"{file}: exists already; name another {'file' if file == out else 'folder'} by --out")
    before, after = strip_checkpoint(weights, out)
    echo(f"{out}, {after / 1e6:.1f} MB of {before / 1e6:.1f} MB")
    if card is not None:
        card.write_text(model_card(describe(out), file=out.name), encoding="utf-8")
        echo(f"model card in {card}")

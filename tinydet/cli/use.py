"""Commands on files of weights: bench, export, info, strip."""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tinydet.cli.base import (
    FILE,
    PATH,
    Choice,
    choose_device,
    command,
    device_option,
    echo,
    json_option,
    max_detections_option,
    option,
)
from tinydet.cli.output import check_output
from tinydet.errors import InputError
from tinydet.files import write_file


@command(long=True)
@click.argument("weights", type=PATH)
@click.argument("data", required=False, type=PATH)
@option("--compile/--no-compile", default=True, help="Measure compiled code too, which takes some minutes.")
@json_option
@device_option
def bench(weights: Path, data: Path | None, compile: bool, as_json: bool, device: str) -> None:
    """Measure how fast a detector is here, and in what form.

    WEIGHTS run in PyTorch, eager and compiled, and in ONNX Runtime, Lite models in 8 bits too; with one thread and with
    all. The last lines say which to use, and how.

    DATA is a folder of images, or data as for evaluate; without it, the images are noise of the network's input size.

    \b
    Examples:
      tinydet bench best.pt
      tinydet bench best.pt kitti/
      tinydet bench best.onnx photos/ --json
    """
    import torch

    from tinydet.bench import advise, find_ways, measure, read_images
    from tinydet.cli.text import bench_table
    from tinydet.export import sample_image
    from tinydet.weights.load import load_any

    def note(text: str) -> None:
        echo(f"note: {text}", err=True)

    device, most = choose_device(device), torch.get_num_threads()
    loaded = load_any(weights)
    images = read_images(data) if data else [sample_image(None, loaded.config.image_size)]
    if data is None:
        note("the images are noise of the network's input size, without objects; give yours as DATA")
    with TemporaryDirectory() as folder:
        how: Any = {"folder": Path(folder), "images": images, "device": device, "compile": compile}
        ways = find_ways(loaded, weights, tell=note, **how)
        threads = [most, 1] if device == "cpu" and most > 1 else [most]
        rows = measure({name: way.make for name, way in ways.items()}, images, threads=threads, tell=note)
    if all(row.note for row in rows):
        raise InputError(f"{weights}: nothing could be measured: {rows[0].note}")
    lines = advise(rows, ways, threads=most)
    about = {"weights": loaded.source, "input": "x".join(map(str, loaded.config.image_size)), "device": device}
    about |= {"torch": torch.__version__, "images": "noise" if data is None else f"{len(images)} of {data}"}
    if as_json:
        echo(json.dumps({**about, "rows": [row._asdict() for row in rows], "advice": lines}))
        return
    echo("\n".join([", ".join(f"{name} {text}" for name, text in about.items()), "", bench_table(rows), "", *lines]))


@command()
@click.argument("weights", type=PATH)
@option("--format", default="onnx", type=Choice(["onnx", "torch"]), help="Format of the file.")
@option("--out", type=FILE, help="Output file; default: beside WEIGHTS.")
@option("--image", type=PATH, help="Image to test the file on; default: noise.")
@option("--int8", "data", type=PATH, help="Compute in 8 bits (Lite models), calibrated and evaluated on these data.")
@option("--score", "score_threshold", default=0.01, type=click.FloatRange(0, 1), help="Least score of a detection.")
@max_detections_option
def export(
    weights: Path, format: str, out: Path | None, image: Path | None, data: Path | None, **settings: Any
) -> None:
    """Export a detector to ONNX or torch.export.

    The file runs without tinydet: uint8 images of any size in; boxes, scores and labels out.

    \b
    Examples:
      tinydet export best.pt
      tinydet export best.pt --image img.png
      tinydet export best.pt --int8 mydata/
      tinydet evaluate mydata/ --weights best.onnx
      tinydet export best.pt --format torch
    """
    from tinydet.export import FORMATS, export_model, sample_image
    from tinydet.quantize import INT8, export_int8
    from tinydet.weights.load import load_detector

    if data is not None and (format != "onnx" or image is not None):
        raise InputError("--int8 is of --format onnx, and tests the file on its data, not on --image")
    out = out or weights.with_suffix(INT8 if data else FORMATS[format])
    check_output(out, FORMATS[format], by="--out")
    if out.exists() and out.samefile(weights):
        raise InputError(f"{out}: is the input; name another file by --out")
    detector = load_detector(weights)
    takes = "images uint8[B H W 3] of any size -> boxes, scores, labels"
    if data is not None:
        metric, before, after = export_int8(detector, out, data, **settings)
        echo(f"{out}, {out.stat().st_size / 1e6:.1f} MB: {takes}")
        echo(f"{metric} on val: {before:.1f} in float, {after:.1f} in 8 bits")
        if after < before - 1:
            echo(f"warning: 8 bits lose {before - after:.1f} points; the float file may serve you better", err=True)
        return
    sample = sample_image(image, detector.config.image_size)
    difference = export_model(detector, out, format=format, image=sample, **settings)
    echo(f"{out}, {out.stat().st_size / 1e6:.1f} MB: {takes}")
    echo(f"labels: {', '.join(f'{i} {name}' for i, name in enumerate(detector.config.classes))}")
    if difference is None:
        echo("note: not tested, because onnxruntime is not installed", err=True)
    elif not difference.objects:
        echo("note: not tested, because nothing was detected; give an image by --image", err=True)
    else:
        boxes, scores, count = difference
        echo(
            f"tested on {image or 'noise'} at three sizes: {count} objects; largest difference from eager PyTorch: "
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
@option("--out", type=FILE, help="Output file; default: NAME-stripped.pt or .safetensors beside WEIGHTS.")
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
        raise InputError("--format safetensors needs safetensors: pip install 'tinydet[safetensors]'")
    check_output(out, by="--out")
    card = out.with_name("README.md") if safe else None
    for file in filter(None, (out, card)):
        if file.exists():
            raise InputError(f"{file}: exists already; name another {'file' if file == out else 'folder'} by --out")
    before, after = strip_checkpoint(weights, out)
    echo(f"{out}, {after / 1e6:.1f} MB of {before / 1e6:.1f} MB")
    if card is not None:
        write_file(card, model_card(describe(out), file=out.name))
        echo(f"model card in {card}")

"""Commands that detect: evaluate, predict."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from click.core import ParameterSource

from tinydet.cli.base import (
    COUNT,
    NAMES,
    PATH,
    SHARD,
    TYPES,
    Choice,
    choose_device,
    command,
    device_option,
    echo,
    first_process,
    json_option,
    max_detections_option,
    on_terminal,
    option,
    score_option,
    setting_options,
    weights_option,
)
from tinydet.cli.output import Output
from tinydet.errors import InputError
from tinydet.files import write_file


def view_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of views in which to detect too."""
    tiles_help = "Detect in tiles too, for small objects in large images; auto: tiles of the network's input size."
    for decorate in (
        option(
            "--overlap",
            default=0.2,
            type=click.FloatRange(0, 0.9),
            help="Overlap of tiles, as a share of their sides.",
        ),
        option("--tiles", type=TYPES["image_size"], help=tiles_help),
        option("--tta", is_flag=True, help="Test-time augmentation: mirrored and larger too; five times the work."),
    ):
        function = decorate(function)
    return function


def torchrun_shard() -> str | None:
    """Return the shard of a process that torchrun started, by its environment; None for any other."""
    from tinydet.distributed import launched

    rank, size = launched()
    return f"{rank + 1}/{size}" if size > 1 else None


def load_weights(weights: str, *, model: str | None, device: str) -> list[Any]:
    """Load the detectors that --weights and --model name."""
    from tinydet.predict import newest_weights
    from tinydet.weights.load import load_any

    sources: list[Any] = [weights] if Path(weights).exists() else [one.strip() for one in weights.split(",")]
    if weights == "auto":
        sources = [newest_weights() or "coco"]
        if sources == ["coco"]:
            echo("note: there is no run in runs/; using a published detector of COCO's classes", err=True)
    how: dict[str, Any] = {"model": model, "device": choose_device(device), "progress": on_terminal()}
    return [load_any(source, **how) for source in sources]


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
@option("--batch-size", default=8, type=COUNT, help="Images in a batch.")
@view_options
@option("--report", type=Output(".html"), help="Write a page with curves and errors to this file.")
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
    from tinydet.distributed import launched_world
    from tinydet.evaluation import evaluate as score
    from tinydet.evaluation import evaluate_detector, scores_by_name
    from tinydet.result_files import evaluate_files

    if not data.exists():
        raise InputError(f"{data}: no such file or folder")
    single = data.suffix.lower() == ".json"  # of annotations, which result files are scored with as they are
    if predictions is not None:
        if not first_process():
            return
        needing = {"--weights": weights != "auto", "--report": report, "--model": model, "--class-map": class_map}
        needing |= {f"--{name}": options[name] for name in ("tta", "tiles")}
        needing["--split"] = split if single else None
        if given := [name for name, value in needing.items() if value]:
            raise InputError(f"--predictions does not go with {' and '.join(given)}: all of the files is scored")
        numbers, notes = evaluate_files(data, predictions, classes=classes, split=split or "val")
        for note in notes:
            echo(f"note: {note}", err=True)
        scores = scores_by_name(numbers)
    else:
        part = split or ("all" if single else "val")
        with launched_world() as world:
            with world.together():
                loaded = load_weights(weights, model=model, device=device)
            how: Any = {"classes": classes, "class_map": dict(class_map), "world": world, **options}
            dataset, found = evaluate_detector(data, loaded, split=part, **how)
        if world.rank:  # the first process scores
            return
        echo(f"{dataset.kind}: {dataset.split_note}", err=True)
        numbers = scores = score(dataset, found)
        for note in (*dataset.notes, *scores.get("notes", [])):
            echo(f"note: {note}", err=True)
        if report is not None:
            from tinydet.report import report_page

            source = " and ".join(one.source for one in loaded)
            write_file(report, report_page(dataset, found, scores, source=source))
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
@option("--nms", "method", type=Choice(["soft", "hard"]), help="Suppression; default: soft, or an exported file's own.")
@view_options
@option("--batch-size", default=1, type=COUNT, help="Images in a batch.")
@option("--compile", is_flag=True, help="Compile the network first, which takes a minute: for many images.")
@option("--coco", type=PATH, help="COCO annotations whose image and category ids coco.json gets.")
@option(
    "--shard",
    type=SHARD,
    default=torchrun_shard,
    show_default="by RANK and WORLD_SIZE under torchrun",
    help="Predict part I of N of the images alone, to predictions-I-of-N.jsonl and nothing else.",
)
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
    shard: tuple[int, int] | None,
    device: str,
    **settings: Any,
) -> None:
    """Detect objects in images, or in a video.

    IMAGES are files, folders, globs, .txt files that list paths, or - for standard input: an image, or a list of paths.
    The output folder gets drawn images, JSON lines, COCO results, KITTI and YOLO result files. Images that cannot be
    read are named and left out, and the exit status is 1.

    With --shard each of N processes, on any machines, gets JSON lines of a part of the images; started again, it goes
    on. Their files make one: cat predictions-*-of-*.jsonl > predictions.jsonl

    Or one video file, or a camera, until Ctrl-C: the output folder gets the drawn video, and JSON lines of its frames.

    \b
    Examples:
      tinydet predict img.png
      tinydet predict photos/ --out found --score 0.5 --classes Car
      tinydet predict "clips/*.jpg" --weights coco --tta
      tinydet predict aerial.tif --tiles auto --weights a.pt,b.pt
      find . -name "*.jpg" | tinydet predict -
      tinydet predict list.txt --shard 3/16
      tinydet predict clip.mp4
      tinydet predict camera:0
    """
    from tinydet.cli.text import counted
    from tinydet.detector import Detector
    from tinydet.distributed import use_all_cores
    from tinydet.predict import (
        coco_ids,
        collect_images,
        drawn_video,
        earlier_results,
        find_images,
        image_files,
        read_list,
        read_stdin,
        save_predictions,
    )
    from tinydet.shard import digest_weights, save_shard, take_shard
    from tinydet.video import is_video, open_video, save_video

    use_all_cores()
    by_torchrun = shard is not None and ctx.get_parameter_source("shard") is ParameterSource.DEFAULT
    unread = 0

    def on_error(error: InputError) -> None:
        nonlocal unread
        unread += 1
        echo(f"error: {error}", err=True)

    def listed(one: str) -> list[str] | None:
        return read_stdin(sys.stdin.buffer, folder) if one == "-" else read_list(one)

    video, part, paths = None, None, list[Path]()
    folder = ctx.with_resource(TemporaryDirectory())
    if any(map(is_video, images)):
        if len(images) > 1 or coco is not None or shard is not None:
            raise InputError("a video or a camera is predicted by itself, and without --coco and --shard")
        video = open_video(images[0])
    elif shard is not None:
        if coco is not None:
            raise InputError("--coco does not go with --shard, which writes JSON lines alone")
        if "-" in images and by_torchrun:
            text = "standard input is one for all processes of torchrun; give a .txt file that lists the images"
            raise InputError(text)
        every = [path for one in images for path in listed(one) or map(str, find_images([one], missing=False))]
        part = take_shard(every, *shard, batch_size=settings["batch_size"])
        del every  # millions
    else:
        paths = collect_images((path for one in images for path in listed(one) or [one]), on_error=on_error)
    if part is None:
        files = (file for path in paths for file in image_files(out, path))
        earlier_results(out, inputs=paths or images, new=[drawn_video(out, video.source)] if video else files)
    loaded = load_weights(weights, model=model, device=device)
    detector = Detector(loaded, compile=compile)
    names = detector.classes
    if settings["classes"] is not None:
        names = tuple(names[label] for label in detector.labels(settings["classes"]))
    ids = None if coco is None else coco_ids(coco, paths, classes=names)
    if ids is not None and (others := [name for name in names if name not in ids.categories]):
        echo(f"note: {coco} has no category {', '.join(others)}; coco.json leaves them out", err=True)
    if compile:
        echo("note: compiling the network, which takes about a minute", err=True)
    if video is not None:
        counts = save_video(video, detector, out, **{**settings, "classes": names})
        echo(f"{counted(counts)} with {detector.source}")
        echo(f"video in {drawn_video(out, video.source)}, boxes in {out / 'predictions.jsonl'}")
        return
    if part is not None:
        made = {"weights": digest_weights(loaded), "compile": compile}
        counts = save_shard(part, detector, out, made=made, on_error=on_error, **{**settings, "classes": names})
        written = f"boxes in {out / part.name}.jsonl"
    else:
        found = detector.predict(paths, on_error=on_error, **settings)
        counts = save_predictions(found, out, classes=names, ids=ids)
        written = f"images in {out / 'images'}, boxes in {out / 'predictions.jsonl'}, coco.json, kitti and yolo"
    echo(f"{counted(counts)} with {detector.source}")
    echo(written)
    if unread:
        echo(f"{unread} images could not be read", err=True)
        ctx.exit(0 if by_torchrun else 1)  # torchrun ends all processes when one has failed

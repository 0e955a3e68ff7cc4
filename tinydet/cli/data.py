"""Commands on data: convert."""

import shlex
from pathlib import Path

import click

from tinydet.cli.base import NAMES, PATH, Choice, command, counting, echo, option


@command(computes=False)
@click.argument("data", type=PATH)
@option("--to", required=True, type=Choice(["coco", "yolo", "kitti", "voc", "index"]), help="Format to write.")
@option("--out", required=True, type=PATH, help="Output folder, a new or empty one.")
@option("--classes", type=NAMES, help="Class names to write; default: KITTI's three, or all of DATA.")
def convert(data: Path, to: str, out: Path, classes: tuple[str, ...] | None) -> None:
    """Convert DATA to another format.

    Copies the images of both splits, and writes their boxes, classes and ignore regions as COCO annotations, or as a
    YOLO, KITTI or Pascal VOC folder. Outlines, and KITTI's truncation, occlusion and 3D fields, are not kept.

    An index is for millions of images: it opens at once, and all processes share its memory. It names the images where
    they are.

    \b
    Examples:
      tinydet convert mydata/ --to coco --out mydata-coco
      tinydet convert kitti/ --to yolo --out kitti-yolo --classes Car,Pedestrian,Cyclist,Van,Truck
      tinydet convert huge.json --to index --out huge-index
    """
    from tinydet.cli.text import counted
    from tinydet.convert import convert_data
    from tinydet.labels import IGNORE

    with counting("images") as copying:
        converted = convert_data(data, out, to=to, classes=classes, progress=copying)
    for note in converted.notes:
        echo(f"note: {note}", err=True)
    for name, dataset in converted.splits.items():
        regions = 0 if to == "yolo" else int((dataset.labels == IGNORE).sum())
        held = counted({**dataset.counts, "ignore regions": regions})
        echo(f"{name}: {len(dataset)} images, {held}")
    choice = ["--classes", ",".join(converted.classes)] if to == "kitti" else []
    echo(f"check it with: {shlex.join(['tinydet', 'check', str(out), *choice])}")

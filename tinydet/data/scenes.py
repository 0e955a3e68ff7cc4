"""A small data set of drawn street scenes in KITTI's layout: something to learn from when there is nothing at hand."""

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tinydet.data.street.layout import draw_light, lay_out
from tinydet.data.street.paint import (
    EYE,
    LABELLED,
    Camera,
    Light,
    Thing,
    far_to_near,
    finish,
    kitti_camera,
    outlines,
    paint,
    paint_ground,
    pixels_of,
    sky,
)
from tinydet.data.street.solids import Floats
from tinydet.errors import InputError

MARK = "scenes.json"
DONT_CARE = "DontCare -1 -1 -10 {:.2f} {:.2f} {:.2f} {:.2f} -1 -1 -1 -1000 -1000 -1000 -10"
SMALLEST = 16.0  # pixels: an object less high than this is DontCare
HIDDEN = (0.1, 0.5, 0.85)  # occluded is how many of these the hidden part of the object's own pixels exceeds
SCENERY = 255  # the number of every pixel that shows a thing without a label


class Seen(NamedTuple):
    """What the picture shows of one labelled thing.

    Attributes:
        thing: what it is and where.
        box: float64[4], xyxy, pixels: all of it, not clipped, as if nothing stood before it.
        shown: of its pixels inside the picture, the part that nothing nearer hides; 0 when it has none.
    """

    thing: Thing
    box: Floats
    shown: float


def draw_scenes(
    directory: str | PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    seed: int = 0,
    size: tuple[int, int] = (375, 1242),
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Draw street scenes into a folder, as KITTI lays out its own; the same arguments give the same bytes.

    Args:
        directory: a new or empty folder, or one that holds these very scenes, which are then drawn again.
        train: number of frames listed in ImageSets/train.txt, the first ones.
        val: number of frames listed in ImageSets/val.txt, those after them. Each frame is a scene of its own.
        seed: frame i depends on (seed, i) and the size only.
        size: height and width of the pictures.
        progress: called after each with the number of scenes drawn and of all.

    Raises:
        InputError: the folder holds something else, or a number is out of range.
    """
    root = Path(directory)
    if min(train, val) < 0 or train + val < 1 or seed < 0 or min(size) < 32:
        raise InputError(f"cannot draw {train} + {val} scenes of size {size} with seed {seed}")
    mark = json.dumps({"train": train, "val": val, "seed": seed, "size": list(size)}) + "\n"
    _claim(root, mark)
    for folder in ("training/image_2", "training/label_2", "ImageSets"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(train + val):
        picture, lines = draw_scene(index, seed=seed, size=size)
        # JPEG, not PNG: a fifth of the bytes and of the time to write and to read, and the noise of a real camera
        picture.save(root / f"training/image_2/{index:06d}.jpg", quality=90)
        (root / f"training/label_2/{index:06d}.txt").write_text("".join(f"{line}\n" for line in lines), newline="\n")
        if progress:
            progress(index + 1, train + val)
    for split, frames in (("train", range(train)), ("val", range(train, train + val))):
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{i:06d}\n" for i in frames), newline="\n")


def _claim(root: Path, mark: str) -> None:
    """Mark a folder as one of drawn scenes, unless it is something else."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is not a folder")
    if root.is_dir() and any(root.iterdir()):
        found = (root / MARK).read_text(errors="replace") if (root / MARK).is_file() else ""
        if not found:
            raise InputError(f"{root}: the folder is not empty and holds no drawn scenes; give a new one")
        if found != mark:
            raise InputError(f"{root}: holds scenes of {found.strip()}, not of {mark.strip()}; give a new folder")
    root.mkdir(parents=True, exist_ok=True)
    (root / MARK).write_text(mark, newline="\n")


def draw_scene(index: int, *, seed: int = 0, size: tuple[int, int] = (375, 1242)) -> tuple[Image.Image, list[str]]:
    """One scene: the picture, and its KITTI label lines."""
    rng = np.random.default_rng((seed, index))
    camera, light = kitti_camera(size), draw_light(rng)
    ground, things = lay_out(rng)
    canvas = sky(rng, camera, light)
    paint_ground(canvas, ground, camera, light)
    seen = paint_things(canvas, things, camera, light)
    return finish(canvas, things, camera=camera, light=light, rng=rng), label_lines(seen, camera)


def paint_things(canvas: Image.Image, things: Sequence[Thing], camera: Camera, light: Light) -> list[Seen]:
    """Paint things upon the canvas, far ones first, and measure those that are to be labelled; nearest last."""
    found: list[tuple[Thing, Floats, int]] = []
    for thing in far_to_near(things):
        shapes = outlines(thing, camera, light)
        number = len(found) + 1 if thing.kind in LABELLED else SCENERY
        paint(canvas, shapes, number=number)
        if number != SCENERY:
            corners = np.concatenate([polygons.reshape(-1, 2) for polygons, _ in shapes])
            box = np.concatenate([corners.min(0), corners.max(0)])
            found.append((thing, box, pixels_of(canvas, box)[number]))
    shown = pixels_of(canvas, np.array([0, 0, camera.width, camera.height]))
    return [Seen(t, box, shown[n] / max(own, 1)) for n, (t, box, own) in enumerate(found, start=1)]


def label_lines(seen: Sequence[Seen], camera: Camera) -> list[str]:
    """What KITTI's annotators would have written: nothing for what cannot be seen, DontCare for what is too small."""
    named, others = [], []
    right, bottom = camera.width - 1, camera.height - 1
    for thing, box, shown in reversed(seen):
        inside = np.clip(box, 0, [right, bottom, right, bottom])
        if shown == 0 or (inside[2:] - inside[:2]).min() < 1:
            continue
        if inside[3] - inside[1] < SMALLEST:
            others.append(DONT_CARE.format(*inside))
            continue
        truncated = 1 - np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
        occluded = sum(1 - shown > limit for limit in HIDDEN)
        turn, alpha = (
            (a + np.pi) % (2 * np.pi) - np.pi for a in (thing.turn, thing.turn - np.arctan2(thing.x, thing.z))
        )
        numbers = [alpha, *inside, *thing.sprite.dims, thing.x, EYE, thing.z, turn]
        named.append(f"{thing.kind} {truncated:.2f} {occluded} " + " ".join(f"{number:.2f}" for number in numbers))
    return named + others

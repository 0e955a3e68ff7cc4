"""Small KITTI folders for the tests that read one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 200


def label_line(kind: str, box: tuple[float, ...], *, truncated: float = 0, occluded: int = 0) -> str:
    """Return one line of a label file."""
    sides = " ".join(f"{side:.2f}" for side in box)
    return f"{kind} {truncated:.2f} {occluded} -1.57 {sides} 1.65 1.67 3.64 -1.21 1.77 44.49 -1.59"


def write_frame(
    training: Path, name: str, lines: list[str], *, suffix: str = ".png", size: tuple[int, int] = (HEIGHT, WIDTH)
) -> None:
    """Add a frame of noise and its labels to a `training` folder."""
    for folder in ("image_2", "label_2"):
        (training / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(training / "image_2" / f"{name}{suffix}")
    (training / "label_2" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_kitti(root: Path, frames: int, *, lists: Mapping[str, list[str]] | None = None) -> Path:
    """Write a folder of numbered frames, each with a car and some of the other classes, and its split lists."""
    for i in range(frames):
        lines = [label_line("Car", (10 + i, 20, 60 + i, 50)), label_line("Pedestrian", (100, 10, 120, 55))][: 1 + i % 2]
        write_frame(root / "training", f"{i:06d}", lines, suffix=(".png", ".jpg", ".JPEG")[i % 3])
    for split, names in (lists or {}).items():
        (root / "ImageSets").mkdir(exist_ok=True)
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root

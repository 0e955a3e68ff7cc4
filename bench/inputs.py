"""What all contestants are given, from fixed seeds: torch and numpy only, for it is made in each one's own process."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SIZE, CLASSES, PER_CELL = 512, 90, 9
SIDES = (64, 32, 16, 8, 4)
"""Of the five levels' grids, strides 8 to 128."""
ANCHORS = PER_CELL * sum(side * side for side in SIDES)  # 49,104


def pictures(batch: int, size: int = SIZE) -> Tensor:
    """Float32[B 3 H W], square, as if normalised."""
    return torch.randn(batch, 3, size, size, generator=seed(0))


def network_outputs(batch: int) -> tuple[Tensor, Tensor]:
    """Logits float32[B A K], drawn from N(-4.6, 1), and deltas float32[B A 4], from N(0, .1).

    -4.6 is the logit of .01, which the published training starts from and background stays near; of 4.4 million draws
    the best 5000 then score from .18 to about .6.
    """
    generator = seed(1)
    logits = torch.randn(batch, ANCHORS, CLASSES, generator=generator).sub_(4.6)
    return logits, torch.randn(batch, ANCHORS, 4, generator=generator).mul_(0.1)


def by_level(outputs: Tensor) -> list[Tensor]:
    """Outputs float32[B A C] as maps float32[B 9C H W], one a level, in memory channels last."""
    parts = outputs.split([PER_CELL * side * side for side in SIDES], 1)
    maps = [part.reshape(len(part), side, side, -1) for part, side in zip(parts, SIDES, strict=True)]
    return [grid.permute(0, 3, 1, 2) for grid in maps]


def ground_truth(batch: int, objects: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Boxes float32[B N 4] of 20 to 120 pixels, xyxy within the input, and labels int64[B N] from 0."""
    generator = seed(2)
    corner = torch.rand(batch, objects, 2, generator=generator) * (size - 112)
    sides = 20 + 100 * torch.rand(batch, objects, 2, generator=generator)
    labels = torch.randint(CLASSES, (batch, objects), generator=generator)
    return torch.cat([corner, (corner + sides).clamp(max=size)], -1), labels


def seed(number: int) -> torch.Generator:
    """A generator of its own for each of the above."""
    return torch.Generator().manual_seed(number)


def labelled(folder: str) -> list[tuple[Path, np.ndarray]]:
    """The pictures of a KITTI folder and their boxes, float32[N 4] xyxy, regions that nobody cares for left out."""
    found = []
    for path in sorted(Path(folder).glob("training/image_2/*")):
        lines = (Path(folder) / f"training/label_2/{path.stem}.txt").read_text().splitlines()
        boxes = [[float(word) for word in line.split()[4:8]] for line in lines if not line.startswith("DontCare")]
        found.append((path, np.array(boxes, dtype=np.float32).reshape(-1, 4)))
    return found

"""What all implementations are given, from fixed seeds: torch and numpy only, for each makes it in its own process."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE, CLASSES, PER_CELL = 512, 90, 9
SIDES = (64, 32, 16, 8, 4)  # of the five levels' grids, strides 8 to 128
ANCHORS = PER_CELL * sum(side * side for side in SIDES)  # 49,104
KINDS = np.array(["Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "DontCare", "Truck"])
SHARES = [0.5, 0.15, 0.1, 0.05, 0.03, 0.12, 0.05]


def images(batch: int, size: int = SIZE) -> Tensor:
    """Float32[B 3 H W], square, as if normalised."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def network_outputs(batch: int) -> tuple[Tensor, Tensor]:
    """Logits float32[B A K], drawn from N(-4.6, 1), and deltas float32[B A 4], from N(0, .1).

    -4.6 is the logit of .01, which the published training starts from and background stays near; of 4.4 million draws
    the best 5000 then score from .18 to about .6.
    """
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(batch, ANCHORS, CLASSES, generator=generator).sub_(4.6)
    return logits, torch.randn(batch, ANCHORS, 4, generator=generator).mul_(0.1)


def by_level(outputs: Tensor) -> list[Tensor]:
    """Outputs float32[B A C] as maps float32[B 9C H W], one a level, in memory channels last."""
    parts = outputs.split([PER_CELL * side * side for side in SIDES], 1)
    maps = [part.reshape(len(part), side, side, -1) for part, side in zip(parts, SIDES, strict=True)]
    return [grid.permute(0, 3, 1, 2) for grid in maps]


def ground_truth(batch: int, objects: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Boxes float32[B N 4] of 20 to 120 pixels, xyxy within the input, and labels int64[B N] from 0."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(batch, objects, 2, generator=generator) * (size - 112)
    sides = 20 + 100 * torch.rand(batch, objects, 2, generator=generator)
    labels = torch.randint(CLASSES, (batch, objects), generator=generator)
    return torch.cat([corner, (corner + sides).clamp(max=size)], -1), labels


def image_files(folder: str) -> list[tuple[Path, np.ndarray]]:
    """The images of a KITTI folder and their boxes, float32[N 4] xyxy, without DontCare regions."""
    found = []
    for path in sorted(Path(folder).glob("training/image_2/*")):
        lines = (Path(folder) / f"training/label_2/{path.stem}.txt").read_text().splitlines()
        boxes = [[float(word) for word in line.split()[4:8]] for line in lines if not line.startswith("DontCare")]
        found.append((path, np.array(boxes, dtype=np.float32).reshape(-1, 4)))
    return found


class Boxes(NamedTuple):
    """Objects or detections of one image like those of KITTI's validation split."""

    types: list[str]
    boxes: np.ndarray  # float64[N 4], xyxy pixels
    scores: np.ndarray  # float64[N]


def frames(count: int) -> list[tuple[Boxes, Boxes]]:
    """About seven objects and 50 detections of each image: half of them near an object, the others anywhere."""
    rng, found = np.random.default_rng(0), []
    for objects in rng.poisson(7, count):
        types, boxes = rng.choice(KINDS, objects, p=SHARES), boxes_anywhere(rng, objects)
        near = rng.integers(0, objects, 25 if objects else 0)
        sides = (boxes[near, 2:] - boxes[near, :2])[:, [0, 1, 0, 1]]
        far = boxes_anywhere(rng, 50 - len(near))
        detected = [*types[near].tolist(), *rng.choice(KINDS[:3], len(far)).tolist()]
        close = boxes[near] + rng.normal(0, 0.04, sides.shape) * sides
        scores = np.concatenate([rng.normal(1, 1, len(near)), rng.normal(-1, 1, len(far))])
        truth = Boxes(types.tolist(), boxes, np.ones(objects))
        found.append((truth, Boxes(detected, np.concatenate([close, far]), scores)))
    return found


def boxes_anywhere(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 15 to 120 pixels' height in an image of 1240 x 375."""
    height = rng.uniform(15, 120, count)
    width = height * rng.uniform(0.4, 1.8, count)
    x, y = rng.uniform(0, 1240 - width), rng.uniform(100, 375 - height)
    return np.stack([x, y, x + width, y + height], 1)


def columns(images: list[Boxes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of many images as COCO has them: image, label int64[N]; x, y, width, height float64[N 4]; score."""
    number = np.repeat(np.arange(len(images)), [len(one.types) for one in images])
    labels = np.array([KINDS.tolist().index(name) for one in images for name in one.types])
    corners = np.concatenate([one.boxes for one in images])
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return number, labels, sides, np.concatenate([one.scores for one in images])


def fresh_import(*, module: str) -> Callable[[], object]:
    """A new Python that imports a module and ends."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True, stdin=subprocess.DEVNULL)


def synchronized(call: Callable[[], object], *, device: str) -> Callable[[], object]:
    """A call that returns when the device is done; on a GPU, fp32 is TF32 for convolutions and matmul alike."""
    if device != "cuda":
        return call
    torch.set_float32_matmul_precision("high")
    wait: Callable[[], object] = torch.cuda.synchronize
    return lambda: (call(), wait())


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16, or nothing for fp32."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

"""What a long run holds after its first fifth and at its end: memory, open files, threads, tensors; Linux only."""

import gc
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import tinydet as td
from tests.checkpoints import weights_of
from tests.kitti_folders import write_kitti
from tinydet.training.events import Stepped
from tinydet.training.settings import TrainSettings

FRAMES, BATCH = 102, 2  # an epoch is 50 steps, so that there are validations and checkpoints among them
SIZE: Any = (64, 64)


class Held(NamedTuple):
    """What this process holds."""

    megabytes: float  # resident
    files: int  # open
    threads: int
    tensors: int  # that Python knows


def held() -> Held:
    """Read what this process holds."""
    gc.collect()
    tensors = sum(issubclass(type(one), Tensor) for one in gc.get_objects())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Held(
        int(status["VmRSS"].split()[0]) / 1e3, len(os.listdir("/proc/self/fd")), int(status["Threads"]), tensors
    )


def growth(steps: Iterator[Any], count: int) -> tuple[Held, Held]:
    """Measure so many steps of a run, before it ends and lets go of all."""
    deque(islice(steps, count // 5), maxlen=0)
    warm = held()
    deque(islice(steps, count - count // 5), maxlen=0)
    return warm, held()


def grow_training(steps: int) -> tuple[Held, Held]:
    """Train Lite0 for so many steps, with augmentation, validation and checkpoints after every 50."""
    with TemporaryDirectory() as folder:
        names = [f"{i:06d}" for i in range(FRAMES)]
        data = write_kitti(Path(folder) / "data", FRAMES, lists={"train": names[2:], "val": names[:2]})
        settings = TrainSettings(
            data=str(data),
            model="lite0",
            weights="none",
            classes=("Car",),
            image_size=SIZE,
            crop=SIZE,
            batch_size=BATCH,
            epochs=-(-steps // ((FRAMES - 2) // BATCH)),
            workers=0,
        )
        stepped = (event for event in td.train(settings, Path(folder) / "run") if isinstance(event, Stepped))
        return growth(stepped, steps)


def grow_prediction(images: int) -> tuple[Held, Held]:
    """Detect objects in so many images, of sizes of their own, with random weights that find many."""
    config = td.model_config("lite0", classes=("Car",), image_size=SIZE)
    variables = td.params_and_buffers(td.EfficientDet(config))
    detector = td.Detector(weights_of(config, *variables))
    rng = np.random.default_rng(0)
    given = (rng.integers(0, 256, (*rng.integers(32, 128, 2), 3), np.uint8) for _ in range(images))
    return growth(detector.predict(given, batch_size=4, score_threshold=0.0, max_detections=10), images)

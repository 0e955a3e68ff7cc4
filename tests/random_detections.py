"""Random detections for tests of what is written of them."""

import numpy as np
import torch

from tinydet.model.postprocess import Detections


def found(count: int, *, seed: int = 0) -> Detections:
    """Random detections, best first, with as many digits as a float32 has."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 600, (count, 2)), rng.uniform(0, 600, (count, 2))
    scores = np.sort(10.0 ** rng.uniform(-6, 0, count))[::-1].copy()
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return Detections(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(rng.integers(0, 2, count))
    )

"""Rows of metrics.jsonl for the tests that show a run."""

import math
from typing import Any

import numpy as np


def metrics_row(epoch: int, moderate: dict[str, Any], *, loss: float = 0.5, seconds: float = 60.0) -> dict[str, Any]:
    """Return a row of KITTI data whose classes have these AP; None where it is undefined."""
    ap = {
        name: {level: value and share * value for level, share in (("easy", 1.2), ("moderate", 1.0), ("hard", 0.8))}
        for name, value in moderate.items()
    }
    losses = {"total": loss, "classification": loss / 2, "box": loss / 100}
    known = {name: value for name, value in moderate.items() if value is not None}
    return {
        "epoch": epoch,
        "step": 6 * epoch,
        "lr": 1e-3,
        "train": losses,
        "val": losses,
        "COCO": {"AP": 10.0 * epoch, "AP50": 20.0 * epoch, "AR large": None, "per_class": moderate},
        "KITTI": {"R40": ap, "R11": ap},
        "metric": "Moderate R40",
        "ap": float(np.mean([*known.values()])) if known else 0.0,
        "ap_by_class": known,
        "train_seconds": seconds,
        "val_seconds": 0.0,
    }


def metrics_history(epochs: int, classes: int) -> list[dict[str, Any]]:
    """Return the rows of a run that rises and then stays."""
    return [
        metrics_row(e, {f"class {k}": 80 * (1 - math.exp(-e / (k + 1))) for k in range(classes)}, loss=1 + 1 / e)
        for e in range(1, epochs + 1)
    ]

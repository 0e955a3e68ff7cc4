"""Info: what a checkpoint is, and the same checkpoint without what only training needs."""

from os import PathLike
from pathlib import Path
from typing import Any

from tinydet.errors import InputError
from tinydet.weights.checkpoint import load_checkpoint, save_checkpoint
from tinydet.weights.load import load_weights

KEPT = ("settings", "step", "history", "best", "weights", "frozen")  # of a checkpoint's training: what says what it is


def describe(path: str | PathLike[str]) -> dict[str, Any]:
    """What a file of weights holds, as plain values.

    Returns:
        "file", "bytes", "source", "model", "classes", "image_size", "anchor_scale", "parameters"; of tinydet's own
        checkpoints also "began_from", "data", "epoch", "metric", "ap" and "ap_by_class", of the last epoch it holds.

    Raises:
        InputError: as of `load_weights`.
    """
    weights = load_weights(path)
    config = weights.config
    known = {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "source": weights.source,
        "model": config.name,
        "classes": list(config.classes),
        "image_size": list(config.image_size),
        "anchor_scale": config.anchor_scale,
        "parameters": sum(param.numel() for param in weights.params.values()),
    }
    try:
        training = load_checkpoint(path).training
    except InputError:  # somebody else's
        return known
    known |= {"began_from": training["weights"], "data": training.get("settings", {}).get("data")}
    if not training["history"]:
        return known
    row = training["history"][-1]
    return known | {name: row[name] for name in ("epoch", "metric", "ap", "ap_by_class")}


def slim(path: str | PathLike[str], out: str | PathLike[str]) -> tuple[int, int]:
    """Write a checkpoint with the averaged weights alone, which are those that are used to detect.

    It loads wherever the whole one does, but a run cannot go on from it.

    Returns:
        The size of the files, before and after, in bytes.

    Raises:
        InputError: it is no checkpoint of tinydet's.
    """
    whole = load_checkpoint(path)
    training = {name: whole.training[name] for name in KEPT if name in whole.training}
    # The same tensors twice, which torch.save writes once.
    save_checkpoint(out, whole._replace(params=whole.ema_params, buffers=whole.ema_buffers, training=training))
    return Path(path).stat().st_size, Path(out).stat().st_size

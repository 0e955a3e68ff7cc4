"""tinydet's own files: a dict of tensors and plain values, written whole or not at all."""

import dataclasses
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Tensors

FORMAT = "tinydet-1"


class Checkpoint(NamedTuple):
    """A model's weights, and what else is needed to use them or to go on training."""

    config: ModelConfig
    params: Tensors
    buffers: Tensors
    ema_params: Tensors
    """The averaged weights: those to evaluate and to predict with."""
    ema_buffers: Tensors
    training: dict[str, Any]
    """Plain values and tensors that only `tinydet train` reads: optimiser, schedule, epoch, settings, scores."""


def skeleton(config: ModelConfig) -> EfficientDet:
    """The module of a config without memory for weights, for `tinydet.model.functional.apply`."""
    with torch.device("meta"):
        return EfficientDet(config)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one, never half of one."""
    path = Path(path)
    content = {"format": FORMAT, **checkpoint._asdict(), "config": dataclasses.asdict(checkpoint.config)}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and check that it holds just what its config asks for.

    Args:
        path: a file written by `save_checkpoint`; read with `weights_only=True`, so that it can run no code.
        device: where the tensors go.

    Raises:
        InputError: the file is missing, broken, of another kind, or its tensors do not fit its config.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: not a tinydet checkpoint (expected format {FORMAT!r}, found {found!r})")
    fields: dict[str, Any] = {field: content.get(field) for field in Checkpoint._fields}
    if missing := [field for field, value in fields.items() if not isinstance(value, dict)]:
        raise InputError(f"{path}: the checkpoint lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**fields.pop("config"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: its config is not one of this version ({error})") from error
    model = skeleton(config)
    for kind in ("params", "ema_params"):
        _check(fields[kind], dict(model.named_parameters()), where=f"{path}: {kind}")
    for kind in ("buffers", "ema_buffers"):
        _check(fields[kind], dict(model.named_buffers()), where=f"{path}: {kind}")
    return Checkpoint(config, **fields)


def _check(tensors: Tensors, wanted: Mapping[str, Tensor], *, where: str) -> None:
    """Raise unless there is a tensor of each wanted name and shape, and no other."""
    if unpaired := sorted(tensors.keys() ^ wanted.keys()):
        kind = "unknown" if unpaired[0] in tensors else "missing"
        raise InputError(f"{where}: {kind} tensor {unpaired[0]!r} ({len(unpaired)} names do not fit the config)")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}")

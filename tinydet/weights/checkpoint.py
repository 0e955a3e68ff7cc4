"""tinydet's own files: a dict of tensors and plain values, written whole or not at all."""

import dataclasses
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError
from tinydet.files import replacing
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Tensors

FORMAT = "tinydet-1"
BEFORE_ZIP = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin
# What torch.load raises on a damaged archive; it promises nothing, and changed bytes bring forth all of these.
DAMAGED = (
    *(pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError),
    *(ValueError, TypeError, AttributeError, LookupError, AssertionError),
)


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
    content = {"format": FORMAT, **checkpoint._asdict(), "config": dataclasses.asdict(checkpoint.config)}
    with replacing(path) as file:
        torch.save(content, file)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and check that it holds just what its config asks for.

    Args:
        path: a file written by `save_checkpoint`; read with `weights_only=True`, so that it can run no code.
        device: where the tensors go.

    Raises:
        InputError: the file is missing, broken, of another kind, or its tensors do not fit its config.
    """
    content = read_file(path, device=device)
    try:
        return as_checkpoint(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content is a checkpoint of tinydet, of this version or another."""
    return isinstance(content, dict) and str(content.get("format")).startswith("tinydet")


def as_checkpoint(content: Any) -> Checkpoint:
    """A file's content as the checkpoint that `save_checkpoint` wrote.

    Raises:
        InputError: it is something else, or its tensors do not fit its config.
    """
    found = content.get("format") if isinstance(content, dict) else content
    if found != FORMAT:
        shown = repr(found) if isinstance(found, str) else type(found).__name__
        raise InputError(f"not a tinydet checkpoint (expected format {FORMAT!r}, found {shown})")
    fields: dict[str, Any] = {field: content.get(field) for field in Checkpoint._fields}
    if missing := [field for field, value in fields.items() if not isinstance(value, dict)]:
        raise InputError(f"the checkpoint lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**fields.pop("config"))
        model = skeleton(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"its config is not one of this version ({_first_line(error)})") from error
    for kind in ("params", "ema_params"):
        _check(fields[kind], dict(model.named_parameters()), where=kind)
    for kind in ("buffers", "ema_buffers"):
        _check(fields[kind], dict(model.named_buffers()), where=kind)
    return Checkpoint(config, **fields)


def read_file(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` or safetensors wrote, if it holds nothing but tensors and plain values.

    Raises:
        InputError: the file is missing, damaged, or could run code; or it is .safetensors without that package.
    """
    if Path(path).suffix == ".safetensors":
        return _read_safetensors(path, device=device)
    try:
        with open(path, "rb") as file:
            whole = file.read(len(BEFORE_ZIP)) == BEFORE_ZIP or zipfile.is_zipfile(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not whole:
        raise InputError(f"{path}: not a checkpoint, or not the whole of one")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except DAMAGED as error:
        # Of an UnpicklingError the text advises to do without weights_only, which would run whatever code is in there.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "more than tensors and plain values, or damaged" if unsafe else _first_line(error)
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from error


def _read_safetensors(path: str | os.PathLike[str], *, device: torch.device | str) -> Tensors:
    """The tensors of a .safetensors file, a format that knows nothing else."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: reading it takes a package that is not installed; pip install safetensors") from None
    try:
        return load_file(path, device=str(device))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check(tensors: Tensors, wanted: Mapping[str, Tensor], *, where: str) -> None:
    """Raise unless there is a tensor of each wanted name and shape, and no other."""
    if unpaired := sorted(tensors.keys() ^ wanted.keys(), key=str):
        kind = "unknown" if unpaired[0] in tensors else "missing"
        raise InputError(f"{where}: {kind} tensor {unpaired[0]!r} ({len(unpaired)} names do not fit the config)")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
            raise InputError(f"{where}: {name} has {found}, expected shape {tuple(wanted[name].shape)}")

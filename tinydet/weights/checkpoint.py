"""tinydet's own checkpoint files: a dict of tensors and plain values, written whole or not at all."""

import dataclasses
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError
from tinydet.files import PathLike, atomic_write
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import meta_model
from tinydet.model.functional import Params, params_and_buffers
from tinydet.weights.torch_file import load_torch_file

FORMAT = "tinydet-1"
SAFETENSORS = ".safetensors"
RUN = ("settings", "history", "weights")  # of what training holds, all that is told of a run
MOST_JSON = 2**23  # characters of a config or of training in a header: each takes up to thirty bytes when parsed
LONGEST = 300  # characters of what a message cites


class Checkpoint(NamedTuple):
    """A model's weights, and what else is needed to use them or to resume training."""

    config: ModelConfig
    params: Params
    buffers: Params
    ema_params: Params  # the averaged weights: those to evaluate and to predict with
    ema_buffers: Params
    training: dict[str, Any]  # plain values and tensors that only training reads: moments, step, history, settings


def save_checkpoint(path: PathLike, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: a crash leaves the old file or the new one."""
    content = {"format": FORMAT, **checkpoint._asdict(), "config": dataclasses.asdict(checkpoint.config)}
    with atomic_write(path) as file:
        torch.save(content, file)


def save_safetensors(path: PathLike, checkpoint: Checkpoint) -> None:
    """Write the averaged weights atomically as safetensors; the config and what training holds go into its header."""
    from safetensors.torch import save

    facts = {"config": dataclasses.asdict(checkpoint.config), "training": checkpoint.training}
    try:
        header = {"format": FORMAT, **{name: json.dumps(values) for name, values in facts.items()}}
    except (TypeError, ValueError) as error:
        raise InputError(f"what training holds cannot be JSON ({_first_line(error)})") from None
    tensors = {name: x.contiguous() for name, x in {**checkpoint.ema_params, **checkpoint.ema_buffers}.items()}
    with atomic_write(path) as file:
        file.write(save(tensors, header))


def load_checkpoint(path: PathLike, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint to a device; raise InputError unless it is whole and its tensors fit its config."""
    content = read_file(path, device=device)
    try:
        return as_checkpoint(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def strip(path: PathLike, out: PathLike) -> tuple[int, int]:
    """Write a checkpoint without optimizer state, with the averaged weights alone -> bytes before and after.

    It is a file of safetensors, config and class names in its header, where that is the suffix of `out`.
    """
    whole = load_checkpoint(path)
    training = {name: value for name, value in whole.training.items() if name in RUN}
    training["history"] = training.get("history", [])[-1:]
    # Two names for the same tensors, which torch.save writes once.
    stripped = whole._replace(params=whole.ema_params, buffers=whole.ema_buffers, training=training)
    (save_safetensors if Path(out).suffix == SAFETENSORS else save_checkpoint)(out, stripped)
    return Path(path).stat().st_size, Path(out).stat().st_size


def as_checkpoint(content: Any) -> Checkpoint:
    """Check a file's content against the format and its own config, and return it as a `Checkpoint`."""
    found = content.get("format") if isinstance(content, dict) else content
    if found != FORMAT:
        found = abbreviate([found]) if isinstance(found, str) else type(found).__name__
        raise InputError(f"not a tinydet checkpoint (expected format {FORMAT!r}, found {found})")
    fields: dict[str, Any] = {field: content.get(field) for field in Checkpoint._fields}
    if missing := [field for field, value in fields.items() if not isinstance(value, dict)]:
        raise InputError(f"the checkpoint lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**fields.pop("config"))
    except (TypeError, ValueError) as error:
        raise InputError(f"its config does not fit this version of tinydet ({_first_line(error)})") from error
    expected = params_and_buffers(meta_model(config))._asdict()
    for kind in ("params", "buffers", "ema_params", "ema_buffers"):
        needed = expected[kind.removeprefix("ema_")]
        fields[kind] = check_tensors(fields[kind], needed, model=f"{config.name}'s {kind}")
    _check_numbers("training", fields["training"])
    return Checkpoint(config, **fields)


def check_tensors(tensors: Params, expected: Params, *, model: str, keys: Mapping[str, str] = {}) -> Params:
    """Return tensors as float32, in a model's order; `keys` are a file's names of them.

    Raises:
        InputError: they do not have the model's names and shapes, or one is not dense, of floats, and finite.
    """
    if unknown := [keys.get(name, name) for name in tensors if name not in expected]:
        raise InputError(f"unknown tensor {abbreviate(unknown)} for {model}")
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"no tensor for {abbreviate(missing)} of {model}")
    checked = {}
    for name, needed in expected.items():
        tensor, key = tensors[name], keys.get(name, name)
        found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
        if found != (shape := f"shape {tuple(needed.shape)}"):
            raise InputError(f"{key!r} has {found}, not {shape} as in {model}")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise InputError(f"{key!r} is of {kind}, not of floats")
        checked[name] = tensor.detach().to(torch.float32)
        _check_numbers(key, checked[name])
    return checked


def _check_numbers(name: str, value: Any) -> None:
    """Raise InputError unless all tensors of nested values are finite; those of the meta device are not known."""
    if isinstance(value, (dict, list, tuple)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(f"{name}.{key}", one)
    elif isinstance(value, Tensor) and not value.is_meta and not value.isfinite().all():
        raise InputError(f"{name!r} is not finite")


def abbreviate(names: Sequence[str]) -> str:
    """Return the first of many names, for an error."""
    return repr(names[0])[:LONGEST] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def read_file(path: PathLike, *, device: torch.device | str = "cpu") -> Any:
    """Read a file of torch or safetensors: tensors and plain values, in memory bounded by its size; run no code of it.

    Raises:
        InputError: it is no regular file, is damaged, or holds more.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # to open a FIFO would wait for ever
            raise InputError(f"{path}: not a regular file")
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    with file:
        try:
            if Path(path).suffix == SAFETENSORS:
                return _read_safetensors(path, device=device)
            return load_torch_file(file, size=status.st_size, device=device)
        except ModuleNotFoundError:
            raise InputError(f"{path}: reading it needs safetensors: pip install 'tinydet[safetensors]'") from None
        except Exception as error:  # damaged bytes bring forth a dozen
            raise InputError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def _read_safetensors(path: PathLike, *, device: torch.device | str) -> dict[str, Any]:
    """Read a file of safetensors: its tensors, or the checkpoint that `save_safetensors` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=str(device)) as file:
        header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not header.get("format", "").startswith("tinydet"):
        return tensors
    if max(map(len, header.values())) > MOST_JSON:
        raise InputError(f"its header holds more than {MOST_JSON} characters")
    try:
        content = {name: json.loads(header.get(name, "null")) for name in ("config", "training")}
    except json.JSONDecodeError as error:
        raise InputError(f"its header is not JSON: {error}") from None
    statistics = {name for name in tensors if name.rpartition(".")[2] in ("running_mean", "running_var")}
    params, buffers = ({n: x for n, x in tensors.items() if (n in statistics) == kind} for kind in (False, True))
    weights = {"params": params, "buffers": buffers, "ema_params": params, "ema_buffers": buffers}
    return {"format": header["format"], **content, **weights}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:LONGEST]

"""tinydet's own checkpoint files: a dict of tensors and plain values, written whole or not at all."""

import dataclasses
import json
import pickle
import zipfile
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

FORMAT = "tinydet-1"
SAFETENSORS = ".safetensors"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin


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
    header = {"format": FORMAT, **{name: json.dumps(values) for name, values in facts.items()}}
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
    kept = ("settings", "history", "weights")  # what `tinydet.weights.load.describe` reads
    training = {name: value for name, value in whole.training.items() if name in kept}
    # Two names for the same tensors, which torch.save writes once.
    stripped = whole._replace(params=whole.ema_params, buffers=whole.ema_buffers, training=training)
    (save_safetensors if Path(out).suffix == SAFETENSORS else save_checkpoint)(out, stripped)
    return Path(path).stat().st_size, Path(out).stat().st_size


def as_checkpoint(content: Any) -> Checkpoint:
    """Check a file's content against the format and its own config, and return it as a `Checkpoint`."""
    found = content.get("format") if isinstance(content, dict) else content
    if found != FORMAT:
        found = repr(found) if isinstance(found, str) else type(found).__name__
        raise InputError(f"not a tinydet checkpoint (expected format {FORMAT!r}, found {found})")
    fields: dict[str, Any] = {field: content.get(field) for field in Checkpoint._fields}
    if missing := [field for field, value in fields.items() if not isinstance(value, dict)]:
        raise InputError(f"the checkpoint lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**fields.pop("config"))
        expected = params_and_buffers(meta_model(config))._asdict()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"its config does not fit this version of tinydet ({_first_line(error)})") from error
    for kind in ("params", "buffers", "ema_params", "ema_buffers"):
        check_tensors(fields[kind], expected[kind.removeprefix("ema_")], model=f"{config.name}'s {kind}")
    return Checkpoint(config, **fields)


def check_tensors(tensors: Params, expected: Params, *, model: str, keys: Mapping[str, str] = {}) -> None:
    """Raise InputError unless the tensors have a model's names and shapes; `keys` are a file's names of them."""
    if unknown := [keys.get(name, name) for name in tensors if name not in expected]:
        raise InputError(f"unknown tensor {abbreviate(unknown)} for {model}")
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"no tensor for {abbreviate(missing)} of {model}")
    for name, tensor in tensors.items():
        found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
        if found != (needed := f"shape {tuple(expected[name].shape)}"):
            raise InputError(f"{keys.get(name, name)!r} has {found}, not {needed} as in {model}")


def abbreviate(names: Sequence[str]) -> str:
    """Return the first of many names, for an error."""
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def read_file(path: PathLike, *, device: torch.device | str = "cpu") -> Any:
    """Read a file of torch or safetensors; refuse what holds more than tensors and plain values, and may run code."""
    safetensors = Path(path).suffix == SAFETENSORS
    try:
        with open(path, "rb") as file:
            if not (safetensors or file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC or zipfile.is_zipfile(file)):
                raise InputError(f"{path}: not a checkpoint, or a truncated one")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        if safetensors:
            return _read_safetensors(path, device=device)
        return torch.load(path, map_location=device, weights_only=True)
    except ModuleNotFoundError:
        raise InputError(f"{path}: reading it needs safetensors: pip install 'tinydet[safetensors]'") from None
    except Exception as error:  # torch.load documents none; damaged bytes bring forth a dozen
        # The text of an UnpicklingError advises weights_only=False, which would run whatever code is in there.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors and plain values, or is damaged" if unsafe else _first_line(error)
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from error


def _read_safetensors(path: PathLike, *, device: torch.device | str) -> dict[str, Any]:
    """Read a file of safetensors: its tensors, or the checkpoint that `save_safetensors` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=str(device)) as file:
        header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not header.get("format", "").startswith("tinydet"):
        return tensors
    try:
        content = {name: json.loads(header.get(name, "null")) for name in ("config", "training")}
    except json.JSONDecodeError as error:
        raise InputError(f"its header is not JSON: {error}") from None
    statistics = {name for name in tensors if name.rpartition(".")[2] in ("running_mean", "running_var")}
    params, buffers = ({n: x for n, x in tensors.items() if (n in statistics) == kind} for kind in (False, True))
    return {
        "format": header["format"],
        **content,
        "params": params,
        "buffers": buffers,
        "ema_params": params,
        "ema_buffers": buffers,
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

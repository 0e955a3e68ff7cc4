"""Weights to start from and to detect with, whoever trained them."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError
from tinydet.model.config import MODELS, ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Tensors, state
from tinydet.weights.checkpoint import as_checkpoint, is_checkpoint, read_file, skeleton
from tinydet.weights.fetch import Progress, find_published, published_at_hand
from tinydet.weights.formats import Weights, read_published

NAMES = ("auto", "coco", "imagenet", "none")
CLASS_HEAD = ("class_net.predict.pointwise.weight", "class_net.predict.pointwise.bias")
# Names of different data sets for what looks alike, so that one may start from what was learned of the other.
ALIKE = (
    ("person", "pedestrian"),
    ("person", "person sitting"),
    ("bicycle", "cyclist"),
    ("car", "van"),
    ("train", "tram"),
)


class Report(NamedTuple):
    """What became of every tensor of a file, and where every tensor of a model is from."""

    source: str
    taken: dict[str, str]
    """Our names of the tensors that are the file's: their names there."""
    replaced: dict[str, str]
    """The same for those whose rows are by class, where the classes differ: new but for the classes known before."""
    new: tuple[str, ...]
    """Our names of the tensors that the file has not: random."""
    left_out: tuple[str, ...]
    """The file's names of what a detector has no use for."""
    classes: dict[str, str]
    """The model's classes that the file knows, by the name that it has for them."""


class Fitted(NamedTuple):
    """Weights for a config, and where they are from."""

    params: Tensors
    buffers: Tensors
    report: Report


def load_weights(source: str | PathLike[str], *, model: str | None = None, progress: Progress | None = None) -> Weights:
    """Weights by a name or from a file, ours or anybody's, and the config that they imply.

    Args:
        source: "coco", a detector that effdet's authors published; "imagenet", the trunk of one, from the installed
            `pretrained` extra or published by timm's authors; "none", no tensors at all; "auto", "imagenet" or, where
            that can neither be found nor downloaded, after a warning "none"; else a file: a checkpoint of tinydet (its
            averaged weights), effdet or zylo117's EfficientDet, or an EfficientNet of timm, torchvision or lukemelas,
            saved by torch or as .safetensors.
        model: one of `tinydet.model.config.MODELS`. Of a name, which model, "d0" if not said; a file must fit it.
        progress: called with bytes done and in all while a file is downloaded.

    Returns:
        Weights, float32 on the CPU. Of a trunk alone, only the tensors `backbone.*`.

    Raises:
        InputError: there is no such file, it is damaged or could run code, it holds what none of the formats has, or it
            is of another model than `model`.
    """
    if model is not None and model not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {model!r}")
    if source == "auto":
        model = model or "d0"
        if at_hand := published_at_hand("imagenet", model):  # if it is damaged, that is no reason to do without
            return load_weights(at_hand, model=model)
        try:
            return load_weights("imagenet", model=model, progress=progress)
        except InputError as error:
            warnings.warn(f"starts from random weights, because {error}", stacklevel=2)
            return load_weights("none", model=model)
    if source == "none":
        return Weights(model_config(model or "d0"), {}, {}, {}, (), "random weights")
    if source in NAMES:
        model = model or "d0"
        path = find_published(str(source), model, progress=progress)
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path}: no such file, and none of {', '.join(NAMES)}")
    content = read_file(path)
    try:
        weights = _own(content) if is_checkpoint(content) else read_published(content, hint=_hint(path), model=model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if model not in (None, weights.config.name):
        raise InputError(f"{path}: holds a {weights.config.name}, not a {model}")
    return weights._replace(source=f"{path.name} ({weights.source})")


def load_detector(
    source: str | PathLike[str],
    *,
    model: str | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Weights:
    """Weights to detect with: those of a whole detector, on a device.

    Args:
        source, model, progress: as for `load_weights`.
        device: where the tensors go.

    Raises:
        InputError: as for `load_weights`, or there is no more than a trunk.
    """
    weights = load_weights(source, model=model, progress=progress)
    if len(weights.params) < len(list(skeleton(weights.config).parameters())):
        raise InputError(f"{source}: {weights.source} is no whole detector; train one from it")
    params, buffers = (
        {name: tensor.to(device) for name, tensor in tensors.items()} for tensors in (weights.params, weights.buffers)
    )
    return weights._replace(params=params, buffers=buffers)


def with_classes(weights: Weights, classes: Sequence[str], *, class_map: Mapping[str, str] | None = None) -> Weights:
    """A detector that finds these classes, in this order, and no others; names are paired as by `fit_weights`.

    Raises:
        InputError: the weights know nothing of a class.
    """
    if tuple(classes) == weights.config.classes and not class_map:
        return weights
    config = dataclasses.replace(weights.config, classes=tuple(classes))
    device = next(iter(weights.params.values())).device
    with torch.device(device):
        params, buffers, report = fit_weights(weights, config, class_map=class_map)
    if unknown := [name for name in classes if name not in report.classes]:
        known = ", ".join(weights.config.classes)
        raise InputError(f"{weights.source} knows no {', '.join(unknown)}; it knows {known}")
    return weights._replace(config=config, params=params, buffers=buffers)


def fit_weights(weights: Weights, config: ModelConfig, *, class_map: Mapping[str, str] | None = None) -> Fitted:
    """Weights for a model that may have other classes: what fits is taken, the rest is random.

    Where the classes differ, the rows of the class head are copied for every class that both sides know by the same
    name, but for case and blanks, or by names that `ALIKE` pairs; the rows of the others are random, with the bias of
    a fresh head.

    Args:
        weights: from `load_weights`.
        config: the model's; of the architecture of the weights' own.
        class_map: names of the config's classes to names of the weights', where the two do not say it themselves.

    Returns:
        Every parameter and buffer of the model, and a report. Random ones are drawn from torch's global generator.

    Raises:
        InputError: a tensor has another shape than the model's, or the map names a class that is not there.
    """
    known = weights.config.classes if weights.params else ()
    classes = shared_classes(known, config.classes, class_map or {})
    params, buffers = state(EfficientDet(config))
    fresh, given = {**params, **buffers}, {**weights.params, **weights.buffers}
    replaced = {name for name in CLASS_HEAD if name in given and known != config.classes}
    fitted = {name: given.get(name, own) for name, own in fresh.items()}
    rows = [(config.classes.index(new), known.index(old)) for new, old in classes.items()]
    for name in replaced:
        fitted[name] = _with_rows(fresh[name], given[name], rows, shape=(len(config.classes), len(known)))
    for name, own in fresh.items():
        if fitted[name].shape != own.shape:
            raise InputError(f"{name} has shape {tuple(fitted[name].shape)}, {config.name} needs {tuple(own.shape)}")
    report = Report(
        source=weights.source,
        taken={name: weights.origins[name] for name in fitted if name in given and name not in replaced},
        replaced={name: weights.origins[name] for name in fitted if name in replaced},
        new=tuple(name for name in fitted if name not in given),
        left_out=weights.unused,
        classes=classes if CLASS_HEAD[0] in given else {},
    )
    return Fitted({name: fitted[name] for name in params}, {name: fitted[name] for name in buffers}, report)


def shared_classes(known: Sequence[str], wanted: Sequence[str], class_map: Mapping[str, str]) -> dict[str, str]:
    """The wanted classes that are known, by their known names.

    >>> shared_classes(("person", "car"), ("Car", "Pedestrian", "Tram"), {})
    {'Car': 'car', 'Pedestrian': 'person'}

    Raises:
        InputError: the map names a class that is not there.
    """
    for new, old in class_map.items():
        if new not in wanted or old not in known:
            raise InputError(f"class map {new}={old}: no class {new if new not in wanted else old} to map")
    plain = {_plain(name): name for name in known}
    shared = {}
    for name in wanted:
        alike = [_plain(name), *(b if a == _plain(name) else a for a, b in ALIKE if _plain(name) in (a, b))]
        found = class_map.get(name) or next((plain[other] for other in alike if other in plain), None)
        if found is not None:
            shared[name] = found
    return shared


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").lower()


def _with_rows(own: Tensor, theirs: Tensor, rows: Sequence[tuple[int, int]], *, shape: tuple[int, int]) -> Tensor:
    """A class head's tensor, anchors by classes, with the rows (new, old) of another's; `shape` counts the classes."""
    new, old = (own.unflatten(0, (-1, shape[0])).clone(), theirs.unflatten(0, (-1, shape[1])))
    for to, source in rows:
        new[:, to] = old[:, source]
    return new.flatten(0, 1)


def _own(content: object) -> Weights:
    """The averaged weights of our own checkpoint."""
    checkpoint = as_checkpoint(content)
    params, buffers = checkpoint.ema_params, checkpoint.ema_buffers
    origins = {name: f"ema_params/{name}" for name in params} | {name: f"ema_buffers/{name}" for name in buffers}
    unused = ("params", "buffers", "training")  # not averaged, and what only a resumed run needs
    return Weights(checkpoint.config, params, buffers, origins, unused, f"tinydet {checkpoint.config.name}")


def _hint(path: Path) -> str:
    """What a path may say of the model: the file's name and its folder's."""
    return f"{path.resolve().parent.name}/{path.name}"

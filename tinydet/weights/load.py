"""Load weights to start from and to detect with, and adapt them to a config."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydet.errors import InputError
from tinydet.files import PathLike
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import Variables, params_and_buffers
from tinydet.reading import check_field
from tinydet.weights.checkpoint import RUN, as_checkpoint, read_file
from tinydet.weights.formats import Weights, convert_weights
from tinydet.weights.onnx_file import ONNX, OnnxFile, load_onnx
from tinydet.weights.pretrained import DownloadError, find_pretrained

# "imagenet" or, after a warning, "none"; a published detector; the published backbone of one; no tensors at all.
NAMES = ("auto", "coco", "imagenet", "none")
CLASS_HEAD = ("class_net.predict.pointwise.weight", "class_net.predict.pointwise.bias")
# Names of similar objects in different data sets, so that one may start from what was learned of the other.
SYNONYMS = {"pedestrian": "person", "person sitting": "person", "cyclist": "bicycle", "van": "car", "tram": "train"}
# What is told of the run of a checkpoint, and of its last epoch.
DESCRIBED: dict[str, Any] = {"weights": (str, None), "settings": (dict, None), "history": [dict]}
SCORES: dict[str, Any] = {"epoch": float, "metric": str, "ap": float, "ap_by_class": {str: float}}
BLANKS = str.maketrans("_-", "  ")
Loaded = Weights | OnnxFile


class LoadReport(NamedTuple):
    """Names of the tensors of a model that come from a file, and of those that do not and are random."""

    source: str
    loaded: tuple[str, ...]
    partially_loaded: tuple[str, ...]  # of other classes than the file's: random except for those that the file knows
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]  # the file's names of what a detector has no use for
    classes: dict[str, str]  # the model's classes that the file knows, with the file's names of them


def load_weights(source: PathLike, *, model: str | None = None, progress: bool = False) -> Weights:
    """Load weights to the CPU, with their config: one of `NAMES`, of a model, or a file, which must fit the model.

    A file is a checkpoint of tinydet (its averaged weights), or what `tinydet.weights.formats.convert_weights` knows.
    """
    if Path(source).suffix == ONNX:
        raise InputError(f"{source}: an exported file only detects; give the weights that it was exported from")
    config = model_config(model or "d0")
    path = _find_file(source, model=config.name, progress=progress)
    if path is None:
        return Weights(config, {}, {}, (), "random weights")
    expected = config.name if model or source in NAMES else None
    content = read_file(path)
    try:
        if isinstance(content, dict) and str(content.get("format")).startswith("tinydet"):
            saved = as_checkpoint(content)
            if expected not in (None, saved.config.name):
                raise InputError(f"holds a {saved.config.name}, not a {expected}")
            run = {name: value for name, value in saved.training.items() if name in RUN}
            weights = Weights(saved.config, *saved[3:5], (), f"tinydet {saved.config.name}", run)
        else:
            weights = convert_weights(content, hint=f"{path.resolve().parent.name}/{path.name}", model=expected)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return weights._replace(source=f"{path.name} ({weights.source})")


def _find_file(source: PathLike, *, model: str, progress: bool) -> Path | None:
    """Find the file of a source: None of "none", and after a warning of "auto" where the download fails."""
    if source == "none":
        return None
    if source not in NAMES and not Path(source).exists():
        raise InputError(f"{source}: no such file, and none of {', '.join(NAMES)}")
    if source not in NAMES:
        return Path(source)
    try:
        return find_pretrained("coco" if source == "coco" else "imagenet", model, progress=progress)
    except DownloadError as error:
        if source != "auto":
            raise
        warnings.warn(f"starts from random weights, because {error}", stacklevel=3)
        return None


def load_detector(
    source: PathLike, *, model: str | None = None, device: torch.device | str = "cpu", progress: bool = False
) -> Weights:
    """Load the weights of a whole detector to a device, as `load_weights` does; refuse a backbone alone."""
    weights = load_weights(source, model=model, progress=progress)
    if CLASS_HEAD[0] not in weights.params:
        raise InputError(f"{source}: {weights.source} is no whole detector; train one from it")
    params, buffers = ({name: x.to(device) for name, x in part.items()} for part in (weights.params, weights.buffers))
    return weights._replace(params=params, buffers=buffers)


def load_any(
    source: PathLike, *, model: str | None = None, device: torch.device | str = "cpu", progress: bool = False
) -> Loaded:
    """Load what `Detector` takes: an exported file, or the weights of a whole detector."""
    if Path(source).suffix == ONNX:
        file = load_onnx(source, device=device)
        if model not in (None, file.config.name):
            raise InputError(f"{source}: holds a {file.config.name}, not a {model}")
        return file
    return load_detector(source, model=model, device=device, progress=progress)


def select_classes(weights: Loaded, classes: Sequence[str], *, class_map: Mapping[str, str] | None = None) -> Loaded:
    """Restrict a detector to these classes, in this order; raise InputError where it knows none like one of them."""
    known = weights.config.classes
    if tuple(classes) == known and not class_map:
        return weights
    matched = match_classes(known, classes, class_map=class_map or {})
    if unknown := [name for name in classes if name not in matched]:
        raise InputError(f"{weights.source} knows no {', '.join(unknown)}; it knows {', '.join(known)}")
    config = dataclasses.replace(weights.config, classes=tuple(classes))
    rows = [known.index(matched[name]) for name in classes]
    if isinstance(weights, OnnxFile):
        return weights._replace(config=config, labels=tuple(weights.labels[row] for row in rows))
    head = {name: weights.params[name].unflatten(0, (-1, len(known)))[:, rows].flatten(0, 1) for name in CLASS_HEAD}
    return weights._replace(config=config, params=weights.params | head)


def adapt_weights(
    weights: Weights, config: ModelConfig, *, class_map: Mapping[str, str] | None = None, seed: int = 0
) -> tuple[Variables, LoadReport]:
    """Fit weights to a config of the same architecture, which may have other classes; what they lack is random.

    Where the classes differ, the class head's rows are copied for those of `match_classes`; the others are random.
    """
    known = weights.config.classes if weights.params else ()
    classes = match_classes(known, config.classes, class_map=class_map or {})
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too
        params, buffers = params_and_buffers(EfficientDet(config))
    fresh, given = params | buffers, weights.params | weights.buffers
    adapted = {name: given.get(name, own) for name, own in fresh.items()}
    partial = tuple(name for name in CLASS_HEAD if name in given and known != config.classes)
    for name, own in fresh.items():
        if name not in partial and adapted[name].shape != own.shape:
            raise InputError(f"{name} has shape {tuple(adapted[name].shape)}, {config.name} needs {tuple(own.shape)}")
    for name in partial:  # float[anchors * classes ...], the classes of each anchor side by side
        theirs = given[name].unflatten(0, (-1, len(known)))
        ours = fresh[name].unflatten(0, (-1, len(config.classes)))
        for new, old in classes.items():
            ours[:, config.classes.index(new)] = theirs[:, known.index(old)]
        adapted[name] = ours.flatten(0, 1)
    loaded = tuple(name for name in fresh if name in given and name not in partial)
    missing = tuple(name for name in fresh if name not in given)
    classes = classes if CLASS_HEAD[0] in given else {}
    report = LoadReport(weights.source, loaded, partial, missing, weights.unexpected, classes)
    return Variables({name: adapted[name] for name in params}, {name: adapted[name] for name in buffers}), report


def match_classes(known: Sequence[str], wanted: Sequence[str], *, class_map: Mapping[str, str]) -> dict[str, str]:
    """Map the wanted classes that are known to their known names: mapped, equal but for case and blanks, or synonyms.

    >>> match_classes(("person", "car"), ("Car", "Pedestrian", "Tram"), class_map={})
    {'Car': 'car', 'Pedestrian': 'person'}
    """
    for new, old in class_map.items():
        if new not in wanted or old not in known:
            raise InputError(f"class map {new}={old}: no class {new if new not in wanted else old} to map")
    plain = {name.translate(BLANKS).lower(): name for name in known}
    matched = {}
    for name in wanted:
        word = name.translate(BLANKS).lower()
        words = [word, *(b if a == word else a for a, b in SYNONYMS.items() if word in (a, b))]
        if found := class_map.get(name) or next((plain[other] for other in words if other in plain), None):
            matched[name] = found
    return matched


def describe(path: PathLike) -> dict[str, Any]:
    """Describe a file of weights in plain values; of tinydet's own, also its run and the scores of its last epoch.

    Raises:
        InputError: it is no such file, or what it says of its run is not what a run writes.
    """
    weights = load_onnx(path) if Path(path).suffix == ONNX else load_weights(path)
    config = weights.config
    known: dict[str, Any] = {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "source": weights.source,
        "model": config.name,
        "classes": list(config.classes),
        "image_size": list(config.image_size),
        "anchor_scale": config.anchor_scale,
    }
    if isinstance(weights, OnnxFile):
        return known | {"suppression": weights.suppression}
    known["parameters"] = sum(param.numel() for param in weights.params.values())
    if weights.run is None:
        return known
    check_field(run := {"history": [], **weights.run}, DESCRIBED, where=f"{path}: training")
    if last := run["history"][-1:]:
        check_field(last[0], SCORES, where=f"{path}: training: history")
    scores = {name: row[name] for row in last for name in SCORES}
    return known | {"began_from": run.get("weights"), "data": (run.get("settings") or {}).get("data")} | scores

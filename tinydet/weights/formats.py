"""Other people's weights as ours: the format told by its keys, the model by its shapes.

Outputs are those of the program that the weights are from, but for zylo117's, which pads max-pooling with zeros. The
weights that it publishes are Google's, slightly trained on; Google pads with what never wins, as tinydet does.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError
from tinydet.model.backbone import BACKBONES, scaled_stages
from tinydet.model.config import (
    COCO_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE_MEAN,
    LITE_STD,
    MODELS,
    ModelConfig,
    model_config,
)
from tinydet.model.functional import Tensors
from tinydet.weights.checkpoint import skeleton
from tinydet.weights.renames import FORMATS, UNUSED, Renames


class Weights(NamedTuple):
    """Tensors by our names, and all that is known of where they are from."""

    config: ModelConfig
    """Of the model that these are the weights of, and the input that they expect; of a trunk alone, of a detector with
    that trunk."""
    params: Tensors
    """float32; only `backbone.*` where the source is a trunk alone. May share memory with what they were read from."""
    buffers: Tensors
    origins: dict[str, str]
    """Our name of each tensor: its name in the file."""
    unused: tuple[str, ...]
    """The file's names of what a detector has no use for, such as a classifier."""
    source: str
    """For people: what published model this is, and what of that the tensors alone did not tell."""


HALF = (0.5, 0.5, 0.5)
# Names of files whose weights expect mean and deviation .5: trained adversarially, or by timm's later recipe.
HALF_NAMES = r"(_d|_b)\d[._]ap(?![a-z0-9])|adv-efficientnet-b\d|ra4_e3600"


def read_published(tensors: Mapping[str, Tensor], *, hint: str = "", model: str | None = None) -> Weights:
    """Weights of effdet, zylo117's EfficientDet, timm, torchvision or efficientnet_pytorch (lukemelas) as ours.

    What shapes leave open is decided by `model`, then by `hint`, then by default, and `source` says so: D6 or D7 (D6),
    timm's tf_ or not (tf_), and mean and deviation .5 (not).

    Args:
        tensors: float[...] by the format's names, perhaps inside of "state_dict", "state_dict_ema" or "model", and
            perhaps all with a prefix "module." or "model.".
        hint: the file's name and the like.
        model: one of `tinydet.model.config.MODELS`, which the weights must then fit.

    Returns:
        All weights of a detector, or of its trunk. Classes other than COCO's 90 are called class_0 and so on.

    Raises:
        InputError: this is of no known format or size, a tensor is missing, unknown, of another shape, not of floats or
            not finite, or it is another model than `model`.
    """
    tensors, hint = _unwrapped(tensors), hint.lower()
    keys = _without_prefix(tensors)
    form = next((form for form in FORMATS if form.marker in keys), None)
    if form is None:
        known = ", ".join(dict.fromkeys(form.source for form in FORMATS))
        raise InputError(f"weights of no known format ({known}); there is for example {next(iter(tensors))!r}")
    names = _renamed(keys, form.renames)
    unused = tuple(keys[key] for key, name in names.items() if name == UNUSED)
    found = {name: tensors[keys[key]] for key, name in names.items() if name != UNUSED}
    backbone, places = _backbone(found)
    origins = {_placed(name, places): keys[key] for key, name in names.items() if name != UNUSED}
    facts = {"backbone": backbone, **_detector({name: tensors[key] for name, key in origins.items()})}
    config, source = _config(form.source, facts, hint=hint, model=model)
    params, buffers = _checked({name: (key, tensors[key]) for name, key in origins.items()}, config)
    origins = {name: origins[name] for name in (*params, *buffers)}
    return Weights(config, _xy_first(params), buffers, origins, unused, source)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The tensors themselves, without what training scripts save around them."""
    wrappers = ("state_dict_ema", "state_dict", "model")
    while isinstance(content, Mapping) and (inner := [w for w in wrappers if isinstance(content.get(w), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"expected a dict of tensors, found {'an empty' if content == {} else 'a'} {_kind(content)}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"expected a dict of tensors, in which {key!r} is a {_kind(value)}")
    return dict(content)


def _kind(value: Any) -> str:
    return type(value).__name__


def _without_prefix(keys: Iterable[str]) -> dict[str, str]:
    """Every key by what follows the prefix that all have; the anchors of effdet's bench have none."""
    short = {key: key for key in keys}
    for prefix in ("module.", "model.") * 2:
        if all(key.startswith((prefix, "anchors.")) for key in short):
            short = {key.removeprefix(prefix): whole for key, whole in short.items()}
    return short


def rename(key: str, renames: Renames) -> str | None:
    """The name that we give to a tensor of another format; UNUSED; None if the format has no such tensor."""
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in renames)
    return next((match.expand(name) for match, name in matches if match), None)


def _renamed(keys: Iterable[str], renames: Renames) -> dict[str, str]:
    """Our name of each key.

    Raises:
        InputError: the format has no such tensor, or two are called the same.
    """
    names = {key: rename(key, renames) for key in keys}
    if unknown := [key for key, name in names.items() if name is None]:
        raise InputError(f"unknown tensor {_first(unknown)}")
    found: dict[str, str] = {}
    for key, name in names.items():
        if name and name in found:
            raise InputError(f"two tensors for one place: {found[name]!r} and {key!r}")
        found[name or UNUSED] = key
    return {key: name or UNUSED for key, name in names.items()}


def _first(names: list[str]) -> str:
    """One of many, for an error."""
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


_PLACE = re.compile(r"backbone\.stages\.(\d+(?:\.\d+)?)\.(.+)")


def _backbone(tensors: Tensors) -> tuple[str, dict[str, str]]:
    """The trunk that has these blocks, and where it has them: the file's places to ours, STAGE.INDEX."""
    channels: dict[str, int] = {}
    for name, tensor in tensors.items():
        if match := _PLACE.fullmatch(name):
            known = channels.setdefault(match[1], 0)
            channels[match[1]] = tensor.shape[:1].numel() if match[2].startswith("project") else known
    order = sorted(channels, key=lambda place: [int(number) for number in place.split(".")])
    lite = not any(".squeeze_excite." in name for name in tensors)
    for backbone in BACKBONES:
        stages = scaled_stages(backbone)
        blocks = [(stage, index) for stage, row in enumerate(stages) for index in range(row[-1])]
        same = [channels[place] for place in order] == [stages[stage][3] for stage, _ in blocks]
        if same and backbone.startswith("lite") == lite:
            return backbone, {place: f"{stage}.{index}" for place, (stage, index) in zip(order, blocks, strict=True)}
    raise InputError(f"the trunk is none of {', '.join(BACKBONES)}: no such channels in {len(order)} blocks")


def _placed(name: str, places: Mapping[str, str]) -> str:
    """A tensor of a block, named by our place of it."""
    match = _PLACE.fullmatch(name)
    return f"backbone.stages.{places[match[1]]}.{match[2]}" if match else name


def _detector(tensors: Tensors) -> dict[str, Any]:
    """What the tensors tell of a detector's config; of a trunk alone nothing."""
    if not any(name.startswith("box_net.") for name in tensors):
        return {}

    def count(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, name) for name in tensors) if match})

    def length(name: str) -> int:
        if name not in tensors:
            raise InputError(f"no tensor for {name!r}")
        return tensors[name].shape[:1].numel()

    anchors = max(length("box_net.predict.pointwise.bias") // 4, 1)
    classes = length("class_net.predict.pointwise.bias") // anchors
    return {
        "num_channels": length("bifpn.top.norm.weight"),
        "fpn_repeats": count(r"bifpn\.layers\.(\d+)"),
        "head_repeats": count(r"class_net\.convs\.(\d+)"),
        "levels": tuple(range(3, 3 + count(r"class_net\.norms\.0\.(\d+)"))),
        "fusion": "fast" if count(r"bifpn\.layers\.\d+\.(weights)") else "sum",
        "bias_before_norm": "bifpn.top.conv.bias" in tensors,
        "classes": COCO_CLASSES if classes == len(COCO_CLASSES) else tuple(f"class_{i}" for i in range(classes)),
    }


def _config(source: str, facts: dict[str, Any], *, hint: str, model: str | None) -> tuple[ModelConfig, str]:
    """The config of a file of which `facts` are known, and what it is called there."""
    notes = []
    # effdet's models have that bias where they are TensorFlow's, timm's nothing that tells.
    tf = facts.get("bias_before_norm", source != "torchvision")
    if source == "timm":
        named = re.search(r"(tf[_-])?efficientnet", hint)
        tf = model != "d0-symmetric" and (named is None or named[1] is not None)
        notes += [] if named or model == "d0-symmetric" else ["tf_ by default"]
    conventions = _conventions(source, facts["backbone"], tf=tf, hint=hint)
    if conventions["mean"] == HALF and not facts["backbone"].startswith("lite"):
        notes.append("mean and std .5 by its name")
    facts = {**facts, **conventions}
    nearest = _nearest(facts)
    if model is not None:
        base = model_config(model)
        _check_model(base, facts, nearest=nearest[0])
    else:
        named_so = [name for name in nearest if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", hint)]
        base = model_config((named_so or nearest)[0])
        others = [name for name in nearest if name != base.name]
        notes += [f"{base.name} by {'its name' if named_so else 'default'}, not {', '.join(others)}"] if others else []
    try:
        config = dataclasses.replace(base, **facts)
    except ValueError as error:
        raise InputError(f"no detector: {error}") from error
    size = base.name.removesuffix("-symmetric") if "levels" in facts else base.backbone
    name = "det" if "levels" in facts else "net"
    name = f"efficient{name}{'-' if source in ('zylo117', 'lukemelas') else '_'}{size}"
    prefix = "tf_" if tf and source in ("effdet", "timm") else ""
    return config, f"{source} {prefix}{name}" + (f" ({'; '.join(notes)})" if notes else "")


def _conventions(source: str, backbone: str, *, tf: bool, hint: str) -> dict[str, Any]:
    """What differs between programs but not in the tensors.

    Args:
        tf: whether this program does as TensorFlow does.
    """
    lite = backbone.startswith("lite")
    if lite and source == "lukemelas":
        mean, std = LITE_MEAN, LITE_STD
    elif (lite and tf) or re.search(HALF_NAMES, hint):
        mean, std = HALF, HALF
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    eps = 1e-3 if tf or (source == "torchvision" and backbone in ("b5", "b6", "b7")) else 1e-5
    return {"padding": "same" if tf else "symmetric", "backbone_norm_eps": eps, "mean": mean, "std": std}


def _nearest(facts: Mapping[str, Any]) -> list[str]:
    """The published models that have this trunk and most else in common with the facts."""
    alike = {
        name: sum(getattr(config, field) == value for field, value in facts.items())
        for name, config in zip(MODELS, map(model_config, MODELS), strict=True)
        if config.backbone == facts["backbone"]
    }
    return [name for name, number in alike.items() if number == max(alike.values())]


def _check_model(config: ModelConfig, facts: Mapping[str, Any], *, nearest: str) -> None:
    """Raise unless the facts fit the model that was asked for; its conventions and classes may be others."""
    shapes = ("backbone", "num_channels", "fpn_repeats", "head_repeats", "levels", "fusion", "bias_before_norm")
    for field in shapes:
        expected = getattr(config, field)
        if (value := facts.get(field, expected)) != expected:
            raise InputError(f"not a {config.name}: its {field} is {value}, not {expected}; nearest is {nearest}")


def _checked(tensors: Mapping[str, tuple[str, Tensor]], config: ModelConfig) -> tuple[Tensors, Tensors]:
    """Just the tensors that a config asks for, as float32 params and buffers; of a trunk alone those of the trunk.

    Args:
        tensors: by our names, each with its name in the file.
    """
    model, whole = skeleton(config), any(name.startswith("box_net.") for name in tensors)
    kinds = [
        {name: tensor.shape for name, tensor in kind if whole or name.startswith("backbone.")}
        for kind in (model.named_parameters(), model.named_buffers())
    ]
    shapes = {**kinds[0], **kinds[1]}
    if unknown := [key for name, (key, _) in tensors.items() if name not in shapes]:
        raise InputError(f"unknown tensor {_first(unknown)} for a {config.name}")
    if missing := [name for name in shapes if name not in tensors]:
        raise InputError(f"no tensor for {_first(missing)} of a {config.name}")
    for name, (key, tensor) in tensors.items():
        if tensor.shape != shapes[name]:
            raise InputError(f"{key!r} has shape {tuple(tensor.shape)}, not {tuple(shapes[name])}")
        if not tensor.is_floating_point():
            raise InputError(f"{key!r} is of {tensor.dtype}, not of floats")
        if not tensor.to(torch.float32).isfinite().all():
            raise InputError(f"{key!r} is not finite")
    params, buffers = ({name: tensors[name][1].detach().to(torch.float32) for name in kind} for kind in kinds)
    return params, buffers


def _xy_first(params: Tensors) -> Tensors:
    """The box head's outputs as tx, ty, tw, th, where every published detector has ty, tx, th, tw."""
    names = [name for name in params if name.startswith("box_net.predict.pointwise.")]
    swapped = {name: params[name].unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1) for name in names}
    return {**params, **swapped}

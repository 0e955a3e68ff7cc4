"""Convert published weights: the format is told by its keys, the model by its shapes.

Outputs are those of the program that the weights are from, except of zylo117's, which pads max-pooling with zeros. The
weights that it publishes are Google's, slightly fine-tuned; Google pads with -inf, as tinydet does.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tinydet.errors import InputError
from tinydet.model.backbone import BACKBONES, scaled_stages
from tinydet.model.config import COCO_CLASSES, IMAGENET_MEAN, IMAGENET_STD, MODELS, ModelConfig, model_config
from tinydet.model.efficientdet import meta_model
from tinydet.model.functional import Params, Variables, digest
from tinydet.weights.checkpoint import abbreviate, check_tensors
from tinydet.weights.renames import FORMATS, UNUSED, rename

Fields = dict[str, Any]  # of a ModelConfig

HALF = (0.5, 0.5, 0.5)
# Names of files whose weights expect mean and deviation .5: trained adversarially, or by timm's later recipe.
HALF_NAMES = r"(_d|_b)\d[._]ap(?![a-z0-9])|adv-efficientnet-b\d|ra4_e3600"
SHAPES = ("backbone", "num_channels", "fpn_repeats", "head_repeats", "levels", "fusion", "bias_before_norm")
_BLOCK = re.compile(r"backbone\.stages\.(\d+(?:\.\d+)?)\.")  # and the place of a block


class Weights(NamedTuple):
    """Tensors by our names, float32, their config, and where they are from."""

    config: ModelConfig  # the model and the input that it expects; of a backbone alone, a detector with that backbone
    params: Params  # of a backbone alone only `backbone.*`; may share memory with what was converted
    buffers: Params
    unexpected: tuple[str, ...]  # the file's names of what a detector has no use for, such as a classifier
    source: str  # for people: which published model this is, and which choices the tensors alone did not decide
    run: Mapping[str, Any] | None = None  # of a checkpoint of tinydet: its run's settings and history, not checked

    def digest(self) -> str:
        """Compute a digest of the numbers and the config: that of a copy, by whatever name, is the same."""
        return f"{digest(self.params, self.buffers)} of {self.config}"


def convert_weights(tensors: Mapping[str, Tensor], *, hint: str = "", model: str | None = None) -> Weights:
    """Convert weights of effdet, zylo117, timm, torchvision or lukemelas, bare or as training scripts wrap them.

    What shapes leave open is decided by `model`, which the weights must then fit, else by the hint, such as the file's
    name, else by default, and `source` says so: D6 or D7 (D6), timm's tf_ or not (tf_), mean and deviation .5 (not).
    """
    tensors, hint = _unwrap(tensors), hint.lower()
    short = {key: key for key in tensors}  # without the prefix that all have; the anchors of effdet's bench have none
    for prefix in ("module.", "model.") * 2:
        if all(key.startswith((prefix, "anchors.")) for key in short):
            short = {key.removeprefix(prefix): whole for key, whole in short.items()}
    source, renames = next(((name, table) for name, marker, table in FORMATS if marker in short), ("", ()))
    if not source:
        known = ", ".join(dict.fromkeys(name for name, _, _ in FORMATS))
        raise InputError(f"weights of no known format ({known}); there is for example {next(iter(tensors))!r}")
    names = {key: rename(key, renames) for key in short}
    if unknown := [key for key, name in names.items() if name is None]:
        raise InputError(f"unknown tensor {abbreviate(unknown)}")
    unexpected = tuple(short[key] for key, name in names.items() if name == UNUSED)
    keys = {name: short[key] for key, name in names.items() if name}
    backbone, places = _identify_backbone({name: tensors[key] for name, key in keys.items()})
    keys = {_BLOCK.sub(lambda block: f"backbone.stages.{places[block[1]]}.", name): key for name, key in keys.items()}
    found = {name: tensors[key] for name, key in keys.items()}
    whole = any(name.startswith("box_net.") for name in found)
    facts: Fields = {"backbone": backbone, **(_detector_facts(found) if whole else {})}
    conventions, notes = _conventions(source, facts, hint=hint, model=model)
    base, ties = _identify_model(facts | conventions, hint=hint, model=model)
    try:
        config = dataclasses.replace(base, **facts, **conventions)
    except ValueError as error:
        raise InputError(f"not a detector: {error}") from error
    variables = _convert(found, config, keys=keys, prefix="" if whole else "backbone.")
    tf = "tf_" if config.padding == "same" and source in ("effdet", "timm") else ""
    dash = "-" if source in ("zylo117", "lukemelas") else "_"
    name = f"det{dash}{base.name.removesuffix('-symmetric')}" if whole else f"net{dash}{backbone}"
    remarks = f" ({'; '.join(notes + ties)})" if notes or ties else ""
    return Weights(config, *variables, unexpected, f"{source} {tf}efficient{name}{remarks}")


def _unwrap(content: Any) -> dict[str, Tensor]:
    """Return the tensors without what training scripts save around them."""
    wrappers = ("state_dict_ema", "state_dict", "model")
    while isinstance(content, Mapping) and (inner := [w for w in wrappers if isinstance(content.get(w), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        kind = "an empty" if content == {} else "a"
        raise InputError(f"expected a dict of tensors, found {kind} {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"expected a dict of tensors, in which {key!r} is a {type(value).__name__}")
    return dict(content)


def _identify_backbone(tensors: Params) -> tuple[str, dict[str, str]]:
    """Find the backbone that has these blocks, and map the file's places of blocks to ours, STAGE.INDEX."""
    channels: dict[str, int] = {}
    for name, tensor in tensors.items():
        if block := _BLOCK.match(name):
            last = name.startswith("project", block.end())
            channels[block[1]] = tensor.shape[:1].numel() if last else channels.get(block[1], 0)
    order = sorted(channels, key=lambda place: [int(number) for number in place.split(".")])
    lite = not any(".squeeze_excite." in name for name in tensors)
    for backbone in BACKBONES:
        rows = scaled_stages(backbone)
        ours = {f"{stage}.{index}": row[3] for stage, row in enumerate(rows) for index in range(row[-1])}
        if [channels[place] for place in order] == [*ours.values()] and backbone.startswith("lite") == lite:
            return backbone, dict(zip(order, ours, strict=True))
    raise InputError(f"the backbone is none of {', '.join(BACKBONES)}: no such channels in {len(order)} blocks")


def _detector_facts(tensors: Params) -> Fields:
    """Return the fields of a detector's config that its tensors tell."""

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

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


def _conventions(source: str, facts: Fields, *, hint: str, model: str | None) -> tuple[Fields, list[str]]:
    """Return the config's fields that differ between programs but not in the tensors, and notes of what was guessed."""
    notes: list[str] = []
    lite = facts["backbone"].startswith("lite")
    # effdet's models have that bias where they follow TensorFlow; timm's have nothing that tells but their names.
    tf = facts.get("bias_before_norm", source != "torchvision")
    if source == "timm":
        named = re.search(r"(tf[_-])?efficientnet", hint)
        tf = model != "d0-symmetric" and (named is None or named[1] is not None)
        notes += ["tf_ by default"] if tf and named is None else []
    eps = 1e-3 if tf or (source == "torchvision" and facts["backbone"] in ("b5", "b6", "b7")) else 1e-5
    conventions = {"padding": "same" if tf else "symmetric", "backbone_norm_eps": eps}
    if lite and source == "lukemelas":
        return conventions, notes  # the mean and deviation that are ours, too
    by_name = not (lite and tf) and re.search(HALF_NAMES, hint)
    notes += ["mean and std .5 by its name"] if by_name else []
    mean, std = (HALF, HALF) if by_name or (lite and tf) else (IMAGENET_MEAN, IMAGENET_STD)
    return conventions | {"mean": mean, "std": std}, notes


def _identify_model(facts: Fields, *, hint: str, model: str | None) -> tuple[ModelConfig, list[str]]:
    """Find the published model with this backbone and most else in common, and note how ties were decided."""
    configs = [config for config in map(model_config, MODELS) if config.backbone == facts["backbone"]]
    common = [sum(getattr(config, field) == value for field, value in facts.items()) for config in configs]
    nearest = [config.name for config, count in zip(configs, common, strict=True) if count == max(common)]
    if model is None:
        named = [name for name in nearest if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", hint)]
        name = (named or nearest)[0]
        others = ", ".join(other for other in nearest if other != name)
        return model_config(name), [f"{name} by {'its name' if named else 'default'}, not {others}"] if others else []
    config = model_config(model)
    for field in SHAPES:
        value, expected = facts.get(field), getattr(config, field)
        if value not in (None, expected):
            raise InputError(f"not a {model}: its {field} is {value}, not {expected}; nearest is {nearest[0]}")
    return config, []


def _convert(tensors: Params, config: ModelConfig, *, keys: Mapping[str, str], prefix: str) -> Variables:
    """Check the tensors against the config's names with a prefix, and convert them; `keys` are the file's names."""
    model, params = meta_model(config), {}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    for name, tensor in check_tensors(tensors, expected, model=f"a {config.name}", keys=keys).items():
        if name.startswith("box_net.predict.pointwise."):  # every published detector has ty, tx, th, tw
            tensor = tensor.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)
        params[name] = tensor
    buffers = {name: params.pop(name) for name, _ in model.named_buffers() if name in params}
    return Variables(params, buffers)

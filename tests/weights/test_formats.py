"""Published formats: every tensor finds its place or is named as unexpected, and outputs equal the program's."""

import functools
import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from tests.reference_models import levels_of, off, rebuilt
from tinydet.errors import InputError
from tinydet.model import efficientdet
from tinydet.model.bifpn import bifpn_edges
from tinydet.model.config import (
    COCO_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE_MEAN,
    LITE_STD,
    ModelConfig,
    model_config,
)
from tinydet.model.functional import Params, apply
from tinydet.weights import formats
from tinydet.weights.formats import HALF, convert_weights

SWAP_XY = [1, 0, 3, 2]  # ty, tx, th, tw, as published detectors have them, to our tx, ty, tw, th
FILES = (
    "effdet_efficientdet_d0",
    "effdet_tf_efficientdet_d0",
    "effdet_tf_efficientdet_d7x",
    "effdet_tf_efficientdet_lite0",
    "lukemelas_efficientnet-b0",
    "lukemelas_efficientnet-lite0",
    "timm_efficientnet_b0",
    "timm_tf_efficientnet_lite0",
    "torchvision_efficientnet_b0",
    "zylo117_efficientdet-d0",
)

meta_model = functools.cache(efficientdet.meta_model)


@pytest.fixture(autouse=True)
def _meta_models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "meta_model", meta_model)


@pytest.fixture
def published(shared: Path) -> Any:
    """Return a function from a file's name to what it would hold: one number, seen at every shape."""

    def read(name: str, *, dtype: torch.dtype = torch.float32) -> Params:
        shapes = json.loads((shared / f"checkpoints/{name}.json").read_text())
        return {key: torch.tensor(0.5, dtype=dtype).expand(shape) for key, shape in shapes.items()}

    return read


def own(config: ModelConfig, *, backbone: bool = False) -> dict[str, torch.Size]:
    state = meta_model(config).state_dict()
    return {name: x.shape for name, x in state.items() if name.startswith("backbone." if backbone else "")}


def origins(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the file's name of each converted tensor, by a number that is its only value."""
    keys = list(tensors)
    numbered = {key: torch.tensor(float(i)).expand(tensors[key].shape) for i, key in enumerate(keys)}
    weights = convert_weights(numbered)
    return {name: keys[int(x[(0,) * x.ndim])] for name, x in (weights.params | weights.buffers).items()}


# Places


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_has_its_place(published: Any, file: str) -> None:
    tensors = published(file)
    weights = convert_weights(tensors, hint=file)
    names = origins(tensors)
    assert weights.source == file.replace("_", " ", 1)
    assert sorted([*names.values(), *weights.unexpected]) == sorted(tensors)
    found = weights.params | weights.buffers
    assert {name: x.shape for name, x in found.items()} == own(weights.config, backbone="det" not in file)
    assert all(name.endswith(("running_mean", "running_var")) for name in weights.buffers)
    idle = {key.split(".")[0] for key in weights.unexpected if not re.search(r"tracked$|^features\.8\.", key)}
    assert idle <= {"conv_head", "bn2", "classifier", "_conv_head", "_bn1", "_fc"}


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_changed_and_nothing_but_the_box_head_is_moved(published: Any, file: str) -> None:
    r = torch.Generator().manual_seed(0)
    tensors = {
        key: x if key.endswith("tracked") or x.numel() > 1e6 else torch.randn(x.shape, generator=r)
        for key, x in published(file).items()
    }
    before = {key: x.clone() for key, x in tensors.items()}
    names, weights = origins(tensors), convert_weights(tensors)
    assert list(tensors) == list(before)
    assert all(torch.equal(x, before[key]) for key, x in tensors.items())
    for name, tensor in (weights.params | weights.buffers).items():
        theirs = before[names[name]]
        if name.startswith("box_net.predict.pointwise."):
            theirs = theirs.reshape(9, 4, *theirs.shape[1:])[:, SWAP_XY].reshape(theirs.shape)
        assert torch.equal(tensor, theirs), name


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("b0") or "zylo" in file])
def test_blocks_are_counted_stage_by_stage(published: Any, file: str) -> None:
    places = {}
    for name, key in origins(published(file)).items():
        if place := re.match(r"backbone\.stages\.(\d+)\.(\d+)", name):
            number = re.findall(r"\d+", re.sub(r"\.block\..*|_\w+$|conv.*|bn.*|_bn.*", "", key.replace("_blocks", "")))
            places[tuple(map(int, number[:2]))] = (int(place[1]), int(place[2]))
    assert [places[number] for number in sorted(places)] == sorted(places.values())
    stages = [stage for stage, _ in places.values()]
    assert [stages.count(stage) for stage in range(7)] == [1, 2, 2, 3, 3, 4, 1]  # EfficientNet, table 1


@pytest.mark.parametrize(
    ("tag", "name"), [("tf_d0", "d0"), ("tf_lite0", "lite0"), ("d0", "d0-symmetric")], ids=lambda x: x
)
def test_effdets_outputs(shared: Path, tag: str, name: str) -> None:
    folder = shared / "reference" / "models"
    with np.load(folder / f"{tag}.npz") as file:
        npz = dict(file)
    keys = json.loads((folder / f"{tag}.keys.json").read_text())
    counters = {key: torch.tensor(0) for key in keys if key.endswith("num_batches_tracked")}
    tensors = rebuilt({key: shape for key, shape in keys.items() if key not in counters}, npz) | counters
    weights = convert_weights(tensors)
    assert weights.config.name == name
    assert weights.config.classes == tuple(f"class_{i}" for i in range(5))
    images = np.random.Generator(np.random.PCG64(123)).standard_normal((2, 3, 128, 128)).astype(np.float32)
    model = meta_model(weights.config)
    (logits, deltas), _ = apply(model, weights.params, weights.buffers, torch.from_numpy(images))
    assert off(logits, levels_of(npz, "class", 5)) < 1e-4
    assert off(deltas, levels_of(npz, "box", 4)[..., SWAP_XY]) < 1e-4


# zylo117's detector, said twice: what its tensors are called, and what it does with them.


def zylo117_name(name: str, levels: int) -> str:
    """Return zylo117's name of one of our tensors."""
    edges = bifpn_edges(levels)
    part, _, rest = name.partition(".")
    leaf = rest.rpartition(".")[2]
    conv = {"depthwise": "depthwise_conv.conv", "pointwise": "pointwise_conv.conv", "norm": "bn"}
    if part == "backbone":
        return zylo117_backbone_name(rest)
    if part != "bifpn":
        net = {"class_net": "classifier", "box_net": "regressor"}[part]
        what, *place, layer, leaf = rest.split(".")
        if what == "norms":
            return f"{net}.bn_list.{layer}.{place[0]}.{leaf}"
        return ".".join([net, {"convs": "conv_list", "predict": "header"}[what], *place, conv[layer], leaf])
    kind = {"conv": "0.conv", "norm": "1"}.get(rest.split(".")[-2], "")
    if rest.startswith("top"):
        return f"bifpn.0.p5_to_p6.{kind}.{leaf}"
    _, cell, what, where, *_ = rest.split(".")
    node = int(where.split("_")[0])
    up = node < levels - 1
    level = 3 + edges[node][0]
    if what == "weights":
        return f"bifpn.{cell}.p{level}_w{1 if up else 2}"
    if what == "laterals":
        return f"bifpn.{cell}.p{level}_down_channel{'' if up else '_2'}.{kind}.{leaf}"
    return f"bifpn.{cell}.conv{level}_{'up' if up else 'down'}.{conv[rest.split('.')[-2]]}.{leaf}"


def zylo117_backbone_name(name: str) -> str:
    """Return the same of a tensor of the backbone, its stages still in the place of the number of the block."""
    convs = {"stem": "_conv_stem", "expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
    convs |= {"squeeze": "_se_reduce", "excite": "_se_expand"}
    norms = {"stem_norm": "_bn0", "expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
    *place, what, leaf = name.replace("squeeze_excite.", "").split(".")
    block = ["_blocks", ".".join(place[1:])] if place else []
    return ".".join(["backbone_net.model", *block, norms.get(what) or f"{convs[what]}.conv", leaf])


def as_zylo117(tensors: Mapping[str, Tensor], levels: int = 5) -> Params:
    """Return our tensors under zylo117's names."""
    renamed = {zylo117_name(name, levels): tensor for name, tensor in tensors.items()}
    block = re.compile(r"(?<=\._blocks\.)\d+\.\d+")
    places = [match[0] for key in renamed if (match := block.search(key))]
    numbers = {place: n for n, place in enumerate(sorted(set(places), key=lambda p: [int(x) for x in p.split(".")]))}
    return {block.sub(lambda match: str(numbers[match[0]]), key): tensor for key, tensor in renamed.items()}


def hollow(name: str) -> Params:
    return {key: torch.tensor(0.5).expand(shape) for key, shape in own(model_config(name)).items()}


def test_zylo117s_names_are_the_files(published: Any) -> None:
    theirs = {key: x.shape for key, x in published("zylo117_efficientdet-d0").items() if not key.endswith("tracked")}
    assert {key: x.shape for key, x in as_zylo117(hollow("d0")).items()} == theirs


def test_the_same_weights_by_effdets_and_by_zylo117s_names(shared: Path) -> None:
    keys = json.loads((shared / "checkpoints/effdet_tf_efficientdet_d0.json").read_text())
    stats = {f"stat:{key}": np.ones(shape) for key, shape in keys.items()}
    one = convert_weights(rebuilt({key: shape for key, shape in keys.items() if "tracked" not in key}, stats))
    ours = one.params | one.buffers
    for name in ("box_net.predict.pointwise.weight", "box_net.predict.pointwise.bias"):
        ours[name] = ours[name].reshape(9, 4, -1)[:, SWAP_XY].reshape(ours[name].shape)
    other = convert_weights(as_zylo117(ours))
    assert other.config == one.config
    for name, tensor in (one.params | one.buffers).items():
        assert torch.equal(tensor, (other.params | other.buffers)[name]), name


def zylo117_detector(x: Params, features: list[Tensor], repeats: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return what the program makes of P3, P4, P5, by its names: float[B A K], float[B A 4] in ty, tx, th, tw."""

    def norm(name: str, y: Tensor) -> Tensor:
        mean, var, weight, bias = (x[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, mean, var, weight, bias, eps=1e-3)

    def lateral(name: str, y: Tensor) -> Tensor:
        return norm(
            f"bifpn.0.{name}.1", F.conv2d(y, x[f"bifpn.0.{name}.0.conv.weight"], x[f"bifpn.0.{name}.0.conv.bias"])
        )

    def separable(name: str, y: Tensor) -> Tensor:
        y = F.conv2d(y, x[f"{name}.depthwise_conv.conv.weight"], padding=1, groups=y.shape[1])
        return F.conv2d(y, x[f"{name}.pointwise_conv.conv.weight"], x[f"{name}.pointwise_conv.conv.bias"])

    def pool(y: Tensor) -> Tensor:  # even sizes
        return F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    def node(cell: int, name: str, weight: str, *inputs: Tensor) -> Tensor:
        w = x[f"bifpn.{cell}.{weight}"].relu()
        fused = torch.stack([w[i] / (w.sum() + 1e-4) * y for i, y in enumerate(inputs)]).sum(0)
        return norm(f"bifpn.{cell}.{name}.bn", separable(f"bifpn.{cell}.{name}", F.silu(fused)))

    def twice(y: Tensor) -> Tensor:
        return y.repeat_interleave(2, -1).repeat_interleave(2, -2)

    p3, p4, p5 = (lateral(f"p{level}_down_channel", y) for level, y in zip((3, 4, 5), features, strict=True))
    q4, q5 = (lateral(f"p{level}_down_channel_2", y) for level, y in zip((4, 5), features[1:], strict=True))
    p6 = pool(lateral("p5_to_p6", features[2]))
    p7 = pool(p6)
    for cell in range(repeats[0]):
        u6 = node(cell, "conv6_up", "p6_w1", p6, twice(p7))
        u5 = node(cell, "conv5_up", "p5_w1", p5, twice(u6))
        u4 = node(cell, "conv4_up", "p4_w1", p4, twice(u5))
        p3 = node(cell, "conv3_up", "p3_w1", p3, twice(u4))
        p4 = node(cell, "conv4_down", "p4_w2", q4, u4, pool(p3))
        p5 = node(cell, "conv5_down", "p5_w2", q5, u5, pool(p4))
        p6 = node(cell, "conv6_down", "p6_w2", p6, u6, pool(p5))
        p7 = node(cell, "conv7_down", "p7_w2", p7, pool(p6))
        q4, q5 = p4, p5

    def head(name: str, last: int) -> Tensor:
        rows = []
        for level, y in enumerate([p3, p4, p5, p6, p7]):
            for repeat in range(repeats[1]):
                y = F.silu(norm(f"{name}.bn_list.{level}.{repeat}", separable(f"{name}.conv_list.{repeat}", y)))
            rows.append(separable(f"{name}.header", y).permute(0, 2, 3, 1).reshape(len(y), -1, last))
        return torch.cat(rows, 1)

    return head("classifier", 90), head("regressor", 4)


def test_zylo117s_outputs(published: Any) -> None:
    r = torch.Generator().manual_seed(0)
    tensors = published("zylo117_efficientdet-d0")
    for key, x in tensors.items():
        if not key.startswith("backbone_net."):
            scale = 1 / prod(x.shape[1:]) ** 0.5 if x.ndim > 1 else 0.3
            tensors[key] = torch.randn(x.shape, generator=r) * scale + (x.ndim == 1)
            if key.endswith("running_var"):
                tensors[key] = torch.rand(x.shape, generator=r) + 0.5
    tensors["bifpn.1.p4_w2"] = torch.tensor([-0.3, 0.6, 1.1])
    features = [torch.randn(2, c, n, n, generator=r) for c, n in ((40, 16), (112, 8), (320, 4))]
    logits, deltas = zylo117_detector(tensors, features, (3, 3))
    weights = convert_weights(tensors)
    model, state = meta_model(weights.config).eval(), weights.params | weights.buffers

    def call(name: str, *inputs: Any) -> Any:
        part = {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
        return functional_call(getattr(model, name), part, inputs, strict=True)

    pyramid = call("bifpn", features)
    assert off(call("class_net", pyramid), logits) < 1e-4
    assert off(call("box_net", pyramid), deltas[..., SWAP_XY]) < 1e-4


@pytest.mark.parametrize("name", ["d6", "d7x"])
def test_zylo117_has_fusion_weights_that_it_does_not_use(name: str) -> None:
    tensors = as_zylo117(hollow(name), levels=len(model_config(name).levels))
    fusion = {f"bifpn.{cell}.{w}": torch.ones(3) for cell in range(8) for w in ("p3_w1", "p6_w1", "p4_w2", "p7_w2")}
    weights = convert_weights(tensors | fusion)
    assert weights.config.name == name
    assert weights.config.fusion == "sum"
    assert weights.unexpected == tuple(fusion)


# Configs


@pytest.mark.parametrize(
    ("file", "hint", "name", "padding", "eps", "mean"),
    [
        ("effdet_efficientdet_d0", "tf_misnamed", "d0-symmetric", "symmetric", 1e-5, IMAGENET_MEAN),
        ("effdet_tf_efficientdet_d0", "", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("effdet_tf_efficientdet_d0", "x/tf_efficientdet_d0_ap-d0cdbd0a.pth", "d0", "same", 1e-3, HALF),
        ("effdet_tf_efficientdet_d0", "tf_efficientdet_d0_apple.pth", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("effdet_tf_efficientdet_lite0", "", "lite0", "same", 1e-3, HALF),
        ("zylo117_efficientdet-d0", "", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("timm_efficientnet_b0", "", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("timm_efficientnet_b0", "TF_EfficientNet_b0", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("timm_efficientnet_b0", "tf_efficientnet_b0_ap-f262efe1.pth", "d0", "same", 1e-3, HALF),
        ("timm_efficientnet_b0", "tf_efficientnet_b0.ap_in1k/model.safetensors", "d0", "same", 1e-3, HALF),
        ("timm_efficientnet_b0", "efficientnet_b0_ra-3dd342df.pth", "d0-symmetric", "symmetric", 1e-5, IMAGENET_MEAN),
        ("timm_efficientnet_b0", "efficientnet_b0.ra4_e3600_r224_in1k/x", "d0-symmetric", "symmetric", 1e-5, HALF),
        ("timm_tf_efficientnet_lite0", "", "lite0", "same", 1e-3, HALF),
        ("timm_tf_efficientnet_lite0", "efficientnet_lite0_ra", "lite0", "symmetric", 1e-5, IMAGENET_MEAN),
        ("torchvision_efficientnet_b0", "", "d0-symmetric", "symmetric", 1e-5, IMAGENET_MEAN),
        ("lukemelas_efficientnet-b0", "", "d0", "same", 1e-3, IMAGENET_MEAN),
        ("lukemelas_efficientnet-b0", "adv-efficientnet-b0-b64d5a18.pth", "d0", "same", 1e-3, HALF),
        ("lukemelas_efficientnet-lite0", "", "lite0", "same", 1e-3, LITE_MEAN),
    ],
)
def test_conventions(
    published: Any, file: str, hint: str, name: str, padding: str, eps: float, mean: tuple[float, float, float]
) -> None:
    weights = convert_weights(published(file), hint=hint)
    config = weights.config
    std = {IMAGENET_MEAN: IMAGENET_STD, LITE_MEAN: LITE_STD}.get(mean, HALF)
    assert config == model_config(name, padding=padding, backbone_norm_eps=eps, mean=mean, std=std)
    assert ("tf_ by default" in weights.source) == (file.startswith("timm") and not hint)
    assert ("mean and std .5 by its name" in weights.source) == (mean == HALF and "lite" not in file)


def torchvision_backbone(name: str) -> Params:
    """Return a hollow backbone by torchvision's names."""
    places = {"depthwise": (0, 1), "squeeze_excite": (1, 2), "project": (2, 3), "expand": (None, 0)}
    tensors = {}
    for key, shape in own(model_config(name), backbone=True).items():
        part, *rest = key.split(".")[1:]
        if part.startswith("stem"):
            theirs = f"features.0.{int(part == 'stem_norm')}.{rest[-1]}"
        else:
            stage, index, what = rest[:3]
            place = places[what.removesuffix("_norm")][stage != "0"]
            layer = {"squeeze": "fc1", "excite": "fc2"}.get(rest[3], "1" if what.endswith("_norm") else "0")
            theirs = f"features.{int(stage) + 1}.{index}.block.{place}.{layer}.{rest[-1]}"
        tensors[theirs] = torch.tensor(0.5).expand(shape)
    return tensors


def test_torchvisions_names_are_the_files(published: Any) -> None:
    theirs = published("torchvision_efficientnet_b0")
    kept = {k: x.shape for k, x in theirs.items() if not re.search(r"tracked|^features\.8|^classifier", k)}
    assert {key: x.shape for key, x in torchvision_backbone("d0").items()} == kept


@pytest.mark.parametrize(("name", "eps"), [("d4", 1e-5), ("d5", 1e-3), ("d7x", 1e-3)])
def test_torchvisions_larger_backbones_have_tensorflows_epsilon(name: str, eps: float) -> None:
    config = convert_weights(torchvision_backbone(name)).config
    assert config == model_config(name, padding="symmetric", backbone_norm_eps=eps)


@pytest.mark.parametrize(
    ("hint", "model", "name", "said"),
    [
        ("", None, "d6", "d6 by default, not d7"),
        ("tf_efficientdet_d7_53-6d1d7a95.pth", None, "d7", "d7 by its name, not d6"),
        ("weights/EfficientDet-D7.pth", None, "d7", "d7 by its name, not d6"),
        ("x-6d1d7a95.pth", None, "d6", "d6 by default, not d7"),
        ("d7x.pth", None, "d6", "d6 by default, not d7"),
        ("d6.pth", "d7", "d7", ""),
        ("d7.pth", "d6", "d6", ""),
    ],
)
def test_d6_or_d7(hint: str, model: str | None, name: str, said: str) -> None:
    weights = convert_weights(as_zylo117(hollow("d6")), hint=hint, model=model)
    assert weights.config == model_config(name)
    assert weights.source == f"zylo117 efficientdet-{name}" + (f" ({said})" if said else "")


@pytest.mark.parametrize(
    ("file", "hint", "model", "name", "padding"),
    [
        ("timm_efficientnet_b0", "", "d0", "d0", "same"),
        ("timm_efficientnet_b0", "", "d0-symmetric", "d0-symmetric", "symmetric"),
        ("timm_efficientnet_b0", "tf_efficientnet_b0", "d0-symmetric", "d0-symmetric", "symmetric"),
        ("timm_efficientnet_b0", "efficientnet_b0", "d0", "d0", "symmetric"),
        ("torchvision_efficientnet_b0", "", "d0", "d0", "symmetric"),
        ("lukemelas_efficientnet-b0", "", "d0-symmetric", "d0-symmetric", "same"),
    ],
)
def test_a_backbone_is_of_the_model_asked_for(
    published: Any, file: str, hint: str, model: str, name: str, padding: str
) -> None:
    weights = convert_weights(published(file), hint=hint, model=model)
    eps = 1e-3 if padding == "same" else 1e-5
    assert weights.config == model_config(name, padding=padding, backbone_norm_eps=eps)
    assert "default" not in weights.source or not (hint or model == "d0-symmetric")


def with_classes(tensors: Params, number: int) -> Params:
    heads = {f"class_net.predict.conv_pw.{leaf}" for leaf in ("weight", "bias")}
    return {key: x[: 9 * number] if key in heads else x for key, x in tensors.items()}


@pytest.mark.parametrize("number", [1, 3, 89, 90])
def test_classes(published: Any, number: int) -> None:
    config = convert_weights(with_classes(published("effdet_tf_efficientdet_lite0"), number)).config
    assert config.classes == (COCO_CLASSES if number == 90 else tuple(f"class_{i}" for i in range(number)))


def test_an_architecture_that_nobody_published(published: Any) -> None:
    tensors = published("effdet_tf_efficientdet_lite0")
    narrow = {  # 40 channels instead of 64 after the backbone, and one cell less
        key: x if key.startswith("backbone.") else x.new_tensor(0.5).expand([40 if n == 64 else n for n in x.shape])
        for key, x in tensors.items()
        if not key.startswith("fpn.cell.2.")
    }
    config = convert_weights(narrow).config
    expected = model_config("lite0", num_channels=40, fpn_repeats=2, mean=HALF, std=HALF)
    assert config == expected
    with pytest.raises(InputError, match="not a lite0: its num_channels is 40, not 64; nearest is lite0"):
        convert_weights(narrow, model="lite0")


def test_lite3x_is_told_by_its_channels() -> None:
    for name, size, scale in (("lite3", 512, 4.0), ("lite3x", 640, 3.0)):
        config = convert_weights(as_zylo117(hollow(name))).config
        assert (config.name, config.image_size, config.anchor_scale) == (name, (size, size), scale)
    assert config.num_channels == 200


# Wrappings


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "model.module."])
@pytest.mark.parametrize("file", ["effdet_tf_efficientdet_lite0", "timm_efficientnet_b0", "zylo117_efficientdet-d0"])
def test_prefixes(published: Any, file: str, prefix: str) -> None:
    tensors = published(file)
    longer = {prefix + key: x for key, x in tensors.items()}
    plain, prefixed = convert_weights(tensors), convert_weights(longer)
    assert prefixed.config == plain.config
    assert origins(longer) == {name: prefix + key for name, key in origins(tensors).items()}
    assert prefixed.unexpected == tuple(prefix + key for key in plain.unexpected)


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
def test_effdets_bench(published: Any, prefix: str) -> None:
    tensors = published("effdet_tf_efficientdet_lite0")
    anchors = prefix.replace("model.", "") + "anchors.boxes"
    bench = {prefix + key: x for key, x in tensors.items()} | {anchors: torch.rand(19206, 4)}
    weights = convert_weights(bench)
    assert weights.config.name == "lite0"
    assert weights.unexpected[-1] == anchors


def test_what_training_scripts_wrap_around(published: Any) -> None:
    tensors, other = published("timm_efficientnet_b0"), published("timm_tf_efficientnet_lite0")
    more = {"epoch": 3, "arch": "efficientnet_b0", "optimizer": {"state": {}}}
    wrapped: list[Any] = [
        {"state_dict": tensors, **more},
        {"model": tensors, **more},
        {"state_dict": other, "state_dict_ema": tensors, **more},
        {"state_dict": tensors, "state_dict_ema": None, **more},
        {"model": {"state_dict": tensors}},
    ]
    for content in wrapped:
        assert convert_weights(content).config.backbone == "b0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(published: Any, dtype: torch.dtype) -> None:
    tensors = published("timm_tf_efficientnet_lite0", dtype=dtype)
    weights = convert_weights({key: torch.nn.Parameter(x) for key, x in tensors.items()})
    found = weights.params | weights.buffers
    assert all(type(x) is Tensor and x.dtype == torch.float32 and not x.requires_grad for x in found.values())
    assert all((x == 0.5).all() for x in found.values())


# Refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found a NoneType"),
        ([torch.zeros(1)], "found a list"),
        (torch.zeros(1), "found a Tensor"),
        ({}, "found an empty dict"),
        ({"epoch": 3, "net": {}}, "in which 'epoch' is a int"),
        ({0: torch.zeros(1)}, "in which 0 is a Tensor"),
        ({"state_dict": {"weight": [1.0]}}, "in which 'weight' is a list"),
        (
            {"fc.weight": torch.zeros(1)},
            r"known format \(effdet, zylo117, timm, torchvision, lukemelas\).*'fc\.weight'",
        ),
        ({"anchors.boxes": torch.zeros(1, 4)}, "known format"),
    ],
)
def test_other_content_is_refused(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_weights(content)


LITE0 = "timm_tf_efficientnet_lite0"
DETECTOR = "effdet_tf_efficientdet_lite0"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (LITE0, {"aux.weight": torch.zeros(1)}, r"unknown tensor 'aux\.weight'$"),
        (LITE0, {"a.b": torch.zeros(1), "c.d": torch.zeros(1)}, r"unknown tensor 'a\.b' \(and 1 more\)"),
        (LITE0, {"blocks.0.0.conv_pwl.weight": torch.zeros(1)}, r"unknown tensor 'blocks\.0\.0\.conv_pwl\.weight'$"),
        (LITE0, {"conv_stem.bias": torch.zeros(32)}, r"unknown tensor 'conv_stem\.bias' for a lite0"),
        (LITE0, {"bn1.bias": None}, r"no tensor for 'backbone\.stem_norm\.bias' of a lite0"),
        (LITE0, {"bn1.bias": None, "bn1.weight": None}, r"'backbone\.stem_norm\.weight' \(and 1 more\)"),
        (LITE0, {"blocks.3.1.conv_pwl.weight": None}, r"no tensor for 'backbone\.stages\.3\.1\.project\.weight'"),
        (LITE0, {"bn1.bias": torch.zeros(31)}, r"'bn1\.bias' has shape \(31,\), not shape \(32,\) as in a lite0"),
        (LITE0, {"bn1.bias": torch.tensor(0.0)}, r"'bn1\.bias' has shape \(\), not shape \(32,\)"),
        (LITE0, {"bn1.bias": torch.zeros(32, dtype=torch.int64)}, r"'bn1\.bias' is of torch\.int64, not of floats"),
        (LITE0, {"bn1.bias": torch.full((32,), torch.nan)}, r"'bn1\.bias' is not finite"),
        (LITE0, {"bn1.running_var": torch.tensor([torch.inf] * 32)}, r"'bn1\.running_var' is not finite"),
        (LITE0, {"blocks.1.0.conv_pwl.weight": torch.zeros(25, 96, 1, 1)}, r"'blocks\.1\.0\.conv_pwl\.weight' has sha"),
        (LITE0, {"blocks.6.1.bn3.bias": torch.zeros(320)}, "none of b0, .*, lite4: no such channels in 17 blocks"),
        (LITE0, {"blocks.0.0.se.conv_reduce.bias": torch.zeros(8)}, r"no tensor for .*squeeze_excite.* of a d0"),
        (DETECTOR, {"fpn.resample.3.conv.bn.weight": None}, r"no tensor for 'bifpn\.top\.norm\.weight'"),
        (DETECTOR, {"class_net.predict.conv_pw.bias": None}, r"no tensor for 'class_net\.predict\.pointwise\.bias'"),
        (DETECTOR, {"class_net.predict.conv_pw.bias": torch.zeros(8)}, "not a detector: classes must be"),
        (DETECTOR, {"box_net.predict.conv_pw.bias": torch.zeros(48)}, "has shape"),
        (DETECTOR, {"fpn.cell.1.fnode.8.combine.edge_weights": torch.zeros(2)}, r"'fpn\.cell\.1\.fnode\.8.*' for a"),
        (DETECTOR, {"box_net.bn_rep.0.5.bn.bias": torch.zeros(64)}, r"'box_net\.bn_rep\.0\.5\.bn\.bias' for a lite0"),
    ],
)
def test_a_tensor_too_many_too_few_or_wrong(
    published: Any, file: str, changes: dict[str, Tensor | None], message: str
) -> None:
    tensors = published(file) | changes
    with pytest.raises(InputError, match=message):
        convert_weights({key: x for key, x in tensors.items() if x is not None})


def test_a_float64_beyond_float32_is_not_finite(published: Any) -> None:
    tensors = published(LITE0) | {"bn1.bias": torch.full((32,), 1e300, dtype=torch.float64)}
    with pytest.raises(InputError, match=r"'bn1\.bias' is not finite"):
        convert_weights(tensors)


def test_counters_may_be_of_any_type(published: Any) -> None:
    tensors = published(LITE0) | {"bn1.num_batches_tracked": torch.tensor(7)}
    assert "bn1.num_batches_tracked" in convert_weights(tensors).unexpected


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        ("effdet_tf_efficientdet_lite0", "lite1", "not a lite1: its backbone is lite0, not lite1; nearest is lite0"),
        (
            "effdet_tf_efficientdet_d0",
            "d0-symmetric",
            "not a d0-symmetric: its bias_before_norm is True, not False; nearest is d0",
        ),
        ("effdet_efficientdet_d0", "d0", "not a d0: its bias_before_norm is False, not True; nearest is d0-symmetric"),
        ("timm_efficientnet_b0", "d1", "not a d1: its backbone is b0, not b1; nearest is d0"),
        ("timm_efficientnet_b0", "lite0", "not a lite0: its backbone is b0, not lite0; nearest is d0"),
    ],
)
def test_another_model_than_asked_for(published: Any, file: str, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_weights(published(file), model=model)

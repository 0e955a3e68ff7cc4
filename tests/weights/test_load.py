"""Weights by a name or from any file: what is loaded, what is missing, and that it has been learned."""

import argparse
import dataclasses
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import tinydet.weights.pretrained
from tests.checkpoints import hollow, weights_of
from tests.reference_models import levels_of, off, rebuilt
from tinydet.errors import InputError
from tinydet.model.config import COCO_CLASSES, ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, meta_model
from tinydet.model.functional import apply, params_and_buffers
from tinydet.model.postprocess import normalize
from tinydet.weights.checkpoint import Checkpoint, read_file, save_checkpoint
from tinydet.weights.formats import Weights
from tinydet.weights.load import adapt_weights, describe, load_detector, load_weights, match_classes, select_classes
from tinydet.weights.pretrained import DownloadError, imagenet_package

TINY = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(64, 96))
HEAD = "class_net.predict.pointwise."


def random_weights(config: ModelConfig, *, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    params, buffers = params_and_buffers(EfficientDet(config))
    return weights_of(config, params, buffers)


def rows(weights: Weights, name: str) -> torch.Tensor:
    """The class head's tensor of a name, [anchor class ...]."""
    return weights.params[HEAD + name].unflatten(0, (9, len(weights.config.classes)))


# Real photographs


@pytest.mark.parametrize(
    ("image_file", "labels"),
    [("coffee.png", {967: "espresso"}), ("chelsea.png", {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"})],
)
def test_an_installed_backbone_knows_what_it_sees(image_file: str, labels: dict[int, str]) -> None:
    """The backbone as a detector begins with it, under the classifier that was published with it."""
    weights = load_weights("imagenet", model="lite0")
    config, backbone = weights.config, meta_model(weights.config).backbone
    spec, package = find_spec("skimage"), imagenet_package("lite0")
    assert spec is not None
    assert spec.origin is not None
    assert package is not None
    image = Image.open(Path(spec.origin).parent / "data" / image_file).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    inputs = normalize(pixels, mean=config.mean, std=config.std)
    torch.testing.assert_close(inputs, (pixels.float() - 127) / 128, rtol=0, atol=1e-6)
    params, buffers = (
        {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
        for tensors in (weights.params, weights.buffers)
    )
    with torch.no_grad():
        (_, _, features), _ = apply(backbone, params, buffers, inputs)
        head = read_file(package)
        x = F.conv2d(features, head["_conv_head.weight"])
        mean, var, scale, shift = (head[f"_bn1.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu6(F.batch_norm(x, mean, var, scale, shift, eps=config.backbone_norm_eps)).mean((2, 3))
        scores = F.linear(x, head["_fc.weight"], head["_fc.bias"]).softmax(-1)[0]
    assert int(scores.argmax()) in labels
    assert scores[list(labels)].sum() > 0.8


# Names


def test_none_holds_nothing() -> None:
    none = load_weights("none", model="lite1")
    assert (none.config, none.params, none.buffers) == (model_config("lite1"), {}, {})
    assert load_weights("none").config == model_config("d0")


@pytest.mark.parametrize("model", ["lite0", "lite1", "lite2"])
def test_imagenet_is_an_installed_backbone(model: str) -> None:
    backbone = load_weights("imagenet", model=model)
    own = {
        name: x.shape for name, x in meta_model(backbone.config).state_dict().items() if name.startswith("backbone.")
    }
    assert {name: x.shape for name, x in {**backbone.params, **backbone.buffers}.items()} == own
    assert backbone.config == model_config(model)
    assert re.fullmatch(rf"efficientnet-{model}-[0-9a-f]{{8}}\.pth \(lukemelas .*\)", backbone.source)
    assert load_weights("auto", model=model).source == backbone.source
    other = "lite1" if model == "lite0" else "lite0"
    package = imagenet_package(model)
    assert package is not None
    with pytest.raises(InputError, match=rf"{package.name}: not a {other}: its backbone is {model}"):
        load_weights(package, model=other)


def test_auto_warns_in_one_line_where_nothing_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> Path:
        raise DownloadError("cannot fetch https://example.org/a.pth")

    monkeypatch.setattr(tinydet.weights.pretrained, "download_file", offline)
    with pytest.warns(UserWarning, match=r"^starts from random weights, because cannot fetch https://\S+$"):
        weights = load_weights("auto", model="d1")
    assert (weights.config, weights.params) == (model_config("d1"), {})
    for name in ("imagenet", "coco"):
        with pytest.raises(InputError, match="cannot fetch"):
            load_weights(name, model="d1")


@pytest.mark.parametrize(
    ("source", "model", "said"),
    [
        ("cooc", None, "^cooc: no such file, and none of auto, coco, imagenet, none$"),
        ("none", "lite9", "'lite9'.*did you mean lite"),
        ("x.pth", "lite9", "'lite9'.*did you mean lite"),
    ],
)
def test_unknown_names_are_refused(source: str, model: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_weights(source, model=model)


# Files


def test_our_own_checkpoint_gives_its_averages(tmp_path: Path) -> None:
    checkpoint = hollow(TINY)
    ema = {name: x + 1 for name, x in checkpoint.params.items()}
    save_checkpoint(tmp_path / "best.pt", checkpoint._replace(ema_params=ema))
    weights = load_weights(tmp_path / "best.pt")
    assert weights.config == TINY
    assert all(torch.equal(weights.params[name], x) for name, x in ema.items())
    assert weights.buffers.keys() == checkpoint.buffers.keys()
    assert weights.source == "best.pt (tinydet lite0)"
    assert load_weights(str(tmp_path / "best.pt"), model="lite0").config == TINY
    with pytest.raises(InputError, match=r"best\.pt: holds a lite0, not a d0"):
        load_weights(tmp_path / "best.pt", model="d0")


def test_effdets_file_is_recognised_by_its_keys(shared: Path, tmp_path: Path) -> None:
    """As a file that torch wrote and as .safetensors: one model, which says what the reference says."""
    from safetensors.torch import save_file

    folder = shared / "reference" / "models"
    keys = json.loads((folder / "tf_lite0.keys.json").read_text())
    with np.load(folder / "tf_lite0.npz") as reference:
        tensors = rebuilt({key: shape for key, shape in keys.items() if "tracked" not in key}, reference)
        expected = levels_of(reference, "class", 5)
    torch.save(tensors, tmp_path / "any.pth")
    save_file(tensors, tmp_path / "any.safetensors")
    images = torch.from_numpy(np.random.Generator(np.random.PCG64(123)).standard_normal((2, 3, 128, 128))).float()
    for name in ("any.pth", "any.safetensors"):
        weights = load_weights(tmp_path / name)
        assert (weights.config.name, len(weights.config.classes)) == ("lite0", 5)
        with torch.no_grad():
            outputs, _ = apply(meta_model(weights.config), weights.params, weights.buffers, images)
        assert off(outputs.logits, expected) < 1e-4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.zeros(2)}, r"any\.pth: "),
        ([1, 2], r"any\.pth: "),
        (
            {"format": "tinydet-0"},
            r"any\.pth: not a tinydet checkpoint \(expected format 'tinydet-1', found 'tinydet-0'",
        ),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "any.pth")
    with pytest.raises(InputError, match=said):
        load_weights(tmp_path / "any.pth")


def test_a_file_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "any.pth")
    with pytest.raises(
        InputError, match=r"^\S+any\.pth: not a readable checkpoint \(it holds more than tensors and plain values"
    ):
        load_weights(tmp_path / "any.pth")


def test_safetensors_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"any\.safetensors: not a readable checkpoint \("):
        load_weights(tmp_path / "any.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"any\.safetensors: .*pip install 'tinydet\[safetensors\]'$"):
        load_weights(tmp_path / "any.safetensors")


# Fitted to a model


def test_what_a_backbone_lacks_is_random() -> None:
    weights = load_weights("imagenet", model="lite0")
    config = dataclasses.replace(TINY)
    before = torch.get_rng_state()
    (params, buffers), report = adapt_weights(weights, config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    fresh = random_weights(config, seed=3)
    for name, x in {**params, **buffers}.items():
        given = {**weights.params, **weights.buffers}.get(name)
        assert torch.equal(x, given if given is not None else {**fresh.params, **fresh.buffers}[name])
    assert {*report.loaded} == {*weights.params, *weights.buffers}
    assert {*report.missing} == {*params, *buffers} - {*report.loaded}
    assert (report.partially_loaded, report.classes, report.unexpected) == ((), {}, weights.unexpected)
    assert any(name.startswith("_fc.") for name in report.unexpected)


def test_rows_of_match_classes_are_copied() -> None:
    coco = random_weights(dataclasses.replace(TINY, classes=COCO_CLASSES))
    coco.params[HEAD + "bias"] += torch.arange(9.0 * 90)  # all rows different
    before = {name: x.clone() for name, x in coco.params.items()}
    config = dataclasses.replace(TINY, classes=("Tree", "Cyclist", "Car"))
    (params, _), report = adapt_weights(coco, config, seed=3)
    fresh, fitted = random_weights(config, seed=3), coco._replace(config=config, params=params)
    for name in ("weight", "bias"):
        assert torch.equal(rows(fitted, name)[:, 0], rows(fresh, name)[:, 0])
        assert torch.equal(rows(fitted, name)[:, 1], rows(coco, name)[:, COCO_CLASSES.index("bicycle")])
        assert torch.equal(rows(fitted, name)[:, 2], rows(coco, name)[:, COCO_CLASSES.index("car")])
    assert report.classes == {"Cyclist": "bicycle", "Car": "car"}
    assert {*report.partially_loaded} == {HEAD + "weight", HEAD + "bias"}
    assert not report.missing
    for name in params.keys() - {*report.partially_loaded}:
        assert torch.equal(params[name], coco.params[name])
    assert all(torch.equal(coco.params[name], x) for name, x in before.items())


def test_the_same_classes_are_loaded_as_they_are() -> None:
    weights = random_weights(TINY)
    (params, buffers), report = adapt_weights(weights, dataclasses.replace(TINY, image_size=(32, 32)))
    assert all(torch.equal(params[name], x) for name, x in weights.params.items())
    assert (buffers.keys(), report.partially_loaded, report.missing) == (weights.buffers.keys(), (), ())
    assert report.classes == {"Car": "Car", "Pedestrian": "Pedestrian"}


@pytest.mark.parametrize("classes", [TINY.classes, ("Car",)])
def test_another_architecture_is_refused(classes: tuple[str, ...]) -> None:
    wide = dataclasses.replace(TINY, num_channels=72, classes=classes)
    with pytest.raises(InputError, match=r"has shape \(64, .*, lite0 needs \(72, "):
        adapt_weights(random_weights(TINY), wide)


@pytest.mark.parametrize(
    ("known", "wanted", "given", "shared"),
    [
        (("car", "person"), ("Car", "Pedestrian"), {}, {"Car": "car", "Pedestrian": "person"}),
        (("Person_sitting", "Van"), ("person sitting", "Car"), {}, {"person sitting": "Person_sitting", "Car": "Van"}),
        (("Car", "Van"), ("Van", "Car"), {}, {"Van": "Van", "Car": "Car"}),
        (("train", "truck"), ("Tram", "Misc", "Truck"), {}, {"Tram": "train", "Truck": "truck"}),
        (("motorcycle", "bicycle"), ("Cyclist",), {"Cyclist": "motorcycle"}, {"Cyclist": "motorcycle"}),
        (("traffic light",), ("traffic-light",), {}, {"traffic-light": "traffic light"}),
        ((), ("Car",), {}, {}),
    ],
)
def test_synonyms_of_classes(
    known: tuple[str, ...], wanted: tuple[str, ...], given: dict[str, str], shared: dict[str, str]
) -> None:
    assert match_classes(known, wanted, class_map=given) == shared


@pytest.mark.parametrize("given", [{"Bus": "car"}, {"Car": "bus"}])
def test_a_map_of_unknown_classes(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"class map (Bus=car: no class Bus|Car=bus: no class bus) to map"):
        match_classes(("car",), ("Car",), class_map=given)


# To detect with


def test_a_detector_can_be_cut_to_some_classes() -> None:
    coco = random_weights(dataclasses.replace(TINY, classes=COCO_CLASSES))
    images = torch.randn(1, 3, 64, 96)
    few: Any = select_classes(coco, ("Van", "person"))
    assert few.config.classes == ("Van", "person")
    with torch.no_grad():
        whole, _ = apply(meta_model(coco.config), coco.params, coco.buffers, images)
        cut, _ = apply(meta_model(few.config), few.params, few.buffers, images)
    expected = whole.logits[..., [COCO_CLASSES.index("car"), COCO_CLASSES.index("person")]]
    torch.testing.assert_close(cut.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.deltas, whole.deltas)
    with pytest.raises(InputError, match="a test knows no Tree; it knows person, bicycle, car"):
        select_classes(coco, ("car", "Tree"))


def test_a_backbone_alone_detects_nothing() -> None:
    with pytest.raises(InputError, match="no whole detector; train one from it"):
        load_detector("imagenet", model="lite0")
    with pytest.raises(InputError, match="random weights is no whole detector"):
        load_detector("none")


def test_auto_does_not_pass_over_a_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path))
    (tmp_path / "tf_efficientnet_b0_ns-c0e6a31c.pth").write_bytes(b"half")
    with pytest.raises(InputError, match=r"damaged, or another file .* remove it to have it downloaded again"):
        load_weights("auto", model="d0")


def test_a_detector_from_a_file(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    parts = weights.params, weights.buffers
    save_checkpoint(tmp_path / "best.pt", Checkpoint(TINY, *parts, *parts, {}))
    loaded = load_detector(tmp_path / "best.pt")
    assert all(torch.equal(loaded.params[name], x) for name, x in weights.params.items())
    assert {x.device.type for x in load_detector(tmp_path / "best.pt", device="meta").params.values()} == {"meta"}


# Described


def test_a_checkpoint_of_a_run_is_described(tmp_path: Path) -> None:
    path, row = tmp_path / "best.pt", {"epoch": 3, "metric": "COCO AP", "ap": 12.5, "ap_by_class": {"Car": 20.0}}
    training = {"settings": {"data": "my data"}, "history": [{"epoch": 2}, row | {"step": 30}], "weights": "a (timm)"}
    save_checkpoint(path, hollow(TINY, training=training))
    assert describe(path) == {
        "file": str(path),
        "bytes": path.stat().st_size,
        "source": "best.pt (tinydet lite0)",
        "model": "lite0",
        "classes": ["Car", "Pedestrian"],
        "image_size": [64, 96],
        "anchor_scale": 3.0,
        "parameters": sum(param.numel() for param in EfficientDet(TINY).parameters()),
        "began_from": "a (timm)",
        "data": "my data",
        **row,
    }


@pytest.mark.parametrize("training", [{}, {"settings": {}, "history": [], "weights": "a (timm)"}])
def test_a_checkpoint_without_an_epoch_is_described(tmp_path: Path, training: dict[str, object]) -> None:
    save_checkpoint(tmp_path / "best.pt", hollow(TINY, training=training))
    known = describe(tmp_path / "best.pt")
    assert (known["began_from"], known["data"]) == (training.get("weights"), None)
    assert "ap" not in known


ROW = {"epoch": 3, "metric": "COCO AP", "ap": 12.5, "ap_by_class": {"Car": 20.0}}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"weights": 5}, "weights must be text or nothing, got 5"),
        ({"settings": [1]}, "settings must be an object or nothing, got [1]"),
        ({"history": "abc"}, "history must be a list, got 'abc'"),
        ({"history": [ROW, "abc"]}, "history: number 1 must be an object, got 'abc'"),
        ({"history": [ROW | {"epoch": None}]}, "history: epoch must be a finite number, got None"),
        ({"history": [ROW | {"ap": "high"}]}, "history: ap must be a finite number, got 'high'"),
        ({"history": [ROW | {"ap_by_class": [1]}]}, "history: ap_by_class must be an object, got [1]"),
        ({"history": [{"ap": 12.5}]}, "history: epoch must be a finite number, got None"),
    ],
)
def test_a_checkpoint_that_tells_nonsense_of_its_run(tmp_path: Path, training: dict[str, object], said: str) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, hollow(TINY, training=training))
    assert load_detector(path).config == TINY
    with pytest.raises(InputError) as error:
        describe(path)
    assert str(error.value) == f"{path}: training: {said}"


def test_other_formats_are_described(tmp_path: Path, shared: Path) -> None:
    shapes = json.loads((shared / "checkpoints/effdet_tf_efficientdet_lite0.json").read_text())
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "a.pth")
    known = describe(tmp_path / "a.pth")
    assert (known["model"], known["source"]) == ("lite0", "a.pth (effdet tf_efficientdet_lite0)")
    assert len(known["classes"]) == 90
    assert "began_from" not in known

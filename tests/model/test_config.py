"""Model configs: what they refuse, what survives JSON, and the table of the published sizes."""

import dataclasses
import json

import pytest

from tinydet.errors import InputError
from tinydet.model.config import COCO_CLASSES, MODELS, ModelConfig, model_config

# name: backbone, input, channels, BiFPN layers, head layers, fusion, activation, anchor scale, levels. EfficientDet
# table 1, google/automl's hparams_config; lite3x and d0-symmetric are effdet's.
PUBLISHED = """
    d0    b0    512  64  3 3 fast swish 4 5
    d1    b1    640  88  4 3 fast swish 4 5
    d2    b2    768  112 5 3 fast swish 4 5
    d3    b3    896  160 6 4 fast swish 4 5
    d4    b4    1024 224 7 4 fast swish 4 5
    d5    b5    1280 288 7 4 fast swish 4 5
    d6    b6    1280 384 8 5 sum  swish 4 5
    d7    b6    1536 384 8 5 sum  swish 5 5
    d7x   b7    1536 384 8 5 sum  swish 4 6
    lite0 lite0 320  64  3 3 sum  relu6 3 5
    lite1 lite1 384  88  4 3 sum  relu6 3 5
    lite2 lite2 448  112 5 3 sum  relu6 3 5
    lite3 lite3 512  160 6 4 sum  relu6 4 5
    lite3x lite3 640 200 6 4 sum relu6 3 5
    lite4 lite4 640  224 7 4 sum  relu6 4 5
    d0-symmetric b0 512 64 3 3 fast swish 4 5
"""


def test_published_sizes():
    rows = []
    for name in MODELS:
        c = model_config(name)
        assert c.image_size[0] == c.image_size[1]
        row = [name, c.backbone, c.image_size[0], c.num_channels, c.fpn_repeats, c.head_repeats, c.fusion, c.activation]
        rows.append([str(value) for value in [*row, round(c.anchor_scale), len(c.levels)]])
    assert rows == [line.split() for line in PUBLISHED.strip().splitlines()]


@pytest.mark.parametrize("name", MODELS)
def test_json_round_trip(name):
    config = model_config(name, classes=("Car", "Pedestrian"), image_size=(256, 896))
    again = ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)  # tuples all the way down
    assert again.image_size == (256, 896)


def test_frozen():
    config = model_config("d0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_channels = 3  # type: ignore[misc]
    assert model_config("d0", num_channels=8) == dataclasses.replace(config, num_channels=8) != config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (0, 896)}, r"image_size must be at least 1, got \(0, 896\)"),
        ({"image_size": [512]}, r"image_size must be of type tuple\[int, int\], got \[512\]"),
        ({"classes": ()}, r"classes .* at least one, got \(\)"),
        ({"classes": ["Car", "Van", "Car"]}, "classes must be different names"),
        ({"levels": (2, 3, 4, 5)}, r"levels must count up from 3 to at least 5, got \(2, 3, 4, 5\)"),
        ({"levels": (3, 4)}, "levels"),
        ({"levels": (3, 4, 6, 7)}, "levels"),
        ({"backbone": "b8"}, "backbone must be one of .*b7.*; got 'b8'"),
        ({"fusion": "attention"}, "fusion must be one of .*fast.*; got 'attention'"),
        ({"activation": "gelu"}, "activation must be one of .*swish.*; got 'gelu'"),
        ({"padding": "valid"}, "padding must be one of .*same.*; got 'valid'"),
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"fpn_repeats": 0}, "fpn_repeats must be at least 1, got 0"),
        ({"head_repeats": -1}, "head_repeats must be at least 1, got -1"),
        ({"octaves": 0}, "octaves must be at least 1, got 0"),
        ({"anchor_scale": 0.0}, "anchor_scale must be above 0, got 0.0"),
        ({"image_size": (10**9, 64)}, "image_size must be at most 16384, got"),
        ({"num_channels": 10**5}, "num_channels must be at most 4096, got 100000"),
        ({"fpn_repeats": 33}, "fpn_repeats must be at most 32, got 33"),
        ({"head_repeats": True}, "head_repeats must be of type int, got True"),
        ({"levels": range(3, 12)}, "levels must be of type tuple"),
        ({"levels": list(range(3, 12))}, "levels must be at most 10, got"),
        ({"octaves": 101}, "octaves must be at most 100"),
        ({"aspects": ()}, "aspects must be at least one"),
        ({"aspects": ((1, 0),)}, "aspects must be above 0"),
        ({"stochastic_depth": 1}, "stochastic_depth must be at most 0.99, got 1"),
        ({"backbone_norm_eps": 0.0}, "backbone_norm_eps must be above 0"),
        ({"bias_before_norm": 1}, "bias_before_norm must be of type bool"),
        ({"mean": (0.5, 0.5)}, r"mean must be of type tuple\[float, float, float\], got \(0.5, 0.5\)"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be at least 0, got"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be above 0, got"),
        ({"classes": ("a\x1b[31m",)}, r"a class must be 1 to 200 characters, .* got 'a\\x1b\[31m'"),
        ({"classes": ("a" * 201,)}, "a class must be 1 to 200 characters"),
        ({"classes": ["Car", 5]}, "classes must be of type tuple"),
        ({"name": ""}, "name must be 1 to 200 characters"),
        ({"anchor_scale": float("nan")}, "anchor_scale must be above 0, got nan"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        model_config("d0", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["d0", "D0", "efficientdet-d0", "efficientdet_d0", "tf_efficientdet_d0", "EfficientDet-D0"]
)
def test_names_of_elsewhere(name):
    assert model_config(name) == model_config("d0")
    assert model_config("tf_efficientdet_lite3x").name == "lite3x"
    assert model_config("d0_symmetric").name == "d0-symmetric"


def test_changes_of_a_config():
    config = model_config("d1", classes=("a",))
    assert model_config(config) == config
    assert model_config(config, octaves=2) == model_config("d1", classes=("a",), octaves=2)


@pytest.mark.parametrize(
    ("name", "nearest"), [("lite5", "lite4"), ("efficientdet-d00", "d0"), ("D0-symetric", "d0-symmetric")]
)
def test_refuses_unknown_names_and_suggests_the_nearest(name, nearest):
    with pytest.raises(
        InputError, match=rf"model must be one of d0, .*lite4.*; got '{name}'; did you mean {nearest}\?"
    ):
        model_config(name)


def test_refuses_unknown_fields():
    with pytest.raises(TypeError, match=r"compound_coef is not a field of ModelConfig$"):
        model_config("d0", compound_coef=1)
    with pytest.raises(TypeError, match="image_sise is not a field of ModelConfig; did you mean image_size"):
        model_config("d0", image_sise=1)
    with pytest.raises(
        TypeError, match=r'num_classes: name the classes instead: EfficientDet\("d0", classes=\("Car", '
    ):
        model_config("d0", num_classes=8)


def test_pad_value_is_the_mean_colour():
    assert model_config("d0").pad_value == (124, 116, 104)
    assert model_config("lite0").pad_value == (127, 127, 127)
    lite = model_config("lite0")
    for x in (0, 127, 255):
        assert (x / 255 - lite.mean[0]) / lite.std[0] == pytest.approx((x - 127) / 128)


def test_coco_names_by_id():
    assert len(COCO_CLASSES) == 90
    assert all(name == " ".join(name.split()) for name in COCO_CLASSES)  # the line breaks of the table are gone
    known = {
        1: "person",
        3: "car",
        13: "stop sign",
        17: "cat",
        27: "backpack",
        44: "bottle",
        62: "chair",
        67: "dining table",
    }
    known |= {70: "toilet", 73: "laptop", 82: "refrigerator", 84: "book", 90: "toothbrush"}
    assert {i: COCO_CLASSES[i - 1] for i in known} == known
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids without a box in COCO
    assert {COCO_CLASSES[i - 1] for i in unused} == {
        *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender")
    }

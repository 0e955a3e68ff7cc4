"""Model configs: one flat, frozen record, and the table of the published sizes."""

import dataclasses
import re
from typing import Any

from tinydet.errors import InputError, nearest, quoted
from tinydet.fields import MOST_NAMES, check_fields, check_name, setting
from tinydet.model.backbone import BACKBONES
from tinydet.model.bifpn import FUSION_METHODS
from tinydet.model.layers import ACTIVATIONS, PADDINGS
from tinydet.ops.anchors import ASPECTS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # the EfficientNet-Lite input, (x - 127) / 128

# Ids 1 to 90 of COCO, ten of which name things that its box annotations leave out (Lin et al., appendix).
_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
    baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard,
    cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush"""
COCO_CLASSES = tuple(re.split(r",\s+", _NAMES))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The config of an EfficientDet: its shapes, arithmetic and input."""

    name: str
    backbone: str = setting(choices=tuple(BACKBONES))
    image_size: tuple[int, int] = setting(low=1, high=16384)  # (height, width) of letterboxed images; a net takes any
    num_channels: int = setting(low=1, high=4096)  # of the BiFPN and of the heads
    fpn_repeats: int = setting(low=1, high=32)
    head_repeats: int = setting(low=1, high=32)
    classes: tuple[str, ...] = setting(COCO_CLASSES, most=MOST_NAMES)
    levels: tuple[int, ...] = setting((3, 4, 5, 6, 7), high=10)
    fusion: str = setting("fast", choices=tuple(FUSION_METHODS))
    activation: str = setting("swish", choices=tuple(ACTIVATIONS))
    # TensorFlow's, right and bottom heavier at stride 2; or "symmetric"
    padding: str = setting("same", choices=tuple(PADDINGS))
    bias_before_norm: bool = True  # a bias that the batch norm makes redundant, as the TensorFlow models have it
    backbone_norm_eps: float = setting(1e-3, low=0, above=True, high=1)
    # Chance of dropping the last residual block in training; earlier in proportion.
    stochastic_depth: float = setting(0.0, low=0, high=0.99)
    anchor_scale: float = setting(4.0, low=0, above=True, high=1000)
    aspects: tuple[tuple[float, float], ...] = setting(ASPECTS, low=0, above=True, high=1000, most=100)
    octaves: int = setting(3, low=1, high=100)
    # Of each input channel, red first, on a scale from 0 to 1.
    mean: tuple[float, float, float] = setting(IMAGENET_MEAN, low=0, high=1)
    std: tuple[float, float, float] = setting(IMAGENET_STD, low=0, above=True, high=1000)

    def __post_init__(self) -> None:
        check_fields(self)
        check_name(self.name, kind="name")
        for name in self.classes:
            check_name(name, kind="a class")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes must be different names, at least one, got {quoted(self.classes)}")
        if self.levels != tuple(range(3, 3 + len(self.levels))) or len(self.levels) < 3:
            raise InputError(f"levels must count up from 3 to at least 5, got {quoted(self.levels)}")
        if not self.aspects:
            raise InputError("aspects must be at least one (width, height)")

    @property
    def num_anchors(self) -> int:
        """Count the anchors of a cell."""
        return self.octaves * len(self.aspects)

    @property
    def pad_value(self) -> tuple[int, int, int]:
        """Round the mean to the RGB in 0 .. 255 that images are padded with."""
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue


# name: backbone, input size, channels, BiFPN layers, head layers, and what differs from ModelConfig's defaults.
# Reference: EfficientDet table 1; D7x and Lite from google/automl, where Lite3 and Lite4 keep anchors of scale 4;
# Lite3x from effdet.
_DEEP: Any = {"stochastic_depth": 0.2}
_SUM: Any = {"fusion": "sum", **_DEEP}
_LITE: Any = {"fusion": "sum", "activation": "relu6", "mean": LITE_MEAN, "std": LITE_STD}
# effdet's efficientdet_d0: the same network as a PyTorch user would have written it.
_TORCH: Any = {"padding": "symmetric", "bias_before_norm": False, "backbone_norm_eps": 1e-5, "stochastic_depth": 0.1}
_TABLE: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "d0": ("b0", 512, 64, 3, 3, {}),
    "d1": ("b1", 640, 88, 4, 3, _DEEP),
    "d2": ("b2", 768, 112, 5, 3, _DEEP),
    "d3": ("b3", 896, 160, 6, 4, _DEEP),
    "d4": ("b4", 1024, 224, 7, 4, _DEEP),
    "d5": ("b5", 1280, 288, 7, 4, _DEEP),
    "d6": ("b6", 1280, 384, 8, 5, _SUM),
    "d7": ("b6", 1536, 384, 8, 5, {"anchor_scale": 5.0, **_SUM}),
    "d7x": ("b7", 1536, 384, 8, 5, {"levels": (3, 4, 5, 6, 7, 8), **_SUM}),
    "lite0": ("lite0", 320, 64, 3, 3, {"anchor_scale": 3.0, **_LITE}),
    "lite1": ("lite1", 384, 88, 4, 3, {"anchor_scale": 3.0, **_DEEP, **_LITE}),
    "lite2": ("lite2", 448, 112, 5, 3, {"anchor_scale": 3.0, **_DEEP, **_LITE}),
    "lite3": ("lite3", 512, 160, 6, 4, {**_DEEP, **_LITE}),
    "lite3x": ("lite3", 640, 200, 6, 4, {"anchor_scale": 3.0, **_DEEP, **_LITE}),
    "lite4": ("lite4", 640, 224, 7, 4, {**_DEEP, **_LITE}),
    "d0-symmetric": ("b0", 512, 64, 3, 3, _TORCH),
}
MODELS = tuple(_TABLE)


def model_config(model: str | ModelConfig, **changes: Any) -> ModelConfig:
    """Look up a published model by its name, and change fields of it.

    Args:
        model: d0 .. d7, d7x, lite0 .. lite4, lite3x or d0-symmetric, also as D0, efficientdet-d0, tf_efficientdet_d0;
            or a config to change.
        changes: fields of `ModelConfig` to set, `classes` and `image_size` most likely.

    Raises:
        InputError: the name is unknown.
    """
    if "num_classes" in changes:
        raise TypeError('num_classes: name the classes instead: EfficientDet("d0", classes=("Car", ...))')
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in changes.keys() - set(fields):
        raise TypeError(f"{name} is not a field of ModelConfig{nearest(name, fields)}")
    if isinstance(model, str):
        name = re.sub("^(tf[-_])?efficientdet[-_]", "", model.lower()).replace("_", "-")
        if name not in _TABLE:
            raise InputError(f"model must be one of {', '.join(MODELS)}; got {model!r}{nearest(name, MODELS)}")
        backbone, size, num_channels, fpn_repeats, head_repeats, differences = _TABLE[name]
        model = ModelConfig(name, backbone, (size, size), num_channels, fpn_repeats, head_repeats, **differences)
    return dataclasses.replace(model, **changes)

"""What a model is: one flat, frozen record, and the table of the published sizes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from tinydet.model.backbone import BACKBONES
from tinydet.model.layers import ACTIVATIONS
from tinydet.ops.anchors import ASPECTS
from tinydet.ops.fusion import METHODS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # the EfficientNet-Lite input, (x - 127) / 128

# Ids 1 to 90 of COCO, ten of which name things that its box annotations leave out (Lin et al., appendix).
COCO_CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace(
        "\n    ", " "
    ).split(", ")
)


@dataclass(frozen=True)
class ModelConfig:
    """An EfficientDet: everything that decides its shapes, its arithmetic and the input it expects."""

    name: str
    backbone: str
    """A key of `tinydet.model.backbone.BACKBONES`."""
    image_size: tuple[int, int]
    """(height, width) in pixels that pictures are letterboxed to; the model itself takes any size."""
    num_channels: int
    """Channels of the BiFPN and of the heads."""
    fpn_repeats: int
    head_repeats: int
    classes: tuple[str, ...] = COCO_CLASSES
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    fusion: str = "fast"
    activation: str = "swish"
    padding: str = "same"
    """"same" pads right and bottom heavier at stride 2, as TensorFlow does; "symmetric" pads alike on both sides."""
    bias_before_norm: bool = True
    """Whether BiFPN and laterals have a bias that their batch norm makes redundant, as the TensorFlow models do."""
    backbone_norm_eps: float = 1e-3
    stochastic_depth: float = 0.0
    """Chance of dropping the last residual block in training; earlier blocks in proportion."""
    anchor_scale: float = 4.0
    aspects: tuple[tuple[float, float], ...] = ASPECTS
    octaves: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of each input channel, red first, on a scale from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON and checkpoints know lists only
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive (height, width), got {self.image_size}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be different names, at least one, got {self.classes}")
        if self.levels != tuple(range(3, 3 + len(self.levels))) or len(self.levels) < 4:
            raise ValueError(f"levels must count up from 3 to at least 6, got {self.levels}")
        known = {"backbone": BACKBONES, "fusion": METHODS, "activation": ACTIVATIONS, "padding": ("same", "symmetric")}
        for field_name, names in known.items():
            if getattr(self, field_name) not in names:
                raise ValueError(f"{field_name} must be one of {tuple(names)}, got {getattr(self, field_name)!r}")
        for field_name in ("num_channels", "fpn_repeats", "head_repeats", "octaves"):
            if getattr(self, field_name) < 1:
                raise ValueError(f"{field_name} must be positive, got {getattr(self, field_name)}")
        if not self.anchor_scale > 0:
            raise ValueError(f"anchor_scale must be positive, got {self.anchor_scale}")

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour in 0 .. 255: what padding is made of, so that it normalises to zero."""
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


# name: backbone, input size, channels, BiFPN cells, head layers, and what differs from ModelConfig's defaults.
# Reference: EfficientDet table 1; D7x and Lite from google/automl, where Lite3 and Lite4 keep anchors of scale 4;
# Lite3x from effdet.
_DEEP: dict[str, Any] = {"stochastic_depth": 0.2}
_SUM: dict[str, Any] = {"fusion": "sum", **_DEEP}
_LITE: dict[str, Any] = {"fusion": "sum", "activation": "relu6", "mean": LITE_MEAN, "std": LITE_STD}
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
    # effdet's efficientdet_d0: the same network as a PyTorch user would have written it.
    "d0-symmetric": (
        *("b0", 512, 64, 3, 3),
        {"padding": "symmetric", "bias_before_norm": False, "backbone_norm_eps": 1e-5, "stochastic_depth": 0.1},
    ),
}
MODELS = tuple(_TABLE)


def model_config(name: str, **changes: Any) -> ModelConfig:
    """A published model by its name, with changes.

    Args:
        name: one of `MODELS`: d0 .. d7, d7x, lite0 .. lite4, lite3x, d0-symmetric.
        changes: fields of `ModelConfig` to set, `classes` and `image_size` most likely.

    Raises:
        ValueError: the name is unknown, or a change makes no sense.
    """
    if name not in _TABLE:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    backbone, size, num_channels, fpn_repeats, head_repeats, differences = _TABLE[name]
    config = ModelConfig(name, backbone, (size, size), num_channels, fpn_repeats, head_repeats, **differences)
    return dataclasses.replace(config, **changes)

"""EfficientDet: backbone, BiFPN, two heads."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinydet.model.backbone import EfficientNetBackbone
from tinydet.model.bifpn import BiFPN
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.heads import BoxNet, ClassNet


class Outputs(NamedTuple):
    """The outputs of the network for each anchor."""

    logits: Tensor  # float[B A K]: of each class, before the sigmoid
    deltas: Tensor  # float[B A 4]: for `tinydet.ops.boxes.decode`


class EfficientDet(nn.Module):
    """The detector of a config or of the name of one, with random weights: `EfficientDet("d0", classes=("Car",))`.

    Reference: Tan, Pang, Le, EfficientDet: Scalable and Efficient Object Detection.
    """

    def __init__(self, config: ModelConfig | str = "d0", **changes: Any) -> None:
        super().__init__()
        self.config = c = model_config(config, **changes)
        shared: dict[str, Any] = {"activation": c.activation, "levels": len(c.levels), "bias": c.bias_before_norm}
        self.backbone = EfficientNetBackbone(
            c.backbone,
            activation=c.activation,
            padding=c.padding,
            norm_eps=c.backbone_norm_eps,
            stochastic_depth=c.stochastic_depth,
        )
        channels = self.backbone.out_channels
        self.bifpn = BiFPN(c.num_channels, c.fpn_repeats, channels, fusion=c.fusion, padding=c.padding, **shared)
        shared["num_anchors"] = c.num_anchors
        self.class_net = ClassNet(c.num_channels, c.head_repeats, len(c.classes), **shared)
        self.box_net = BoxNet(c.num_channels, c.head_repeats, **shared)

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Outputs:
        """float[B 3 H W], normalised by the config's mean and std, any H and W; draws of the backbone -> Outputs."""
        # Depthwise and pointwise kernels are two to three times as fast on channels-last memory, on CPU and GPU;
        # torch.func.vmap knows no memory formats, but it knows permute.
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        pyramid = self.bifpn(self.backbone(images, draws))
        return Outputs(self.class_net(pyramid), self.box_net(pyramid))


def meta_model(config: ModelConfig) -> EfficientDet:
    """Build a model on the meta device, for `tinydet.model.functional.apply`."""
    with torch.device("meta"):
        return EfficientDet(config)

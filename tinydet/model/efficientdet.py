"""EfficientDet: backbone, BiFPN, two heads."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from tinydet.model.backbone import EfficientNetBackbone
from tinydet.model.bifpn import BiFPN
from tinydet.model.config import ModelConfig
from tinydet.model.heads import BoxNet, ClassNet


class Outputs(NamedTuple):
    """What the network says of each anchor."""

    logits: Tensor
    """float[B A K]: of each class, before the sigmoid."""
    deltas: Tensor
    """float[B A 4]: for `tinydet.ops.boxes.decode`."""


class EfficientDet(nn.Module):
    """The detector that a config describes, with random weights from torch's global generator.

    Reference: Tan, Pang, Le, EfficientDet: Scalable and Efficient Object Detection.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        layers: dict[str, Any] = {
            "activation": config.activation,
            "levels": len(config.levels),
            "bias": config.bias_before_norm,
        }
        self.backbone = EfficientNetBackbone(
            config.backbone,
            activation=config.activation,
            padding=config.padding,
            norm_eps=config.backbone_norm_eps,
            stochastic_depth=config.stochastic_depth,
        )
        self.bifpn = BiFPN(
            config.num_channels,
            config.fpn_repeats,
            self.backbone.out_channels,
            fusion=config.fusion,
            padding=config.padding,
            **layers,
        )
        layers["num_anchors"] = config.octaves * len(config.aspects)
        self.class_net = ClassNet(config.num_channels, config.head_repeats, len(config.classes), **layers)
        self.box_net = BoxNet(config.num_channels, config.head_repeats, **layers)

    def forward(self, images: Tensor) -> Outputs:
        """float[B 3 H W], normalised by the config's mean and std, any H and W -> Outputs."""
        # Depthwise and pointwise kernels are two to three times as fast on channels-last memory, on CPU and GPU;
        # torch.func.vmap knows no memory formats, but it knows permute.
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        pyramid = self.bifpn(self.backbone(images))
        return Outputs(self.class_net(pyramid), self.box_net(pyramid))

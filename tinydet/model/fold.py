"""Batch norms folded into the convolutions before them: the same function for inference, in fewer passes."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.errors import InputError
from tinydet.model.backbone import EfficientNetBackbone, MBConv, SqueezeExcite
from tinydet.model.bifpn import BiFPNLayer
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet, Outputs, meta_model
from tinydet.model.functional import Params, Variables
from tinydet.model.heads import Head
from tinydet.model.layers import ACTIVATIONS, BatchNorm, Conv, same_padding

INPLACE: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "swish": partial(F.silu, inplace=True)}
ONEDNN: dict[str, Any] = {"swish": ("swish", [], ""), "relu6": ("hardtanh", [0.0, 6.0], "")}  # as it names them


def inference_fn(variables: Variables, *, config: ModelConfig, compile: bool = False) -> Callable[[Tensor], Outputs]:
    """Build the inference function, float[B 3 H W], normalised -> Outputs, on the device of the weights.

    It has neither batch norms nor gradients. `compile` takes a minute when first called.
    """
    device = next(iter(variables.params.values())).device
    if compile:
        check_compiler(device)
    model = folded_model(config)
    model.load_state_dict(fold_batch_norm(variables, config), assign=True)
    if compile:
        return torch.inference_mode()(torch.compile(model, dynamic=False))
    for module in model.modules():
        if isinstance(module, FoldedConv):
            single = module.weight.dtype == torch.float32
            module.fused = device.type == "cpu" and single and bool(module.activation) and onednn_fuses()
    return torch.inference_mode()(model)


def check_compiler(device: torch.device) -> None:
    """Raise InputError where a network cannot be compiled for a CPU, since there is no C++ compiler."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as torch looks
    if device.type == "cpu" and not shutil.which(compiler.split()[0]):
        raise InputError(f"compile: there is no C++ compiler {compiler}; install it, or name another in CXX")


@cache
def onednn_fuses() -> bool:
    """Probe the two private operations of oneDNN that `FoldedConv` is faster with: whether they are there and right."""
    with torch.device("meta"):
        conv = FoldedConv(16, 16, 3, groups=16)
    conv.weight, conv.activation = nn.Parameter(torch.linspace(-1, 1, 144).view(16, 1, 3, 3)), "swish"
    x = torch.ones(1, 16, 4, 4)
    with torch.inference_mode():
        expected, conv.fused = conv(x), True
        try:
            return torch.allclose(conv(x), expected, atol=1e-4)
        except (AttributeError, RuntimeError):
            return False


def folded_model(config: ModelConfig) -> EfficientDet:
    """Build the meta model of the weights of `fold_batch_norm`: convolutions have a bias where a norm has gone.

    The norms of a head are one a level behind a shared convolution: each becomes a pointwise convolution of its own,
    and the pointwise half of the shared one goes.
    """
    model = meta_model(config)
    places: list[Any] = [(norm, name, model.get_submodule(name)) for norm, name in norm_to_conv(model).items()]
    with torch.device("meta"):
        for norm, name, conv in places:
            shape = {"kernel_size": conv.kernel_size[0], "stride": conv.stride[0], "groups": conv.groups}
            place, gone = (norm, name) if ".norms." in norm else (name, norm)
            folded = FoldedConv(conv.in_channels, conv.out_channels, **shape, bias=True, padding=config.padding)
            model.set_submodule(place, folded)
            model.set_submodule(gone, nn.Identity())
    for module in model.modules():
        if isinstance(module, (MBConv, EfficientNetBackbone)):
            convs = [getattr(module, name, None) for name in ("stem", "expand", "depthwise")]
            for conv in filter(None, convs):
                conv.activation = config.activation
            module.activation = nn.Identity()
        elif isinstance(module, (SqueezeExcite, BiFPNLayer, Head)):  # in place saves a tenth of D0's time
            module.activation = INPLACE[config.activation]
    return model.eval()


class FoldedConv(Conv):
    """A convolution and the activation behind it, whose SAME padding at stride 2 is in the kernel.

    The image is not copied, a sixth of D0's and Lite0's time; in training the larger kernel's gradient would cost more.
    """

    activation = ""
    fused = False  # whether oneDNN does both in one pass, with the kernel in its own order of memory
    packed: Any = ()  # that order, which is the best for one shape and number of threads: the first

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        kernel_size, stride, weight = self.kernel_size[0], self.stride[0], self.weight
        sides = [(kernel_size // 2, kernel_size // 2)] * 2
        if self.pads_right:
            sides = [same_padding(side, kernel_size, stride) for side in x.shape[2:]]
        (top, bottom), (left, right) = sides
        fused = self.fused and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        key, packed = (x.shape, torch.get_num_threads()) if fused else None, self.packed
        if packed and packed[0] == key:
            weight = packed[1]
        elif self.pads_right:
            weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        if not fused:
            y = F.conv2d(x, weight, self.bias, stride, (bottom, right), groups=self.groups)
            return INPLACE[self.activation](y) if self.activation else y
        settings = (bottom, right), self.stride, (1, 1), self.groups
        if not packed:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *settings, x.shape)
            self.packed = key, weight
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *settings, *ONEDNN[self.activation])


def fold_batch_norm(variables: Variables, config: ModelConfig) -> Params:
    """Fold the batch norms of `EfficientDet(config)` into the parameters of `folded_model(config)`.

    w' = w g / sqrt(var + eps),  b' = (b - mean) g / sqrt(var + eps) + beta
    """
    params, buffers = variables
    model, folded = meta_model(config), dict(params)
    for norm, conv in norm_to_conv(model).items():
        layer: Any = model.get_submodule(norm)
        scale = params[f"{norm}.weight"] * (buffers[f"{norm}.running_var"] + layer.eps).rsqrt()
        shift = params.get(f"{conv}.bias", 0) - buffers[f"{norm}.running_mean"]
        place, gone = (norm, conv) if ".norms." in norm else (conv, norm)
        for name in (f"{gone}.weight", f"{gone}.bias"):
            folded.pop(name, None)
        folded[f"{place}.weight"] = params[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{place}.bias"] = shift * scale + params[f"{norm}.bias"]
    return folded


def norm_to_conv(model: EfficientDet) -> dict[str, str]:
    """Map the name of each batch norm to that of the convolution before it."""
    convs, last = {}, ""
    for name, module in model.named_modules():  # in the order in which they are applied, but for the heads
        if isinstance(module, Conv):
            last = name
        elif isinstance(module, BatchNorm):
            head, _, place = name.partition(".norms.")  # REPEAT.LEVEL
            convs[name] = f"{head}.convs.{place.partition('.')[0]}.pointwise" if place else last
    return convs

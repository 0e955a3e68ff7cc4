"""Batch norms folded into the convolutions before them: the same function for inference, in fewer passes."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet, Outputs, meta_model
from tinydet.model.functional import Params, Variables
from tinydet.model.layers import BatchNorm, Conv, same_padding, swish


def inference_fn(variables: Variables, *, config: ModelConfig, compile: bool = False) -> Callable[[Tensor], Outputs]:
    """Build the inference function, float[B 3 H W], normalised -> Outputs, on the device of the weights.

    It has neither batch norms nor gradients. `compile` takes a minute when first called.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as torch looks
    on_cpu = next(iter(variables.params.values())).device.type == "cpu"
    if compile and on_cpu and not shutil.which(compiler.split()[0]):
        raise InputError(f"compile: there is no C++ compiler {compiler}; install it, or name another in CXX")
    model = folded_model(config)
    model.load_state_dict(fold_batch_norm(variables, config), assign=True)
    return torch.inference_mode()(torch.compile(model) if compile else model)


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
        if getattr(module, "activation", None) is swish:  # a tenth of D0's time
            module.activation = partial(F.silu, inplace=True)  # type: ignore[assignment]
    return model.eval()


class FoldedConv(Conv):
    """A convolution whose SAME padding at stride 2 is in the kernel.

    The image is not copied, a sixth of D0's and Lite0's time; in training the larger kernel's gradient would cost more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """float[B C H W] -> float[B C' ceil(H/stride) ceil(W/stride)]."""
        if not self.pads_right:
            return super().forward(x)
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        (top, bottom), (left, right) = (same_padding(size, kernel_size, stride) for size in x.shape[-2:])
        weight = F.pad(self.weight, (right - left, 0, bottom - top, 0))
        return F.conv2d(x, weight, self.bias, stride, (bottom, right), groups=self.groups)


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

"""The network made for inference: the same function in fewer passes."""

import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import Tensors, apply
from tinydet.model.layers import BatchNorm, Conv


def network(
    params: Tensors, buffers: Tensors, *, config: ModelConfig, compile: bool = False
) -> Callable[[Tensor], Outputs]:
    """A detector as a function of pictures alone: without batch norms, and without gradients.

    Args:
        params, buffers: of `EfficientDet(config)`; they decide the device.
        config: the model's.
        compile: hand it to torch.compile: a minute when first called, and then faster.

    Returns:
        float[B 3 H W], normalised -> `Outputs`.

    Raises:
        InputError: there is no C++ compiler for torch.compile to use on CPU.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as torch looks
    if compile and next(iter(params.values())).device.type == "cpu" and not shutil.which(compiler.split()[0]):
        raise InputError(f"compile: there is no C++ compiler {compiler}; install it, or name another in CXX")
    model, fused = fused_skeleton(config), fuse(params, buffers, config=config)
    if compile:
        model.load_state_dict(fused, assign=True)
        return torch.inference_mode()(torch.compile(model))
    return torch.inference_mode()(lambda images: apply(model, fused, {}, images)[0])


def fused_skeleton(config: ModelConfig) -> EfficientDet:
    """The module of a config without batch norms or memory for weights: of what `fuse` returns.

    Convolutions have a bias where a norm has gone. In the heads, whose norms are one a level behind a shared
    convolution, that convolution's pointwise half goes, and each norm gives way to a pointwise one of its own.
    """
    with torch.device("meta"):
        model = EfficientDet(config)
        before = norms_of(model)
        for norm, conv in before.items():
            was = model.get_submodule(conv)
            assert isinstance(was, Conv)
            shape = {"kernel_size": was.kernel_size[0], "stride": was.stride[0], "groups": was.groups}
            biased = Conv(was.in_channels, was.out_channels, **shape, bias=True, padding=config.padding)
            model.set_submodule(conv if _own(norm) else norm, biased)
            if _own(norm):
                model.set_submodule(norm, nn.Identity())
        for conv in {conv for norm, conv in before.items() if not _own(norm)}:
            model.set_submodule(conv, nn.Identity())
    return model.eval()


def _own(norm: str) -> bool:
    """Whether a batch norm has the convolution before it for itself."""
    return ".norms." not in norm


def norms_of(model: EfficientDet) -> dict[str, str]:
    """The name of each batch norm, and of the convolution before it."""
    before = {}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            parent, _, leaf = name.rpartition(".")
            head, _, place = parent.partition(".norms.")
            if place:  # REPEAT.LEVEL
                before[name] = f"{head}.convs.{place}.pointwise"
            elif leaf == "norm":
                names = [key for key, _ in model.get_submodule(parent).named_children()]
                before[name] = f"{parent}.{names[names.index(leaf) - 1]}"
            else:
                before[name] = name.removesuffix("_norm")
    return before


def fuse(params: Tensors, buffers: Tensors, *, config: ModelConfig) -> Tensors:
    """Weights of a model as those of its `fused_skeleton`, which in evaluation says the same.

    w' = w g / sqrt(var + eps),  b' = (b - mean) g / sqrt(var + eps) + beta

    Args:
        params, buffers: of `EfficientDet(config)`.
        config: the model's.

    Returns:
        The parameters of `fused_skeleton(config)`, which has no buffers.
    """
    with torch.device("meta"):
        model = EfficientDet(config)
    before, fused = norms_of(model), dict(params)
    for norm, conv in before.items():
        module = model.get_submodule(norm)
        assert isinstance(module, BatchNorm)
        scale = params[f"{norm}.weight"] * (buffers[f"{norm}.running_var"] + module.eps).rsqrt()
        shift = params.get(f"{conv}.bias", 0) - buffers[f"{norm}.running_mean"]
        place = conv if _own(norm) else norm
        fused[f"{place}.weight"] = params[f"{conv}.weight"] * scale[:, None, None, None]
        fused[f"{place}.bias"] = shift * scale + params[f"{norm}.bias"]
    gone = {norm if _own(norm) else conv for norm, conv in before.items()}
    return {name: tensor for name, tensor in fused.items() if name.rpartition(".")[0] not in gone}

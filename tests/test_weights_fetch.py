"""Pretrained trunks: found where they are installed, and they have learned something."""

from pathlib import Path

import pytest
import torch

from tinydet.errors import InputError
from tinydet.model.backbone import EfficientNetBackbone
from tinydet.weights.fetch import PACKAGES, imagenet_package, imagenet_trunk


@pytest.mark.parametrize("backbone", PACKAGES)
def test_installed_trunk_fits_its_backbone(backbone: str) -> None:
    path = imagenet_package(backbone)
    assert path is not None, "the pretrained extra belongs to the test environment"
    with torch.device("meta"):
        own = EfficientNetBackbone(backbone).state_dict()
    trunk = imagenet_trunk(path, backbone)
    assert {name: tensor.shape for name, tensor in trunk.items()} == {
        f"backbone.{name}": tensor.shape for name, tensor in own.items()
    }


def test_other_backbones_have_no_package() -> None:
    assert imagenet_package("b0") is None


def test_another_backbones_file_is_refused() -> None:
    path = imagenet_package("lite1")
    assert path is not None
    with pytest.raises(InputError, match="lite0's ImageNet weights"):
        imagenet_trunk(path, "lite0")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.pth"):
        imagenet_trunk(tmp_path / "broken.pth", "lite0")

"""Renames of published formats: every tensor finds its place, or is left out by name."""

import json
from pathlib import Path

import pytest
import torch

from tinydet.errors import InputError
from tinydet.model.backbone import BACKBONES, EfficientNetBackbone
from tinydet.weights.formats import LUKEMELAS, blocks_by_stage, lukemelas_trunk, rename


def published(shared: Path, name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((shared / f"checkpoints/{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("backbone", ["b0", "lite0"])
def test_lukemelas_fits_the_trunk_name_by_name_and_shape_by_shape(shared: Path, backbone: str) -> None:
    trunk = lukemelas_trunk(published(shared, f"lukemelas_efficientnet-{backbone}"), backbone)
    with torch.device("meta"):
        own = EfficientNetBackbone(backbone).state_dict()
    assert {name: tensor.shape for name, tensor in trunk.items()} == {
        f"backbone.{name}": tensor.shape for name, tensor in own.items()
    }


def test_blocks_are_counted_stage_by_stage() -> None:
    flat = {f"_blocks.{n}.x": torch.tensor(n) for n in range(16)}
    counted = blocks_by_stage(flat, "b0")
    stages = [int(key.split(".")[1]) for key in counted]
    assert [stages.count(stage) for stage in range(7)] == [1, 2, 2, 3, 3, 4, 1]  # EfficientNet, table 1
    assert list(counted) == sorted(counted)
    assert [int(tensor) for tensor in counted.values()] == list(range(16))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_a_place_for_its_last_block_and_none_beyond(backbone: str) -> None:
    with torch.device("meta"):
        count = sum(len(list(stage.children())) for stage in EfficientNetBackbone(backbone).stages)
    assert len(blocks_by_stage({f"_blocks.{count - 1}.x": torch.empty(0)}, backbone)) == 1
    with pytest.raises(InputError, match=rf"_blocks\.{count}\.x"):
        blocks_by_stage({f"_blocks.{count}.x": torch.empty(0)}, backbone)


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(InputError, match=r"'_mystery\.weight'"):
        rename("_mystery.weight", LUKEMELAS)

"""Published formats: every tensor finds its place, or is left out by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tinydet.weights.checkpoint import skeleton
from tinydet.weights.formats import read_published


def published(shared: Path, name: str) -> dict[str, Tensor]:
    shapes = json.loads((shared / f"checkpoints/{name}.json").read_text())
    return {key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "file",
    [
        "effdet_efficientdet_d0",
        "effdet_tf_efficientdet_d0",
        "effdet_tf_efficientdet_d7x",
        "effdet_tf_efficientdet_lite0",
        "lukemelas_efficientnet-b0",
        "lukemelas_efficientnet-lite0",
        "timm_efficientnet_b0",
        "timm_tf_efficientnet_lite0",
        "torchvision_efficientnet_b0",
        "zylo117_efficientdet-d0",
    ],
)
def test_every_tensor_has_its_place(shared: Path, file: str) -> None:
    tensors = published(shared, file)
    weights = read_published(tensors, hint=file)
    assert f"{weights.source.split()[0]}_{weights.source.split()[1]}" == file
    assert sorted([*weights.origins.values(), *weights.unused]) == sorted(tensors)
    model, found = skeleton(weights.config), weights.params | weights.buffers
    own = {name: x.shape for name, x in model.state_dict().items() if "det" in file or name.startswith("backbone.")}
    assert {name: x.shape for name, x in found.items()} == own

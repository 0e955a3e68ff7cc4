"""What a checkpoint is, and a smaller one that does the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import assert_same
from tinydet.errors import InputError
from tinydet.info import describe, slim
from tinydet.model.config import model_config
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import state
from tinydet.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.weights.load import load_detector

CONFIG = model_config("lite0", classes=("Car", "Tram"), image_size=(64, 96), anchor_scale=2.0)
ROW = {"epoch": 3, "metric": "COCO AP", "ap": 12.5, "ap_by_class": {"Car": 20.0, "Tram": 5.0}, "step": 30}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The checkpoint of an epoch, as training writes it."""
    params, buffers = state(EfficientDet(CONFIG))
    averaged, averaged_buffers = ({k: v + 1 for k, v in tensors.items()} for tensors in (params, buffers))
    training: dict[str, Any] = {
        "settings": {"data": "my data"},
        "history": [ROW],
        "weights": "a.pth (timm)",
        "step": 30,
        "frozen": [],
        "best": (12.5, -1.0),
        "optimizer": {"moments": [{k: v + i for k, v in params.items()} for i in (2, 3)]},
        "plateau": {},
    }
    save_checkpoint(tmp_path / "best.pt", Checkpoint(CONFIG, params, buffers, averaged, averaged_buffers, training))
    return tmp_path / "best.pt"


def test_all_that_is_known_is_said(path: Path) -> None:
    known = describe(path)
    assert known["classes"] == ["Car", "Tram"]
    assert (known["model"], known["image_size"], known["anchor_scale"]) == ("lite0", [64, 96], 2.0)
    assert known["parameters"] == sum(param.numel() for param in EfficientDet(CONFIG).parameters())
    assert known["bytes"] == path.stat().st_size
    assert (known["data"], known["began_from"]) == ("my data", "a.pth (timm)")
    assert (known["epoch"], known["metric"], known["ap"]) == (3, "COCO AP", 12.5)


def test_of_other_peoples_weights_what_they_are(tmp_path: Path, shared: Path) -> None:
    import json

    shapes = json.loads((shared / "checkpoints/effdet_tf_efficientdet_lite0.json").read_text())
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "a.pth")
    known = describe(tmp_path / "a.pth")
    assert known["model"] == "lite0"
    assert len(known["classes"]) == 90
    assert "ap" not in known


def test_a_slim_checkpoint_detects_the_same_at_a_fraction(path: Path, tmp_path: Path) -> None:
    before, after = slim(path, tmp_path / "slim.pt")
    assert (before, after) == (path.stat().st_size, (tmp_path / "slim.pt").stat().st_size)
    assert after < 0.3 * before
    ours, theirs = load_detector(tmp_path / "slim.pt"), load_detector(path)
    assert_same(ours.params, theirs.params)
    assert_same(ours.buffers, theirs.buffers)
    assert ours.config == theirs.config
    assert "optimizer" not in load_checkpoint(tmp_path / "slim.pt").training
    whole, slimmed = describe(path), describe(tmp_path / "slim.pt")
    assert {**whole, "file": 0, "bytes": 0, "source": 0} == {**slimmed, "file": 0, "bytes": 0, "source": 0}


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: not a tinydet checkpoint"):
        slim(tmp_path / "a.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()

"""What a run by heart trains on, and what it says is wrong when it fails."""

from pathlib import Path

import pytest
import torch

from tests.kitti_folders import label_line, write_frame
from tinydet.data.kitti import KittiDataset
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.model.detect import Detections
from tinydet.training.overfit import STEPS, overfit_faults, overfit_frames, overfit_settings, overfit_verdict
from tinydet.training.settings import TrainSettings

CONFIG = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(128, 256), anchor_scale=2.0)
CAR, PEDESTRIAN, TINY = (20, 30, 80, 70), (120, 20, 150, 90), (200, 50, 203, 54)


@pytest.fixture
def dataset(tmp_path: Path) -> KittiDataset:
    """A frame with nothing, one with a DontCare, and two with objects; pictures of the input's size."""
    lines = [
        [],
        [label_line("DontCare", (0, 0, 50, 50))],
        [label_line("Car", CAR), label_line("Pedestrian", PEDESTRIAN)],
        [label_line("Car", TINY), label_line("DontCare", (0, 0, 50, 50))],
    ]
    for i, of_frame in enumerate(lines):
        write_frame(tmp_path, f"{i:06d}", of_frame, size=(128, 256))
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text("".join(f"{i:06d}\n" for i in range(4)))
    return KittiDataset(tmp_path, "train", classes=CONFIG.classes)


def found(*rows: tuple[tuple[int, int, int, int], int, float]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor([s for *_, s in rows]), torch.tensor([n for _, n, _ in rows]).long())


def test_the_first_frames_with_objects(dataset: KittiDataset) -> None:
    training, validation = overfit_frames(dataset, 2)
    assert validation.names == ["000002", "000003"]
    assert training.names == validation.names * STEPS
    assert len(dataset) == 4  # as it was
    with pytest.raises(InputError, match="overfit: asked for 3 pictures with objects, there are 2"):
        overfit_frames(dataset, 3)


def test_nothing_keeps_it_from_learning_by_heart() -> None:
    settings = overfit_settings(TrainSettings("kitti", overfit=3, batch_size=8, grad_accumulation=2, lr=0.1))
    assert (settings.batch_size, settings.grad_accumulation, settings.decay, settings.ema_decay) == (3, 1, 0.0, 0.0)
    assert settings.lr == 0.1
    assert overfit_settings(settings) == settings  # a resumed run is told them again
    assert overfit_settings(TrainSettings("kitti", overfit=8, batch_size=None)).batch_size == 8


def test_every_object_that_is_not_found_is_named_with_its_reason(dataset: KittiDataset) -> None:
    _, frames = overfit_frames(dataset, 2)
    right = [found((CAR, 0, 0.9), (PEDESTRIAN, 1, 0.8)), found((TINY, 0, 0.5))]
    assert overfit_faults(frames, right, CONFIG) == []
    wrong = [found((CAR, 1, 0.9), (PEDESTRIAN, 1, 0.2)), found()]
    confused, missed, tiny = overfit_faults(frames, wrong, CONFIG)
    assert confused.startswith("000002: Car of 60x40 input pixels was taken for Pedestrian")
    assert missed.startswith("000002: Pedestrian of 30x70 input pixels was not found")
    assert tiny.startswith("000003: Car of 3x4 input pixels is reached by no anchor (best IoU 0.0")
    assert "--size" in tiny
    moved = [found(((50, 30, 110, 70), 0, 0.9), (PEDESTRIAN, 1, 0.8)), right[1]]
    assert [line.split(" ")[1] for line in overfit_faults(frames, moved, CONFIG)] == ["Car"]  # IoU of a third


def test_the_verdict(dataset: KittiDataset) -> None:
    _, frames = overfit_frames(dataset, 2)
    nothing = [found(), found()]
    (good,) = overfit_verdict(frames, nothing, CONFIG, [{"step": 60, "ap": 100.0}])
    assert "everything in 2 pictures is found after 60 steps" in good
    head, *faults = overfit_verdict(frames, nothing, CONFIG, [{"step": 60, "ap": 12.3}])
    assert "after 60 steps AP in the same 2 pictures is 12.3" in head
    assert faults == overfit_faults(frames, nothing, CONFIG)
    right = [found((CAR, 0, 0.9), (PEDESTRIAN, 1, 0.8)), found((TINY, 0, 0.5))]
    assert "other things too" in overfit_verdict(frames, right, CONFIG, [{"step": 60, "ap": 12.3}])[1]
    many = frames.take([0, 1] * 4)
    lines = overfit_verdict(many, nothing * 4, CONFIG, [{"step": 60, "ap": 0.0}])
    assert len(lines) == 7
    assert lines[-1] == "... and 7 more"

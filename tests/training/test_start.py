"""A run on a few images has all that it needs to fit them, and nothing that keeps it from that."""

from pathlib import Path

import pytest

from tests.kitti_folders import label_line, write_frame, write_kitti
from tinydet.data.dataset import DetectionDataset
from tinydet.data.kitti import KittiDataset
from tinydet.errors import InputError
from tinydet.training.settings import TrainSettings
from tinydet.training.start import overfit_settings, overfit_splits


def test_a_few_images_are_the_first_that_hold_an_object(tmp_path: Path) -> None:
    write_kitti(tmp_path, 4)
    write_frame(tmp_path / "training", "000000", [label_line("DontCare", (0, 0, 9, 9))])
    dataset: DetectionDataset = KittiDataset(tmp_path, "all", classes=("Car", "Pedestrian"))
    training, validation = overfit_splits(dataset, 2)
    assert list(validation.names) == ["000001", "000002"]
    assert list(training.names) == ["000001", "000002"] * 20
    assert training.split_note == "2 images, 000001, 000002, over and over"
    with pytest.raises(InputError, match="overfit: asked for 4 images with objects, but the training data hold 3"):
        overfit_splits(dataset, 4)


def test_nothing_keeps_an_overfit_run_from_fitting() -> None:
    settings = overfit_settings(TrainSettings("kitti", overfit=3, batch_size=8, grad_accumulation=2, lr=0.1), 3)
    assert (settings.batch_size, settings.grad_accumulation, settings.decay, settings.ema_decay) == (3, 1, 0.0, 0.0)
    assert settings.lr == 0.1
    assert overfit_settings(settings, 3) == settings  # a resumed run gets them again
    assert overfit_settings(TrainSettings("kitti", overfit=8, batch_size=None), 8).batch_size == 8

"""Data checks: what is said of boxes and images that can be read, and need not be right."""

from pathlib import Path

import numpy as np
import pytest

from tests.kitti_folders import label_line, write_frame, write_kitti
from tinydet.data.checks import duplicate_boxes, small_objects, train_val_leakage
from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.data.kitti import KittiDataset
from tinydet.labels import IGNORE


def test_duplicate_boxes_are_named_by_both_lines(tmp_path: Path) -> None:
    car, region = label_line("Car", (10, 20, 60, 50)), label_line("DontCare", (70, 20, 90, 50))
    write_frame(tmp_path / "training", "000000", [car, region, label_line("Van", (1, 2, 9, 9)), car, region])
    write_frame(tmp_path / "training", "000001", [car])
    dataset = KittiDataset(tmp_path, "all", classes=["Car"])
    assert duplicate_boxes(dataset) == ["label_2/000000.txt:4: the same Car again as in label_2/000000.txt:1"]
    assert duplicate_boxes(dataset.take([1])) == []


def test_boxes_of_many_images_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    box = np.array([[1, 2, 9, 9]], np.float32)
    counts = [1, 2, 1, 1, 1, 2]
    frames = [
        Frame(str(i), Path(f"{i}.png"), (20, 20), box.repeat(n, 0), np.zeros(n, int)) for i, n in enumerate(counts)
    ]
    whole = duplicate_boxes(dataset := DetectionDataset(frames, classes=["cat"]))
    monkeypatch.setattr("tinydet.data.checks.AT_ONCE", 2)
    assert duplicate_boxes(dataset) == whole == [f"{i}.png: the same cat again as in {i}.png" for i in (1, 5)]


def test_small_objects_are_counted_in_the_input() -> None:
    boxes = np.array([[0, 0, 5, 50], [0, 0, 20, 20], [0, 0, 1, 1]], dtype=np.float32)
    frame = Frame("a", Path("a.png"), (100, 200), boxes, np.array([0, 0, IGNORE]))
    dataset = DetectionDataset([frame], classes=["cat"])
    assert small_objects(dataset, (100, 200)) == []
    (text,) = small_objects(dataset, (50, 100))
    assert text == "1 of 2 objects are less than 4 pixels wide or high in an input of 50x100"


def test_images_that_a_split_has_twice_are_counted_twice(tmp_path: Path) -> None:
    dataset = KittiDataset(write_kitti(tmp_path, 4), "all", classes=["Car"])
    (found,) = train_val_leakage(dataset.take([0, 1]), dataset.take([1, 1]))
    assert found.startswith("1 of 2 val images are in train too")


def test_images_of_both_splits_are_leakage(tmp_path: Path) -> None:
    dataset = KittiDataset(write_kitti(tmp_path, 4), "all", classes=["Car"])
    found = train_val_leakage(dataset.take([0, 1]), dataset.take([1]))
    assert found == ["1 of 1 val images are in train too (image_2/000001.jpg): the score will be too good"]

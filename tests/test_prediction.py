"""Predictions read back from every format."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.random_detections import found
from tinydet.data.kitti import read_kitti_objects
from tinydet.errors import InputError
from tinydet.model.postprocess import Detections
from tinydet.prediction import Prediction

PAIR = ("Car", "Pedestrian")


def test_a_json_line_holds_all_of_a_prediction() -> None:
    one = Prediction(Path("folder/frame.png"), np.zeros((80, 120, 3), np.uint8), PAIR, *found(200))
    line = one.to_json()
    assert "\n" not in line
    read = json.loads(line)
    assert {name: read[name] for name in ("image", "width", "height")} == {
        "image": "folder/frame.png",
        "width": 120,
        "height": 80,
    }
    rows = read["detections"]
    for field, key in zip(one.detections, ("box", "score", "label"), strict=True):
        assert torch.equal(field, torch.tensor([row[key] for row in rows]))
    assert [row["class"] for row in rows] == [PAIR[row["label"]] for row in rows]
    assert len(line) < 200 * 110  # no digits that a float32 does not have


def result_of(detections: Detections, classes: tuple[str, ...] = PAIR) -> Prediction:
    """A prediction in an image of 100x50."""
    return Prediction(Path("a.png"), np.zeros((50, 100, 3), np.uint8), classes, *detections)


ONE = Detections(torch.tensor([[10.0, 5, 30, 45]]), torch.tensor([0.5]), torch.tensor([1]))


def test_coco_results_have_sides_and_ids() -> None:
    assert result_of(ONE).to_coco(7) == [{"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 40], "score": 0.5}]
    assert result_of(ONE).to_coco(7, category_ids={"Pedestrian": 90})[0]["category_id"] == 90
    assert result_of(found(0)).to_coco(7) == []


def test_yolo_results_are_shares_of_the_image() -> None:
    assert result_of(ONE).to_yolo() == "1 0.2 0.5 0.2 0.8 0.5\n"
    assert result_of(found(0)).to_yolo() == ""


def test_a_prediction_says_what_it_holds() -> None:
    one = result_of(ONE)
    assert (len(one), one.names, one.labels.tolist()) == (1, ["Pedestrian"], [1])
    assert one.draw().size == (100, 50)
    assert np.asarray(one.draw()).any()


def test_a_kitti_result_reads_back(tmp_path: Path) -> None:
    detections = found(500)
    path = tmp_path / "000001.txt"
    path.write_text(result_of(detections, ("Car", "traffic light")).to_kitti())
    read = read_kitti_objects(path, scored=True)
    assert read.types == [("Car", "traffic_light")[label] for label in detections.labels.tolist()]
    assert read.scores is not None
    np.testing.assert_array_equal(read.boxes.astype(np.float32), detections.boxes.numpy())
    np.testing.assert_array_equal(read.scores.astype(np.float32), detections.scores.numpy())
    assert result_of(found(0)).to_kitti() == ""


def test_a_kitti_line_leaves_out_what_only_3d_detectors_know() -> None:
    one = Detections(torch.tensor([[712.4, 143, 810.73, 307.92]]), torch.tensor([0.87]), torch.tensor([1]))
    expected = "Pedestrian -1 -1 -10 712.4 143.0 810.73 307.92 -1 -1 -1 -1000 -1000 -1000 -10 0.87\n"
    assert result_of(one).to_kitti() == expected


def test_classes_without_a_category_are_left_out_of_coco_results() -> None:
    one = result_of(found(50))
    rows = one.to_coco(7, category_ids={"Car": 3})
    assert {row["category_id"] for row in rows} == {3}
    assert len(rows) == one.names.count("Car")


def test_further_fields_stand_before_the_detections() -> None:
    assert list(json.loads(result_of(ONE).to_json(frame=3, time=0.1))) == [
        *("image", "width", "height", "frame", "time", "detections")
    ]


def test_a_dictionary_is_torchvisions() -> None:
    one = result_of(found(9))
    assert list(one.to_dict()) == ["boxes", "labels", "scores"]
    assert all(one.to_dict()[name] is getattr(one, name) for name in one.to_dict())


def test_supervision_gets_arrays_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    one = result_of(found(9))
    made = one.to_supervision()
    for field, array in zip(one.detections, (made.xyxy, made.confidence, made.class_id), strict=True):
        np.testing.assert_array_equal(array, field.numpy())
    assert made.data["class_name"].tolist() == one.names
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="to_supervision needs supervision: pip install supervision"):
        one.to_supervision()


def test_a_label_studio_task_has_percentages() -> None:
    assert result_of(ONE).to_labelstudio() == {
        "data": {"image": "a.png"},
        "predictions": [
            {
                "result": [
                    {
                        "type": "rectanglelabels",
                        "from_name": "label",
                        "to_name": "image",
                        "original_width": 100,
                        "original_height": 50,
                        "image_rotation": 0,
                        "value": {
                            "x": 10,
                            "y": 10,
                            "width": 20,
                            "height": 80,
                            "rotation": 0,
                            "rectanglelabels": ["Pedestrian"],
                        },
                        "score": 0.5,
                    }
                ]
            }
        ],
    }

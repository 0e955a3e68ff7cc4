"""Each error has its TIDE type, and every object and detection is counted once in the confusion matrix."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.postprocess import Detections
from tinydet.tide import detection_errors

CAT, DOG = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 90.0, 50.0)
REGION = (0.0, 60.0, 40.0, 100.0)
OBJECTS = ((CAT, 0), (DOG, 1), (REGION, IGNORE))
BOTH = ((CAT, 0.9, 0), (DOG, 0.9, 1))


def errors_of(*rows: Any, objects: Any = OBJECTS) -> tuple[list[Any], np.ndarray]:
    """The errors among detections (box, score, label) in one image."""
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    frame = Frame("a", Path("a.png"), (100, 100), boxes, np.array([label for _, label in objects], np.int64))
    found, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    fields = torch.tensor(found).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
    return detection_errors(DetectionDataset([frame], classes=("cat", "dog")), [Detections(*fields)])


def test_matches_are_no_errors() -> None:
    errors, confusion = errors_of((CAT, 0.9, 0), (DOG, 0.4, 1))
    assert errors == []
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(CAT, 0.9, 0)], [("missed", BACKGROUND, 1)]),
        ([*BOTH, ((70, 70, 90, 90), 0.8, 0)], [("background", 0, BACKGROUND)]),
        ([*BOTH, ((40, 40, 70, 70), 0.5, 0)], [("background", 0, BACKGROUND)]),  # TIDE's "both"
        ([(CAT, 0.9, 0), (DOG, 0.9, 0)], [("classification", 0, 1)]),
        ([(DOG, 0.9, 1), ((35, 10, 75, 50), 0.5, 0)], [("localisation", 0, BACKGROUND), ("missed", BACKGROUND, 0)]),
        ([*BOTH, (CAT, 0.5, 0)], [("duplicate", 0, BACKGROUND)]),
        ([*BOTH, ((5, 65, 35, 95), 0.9, 0)], []),  # in the ignore region
    ],
)
def test_each_type(rows: Any, expected: list[Any]) -> None:
    assert [(one.kind, one.label, one.true_label) for one in errors_of(*rows)[0]] == expected


def test_worst_errors_come_first_and_all_are_counted() -> None:
    errors, confusion = errors_of(((70, 70, 90, 91), 0.9, 1), (CAT, 0.7, 1), ((70, 70, 90, 90), 0.6, 0))
    assert [one.kind for one in errors] == ["background", "classification", "background", "missed"]
    assert errors[-1].weight == np.float32(30 * 40 / 100**2)
    assert confusion.tolist() == [[0, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_neither_objects_nor_detections() -> None:
    errors, confusion = errors_of(objects=())
    assert (errors, confusion.sum()) == ([], 0)
    assert [one.kind for one in errors_of((CAT, 0.9, 0), objects=())[0]] == ["background"]

"""Each wrong detection has its kind, and every object and detection is counted once."""

from pathlib import Path

import numpy as np
import torch

from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.labels import IGNORE
from tinydet.mistakes import mistakes
from tinydet.model.detect import Detections

CAT, DOG = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 90.0, 50.0)
REGION = (0.0, 60.0, 40.0, 100.0)


def dataset_of(*objects: tuple[tuple[float, ...], int]) -> DetectionDataset:
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    return DetectionDataset([Frame("a", Path("a.png"), (100, 100), boxes, labels)], classes=("cat", "dog"))


def found(*rows: tuple[tuple[float, ...], float, int]) -> list[Detections]:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    fields = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
    return [Detections(*fields)]


DATA = dataset_of((CAT, 0), (DOG, 1), (REGION, IGNORE))


def kinds(*rows: tuple[tuple[float, ...], float, int]) -> list[tuple[str, int]]:
    return [(one.kind, one.label) for one in mistakes(DATA, found(*rows))[0]]


def test_what_is_right_is_no_mistake() -> None:
    wrong, confusion = mistakes(DATA, found((CAT, 0.9, 0), (DOG, 0.4, 1)))
    assert wrong == []
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_each_kind() -> None:
    assert kinds((CAT, 0.9, 0)) == [("missed", 1)]
    assert kinds((CAT, 0.9, 0), (DOG, 0.9, 1), ((70, 70, 90, 90), 0.8, 0)) == [("false", 0)]
    assert kinds((CAT, 0.9, 0), (DOG, 0.9, 0)) == [("confused", 0)]
    assert kinds((CAT, 0.9, 0), (DOG, 0.9, 1), ((40, 40, 70, 70), 0.5, 0)) == [("false", 0)]
    near = (35.0, 10.0, 75.0, 50.0)
    assert kinds((DOG, 0.9, 1), (near, 0.5, 0)) == [("badly placed", 0), ("missed", 0)]
    assert kinds((CAT, 0.9, 0), (DOG, 0.9, 1), (CAT, 0.5, 0)) == [("badly placed", 0)]  # the second on one object


def test_scores_too_low_are_not_looked_at() -> None:
    assert kinds((CAT, 0.2, 0), (DOG, 0.9, 1)) == [("missed", 0)]


def test_a_region_to_be_left_alone_excuses() -> None:
    assert kinds((CAT, 0.9, 0), (DOG, 0.9, 1), ((5, 65, 35, 95), 0.9, 0)) == []


def test_the_worst_come_first_and_everything_is_counted() -> None:
    rows = [((70, 70, 90, 90), 0.6, 0), ((70, 70, 90, 91), 0.9, 1), (CAT, 0.7, 1)]
    wrong, confusion = mistakes(DATA, found(*sorted(rows, key=lambda row: -row[1])))
    assert [one.kind for one in wrong] == ["false", "confused", "false", "missed"]
    assert wrong[1].truth == 0
    assert wrong[-1].weight == np.float32(30 * 40 / 100**2)
    assert confusion.tolist() == [[0, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_nothing_at_all() -> None:
    wrong, confusion = mistakes(dataset_of(), found())
    assert (wrong, confusion.sum()) == ([], 0)

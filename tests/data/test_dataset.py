"""A data set is columns: frames are views, subsets are indices, and any data set has boxes to evaluate against."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, Subset

from tests.kitti_folders import write_kitti
from tinydet.data.dataset import DetectionDataset, Frame, gather, ground_truth
from tinydet.data.images import Example, letterbox_scale
from tinydet.data.kitti import KittiDataset
from tinydet.errors import InputError
from tinydet.labels import BACKGROUND, IGNORE

CLASSES = ("cat", "dog", "bird")


def frame(name: str, boxes: list[list[float]], labels: list[int], *, size: tuple[int, int] = (60, 80)) -> Frame:
    table = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Frame(name, Path(f"folder/{name}.png"), size, table, np.array(labels, dtype=np.int64))


FRAMES = [
    frame("a", [[1, 2, 30, 40], [0, 0, 9, 9]], [1, IGNORE]),
    frame("b", [], []),
    frame("c", [[5, 5, 50, 20]], [0], size=(30, 60)),
]


@pytest.fixture
def dataset() -> DetectionDataset:
    return DetectionDataset(FRAMES, classes=CLASSES)


def assert_frames(dataset: DetectionDataset, frames: list[Frame]) -> None:
    assert len(dataset) == len(frames)
    for found, expected in zip(dataset.frames(), frames, strict=True):
        assert (found.name, found.path, found.size) == expected[:3]
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)


def test_frames_come_back_as_they_were_given(dataset: DetectionDataset) -> None:
    assert_frames(dataset, FRAMES)
    assert dataset.names.tolist() == ["a", "b", "c"]
    assert [Path(path) for path in dataset.paths] == [one.path for one in FRAMES]
    assert (dataset.sizes.tolist(), dataset.offsets.tolist()) == ([[60, 80], [60, 80], [30, 60]], [0, 2, 2, 3])
    assert (dataset.labels.tolist(), dataset.image_index.tolist()) == ([1, IGNORE, 0], [0, 0, 2])
    assert dataset.counts == {"cat": 1, "dog": 1, "bird": 0}
    assert dataset.origin(2) == "folder/c.png"
    assert dataset.frame(-1).name == "c"
    with pytest.raises(IndexError):
        dataset.frame(3)


@given(st.lists(st.integers(0, 2), max_size=6), st.data())
def test_taking_is_indexing(rows: list[int], data: st.DataObject) -> None:
    dataset = DetectionDataset(FRAMES, classes=CLASSES)
    taken = dataset.take(rows)
    assert_frames(taken, [FRAMES[row] for row in rows])
    parts = [FRAMES[row].boxes for row in rows]
    np.testing.assert_array_equal(taken.boxes, np.concatenate([np.zeros((0, 4), np.float32), *parts]))
    assert taken.names.tolist() == [FRAMES[row].name for row in rows]
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    assert_frames(taken.take(again), [FRAMES[rows[row]] for row in again])
    assert_frames(dataset, FRAMES)
    assert_frames(pickle.loads(pickle.dumps(taken)), [FRAMES[row] for row in rows])


def test_taking_copies_nothing(dataset: DetectionDataset) -> None:
    taken = dataset.take([2, 0] * 100)
    for row in (1, 199):
        assert np.shares_memory(taken.frame(row).boxes, dataset.boxes)
        assert np.shares_memory(taken.frame(row).labels, dataset.labels)
    assert taken._columns is dataset._columns
    assert "_taken" not in vars(taken)


def test_a_sample_is_spread_over_all(dataset: DetectionDataset) -> None:
    assert dataset.sample(3) is dataset
    assert dataset.sample(2).names.tolist() == ["a", "c"]
    assert dataset.take([0, 1] * 50).sample(10).names.tolist() == dataset.take([0, 1] * 5).names.tolist()


@given(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=5), st.data())
def test_gathering_is_a_loop_over_lists(lists: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    flat = [one for some in lists for one in some]
    index, offsets = gather(np.cumsum([0, *map(len, lists)]), np.array(rows, dtype=np.int64))
    assert [flat[i] for i in index] == [one for row in rows for one in lists[row]]
    assert np.diff(offsets).tolist() == [len(lists[row]) for row in rows]


def test_a_digest_tells_data_apart_but_not_where_their_files_are(dataset: DetectionDataset) -> None:
    first, *others = FRAMES
    moved = [one._replace(path=Path("elsewhere") / one.path) for one in FRAMES]
    assert DetectionDataset(moved, classes=CLASSES).digest() == dataset.digest()
    longer = DetectionDataset([*FRAMES, first._replace(name="a longer name")], classes=CLASSES)
    assert longer.take([0, 1, 2]).digest() == dataset.digest()
    changes = [
        first._replace(name="z"),
        first._replace(size=(61, 80)),
        first._replace(boxes=first.boxes + np.float32(0.5)),
        first._replace(labels=first.labels[::-1].copy()),
        first._replace(boxes=first.boxes[:1], labels=first.labels[:1]),
    ]
    digests = [DetectionDataset([one, *others], classes=CLASSES).digest() for one in changes]
    taken = [dataset.take(rows).digest() for rows in ([0, 2, 1], [0, 1], [0, 1, 2, 2], [])]
    assert len({dataset.digest(), *digests, *taken}) == 10


def test_boxes_in_an_input_are_those_of_a_loop(dataset: DetectionDataset) -> None:
    for size in ((64, 96), (31, 200)):
        expected = [one.boxes * letterbox_scale(one.size, size) for one in FRAMES]
        np.testing.assert_array_equal(dataset.boxes_in(size), np.concatenate(expected))
        np.testing.assert_array_equal(dataset.take([2]).boxes_in(size), expected[2])


def test_boxes_are_clipped_and_background_is_left_out() -> None:
    one = frame("a", [[-3, 2, 30, 99], [0, 0, 9, 9], [70, 50, 90, 70]], [1, BACKGROUND, 0])
    dataset = DetectionDataset([one], classes=CLASSES)
    assert dataset.boxes.tolist() == [[0, 2, 30, 60], [70, 50, 80, 60]]
    assert dataset.labels.tolist() == [1, 0]
    outside = frame("b", [[1, 2, 3, 4], [80, 1, 90, 9]], [1, 0])
    complaint = r"^folder/b\.png: box 80 1 90 9 \(x1 y1 x2 y2\) lies outside of its 80x60 image$"
    with pytest.raises(InputError, match=complaint):
        DetectionDataset([one, outside], classes=CLASSES)
    errors: list[InputError] = []
    assert DetectionDataset([outside], classes=CLASSES, on_error=errors.append).labels.tolist() == [1]
    assert len(errors) == 1


def test_a_data_set_holds_an_image() -> None:
    with pytest.raises(InputError, match="no train images: there is no image that can be used"):
        DetectionDataset([], classes=CLASSES, split_note="no train images")


def test_an_image_is_read_and_its_size_checked(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (1, 2, 3)).save(tmp_path / "a.png")
    one = FRAMES[0]._replace(path=tmp_path / "a.png")
    example = DetectionDataset([one], classes=CLASSES)[0]
    assert (example.name, example.size, example.image[0, 0].tolist()) == ("a", (60, 80), [1, 2, 3])
    np.testing.assert_array_equal(example.boxes, one.boxes)
    with pytest.raises(InputError, match=r"a\.png is 81x60 pixels, but .*a\.png is 80x60 upright"):
        DetectionDataset([one._replace(size=(60, 81))], classes=CLASSES)[0]


def test_an_ignore_region_is_a_crowd_of_every_class(dataset: DetectionDataset) -> None:
    found = dataset.take([2, 0]).coco_annotations()
    assert found.images.tolist() == [0, 1, 1, 1, 1]
    assert found.labels.tolist() == [0, 1, 0, 1, 2]
    assert found.boxes.tolist() == [[5, 5, 45, 15], [1, 2, 29, 38], *[[0, 0, 9, 9]] * 3]
    assert found.areas.tolist() == [675, 29 * 38, 81, 81, 81]
    assert found.crowd.tolist() == [False, False, True, True, True]


class Own(Dataset[Any]):
    """A person's own data set, of `Example`s or of tuples."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_ground_truth_of_any_data_set() -> None:
    image = np.full((60, 80, 3), 7, dtype=np.uint8)
    boxes, labels = torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([1])
    half = Example(image, np.array([[2.0, 4, 6, 8]], np.float32), np.array([IGNORE]), "half", (120, 160), 0.5)
    own = Own([(torch.from_numpy(image).permute(2, 0, 1), boxes, labels), half])
    truth = ground_truth(own, classes=CLASSES)
    assert (truth.names.tolist(), truth.classes) == (["0", "half"], CLASSES)
    assert truth.sizes.tolist() == [[60, 80], [120, 160]]
    assert truth.boxes.tolist() == [[1, 2, 30, 40], [4, 8, 12, 16]]  # original pixels
    assert truth.labels.tolist() == [1, IGNORE]
    assert ground_truth(own).classes == ("class_0", "class_1")
    own.classes = ["x", "y", "z"]  # type: ignore[attr-defined]
    assert ground_truth(own).classes == ("x", "y", "z")
    with pytest.raises(InputError, match=r"the data set has label 1, but only 1 classes: cat"):
        ground_truth(own, classes=["cat"])
    with pytest.raises(InputError, match=r"^item 0: box 90 2 300 40 .* lies outside of its 80x60 image$"):
        ground_truth(Own([(image, [[90, 2, 300, 40]], [1])]))


def test_ground_truth_of_ours_is_itself(tmp_path: Path) -> None:
    kitti = KittiDataset(write_kitti(tmp_path, 4), "all", classes=["Car"])
    assert ground_truth(kitti) is kitti
    part = ground_truth(Subset(kitti, [3, 1]))
    assert isinstance(part, KittiDataset)
    assert part.names.tolist() == ["000003", "000001"]
    assert part.objects(0).types == kitti.objects(3).types

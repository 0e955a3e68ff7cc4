"""KITTI's text becomes arrays, and what is wrong with it is named by file, line and value."""

import pickle
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.kitti_folders import HEIGHT, WIDTH, label_line, write_frame, write_kitti
from tinydet.data.kitti import KittiDataset, find_kitti, read_kitti_objects
from tinydet.errors import InputError, NotFoundError
from tinydet.labels import IGNORE

CAR = label_line("Car", (10, 20, 60, 50))


def label_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "label_2" / "000012.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def one_frame(tmp_path: Path, lines: list[str], **settings) -> KittiDataset:
    """The data set of one frame, in both roles: a second one only completes the lists."""
    write_frame(tmp_path / "training", "one", lines)
    write_frame(tmp_path / "training", "two", [CAR])
    for split, name in (("train", "one"), ("val", "two")):
        (tmp_path / "ImageSets").mkdir(exist_ok=True)
        (tmp_path / "ImageSets" / f"{split}.txt").write_text(name)
    return KittiDataset(tmp_path, **settings)


def test_a_label_file_keeps_its_order_and_its_digits(tmp_path: Path) -> None:
    text = "\n".join(
        [
            label_line("Van", (1.25, 2.5, 3.75, 4.99), truncated=0.15, occluded=2),
            "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10",
            CAR + " \r\n\n  \n",
        ]
    )
    objects = read_kitti_objects(label_file(tmp_path, text))
    assert objects.types == ["Van", "DontCare", "Car"]
    assert objects.truncated.tolist() == [0.15, -1, 0]
    assert objects.occluded.tolist() == [2, -1, 0]
    assert objects.boxes.tolist() == [[1.25, 2.5, 3.75, 4.99], [503.89, 169.71, 590.61, 190.13], [10, 20, 60, 50]]
    assert (objects.boxes.dtype, objects.occluded.dtype, objects.scores) == (np.float64, np.int64, None)


@pytest.mark.parametrize("scored", [False, True])
def test_an_empty_file_holds_no_objects(tmp_path: Path, scored: bool) -> None:
    objects = read_kitti_objects(label_file(tmp_path, "\n"), scored=scored)
    assert (objects.types, objects.boxes.shape, objects.truncated.shape) == ([], (0, 4), (0,))
    assert (objects.scores is None) != scored


@given(st.lists(st.tuples(*[st.floats(0, 1e4, width=32)] * 2, *[st.floats(0.01, 1e4)] * 2, st.floats(-50, 50))))
def test_results_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("results") / "000000.txt"
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in rows]
    lines = (
        f"Car -1 -1 -10 {' '.join(map(repr, box))} -1 -1 -1 -1000 -1000 -1000 -10 {score!r}\n"
        for box, (*_, score) in zip(boxes, rows, strict=True)
    )
    path.write_text("".join(lines))
    objects = read_kitti_objects(path, scored=True)
    assert objects.scores is not None
    assert objects.scores.tolist() == [score for *_, score in rows]
    assert objects.boxes.tolist() == [list(box) for box in boxes]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Car 0 0", "expected 15 fields, got 3 ('Car 0 0')"),
        (CAR + " 0.9", "expected 15 fields, got 16"),
        (CAR.replace("10.00", "10,00"), "x1 is not a number ('10,00')"),
        (CAR.replace("44.49", "nan"), "z is not finite ('nan')"),
        (CAR.replace("60.00", "1e999"), "x2 is not finite ('1e999')"),
        (CAR.replace("60.00", "1e308"), "x2 is beyond 1e+15 ('1e308')"),
        (CAR.replace("60.00", "7" * 400), f"x2 is not finite ('{'7' * 58}…)"),
        (CAR.replace("60.00", "0x10"), "x2 is not a number ('0x10')"),
        (CAR.replace("60.00", "6_0"), "x2 is not a number ('6_0')"),
        (CAR.replace(" 0 ", " 0.5 "), "occluded is not a whole number from 0 to 3 ('0.5')"),
        (label_line("Car", (60, 20, 10.5, 50)), "x2 < x1 (10.5, 60)"),
        (label_line("DontCare", (10, 50, 60, 20)), "y2 < y1 (20, 50)"),
        (label_line("Car", (10, 20, 10, 50)), "x2 == x1 (10, 10)"),
        (label_line("Car", (10, 20, 60, 20)), "y2 == y1 (20, 20)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = label_file(tmp_path, f"{CAR}\n{CAR}\n{line}\n{CAR}\n")
    with pytest.raises(InputError, match="^" + re.escape(f"label_2/000012.txt:3: {complaint}")):
        read_kitti_objects(path)


def test_a_result_box_may_be_empty_but_not_inverted(tmp_path: Path) -> None:
    empty = read_kitti_objects(label_file(tmp_path, label_line("Car", (9, 2, 9, 5)) + " 0.5"), scored=True)
    assert empty.types == ["Car"]
    with pytest.raises(InputError, match=r"000012\.txt:1: x2 < x1"):
        read_kitti_objects(label_file(tmp_path, label_line("Car", (9, 2, 8, 5)) + " 0.5"), scored=True)
    with pytest.raises(InputError, match="score is not finite"):
        read_kitti_objects(label_file(tmp_path, CAR + " inf"), scored=True)
    with pytest.raises(InputError, match="expected 16 fields, got 15"):
        read_kitti_objects(label_file(tmp_path, CAR), scored=True)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = label_file(tmp_path, "")
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match=r"label_2/000012\.txt:1: not UTF-8 text; save it as UTF-8"):
        read_kitti_objects(path)
    with pytest.raises(InputError, match=r"gone\.txt: No such file"):
        read_kitti_objects(tmp_path / "gone.txt")


def test_the_archives_are_unpacked_side_by_side(tmp_path: Path) -> None:
    write_kitti(tmp_path / "data_object_image_2", 3)
    labels = tmp_path / "data_object_label_2/training/label_2"
    labels.parent.mkdir(parents=True)
    (tmp_path / "data_object_image_2/training/label_2").rename(labels)
    assert find_kitti(tmp_path) == (tmp_path / "data_object_image_2/training/image_2", labels, None)


@pytest.mark.parametrize("layout", ["", "training", "raw/training", "Kitti/raw/training"])
def test_every_known_layout_is_found(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    write_frame(folder, "000000", [CAR])
    assert find_kitti(tmp_path) == (folder / "image_2", folder / "label_2", None)
    lists = (folder.parent if layout else folder) / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("000000\n")
    assert find_kitti(str(tmp_path)).lists == lists


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="found no image_2 and label_2"):
        find_kitti(tmp_path)
    (tmp_path / "training/label_2").mkdir(parents=True)
    with pytest.raises(InputError, match=r"training/label_2 is there, but no .*/training/image_2$"):
        find_kitti(tmp_path)


def test_names_in_lists_may_have_a_suffix(tmp_path: Path) -> None:
    write_kitti(tmp_path, 3, lists={"train": ["000002.txt", "000000.png"], "val": ["000001"]})
    assert KittiDataset(tmp_path, classes=["Car"]).names.tolist() == ["000002", "000000"]


def test_lists_decide_the_split_and_their_order(tmp_path: Path) -> None:
    write_kitti(tmp_path, 5, lists={"train": ["000003", "000001"], "val": ["000000", "000004"]})
    train, val = (KittiDataset(tmp_path, split, classes=["Car"]) for split in ("train", "val"))
    assert (train.names.tolist(), val.names.tolist()) == (["000003", "000001"], ["000000", "000004"])
    assert (len(train), len(val)) == (2, 2)
    assert "ImageSets/train.txt" in train.split_note
    assert [frame.path.name for frame in train.frames()] == ["000003.png", "000001.jpg"]


@pytest.mark.parametrize(
    ("lists", "complaint"),
    [
        ({"train": ["000000", "9"], "val": ["000001"]}, "ImageSets/train.txt:2: frame '9' has no image"),
        ({"train": ["000000"], "val": ["000002"]}, "ImageSets/val.txt:1: frame '000002' has no label"),
        ({"train": ["000000"] * 2, "val": ["000001"]}, "ImageSets/train.txt:2: frame '000000' was listed before"),
        (
            {"train": ["000000"], "val": ["000001", "000000"]},
            "ImageSets/val.txt:2: frame '000000' was listed before, in ImageSets/train.txt:1",
        ),
        ({"train": [], "val": ["000001"]}, "ImageSets/train.txt: lists no frames"),
        ({"val": ["000001"]}, "ImageSets: has no train.txt"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, lists: dict[str, list[str]], complaint: str) -> None:
    write_kitti(tmp_path, 3, lists=lists)
    (tmp_path / "training/label_2/000002.txt").unlink()
    with pytest.raises(InputError, match=re.escape(complaint)):
        KittiDataset(tmp_path, classes=["Car"])


def test_one_list_alone_serves_its_split(tmp_path: Path) -> None:
    write_kitti(tmp_path, 3, lists={"val": ["000001"]})
    assert KittiDataset(tmp_path, "val").names.tolist() == ["000001"]


@pytest.mark.parametrize("frames", [2, 3, 9, 10, 47])
def test_without_lists_whole_blocks_of_frames_are_held_out(tmp_path: Path, frames: int) -> None:
    write_kitti(tmp_path, frames)
    train, val = (KittiDataset(tmp_path, split, classes=["Car"], seed=3) for split in ("train", "val"))
    everything = sorted([*train.names, *val.names])
    assert everything == [f"{i:06d}" for i in range(frames)]
    assert train.names.tolist() == sorted(train.names)
    assert 1 <= len(val) <= max(1, round(0.25 * frames))
    seams = sum((a in val.names) != (b in val.names) for a, b in pairwise(everything))
    assert seams <= 4
    assert KittiDataset(tmp_path, "val", classes=["Car"], seed=3).names.tolist() == val.names.tolist()
    assert "seed 3" in val.split_note
    assert f"{tmp_path / 'training'} has no ImageSets, so " in val.split_note


def test_the_seed_draws_the_blocks(tmp_path: Path) -> None:
    write_kitti(tmp_path, 20)
    drawn = {tuple(KittiDataset(tmp_path, "val", classes=["Car"], seed=seed).names) for seed in range(8)}
    assert len(drawn) > 3


@pytest.mark.parametrize(("gone", "missing"), [("label_2/000001.txt", "label"), ("image_2/000001.jpg", "image")])
def test_without_lists_every_frame_must_be_whole(tmp_path: Path, gone: str, missing: str) -> None:
    write_kitti(tmp_path, 4)
    (tmp_path / "training" / gone).unlink()
    with pytest.raises(InputError, match=f"frame '000001' has no {missing}"):
        KittiDataset(tmp_path)


def test_one_frame_cannot_be_split(tmp_path: Path) -> None:
    write_kitti(tmp_path, 1)
    with pytest.raises(InputError, match="training has no ImageSets, and 1 images cannot be split into train and val"):
        KittiDataset(tmp_path)


def test_a_frame_with_two_images_is_named(tmp_path: Path) -> None:
    write_kitti(tmp_path, 3)
    write_frame(tmp_path / "training", "000000", [CAR], suffix=".jpg")
    with pytest.raises(InputError, match=r"image_2: '000000' is there twice, 000000\.jpg and 000000\.png"):
        KittiDataset(tmp_path)


LINES = [
    label_line("Pedestrian", (10, 10, 20, 40)),
    label_line("van", (30, 10, 60, 40)),
    label_line("Car", (70, 10, 99, 40)),
    label_line("Tram", (100, 10, 140, 40)),
    label_line("DontCare", (150, 10, 160, 40)),
    label_line("Person_sitting", (165, 10, 175, 40)),
]


@pytest.mark.parametrize(
    ("classes", "left_edges", "labels"),
    [
        (("Car", "Pedestrian"), [10, 30, 70, 150, 165], [1, IGNORE, 0, IGNORE, IGNORE]),
        (("car",), [30, 70, 150], [IGNORE, 0, IGNORE]),
        (("Car", "Van"), [30, 70, 150], [1, 0, IGNORE]),
        (("tram", "person_sitting"), [100, 150, 165], [0, IGNORE, 1]),
    ],
)
def test_neighbours_are_ignored_and_strangers_are_background(
    tmp_path: Path, classes: tuple[str, ...], left_edges: list[float], labels: list[int]
) -> None:
    dataset = one_frame(tmp_path, LINES, classes=classes)
    example = dataset[0]
    assert example.boxes[:, 0].tolist() == left_edges
    assert example.labels.tolist() == labels
    assert (example.boxes.dtype, example.labels.dtype) == (np.float32, np.int64)
    assert (example.name, example.size, example.scale) == ("one", (HEIGHT, WIDTH), 1.0)
    assert example.image.shape == (HEIGHT, WIDTH, 3)
    assert dataset.classes == classes
    assert dataset.objects(0).types == [line.split()[0] for line in LINES]


def test_boxes_are_clipped_for_training_and_kept_for_evaluation(tmp_path: Path) -> None:
    dataset = one_frame(tmp_path, [label_line("Car", (-3, 20, WIDTH + 0.5, HEIGHT))], classes=["Car"])
    assert dataset.boxes.tolist() == [[0, 20, WIDTH, HEIGHT]]
    assert dataset.objects(0).boxes.tolist() == [[-3, 20, WIDTH + 0.5, HEIGHT]]


@pytest.mark.parametrize("kind", ["Car", "DontCare", "Tram"])
def test_a_box_outside_of_its_image_is_named(tmp_path: Path, kind: str) -> None:
    complaint = r"label_2/one\.txt:2: box 200 20 230 50 \(x1 y1 x2 y2\) lies outside of its 200x60 image"
    with pytest.raises(InputError, match=complaint):
        one_frame(tmp_path, [CAR, label_line(kind, (WIDTH, 20, 230, 50))], classes=["Car"])


def test_a_frame_without_objects_is_an_example(tmp_path: Path) -> None:
    write_kitti(tmp_path, 2, lists={"train": ["000000", "000001"]})
    (tmp_path / "training/label_2/000000.txt").write_text("")
    example = KittiDataset(tmp_path, classes=["Car"])[0]
    assert (example.boxes.shape, example.labels.shape) == ((0, 4), (0,))


def test_an_unknown_class_is_answered_with_those_that_occur(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no train label holds class 'Truck'; they hold Pedestrian 1, van 1, Car 1"):
        one_frame(tmp_path, LINES, classes=["Car", "Truck"])
    assert len(KittiDataset(tmp_path, "val", classes=["Car", "Truck"])) == 1
    with pytest.raises(InputError, match="no val label holds class 'Truck'; they hold Car 1"):
        KittiDataset(tmp_path, "val", classes=["Truck"])


@pytest.mark.parametrize("classes", [(), ("Car", "car"), ("Car", "DontCare")])
def test_classes_must_be_distinct_names(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="classes must be distinct names"):
        one_frame(tmp_path, LINES, classes=classes)


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split must be one of train, val, all; got 'test'"):
        KittiDataset(tmp_path, "test")


def test_an_unreadable_image_shows_at_once(tmp_path: Path) -> None:
    write_kitti(tmp_path, 2, lists={"train": ["000000", "000001"]})
    (tmp_path / "training/image_2/000001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"000001\.jpg: not a readable image"):
        KittiDataset(tmp_path, classes=["Car"])


def test_the_data_set_travels_to_workers(tmp_path: Path) -> None:
    dataset = one_frame(tmp_path, [CAR], classes=["Car"])
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[0].image, dataset[0].image)


def test_the_real_frames(shared: Path) -> None:
    train, val = (KittiDataset(shared / "kitti", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (468, 144)
    counts = [np.bincount(dataset.labels + 2, minlength=5).tolist() for dataset in (train, val)]
    assert counts == [[89 + 27 + 9, 0, 1836, 649, 636], [22, 0, 534, 213, 198]]
    assert sorted({Path(path).suffix for path in [*train.paths, *val.paths]}) == [".jpg", ".png"]
    for dataset in (train, val):
        assert (dataset.boxes >= 0).all()
        assert (dataset.boxes <= dataset.sizes[dataset.image_index][:, [1, 0, 1, 0]]).all()
    for i in (0, 200, 467):
        with Image.open(train.paths[i]) as original:
            assert train[i].image.shape == (original.height, original.width, 3)
            assert train[i].size == tuple(train.sizes[i])


def test_some_frames_in_any_order(tmp_path: Path) -> None:
    write_kitti(tmp_path, 4, lists={"train": [f"{i:06d}" for i in range(4)]})
    dataset = KittiDataset(tmp_path, classes=["Car"])
    taken = dataset.take([2, 0, 2])
    assert taken.names.tolist() == ["000002", "000000", "000002"]
    assert (len(taken), len(dataset)) == (3, 4)
    for i, row in enumerate([2, 0, 2]):
        np.testing.assert_array_equal(taken[i].image, dataset[row].image)
        np.testing.assert_array_equal(taken[i].boxes, dataset[row].boxes)
        assert taken.objects(i).types == dataset.objects(row).types
        assert taken.objects(i).lines == dataset.objects(row).lines
        np.testing.assert_array_equal(taken.objects(i).boxes, dataset.objects(row).boxes)
        assert np.shares_memory(taken.objects(i).boxes, dataset.objects(row).boxes)


def test_fiftyone_puts_images_in_data(tmp_path: Path) -> None:
    write_kitti(tmp_path, 3)
    (tmp_path / "training/image_2").rename(tmp_path / "data")
    (tmp_path / "training/label_2").rename(tmp_path / "labels")
    assert find_kitti(tmp_path) == (tmp_path / "data", tmp_path / "labels", None)

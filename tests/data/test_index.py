"""An index holds what was converted to it, opens without being read, and is believed in no more than its contents."""

import json
import pickle
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.test_coco import CATEGORIES, annotation, content, write_coco
from tests.data.test_voc import CAT, DOG, write_voc
from tests.data.test_yolo import LABELS, YAML, write_yolo
from tests.full_disk import largest_file
from tests.kitti_folders import label_line, write_frame
from tinydet.cli import main
from tinydet.convert import convert_data
from tinydet.data.dataset import Columns, DetectionDataset
from tinydet.data.index import FILES, INDEX, IndexDataset, write_index
from tinydet.data.loader import train_batches
from tinydet.data.open import open_dataset
from tinydet.errors import InputError
from tinydet.evaluation import evaluate
from tinydet.labels import IGNORE
from tinydet.model.config import model_config
from tinydet.model.postprocess import Detections

CLASSES = {"KITTI": ("Car", "Pedestrian")}


def write_data(kind: str, root: Path) -> Path:
    """A small data set of a kind, with ignore regions, boxes beyond the image and images without objects if it can."""
    if kind == "KITTI":
        boxes = {"Car": (-2, 20, 60, 50), "Pedestrian": (100, 10, 120, 55), "Van": (5, 5, 9, 9), "Tram": (1, 1, 9, 9)}
        lines = [*(label_line(name, box) for name, box in boxes.items()), label_line("DontCare", (70, 20, 90, 50))]
        for i in range(12):
            write_frame(root / "training", f"{i:06d}", lines[: 2 + i % 4] if i % 5 < 4 else [])
        return root
    if kind == "COCO":
        images = [{"id": i, "file_name": f"{'long' * (i % 3)}{i}.png", "width": 80, "height": 60} for i in range(12)]
        some = [annotation(2 * i + 1, i, 3 if i % 2 else 90, [i, 2, 30, 40.25], area=500.5) for i in range(10)]
        some += [annotation(2 * i, i, 17, [60, 30, 30, 20], iscrowd=i % 2) for i in range(10)]
        write_coco(root / "a.json", content(images=images, annotations=some))
        return root
    if kind == "YOLO":
        return write_yolo(root, YAML, LABELS)
    return write_voc(root, {"a": CAT, "b": DOG, "c": DOG}, lists={"train": "a\nb\n", "val": "c\n"})


@pytest.fixture(params=["KITTI", "COCO", "YOLO", "Pascal VOC"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(found: DetectionDataset, expected: DetectionDataset) -> None:
    """The same images, boxes and annotations, and where these are."""
    assert found.classes == expected.classes
    assert found.digest() == expected.digest()
    assert found.paths.tolist() == expected.paths.tolist()
    for column, other in zip(found.coco_annotations(), expected.coco_annotations(), strict=True):
        np.testing.assert_array_equal(column, other)
    for ours, theirs in zip(found.frames(), expected.frames(), strict=True):
        assert (ours.name, ours.path, ours.size) == theirs[:3]
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def detections(dataset: DetectionDataset) -> list[Detections]:
    """All objects, moved a little, every third as another class."""
    found = []
    for frame in dataset.frames():
        boxes, labels = torch.from_numpy(frame.boxes) + 2, torch.from_numpy(frame.labels).clamp(min=0)
        scores = torch.linspace(0.9, 0.1, len(labels))
        found.append(Detections(boxes, scores, (labels + (torch.arange(len(labels)) % 3 == 2)) % len(dataset.classes)))
    return found


def test_an_index_holds_what_was_converted(kind: str, tmp_path: Path) -> None:
    data, out, classes = write_data(kind, tmp_path / "data"), tmp_path / "out", CLASSES.get(kind)
    converted = convert_data(data, out, to="index", classes=classes)
    assert converted.notes.count("an index is scored by COCO's AP alone, not by KITTI's") == (kind == "KITTI")
    for split in ("train", "val"):
        expected, found = open_dataset(data, split, classes=classes), open_dataset(out, split)
        assert isinstance(found, IndexDataset)
        assert_same(found, expected)
        assert (found.split_note, found.kind) == (expected.split_note, f"index of {kind}")
        assert {*expected.notes} <= {*found.notes}
        rows = [*range(len(expected))][::-1]
        assert_same(found.take(rows), expected.take(rows))
        numbers = evaluate(expected, detections(expected))["COCO"]
        assert evaluate(found, detections(found))["COCO"] == numbers
    train, val, every = (open_dataset(out, split) for split in ("train", "val", "all"))
    assert_same(every.take(range(len(train))), train)
    assert_same(every.take(range(len(train), len(every))), val)
    assert every.split_note == f"all {len(train) + len(val)} images"
    with pytest.raises(InputError, match="split must be one of train, val, all; got 'test'"):
        open_dataset(out, "test")


def test_an_index_is_converted_like_other_data(tmp_path: Path) -> None:
    data = write_data("YOLO", tmp_path / "data")
    convert_data(data, tmp_path / "index", to="index")
    convert_data(tmp_path / "index", tmp_path / "again", to="index")
    convert_data(tmp_path / "index" / INDEX, tmp_path / "yolo", to="yolo")
    for split in ("train", "val"):
        expected = open_dataset(data, split)
        assert_same(open_dataset(tmp_path / "again", split), expected)
        assert open_dataset(tmp_path / "again", split).kind == "index of YOLO"
        assert open_dataset(tmp_path / "yolo", split).digest() == expected.digest()


def test_boxes_are_named_by_what_they_are_written_in(tmp_path: Path) -> None:
    for kind, origin in (("KITTI", "image_2/000000.png, line 1"), ("COCO", "data COCO/0.png, annotation 1")):
        data, out = write_data(kind, tmp_path / f"data {kind}"), tmp_path / kind
        convert_data(data, out, to="index", classes=CLASSES.get(kind))
        assert open_dataset(out, "train").origin(0) == origin


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of two images to train on and one to validate on, of cats and dogs."""
    convert_data(write_data("YOLO", tmp_path / "yolo"), tmp_path / "index", to="index")
    return tmp_path / "index"


def test_classes_are_chosen_as_elsewhere(index: Path) -> None:
    data = index.parent / "yolo"
    for classes in (["dog"], ["DOG", "cat"], ["Cat", "Dog"]):
        for split in ("train", "all"):
            assert_same(open_dataset(index, split, classes=classes), open_dataset(data, split, classes=classes))
    for classes, problem in (
        (["cow"], r"index/tinydet-index\.json: no class 'cow'; there are cat, dog"),
        (["cat", "CAT"], "classes must be distinct names"),
    ):
        with pytest.raises(InputError, match=problem):
            open_dataset(index, "train", classes=classes)
    with pytest.raises(InputError, match=r"no val label holds class 'cat'; they hold dog 1"):
        open_dataset(index, "val", classes=["cat"])


def test_ignore_regions_stay_whatever_the_classes(tmp_path: Path) -> None:
    convert_data(write_data("KITTI", tmp_path / "kitti"), tmp_path / "index", to="index", classes=["Car", "Pedestrian"])
    every, some = open_dataset(tmp_path / "index"), open_dataset(tmp_path / "index", classes=["Pedestrian"])
    assert (some.labels == IGNORE).sum() == (every.labels == IGNORE).sum() > 0
    assert some.counts == {"Pedestrian": every.counts["Pedestrian"]}
    truth = some.coco_annotations()
    assert truth.crowd.sum() == (some.labels == IGNORE).sum()
    assert {*truth.labels.tolist()} == {0}


def test_other_processes_map_the_files_themselves(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(index.parent)
    dataset = open_dataset("index", classes=["dog"])
    pickled = pickle.dumps(dataset.take([1, 0]))
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    assert_same(pickle.loads(pickled), dataset.take([1, 0]))
    (index / "boxes.npy").unlink()
    with pytest.raises(InputError, match=r"boxes\.npy: no column \(no such file\)"):
        pickle.loads(pickled)


def test_images_of_an_index_are_trained_on(index: Path) -> None:
    config = model_config("lite0", classes=("cat", "dog"), image_size=(64, 64))
    batches = [*train_batches(open_dataset(index), config, batch_size=2, epochs=2)]
    assert [one.images.shape[0] for one in batches] == [2, 2]
    frame = open_dataset(index).frame(0)
    frame.boxes[0] = 7  # a copy, as other data sets' are read
    assert open_dataset(index).frame(0).boxes[0].tolist() == [20, 10, 60, 30]


def test_many_images_are_opened_without_being_read(tmp_path: Path) -> None:
    count = 200_000
    columns = Columns(
        names=np.arange(count).astype(str),
        paths=np.full(count, "/data/image.png"),
        sizes=np.full((count, 2), 100),
        offsets=2 * np.arange(count + 1),
        boxes=np.tile(np.array([[1, 2, 30, 40], [5, 6, 70, 80]], np.float32), (count, 1)),
        labels=np.arange(2 * count) % 3,
        lines=np.zeros(2 * count, int),
    )
    dataset = DetectionDataset(columns, classes=("a", "b", "c"))
    write_index(tmp_path / "index", {"train": dataset, "val": dataset.take([5, 6])}, classes=dataset.classes)
    before = resident()
    train, val = (open_dataset(tmp_path / "index", split) for split in ("train", "val"))
    assert resident() - before < 4 * 2**20  # of 29 MB, and a few pages of each file
    assert (len(train), val.names.tolist(), val.offsets.tolist()) == (count, ["5", "6"], [0, 2, 4])
    assert train.take(range(10)).digest() == dataset.take(range(10)).digest()
    for column in (train.names, train.paths, train.sizes, train.offsets, train.boxes, train.labels):
        assert isinstance(base(column), mmap)
        assert not column.flags.writeable
    assert train.frame(199_999).labels.tolist() == [2, 0]


def base(column: Any) -> Any:
    """What holds an array's memory."""
    return column if getattr(column, "base", None) is None else base(column.base)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


DAMAGE: dict[str, Any] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"PK\x03\x04" * 40),
    "pickled": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
    "of another type": lambda path: np.save(path, np.load(path).astype("S200")),
    "big-endian": lambda path: np.save(path, np.load(path).astype(np.load(path).dtype.newbyteorder(">"))),
    "longer": lambda path: np.save(path, np.repeat(np.load(path), 2, axis=0)),
    "flat": lambda path: np.save(path, np.load(path)[:, None]),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_columns_are_named(index: Path, how: str) -> None:
    for name in FILES:
        path = index / f"{name}.npy"
        if how == "big-endian" and name == "annotation_crowd":
            continue  # a byte has no order
        whole = path.read_bytes()
        DAMAGE[how](path)
        for split in ("train", "all"):
            with pytest.raises(InputError) as raised:
                open_dataset(index, split)
            assert str(raised.value).startswith(f"{path}: ")
            assert str(raised.value).endswith("; write the index again")
            assert "\n" not in str(raised.value)
        path.write_bytes(whole)
    open_dataset(index)


def test_offsets_lead_to_all_boxes(index: Path) -> None:
    offsets = np.load(index / "offsets.npy")
    for row, split in ((0, "train"), (2, "val"), (3, "all")):
        wrong = offsets.copy()
        wrong[row] += 1
        np.save(index / "offsets.npy", wrong)
        with pytest.raises(InputError, match=r"offsets\.npy: no offsets of the boxes; write the index again"):
            open_dataset(index, split)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, r"json: version 2 of the format; this tinydet reads 1$"),
        ({"version": None}, r"json: version must be a finite number, got None$"),
        ({"classes": [1]}, r"json: classes: number 0 must be text, got 1$"),
        ({"classes": ["a\nb"]}, r"json: a class must be 1 to 200 characters"),
        ({"splits": {}}, r"json: splits: train must be an object, got None$"),
    ],
)
def test_what_the_file_of_an_index_holds_is_checked(index: Path, change: dict[str, Any], problem: str) -> None:
    path = index / INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=problem):
        open_dataset(index)


def test_counts_of_splits_are_those_of_the_columns(index: Path) -> None:
    content = json.loads((index / INDEX).read_text())
    for key, count in (("images", 3), ("boxes", -1), ("annotations", 2.5), ("images", 0)):
        changed = json.loads(json.dumps(content))
        changed["splits"]["train"][key] = count
        changed["splits"]["val"][key] += content["splits"]["train"][key] - count
        (index / INDEX).write_text(json.dumps(changed))
        with pytest.raises(InputError) as raised:
            open_dataset(index)
        assert "\n" not in str(raised.value)
    (index / INDEX).write_text("{")
    with pytest.raises(InputError, match=r"index/tinydet-index\.json:1: not JSON"):
        open_dataset(index)


def test_an_index_that_was_not_written_whole_is_none(tmp_path: Path) -> None:
    data, out = write_data("KITTI", tmp_path / "data"), tmp_path / "out"
    with (
        largest_file(800),
        pytest.raises(InputError, match=rf"^{out}/.*npy: File too large; not written; {out} is not"),
    ):
        convert_data(data, out, to="index", classes=["Car"])
    with pytest.raises(InputError, match="holds no data set itself"):
        open_dataset(out)
    with pytest.raises(InputError, match="exists, and is not an empty folder"):
        convert_data(data, out, to="index", classes=["Car"])


def test_images_are_read_before_an_index_is_written(tmp_path: Path) -> None:
    data = write_data("COCO", tmp_path / "data")
    (data / "long4.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"long4\.png: not a readable image"):
        convert_data(data, tmp_path / "out", to="index")
    assert not (tmp_path / "out").exists()


def test_classes_of_both_splits_have_one_order(tmp_path: Path) -> None:
    for split, category in (("train", 3), ("val", 90)):
        image = {"id": 1, "file_name": f"{split}.png", "width": 80, "height": 60}
        named = [one for one in CATEGORIES if one["id"] == category]
        some = [annotation(1, 1, category, [1, 2, 3, 4]), annotation(2, 1, category, [1, 2, 3, 9], iscrowd=1)]
        write_coco(tmp_path / f"coco/{split}.json", {"images": [image], "categories": named, "annotations": some})
    convert_data(tmp_path / "coco", tmp_path / "out", to="index")
    train, val = (open_dataset(tmp_path / "out", split) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog")
    assert (train.counts, val.counts) == ({"cat": 1, "dog": 0}, {"cat": 0, "dog": 1})
    assert val.coco_annotations().labels.tolist() == [1, 1]


def test_the_command(tmp_path: Path) -> None:
    data, out = write_data("YOLO", tmp_path / "data"), tmp_path / "out"
    result = CliRunner().invoke(main, ["convert", str(data), "--to", "index", "--out", str(out)])
    assert result.stdout.splitlines()[:2] == ["train: 2 images, 1 cat, 1 dog", "val: 1 images, 1 dog"]
    assert result.stdout.splitlines()[2] == f"check it with: tinydet check {out}"
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert checked.exit_code == 0, checked.output
    assert "index of YOLO" in checked.output

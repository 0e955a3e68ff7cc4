"""YOLO folders: what data.yaml may say, what a line may hold, and what is wrong named by file and line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydet.data.yolo import YoloDataset, find_yolo, read_yolo
from tinydet.errors import InputError


def write_yolo(root: Path, yaml: str, labels: dict[str, str | None], *, size: tuple[int, int] = (80, 40)) -> Path:
    """A folder with images at images/KEY.png and label files; None for none."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, text in labels.items():
        image, label = root / f"images/{name}.png", root / f"labels/{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(image)
        if text is not None:
            label.write_text(text)
    return root


YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
LABELS: dict[str, str | None] = {
    "train/a": "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.5 1\n",
    "train/b": None,
    "val/c": "1 0.1 0.1 0.2 0.1 0.2 0.4\n",
}


def test_a_folder_is_read(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, LABELS)
    train, val = (YoloDataset(root, split) for split in ("train", "val"))
    assert train.classes == ("cat", "dog")
    assert train.names.tolist() == ["a", "b"]
    assert train.boxes.tolist() == [[20, 10, 60, 30], [0, 0, 40, 40]]
    assert (train.labels.tolist(), train.offsets.tolist()) == ([0, 1], [0, 2, 2])
    assert train.origin(1) == "train/a.txt:2"
    np.testing.assert_allclose(val.boxes, [[8, 4, 16, 16]], rtol=1e-6)  # around the outline
    assert train.notes == ("1 of 2 train images have no label file: they count as without objects",)
    assert val.notes == ("no val image holds cat",)
    assert train.split_note == f"2 train images, as {root / 'data.yaml'} says"
    assert YoloDataset(root / "data.yaml", "all").names.tolist() == ["a", "b", "c"]


def test_classes_are_chosen_by_name(tmp_path: Path) -> None:
    train = YoloDataset(write_yolo(tmp_path, YAML, LABELS), classes=("Dog",))
    assert (train.labels.tolist(), train.image_index.tolist()) == ([0], [0])
    with pytest.raises(InputError, match="no class 'cow'; there are cat, dog"):
        YoloDataset(tmp_path, classes=("cow",))


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
        "train: [images/train]\nvalid: images/val\nnc: 2\nnames: ['cat', 'dog']\n",
        "path: elsewhere/that/is/not\ntrain: ../images/train\nval: ../images/val\nnames: [cat, dog]\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
    ],
)
def test_data_yaml_in_its_dialects(tmp_path: Path, yaml: str) -> None:
    root = write_yolo(tmp_path, yaml, LABELS)
    (root / "train.txt").write_text("images/train/a.png\n./images/train/b.png\n")
    folder = find_yolo(root)
    assert folder.names == ("cat", "dog")
    assert {split: [path.stem for path in paths] for split, paths in folder.images.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    assert YoloDataset(root).labels.tolist() == [0, 1]


def test_labels_without_image_are_said(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, YAML, LABELS)
    (root / "labels/train/lost.txt").write_text("0 .5 .5 .1 .1\n")
    (note,) = (note for note in YoloDataset(root).notes if "no image" in note)
    assert note == f"{root / 'labels/train'}: 1 label files have no image (lost.txt)"


def test_without_val_blocks_are_drawn(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "train: images\nnames: [cat]", {f"{i:02d}": "0 .5 .5 .1 .1" for i in range(20)})
    train, val = (YoloDataset(root, split, seed=1) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.names) & set(val.names)
    assert "names only train" in val.split_note


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("names: [cat", r"data\.yaml: not YAML \("),
        ("train: images", r"data\.yaml: not a YOLO data file; it has no names"),
        ("names: {1: cat}\ntrain: images", "names must be numbered from 0 without gaps"),
        ("names: cat\ntrain: images", "names must be a list of classes, got 'cat'"),
        ("names: [cat]\nnc: 2\ntrain: images", "nc is 2, and there are 1 names"),
        ("names: [cat]", "says neither train nor val"),
        ("names: [cat]\ntrain: photos", "'photos' is not there; looked for "),
        ("names: [cat, dog]\ntrain: list.txt", r"list\.txt:2: image 'gone\.png' is not there"),
        ("names: [cat, dog]\ntrain: images/train\nval: images/train", "is both in train and in val"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_is_wrong_with_data_yaml_is_named(tmp_path: Path, yaml: str, said: str) -> None:
    root = write_yolo(tmp_path, yaml, LABELS)
    (root / "list.txt").write_text("images/train/a.png\ngone.png\n")
    with pytest.raises(InputError, match=said):
        YoloDataset(root)


def test_two_yaml_files_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no data\.yaml"):
        find_yolo(tmp_path)
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"found 2 YAML files, a\.yaml, b\.yml"):
        find_yolo(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .1", "expected a class and 4 numbers"),
        ("0 .5 .5 .1 .1 .9", "expected a class and 4 numbers, or an outline"),
        ("2 .5 .5 .1 .1", r"class '2' is not one of 0 \.\. 1"),
        ("cat .5 .5 .1 .1", "class 'cat' is not one of"),
        ("0 .5 x .1 .1", r"is not a number \('x'\)"),
        ("0 .5 nan .1 .1", r"is not finite \('nan'\)"),
        ("0 .5 .5 0 .1", "width and height must be positive, got 0 and 0.1"),
        ("0 40 20 10 10", r"the box leaves its image \(35 15 45 25, as shares of it\); are these pixels\?"),
        ("0 .1 .1 .1 .2 .1 .3", "the outline has no width or height"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "labels/a.txt"
    path.parent.mkdir()
    path.write_text(f"1 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(InputError, match=rf"labels/a\.txt:2.*{said}"):
        read_yolo(path, classes=2)
    errors: list[InputError] = []
    path.write_text(f"{line}\n1 .5 .5 .1 .1\n")
    labels, boxes, lines = read_yolo(path, classes=2, on_error=errors.append)
    assert (labels.tolist(), len(boxes), lines, len(errors)) == ([1], 1, [2], 1)


def test_a_hair_outside_is_rounding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.05 0.5 0.1002 1.0\n")
    assert read_yolo(tmp_path / "a.txt", classes=1)[1][0][0] == pytest.approx(-1e-4)

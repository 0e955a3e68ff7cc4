"""What a path holds is told by what is there."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_coco import content, write_coco
from tests.data.test_voc import TWO, write_voc
from tests.data.test_yolo import LABELS, YAML, write_yolo
from tests.kitti_folders import write_kitti
from tinydet.data.open import open_dataset
from tinydet.errors import InputError


def test_each_kind_is_recognised(tmp_path: Path) -> None:
    kitti = write_kitti(tmp_path / "kitti", 4)
    yolo = write_yolo(tmp_path / "yolo", YAML, LABELS)
    coco = write_coco(tmp_path / "coco/set.json", content())
    kinds = {kitti: "KITTI", kitti / "training": "KITTI", yolo: "YOLO", yolo / "data.yaml": "YOLO", coco: "COCO"}
    kinds[coco.parent] = "COCO"
    for path, kind in kinds.items():
        assert open_dataset(path, "all").kind == kind
    assert open_dataset(kitti, "all", classes=("Pedestrian",)).classes == ("Pedestrian",)


def test_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo = write_yolo(tmp_path / "yolo", YAML, LABELS)
    (yolo / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    (yolo / "data.yaml").write_text(YAML.replace("images/train", "train.txt"))
    read: list[str] = []
    read_bytes = Path.read_bytes

    def count(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    open_dataset(yolo, "train")
    assert sorted(read) == ["a.txt", "data.yaml", "train.txt"]


def test_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"holds no data set itself: no image_2 and label_2 \(KITTI\), data\.yaml"):
        open_dataset(tmp_path)
    inner = write_kitti(tmp_path / "unpacked", 4)
    with pytest.raises(InputError, match=rf"holds no data set itself; give the path of {inner}$"):
        open_dataset(tmp_path)
    (tmp_path / "image_2").mkdir()
    with pytest.raises(InputError, match=r"^[^;:]*/image_2 is there, but no [^;:]*/label_2$"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="gone: no such file or folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(InputError, match="split must be one of train, val, all; got 'test'"):
        open_dataset(write_kitti(tmp_path / "kitti", 4), "test")


def test_a_list_of_classes_alone_is_no_yolo(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\nbird\ndog\n")
    with pytest.raises(InputError, match=r"classes\.txt names classes, but no image in .* has a label file"):
        open_dataset(tmp_path)
    write_coco(tmp_path / "set.json", content())
    assert open_dataset(tmp_path, "all").kind == "COCO"


def test_errors_of_every_kind_may_be_collected(tmp_path: Path) -> None:
    kitti = write_kitti(tmp_path / "kitti", 4)
    label = kitti / "training/label_2/000001.txt"
    label.write_text(
        label.read_text() + "Car 1 2 3\n" + label.read_text().splitlines()[0].replace("11.00", "900.00") + "\n"
    )
    (kitti / "training/image_2/000003.png").write_bytes(b"not an image")
    yolo = write_yolo(tmp_path / "yolo", YAML, {**LABELS, "train/a": "0 .5 .5 .5 .5\n7 1 1 1 1\n"})
    data = content()
    data["annotations"][0]["category_id"] = 5
    coco = write_coco(tmp_path / "coco.json", json.loads(json.dumps(data)))
    for path, count in ((kitti, 3), (yolo, 1), (coco, 1)):
        errors: list[InputError] = []
        dataset = open_dataset(path, "all", on_error=errors.append)
        assert len(errors) == count, errors
        assert len(dataset) >= 3
        with pytest.raises(InputError):
            open_dataset(path, "all")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("kitti/training/label_2/000001.txt", os.mkfifo),
        ("voc/Annotations/a.xml", os.mkfifo),
        ("yolo/data.yaml", os.mkfifo),
        ("yolo/labels/train/a.txt", os.mkfifo),
        ("yolo/labels/train/a.txt", os.mkdir),
        ("a.json", os.mkfifo),
        ("a.json", os.mkdir),
    ],
)
def test_a_pipe_or_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    write_kitti(tmp_path / "kitti", 4)
    write_yolo(tmp_path / "yolo", YAML, LABELS)
    write_voc(tmp_path / "voc", TWO)
    write_coco(tmp_path / "a.json", content())
    root, path = tmp_path / name.split("/")[0], tmp_path / name
    path.unlink()
    make(path)
    with pytest.raises(InputError, match=f"^{path}: not a file$"):
        open_dataset(root, "all")


def test_names_of_classes_are_bounded(tmp_path: Path) -> None:
    data = content(categories=[{"id": 3, "name": "c" * 201}, {"id": 90, "name": "dog"}])
    with pytest.raises(InputError, match=r"a\.json: a class must be 1 to 200 characters, none of them a contr"):
        open_dataset(write_coco(tmp_path / "a.json", data), "all")
    data["categories"][0]["name"] = "c" * 200
    assert open_dataset(write_coco(tmp_path / "a.json", data), "all").classes == ("c" * 200, "dog")
    yolo = write_yolo(tmp_path / "yolo", YAML, LABELS)
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("".join(f"class {i}\n" for i in range(100_001)))
    with pytest.raises(InputError, match=r"yolo/classes\.txt: 100,001 classes; there may be 100,000$"):
        open_dataset(yolo)

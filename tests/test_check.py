"""A check counts what a data set holds, and finds all that is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kitti_folders import label_line, write_frame
from tinydet.check import Check, as_json, as_page, check_data, check_tables
from tinydet.data.checks import train_val_leakage
from tinydet.data.kitti import KittiDataset
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.training.settings import TrainSettings

CAR, PEDESTRIAN = label_line("Car", (10, 10, 60, 40)), label_line("Pedestrian", (100, 10, 120, 55))
DONTCARE = "DontCare -1 -1 -10 150 10 190 40 -1 -1 -1 -1000 -1000 -1000 -10"


def check(root: Path, **settings: Any) -> Check:
    return check_data(TrainSettings(str(root), **settings), base=model_config("lite0"))


def write_data(root: Path, frames: dict[str, list[str]]) -> Path:
    for name, lines in frames.items():
        write_frame(root / "training", name, lines)
    (root / "ImageSets").mkdir()
    for split, names in (("train", [name for name in frames if name < "000010"]), ("val", ["000010", "000011"])):
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def texts(found: Check, level: str) -> list[str]:
    return [problem.text for problem in found.problems if problem.level == level]


FRAMES = {
    "000001": [CAR, PEDESTRIAN],
    "000002": [CAR, CAR, DONTCARE],
    "000003": [],
    "000010": [CAR],
    "000011": [PEDESTRIAN, CAR],
}
CLASSES = ("Car", "Pedestrian")


@pytest.fixture
def found(tmp_path: Path) -> Check:
    return check(write_data(tmp_path, FRAMES), classes=CLASSES)


def test_images_are_counted_as_they_are_read(found: Check, tmp_path: Path) -> None:
    done: list[tuple[int, int | None]] = []
    (tmp_path / "training/image_2/000010.png").write_bytes(b"")
    settings = TrainSettings(str(tmp_path), classes=CLASSES)
    again = check_data(settings, base=model_config("lite0"), progress=lambda *counts: done.append(counts))
    assert done == [(i, 4) for i in range(1, 5)]  # the image without a size is left out
    assert again.splits["train"][1:] == found.splits["train"][1:]


def test_contents_are_counted(found: Check) -> None:
    assert found.data.startswith("KITTI: ")
    assert check_tables(found)["Contents"] == [
        ["", "train", "val"],
        ["images", "3", "2"],
        ["Car", "3", "2"],
        ["Pedestrian", "1", "1"],
        ["ignore regions", "1", "0"],
        ["images without objects", "1", "0"],
    ]
    scale = 320 / 60
    low, middle, high = found.splits["train"].object_sizes["Car"]
    assert low == middle == high == pytest.approx(scale * (50 * 30) ** 0.5, rel=1e-5)
    assert [row[0] for row in check_tables(found)["Object sizes"][1:]] == ["Car", "Pedestrian"]


def test_inputs_are_compared_by_anchor_recall(found: Check) -> None:
    head, now, *others = check_tables(found)["Anchor recall"]
    assert head[:5] == ["input", "anchor scale", "mean recall", "Car", "Pedestrian"]
    assert (now[:2], now[-1]) == (["320x1088", "2.5"], "now")
    assert [row[-1] for row in others].count("best") == 1
    assert found.best in found.inputs


def test_duplicate_boxes_are_a_warning(found: Check) -> None:
    duplicate = "label_2/000002.txt:2: the same Car again as in label_2/000002.txt:1"
    assert [text for text in texts(found, "warning") if "the same" in text] == [duplicate]
    assert texts(found, "error") == []


def test_every_error_is_named(tmp_path: Path) -> None:
    frames = {**FRAMES, "000001": [CAR, "Car 0 0", PEDESTRIAN, CAR.replace("60.00", "5.00")]}
    root = write_data(tmp_path, {**frames, "000004": [label_line("Car", (300, 10, 400, 40))], "000005": [CAR]})
    (root / "training/image_2/000005.png").write_bytes(b"")
    whole = (root / "training/image_2/000002.png").read_bytes()
    (root / "training/image_2/000002.png").write_bytes(whole[: len(whole) // 2])
    write_frame(tmp_path / "training", "000077", [CAR])
    (root / "training/image_2/000077.png").unlink()
    with open(root / "ImageSets/val.txt", "a") as file:
        file.write("000001\n000099\n")
    found = check(root, classes=CLASSES)
    errors = texts(found, "error")
    for said in (
        "label_2/000001.txt:2: expected 15 fields, got 3",
        "label_2/000001.txt:4: x2 < x1 (5, 10)",
        "label_2/000004.txt:1: box 300 10 400 40 (x1 y1 x2 y2) lies outside of its 200x60 image",
        "000005.png: not a readable image",
        "000002.png: not a readable image",
        "val.txt:3: frame '000001' was listed before",
        "val.txt:4: frame '000099' has no image",
    ):
        assert len([error for error in errors if said in error]) == 1, (said, errors)
    assert len(errors) == 7
    assert f"{root / 'training/label_2'}: 1 labels have no image (000077)" in texts(found, "warning")
    assert check_tables(found)["Contents"][1] == ["images", "4", "2"]
    page = as_page(found)
    assert "000002.png: not a readable image" in page
    assert page.count("<img") == 5  # the image that is cut in half is only named


def test_image_of_another_size_than_stated_is_an_error(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (200, 60)).save(tmp_path / f"{i}.png")
    images = [{"id": 7 + i, "file_name": f"{i}.png", "width": 200, "height": 60 + i % 2} for i in range(4)]
    boxes = [{"id": i, "image_id": 7 + i, "category_id": 1, "bbox": [10, 10, 50, 30]} for i in range(4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "Car"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    progress: list[tuple[int, int | None]] = []
    settings = TrainSettings(str(tmp_path / "all.json"), val=str(tmp_path / "all.json"))
    found = check_data(settings, base=model_config("lite0"), progress=lambda *done: progress.append(done))
    assert texts(found, "error") == [
        f"{tmp_path.name}/all.json: image {7 + i} is 200x61 pixels, but {tmp_path / f'{i}.png'} is 200x60 upright"
        for i in (1, 3)
    ]
    assert progress == [(i, 8) for i in range(1, 9)]
    assert as_page(found).count("<img") == 4


def test_errors_that_leave_nothing_to_check_are_named(tmp_path: Path) -> None:
    root = write_data(tmp_path, {name: [f"{CAR} 0.5"] for name in FRAMES})
    with pytest.raises(InputError) as error:
        check(root, classes=CLASSES)
    first, *_, last = str(error.value).splitlines()
    assert first.startswith("label_2/000001.txt:1: expected 15 fields, got 16")
    assert "no train label holds" in last


def test_similar_neighbours_in_different_splits_are_leakage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = [rng.integers(0, 256, (6, 20, 3), dtype=np.uint8) for _ in range(2)]
    for i in range(8):
        write_frame(tmp_path / "training", f"{i:06d}", [CAR, PEDESTRIAN])
        image = np.clip(np.kron(places[i // 4].astype(int), np.ones((10, 10, 1), int)) + i, 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "training/image_2" / f"{i:06d}.png")
    (tmp_path / "ImageSets").mkdir()

    def leakage(val: list[int]) -> list[str]:
        for split, rows in (("train", sorted({*range(8)} - {*val})), ("val", val)):
            (tmp_path / "ImageSets" / f"{split}.txt").write_text("".join(f"{i:06d}\n" for i in rows))
        return train_val_leakage(*(KittiDataset(tmp_path, split, classes=CLASSES) for split in ("train", "val")))

    assert leakage([4, 5, 6, 7]) == []  # 3 and 4 follow one another, and are of different scenes
    (text,) = leakage([1, 5])
    assert text.startswith("2 of 2 val images that come right before or after one of train look like it (000001.png")


def test_a_missing_val_is_an_error_and_the_rest_is_checked(tmp_path: Path) -> None:
    root = write_data(tmp_path, FRAMES)
    (root / "ImageSets/val.txt").unlink()
    found = check(root, classes=CLASSES)
    assert list(found.splits) == ["train"]
    assert len([text for text in texts(found, "error") if "val.txt" in text]) == 1


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no data set itself"):
        check(tmp_path)


def test_json_is_strict(found: Check) -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(word)

    plain = json.loads(json.dumps(as_json(found)), parse_constant=refuse)
    assert plain["splits"]["train"]["objects"] == {"Car": 3, "Pedestrian": 1}
    assert plain["splits"]["train"]["images_without_objects"] == 1
    assert plain["errors"] == []
    assert plain["best"] in plain["inputs"]
    assert plain["anchor_recall"]["image_size"] == [320, 1088]


def test_page_has_tables_problems_and_images(found: Check) -> None:
    text = as_page(found)
    for said in ("the same Car again", "Anchor recall", "320x1088", "ignore regions", "Images of val"):
        assert said in text
    assert text.count("data:image/jpeg;base64,") == 5
    assert "http:" not in text
    assert "https:" not in text

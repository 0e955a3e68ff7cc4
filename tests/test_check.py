"""What a data set holds is counted, and what is wrong with it is found, all of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kitti_folders import label_line, write_frame
from tinydet.check import Check, as_json, as_page, check, counts, reaches, sizes
from tinydet.data.dataset import DetectionDataset
from tinydet.data.kitti import KittiDataset
from tinydet.data.suspicious import twins
from tinydet.errors import InputError
from tinydet.model.config import ModelConfig, model_config
from tinydet.training.settings import TrainSettings, fit_model

CAR, PEDESTRIAN = label_line("Car", (10, 10, 60, 40)), label_line("Pedestrian", (100, 10, 120, 55))
DONTCARE = "DontCare -1 -1 -10 150 10 190 40 -1 -1 -1 -1000 -1000 -1000 -10"


def fit(dataset: DetectionDataset) -> ModelConfig:
    base = model_config("lite0")
    return fit_model(TrainSettings("kitti"), dataset.sizes, classes=dataset.classes, base=base)


def write_data(root: Path, frames: dict[str, list[str]], *, val: tuple[str, ...] = ("000010", "000011")) -> Path:
    for name, lines in frames.items():
        write_frame(root / "training", name, lines)
    (root / "ImageSets").mkdir()
    for split, names in (("train", [name for name in frames if name not in val]), ("val", val)):
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


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
    return check(write_data(tmp_path, FRAMES), classes=CLASSES, fit=fit)


def test_everything_is_counted(found: Check) -> None:
    assert found.data.startswith("KITTI: ")
    assert counts(found) == [
        ["", "train", "val"],
        ["pictures", "3", "2"],
        ["Car", "3", "2"],
        ["Pedestrian", "1", "1"],
        ["ignore regions", "1", "0"],
        ["pictures without objects", "1", "0"],
    ]
    scale = 320 / 60
    low, middle, high = found.parts["train"].sides["Car"]
    assert low == middle == high == pytest.approx(scale * (50 * 30) ** 0.5, rel=1e-5)
    assert [row[0] for row in sizes(found)[1:]] == ["Car", "Pedestrian"]


def test_inputs_are_compared_and_one_is_the_best(found: Check) -> None:
    head, now, *others = reaches(found)
    assert head[:5] == ["input", "anchor scale", "mean", "Car", "Pedestrian"]
    assert (now[:2], now[-1]) == (["320x1088", "2.5"], "now")
    assert [row[-1] for row in others].count("best") == 1
    assert found.best in found.others


def test_twins_within_a_picture_are_suspicious(found: Check) -> None:
    assert [problem for problem in found.problems if "the same" in problem.text] == [
        ("warning", "label_2/000002.txt:2: the same Car again as in label_2/000002.txt:1")
    ]
    assert not [problem for problem in found.problems if problem.level == "error"]


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
    found = check(root, classes=CLASSES, fit=fit)
    errors = [problem.text for problem in found.problems if problem.level == "error"]
    for said in (
        "label_2/000001.txt:2: expected 15 fields, got 3",
        "label_2/000001.txt:4: x2 < x1 (5, 10)",
        "label_2/000004.txt:1: box 300 10 400 40 lies outside of its 200x60 picture",
        "000005.png: not a readable picture",
        "000002.png: not a readable picture",
        "val.txt:3: frame '000001' was listed before",
        "val.txt:4: frame '000099' has no picture",
    ):
        assert len([error for error in errors if said in error]) == 1, (said, errors)
    assert len(errors) == 7
    warnings = [problem.text for problem in found.problems if problem.level == "warning"]
    assert f"{root / 'training/label_2'}: 1 labels have no picture (000077)" in warnings
    assert counts(found)[1] == ["pictures", "4", "2"]


def test_neighbours_in_different_splits_that_look_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = [rng.integers(0, 256, (6, 20, 3), dtype=np.uint8) for _ in range(2)]
    for i in range(8):
        write_frame(tmp_path / "training", f"{i:06d}", [CAR, PEDESTRIAN])
        image = np.clip(np.kron(places[i // 4].astype(int), np.ones((10, 10, 1), int)) + i, 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "training/image_2" / f"{i:06d}.png")
    (tmp_path / "ImageSets").mkdir()

    def said(val: list[int]) -> list[str]:
        for split, rows in (("train", sorted({*range(8)} - {*val})), ("val", val)):
            (tmp_path / "ImageSets" / f"{split}.txt").write_text("".join(f"{i:06d}\n" for i in rows))
        return twins(*(KittiDataset(tmp_path, split, classes=CLASSES) for split in ("train", "val")))

    assert said([4, 5, 6, 7]) == []  # 3 and 4 follow one another, and are of different scenes
    (text,) = said([1, 5])
    assert text.startswith("2 of 2 val pictures that come right before or after one of train look like it (000001.png")


def test_a_missing_val_is_an_error_and_the_rest_is_checked(tmp_path: Path) -> None:
    root = write_data(tmp_path, FRAMES)
    (root / "ImageSets/val.txt").unlink()
    found = check(root, classes=CLASSES, fit=fit)
    assert list(found.parts) == ["train"]
    assert [problem.level for problem in found.problems if "val.txt" in problem.text] == ["error"]


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither KITTI, YOLO nor COCO"):
        check(tmp_path, fit=fit)


def test_as_json_it_is_strict(found: Check) -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(word)

    plain = json.loads(json.dumps(as_json(found)), parse_constant=refuse)
    assert plain["splits"]["train"]["objects"] == {"Car": 3, "Pedestrian": 1}
    assert plain["splits"]["train"]["without_objects"] == 1
    assert plain["errors"] == []
    assert plain["best"] in plain["alternatives"]
    assert plain["reach"]["image_size"] == [320, 1088]


def test_the_page_holds_everything(found: Check) -> None:
    text = as_page(found)
    for said in ("the same Car again", "320x1088", "ignore regions", "Pictures of val", "data:image/jpeg;base64,"):
        assert said in text
    assert "http:" not in text
    assert "https:" not in text

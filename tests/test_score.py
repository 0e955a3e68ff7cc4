"""Scores of detections and of files of results: KITTI's and COCO's numbers, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kitti_folders import label_line, write_kitti
from tinydet.data.coco import CocoDataset, coco_json
from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.data.kitti import KittiDataset
from tinydet.data.kitti_labels import KittiObjects
from tinydet.errors import InputError
from tinydet.labels import IGNORE
from tinydet.metrics.kitti import kitti_ap
from tinydet.model.detect import Detections
from tinydet.score import (
    coco_result,
    coco_truth,
    headline,
    kitti_results,
    kitti_truths,
    pr_curves,
    score_coco_files,
    score_detections,
    score_files,
    score_kitti_files,
)


def detections_of(*rows: tuple[tuple[float, ...], float, int]) -> Detections:
    """From (box, score, label) each."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
    )


def test_truths_are_the_label_files() -> None:
    objects = KittiObjects(["Car"], np.array([0.5]), np.array([2]), np.array([[1.0, 2, 3, 4]]), None)
    (truth,) = kitti_truths([objects])
    assert (truth.types, truth.truncated, truth.occluded) == (["Car"], [0.5], [2])
    np.testing.assert_array_equal(truth.boxes, objects.boxes)


# The one number


def test_of_kitti_it_is_the_mean_of_moderate_r40() -> None:
    rows = {"Car": {"easy": 1.0, "moderate": 20.0, "hard": 3.0}, "Van": {"easy": 4.0, "moderate": 50.0, "hard": 6.0}}
    counts = {name: {"moderate": 7.0} for name in rows}
    assert headline({"R40": rows, "n_gt": counts}) == ("Moderate R40", 35.0, {"Car": 20.0, "Van": 50.0})


def test_of_kitti_classes_without_objects_have_no_share() -> None:
    rows = {"Car": {"moderate": 20.0}, "Tram": {"moderate": 0.0}}
    counts = {"Car": {"moderate": 7.0}, "Tram": {"moderate": 0.0}}
    assert headline({"R40": rows, "n_gt": counts}).ap == 20.0
    assert headline({"R40": {"Tram": rows["Tram"]}, "n_gt": {"Tram": counts["Tram"]}}).ap == 0.0


def test_of_other_data_it_is_coco_ap_in_percent() -> None:
    scores = {"stats": [0.25, *[-1.0] * 11], "per_class_AP": {"a": 0.5, "b": -1.0, "c": 0.0}}
    assert headline(scores) == ("COCO AP", 25.0, {"a": 50.0, "c": 0.0})
    assert headline({"stats": [-1.0] * 12, "per_class_AP": {"a": -1.0}}) == ("COCO AP", 0.0, {})


# Detections


BOXES = np.array([[10, 10, 60, 50], [70, 20, 90, 60], [0, 0, 20, 20]], np.float32)


def pictures() -> DetectionDataset:
    """Two pictures: a cat, a dog and a region to be left alone; nothing."""
    some = Frame("a", Path("a.png"), (100, 100), BOXES, np.array([0, 1, IGNORE]))
    none = Frame("b", Path("b.png"), (100, 100), BOXES[:0], np.array([], np.int64))
    return DetectionDataset([some, none], classes=("cat", "dog"))


def test_an_ignore_region_is_a_crowd_of_every_class() -> None:
    truth = coco_truth(pictures())
    assert truth.labels.tolist() == [0, 1, 0, 1]
    assert truth.crowd.tolist() == [False, False, True, True]
    assert truth.boxes[:2].tolist() == [[10, 10, 50, 40], [70, 20, 20, 40]]
    assert truth.areas.tolist() == [2000, 800, 400, 400]
    assert truth.images.tolist() == [0] * 4


def test_detections_in_it_neither_count_nor_cost() -> None:
    found = [
        detections_of((tuple(BOXES[0]), 0.5, 0), (tuple(BOXES[1]), 0.5, 1), ((2, 2, 18, 18), 0.9, 0)),
        detections_of(),
    ]
    scores = score_detections(pictures(), found)
    assert scores["per_class_AP"] == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert set(scores) == {"stats", "per_class_AP"}
    found[1] = detections_of(((2, 2, 18, 18), 0.9, 0))  # there is no such region in the other picture
    assert score_detections(pictures(), found)["per_class_AP"]["cat"] == pytest.approx(0.5)


def test_detections_are_numbered_by_picture() -> None:
    result = coco_result([detections_of(), detections_of(((1, 2, 4, 8), 0.5, 1))])
    assert (result.images.tolist(), result.labels.tolist(), result.boxes.tolist()) == ([1], [1], [[1, 2, 3, 6]])


def test_no_detections_at_all() -> None:
    assert score_detections(pictures(), [detections_of(), detections_of()])["stats"][0] == 0


def test_the_area_under_a_curve_is_its_ap(tmp_path: Path) -> None:
    kitti = KittiDataset(write_kitti(tmp_path, 6), "val", classes=("Car", "Pedestrian"))
    for dataset, metric in ((kitti, "moderate"), (pictures(), "IoU 0.5")):
        found = [
            Detections(torch.from_numpy(boxes), torch.full((len(boxes),), 0.5), torch.from_numpy(labels.clip(0)))
            for boxes, labels in zip(dataset.boxes, dataset.labels, strict=True)
        ]
        for name, lines in pr_curves(dataset, found).items():
            assert len(lines) == 3
            curve = lines[metric]
            steps = curve.precision[1:] if len(curve.precision) == 41 else curve.precision
            assert curve.ap == pytest.approx(100 * steps.mean())
            assert curve.n_gt >= 1, name


def test_a_coco_file_of_kitti_data_scores_the_same(tmp_path: Path) -> None:
    """What was written as COCO annotations, ignore regions and all, has the COCO AP of the KITTI folder."""
    root = write_kitti(tmp_path / "kitti", 6)
    kitti = KittiDataset(root, "all", classes=("Car", "Pedestrian"))
    (tmp_path / "coco.json").write_text(json.dumps(coco_json(kitti)))
    coco = CocoDataset(tmp_path / "coco.json", "all")
    rng = np.random.default_rng(0)
    found = []
    for boxes, labels in zip(kitti.boxes, kitti.labels, strict=True):
        moved = (boxes + rng.normal(0, 2, boxes.shape)).astype(np.float32)
        found.append(
            Detections(*map(torch.from_numpy, (moved, rng.random(len(boxes)).astype(np.float32), labels.clip(0))))
        )
    ours, theirs = score_detections(kitti, found), score_detections(coco, found)
    assert 0 < ours["stats"][0] < 1
    assert ours["stats"] == pytest.approx(theirs["stats"], abs=1e-9)
    assert ours["per_class_AP"] == pytest.approx(theirs["per_class_AP"], abs=1e-9)
    results = kitti_results(found, kitti.classes)
    expected = kitti_ap(kitti_truths(kitti.objects), results, classes=kitti.classes)
    assert {name: ours[name] for name in expected} == expected


# Result files

CASES = ["01_near_perfect", "02_noisy", "03_many_fp", "05_duplicates"]
CASES += ["08_dontcare", "09_small_boxes", "12_few_objects", "14_logit_scores"]
OFFICIAL = ("Car", "Pedestrian", "Cyclist")


def assert_official(scores: dict, case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    for kind in ("R40", "R11"):
        for name in OFFICIAL:
            assert scores[kind][name] == pytest.approx(expected[kind][name], abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_result_files_score_as_the_official_program_says(shared: Path, case: str) -> None:
    folder = shared / "reference/kitti_eval" / case
    scores, missing = score_kitti_files(folder / "label_2", folder / "pred", classes=OFFICIAL)
    assert missing == []
    assert_official(scores, folder)


def test_so_they_do_in_a_kitti_folder(shared: Path, tmp_path: Path) -> None:
    case = shared / "reference/kitti_eval/12_few_objects"
    shutil.copytree(case / "label_2", tmp_path / "training/label_2")
    (tmp_path / "training/image_2").mkdir()
    names = sorted(path.stem for path in (case / "label_2").glob("*.txt"))
    Image.new("RGB", (1300, 400)).save(tmp_path / "picture.png")
    for name in names:
        (tmp_path / "training/image_2" / f"{name}.png").symlink_to(tmp_path / "picture.png")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("\n".join(names))
    (tmp_path / "README.txt").write_text("A text file that holds no labels.\n")
    scores, missing = score_kitti_files(tmp_path, case / "pred", classes=OFFICIAL)
    assert missing == []
    assert_official(scores, case)
    (tmp_path / "ImageSets/val.txt").write_text("\n".join(names[:5]))
    (tmp_path / "ImageSets/train.txt").write_text("\n".join(names[5:]))
    parts = [score_kitti_files(tmp_path, case / "pred", classes=["Car"], split=split)[0] for split in ("train", "val")]
    assert sum(part["n_gt"]["Car"]["hard"] for part in parts) == scores["n_gt"]["Car"]["hard"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Five frames' labels, and results/ with a perfect result for each."""
    folder = write_kitti(tmp_path / "kitti", 5) / "training/label_2"
    (tmp_path / "results").mkdir()
    for path in folder.iterdir():
        lines = path.read_text().splitlines()
        (tmp_path / "results" / path.name).write_text("".join(f"{line} {0.5 + i}\n" for i, line in enumerate(lines)))
    return folder


def test_a_missing_result_file_is_told_and_counts_as_misses(labels: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    whole, missing = score_kitti_files(labels, results, classes=OFFICIAL)
    assert missing == []
    assert whole["R40"]["Car"]["moderate"] == pytest.approx(100 * 4 / 40)
    for name in ("000001", "000004"):
        (results / f"{name}.txt").unlink()
    scores, missing = score_kitti_files(labels, results, classes=OFFICIAL)
    assert missing == ["000001", "000004"]
    assert scores["n_gt"] == whole["n_gt"]
    assert 0 < scores["R40"]["Car"]["moderate"] < whole["R40"]["Car"]["moderate"]
    for name in missing:  # the same as files that hold nothing
        (results / f"{name}.txt").write_text("")
    assert score_kitti_files(labels, results, classes=OFFICIAL) == (scores, [])


def test_results_of_other_frames_are_not_asked_for(labels: Path, tmp_path: Path) -> None:
    whole = score_kitti_files(labels, tmp_path / "results", classes=OFFICIAL)
    (tmp_path / "results/999999.txt").write_text("not a result\n")
    (tmp_path / "results/notes.md").write_text("")
    assert score_kitti_files(labels, tmp_path / "results", classes=OFFICIAL) == whole


@pytest.mark.parametrize("place", ["elsewhere", "kitti", "results/000000.txt"])
def test_results_that_fit_no_frame(labels: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"no result file for any of 5 frames, such as 000000\.txt$") as caught:
        score_kitti_files(labels, tmp_path / place, classes=OFFICIAL)
    assert str(caught.value).startswith(f"{tmp_path / place}: ")


def test_data_that_hold_no_labels(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no folder that holds both image_2 and label_2"):
        score_kitti_files(tmp_path, tmp_path / "results", classes=OFFICIAL)


GOOD = label_line("Car", (10, 20, 60, 50))


@pytest.mark.parametrize(
    ("folder", "line", "said"),
    [
        ("kitti/training/label_2", f"{GOOD} 0.5", r"label_2/000002\.txt:2: expected 15 fields, got 16 \(.*0\.5"),
        ("results", GOOD, r"results/000002\.txt:2: expected 16 fields, got 15"),
        ("results", f"{GOOD} high", r"results/000002\.txt:2: score is not a number \('high'\)"),
        ("results", f"{GOOD} nan", r"results/000002\.txt:2: score is not finite \('nan'\)"),
        ("results", f"{GOOD.replace('60.00', '6.00')} 1", r"results/000002\.txt:2: x2 < x1 \(6, 10\)"),
        ("kitti/training/label_2", GOOD.replace("60.00", "10.00"), r"label_2/000002\.txt:2: x2 == x1 \(10, 10\)"),
        ("kitti/training/label_2", "\x00", r"label_2/000002\.txt:2: expected 15 fields, got 1"),
    ],
)
def test_a_line_that_does_not_parse_is_named(labels: Path, tmp_path: Path, folder: str, line: str, said: str) -> None:
    path = tmp_path / folder / "000002.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=said) as caught:
        score_kitti_files(labels, tmp_path / "results", classes=OFFICIAL)
    assert len(str(caught.value).splitlines()) == 1


# COCO results


@pytest.mark.parametrize("case", ["1_basic", "2_crowd_dups_maxdets"])
def test_coco_results_score_as_pycocotools_says(shared: Path, case: str) -> None:
    folder = shared / "reference/coco_eval" / case
    expected = json.loads((folder / "expected.json").read_text())
    scores, notes = score_files(folder / "gt.json", folder / "det.json")
    assert notes == []
    assert scores["stats"] == pytest.approx(expected["stats"], abs=1e-9)
    assert scores["per_class_AP"] == pytest.approx(expected["per_class_AP"], abs=1e-9)


TRUTH: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
    "categories": [{"id": 90, "name": "cat"}, {"id": 17, "name": "dog"}],
    "annotations": [{"id": 0, "image_id": 7, "category_id": 90, "bbox": [10, 10, 40, 40], "area": 1600}],
}
FOUND: dict[str, Any] = {"image_id": 7, "category_id": 90, "bbox": [10, 10, 40, 40], "score": 0.5}


def coco_files(folder: Path, *found: Any) -> tuple[Path, Path]:
    (folder / "gt.json").write_text(json.dumps(TRUTH))
    (folder / "det.json").write_text(json.dumps(list(found)))
    return folder / "gt.json", folder / "det.json"


def test_ids_of_any_numbers(tmp_path: Path) -> None:
    scores, notes = score_coco_files(*coco_files(tmp_path, FOUND, FOUND | {"image_id": 3, "score": 0.1}))
    assert scores["per_class_AP"] == {"17": -1.0, "90": pytest.approx(1)}
    assert notes == []


def test_detections_of_unknown_categories_are_told(tmp_path: Path) -> None:
    scores, notes = score_coco_files(*coco_files(tmp_path, FOUND, FOUND | {"category_id": 1, "score": 0.9}))
    assert scores["stats"][0] == pytest.approx(1)
    assert [note.split(" that ")[0] for note in notes] == ["1 of 2 detections are of categories"]


def test_no_coco_results_are_zero(tmp_path: Path) -> None:
    assert score_coco_files(*coco_files(tmp_path))[0]["stats"][0] == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (FOUND | {"image_id": 8}, "detection number 1: image_id 8 is not among the annotated pictures"),
        (FOUND | {"score": "0.5"}, "detection number 1: score '0.5' is not a number"),
        (
            FOUND | {"bbox": [1, 2, 3]},
            r"detection number 1: bbox must be \[left, top, width, height\], got \[1, 2, 3\]",
        ),
        (FOUND | {"bbox": [1, 2, -3, 4]}, r"detection number 1: bbox \[1, 2, -3, 4\] has a negative side"),
        ("cat", "detection number 1: image_id 'cat' is not among"),
    ],
)
def test_a_detection_that_does_not_fit_is_named(tmp_path: Path, found: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"det\.json: {said}"):
        score_coco_files(*coco_files(tmp_path, FOUND, found))


def test_results_that_are_no_list(tmp_path: Path) -> None:
    truth, _ = coco_files(tmp_path)
    with pytest.raises(InputError, match="not COCO results"):
        score_coco_files(truth, truth)


def test_coco_results_need_coco_annotations(tmp_path: Path, labels: Path) -> None:
    truth, found = coco_files(tmp_path)
    for pair in ((labels, found), (truth, tmp_path / "results")):
        with pytest.raises(InputError, match="COCO results need a JSON file of annotations"):
            score_files(*pair)


def test_missing_kitti_results_are_noted(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "results/000001.txt").unlink()
    scores, (note,) = score_files(labels, tmp_path / "results")
    assert note == "1 frames have no result file and count as frames without detections: 000001"
    assert scores["per_class_AP"]["Car"] > 0

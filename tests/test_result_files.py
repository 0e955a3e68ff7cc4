"""Result files: KITTI's and COCO's official numbers, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.kitti_folders import label_line, write_kitti
from tinydet.errors import InputError
from tinydet.result_files import evaluate_files

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
    scores, notes = evaluate_files(folder / "label_2", folder / "pred", classes=OFFICIAL)
    assert notes == []
    assert_official(scores, folder)


def test_so_they_do_in_a_kitti_folder(shared: Path, tmp_path: Path) -> None:
    case = shared / "reference/kitti_eval/12_few_objects"
    shutil.copytree(case / "label_2", tmp_path / "training/label_2")
    (tmp_path / "training/image_2").mkdir()
    names = sorted(path.stem for path in (case / "label_2").glob("*.txt"))
    Image.new("RGB", (1300, 400)).save(tmp_path / "image.png")
    for name in names:
        (tmp_path / "training/image_2" / f"{name}.png").symlink_to(tmp_path / "image.png")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("\n".join(names))
    (tmp_path / "README.txt").write_text("A text file that holds no labels.\n")
    scores, notes = evaluate_files(tmp_path, case / "pred", classes=OFFICIAL)
    assert notes == []
    assert_official(scores, case)
    (tmp_path / "ImageSets/val.txt").write_text("\n".join(names[:5]))
    (tmp_path / "ImageSets/train.txt").write_text("\n".join(names[5:]))
    parts = [evaluate_files(tmp_path, case / "pred", classes=["Car"], split=split)[0] for split in ("train", "val")]
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


def test_a_missing_result_file_is_noted_and_counts_as_misses(labels: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    whole, notes = evaluate_files(labels, results, classes=OFFICIAL)
    assert notes == []
    assert whole["R40"]["Car"]["moderate"] == pytest.approx(100 * 4 / 40)
    for name in ("000001", "000004"):
        (results / f"{name}.txt").unlink()
    scores, notes = evaluate_files(labels, results, classes=OFFICIAL)
    assert notes == ["2 frames have no result file and count as frames without detections: 000001, 000004"]
    assert scores["n_gt"] == whole["n_gt"]
    assert 0 < scores["R40"]["Car"]["moderate"] < whole["R40"]["Car"]["moderate"]
    for name in ("000001", "000004"):  # the same as files that hold nothing
        (results / f"{name}.txt").write_text("")
    assert evaluate_files(labels, results, classes=OFFICIAL) == (scores, [])


def test_results_of_other_frames_are_not_asked_for(labels: Path, tmp_path: Path) -> None:
    whole = evaluate_files(labels, tmp_path / "results", classes=OFFICIAL)
    (tmp_path / "results/999999.txt").write_text("not a result\n")
    (tmp_path / "results/notes.md").write_text("")
    assert evaluate_files(labels, tmp_path / "results", classes=OFFICIAL) == whole


@pytest.mark.parametrize("place", ["elsewhere", "kitti", "results/000000.txt"])
def test_results_that_fit_no_frame(labels: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"no result file for any of 5 frames, such as 000000\.txt$") as caught:
        evaluate_files(labels, tmp_path / place, classes=OFFICIAL)
    assert str(caught.value).startswith(f"{tmp_path / place}: ")


def test_data_that_hold_no_labels(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no image_2 and label_2"):
        evaluate_files(tmp_path, tmp_path / "results", classes=OFFICIAL)


GOOD = label_line("Car", (10, 20, 60, 50))


@pytest.mark.parametrize(
    ("folder", "line", "said"),
    [
        ("kitti/training/label_2", f"{GOOD} 0.5", r"label_2/000002\.txt:2: expected 15 fields, got 16 \('Car .*…\)"),
        ("results", GOOD, r"results/000002\.txt:2: expected 16 fields, got 15"),
        ("results", f"{GOOD} high", r"results/000002\.txt:2: score is not a number \('high'\)"),
        ("results", f"{GOOD} nan", r"results/000002\.txt:2: score is not finite \('nan'\)"),
        ("results", f"{GOOD.replace('60.00', '6.00')} 1", r"results/000002\.txt:2: x2 < x1 \(6, 10\)"),
        ("kitti/training/label_2", GOOD.replace("60.00", "10.00"), r"label_2/000002\.txt:2: x2 == x1 \(10, 10\)"),
        ("kitti/training/label_2", "\x00", r"label_2/000002\.txt:2: not UTF-8 text"),
    ],
)
def test_a_line_that_does_not_parse_is_named(labels: Path, tmp_path: Path, folder: str, line: str, said: str) -> None:
    path = tmp_path / folder / "000002.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=said) as caught:
        evaluate_files(labels, tmp_path / "results", classes=OFFICIAL)
    assert len(str(caught.value).splitlines()) == 1


# COCO results


@pytest.mark.parametrize("case", ["1_basic", "2_crowd_dups_maxdets"])
def test_coco_results_score_as_pycocotools_says(shared: Path, case: str) -> None:
    folder = shared / "reference/coco_eval" / case
    expected = json.loads((folder / "expected.json").read_text())
    scores, notes = evaluate_files(folder / "gt.json", folder / "det.json")
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
    scores, notes = evaluate_files(*coco_files(tmp_path, FOUND, FOUND | {"image_id": 3, "score": 0.1}))
    assert scores["per_class_AP"] == {"17": -1.0, "90": pytest.approx(1)}
    assert len(notes) == 1
    assert notes[0].endswith("gt.json: an annotation has the id 0; pycocotools takes it for never detected")


def test_ids_may_be_text_and_images_nameless(tmp_path: Path) -> None:
    found = FOUND | {"image_id": "a-7", "category_id": "dog"}
    gt, det = coco_files(tmp_path, found, found | {"image_id": "9", "category_id": 5, "score": 0.2})
    gt.write_text(
        json.dumps(
            {
                "images": [{"id": "a-7"}, {"id": 9}],
                "categories": [{"id": "dog", "name": "dog"}, {"id": "5", "name": "cat"}],
                "annotations": [
                    {"id": 1, "image_id": "a-7", "category_id": "dog", "bbox": FOUND["bbox"], "iscrowd": "0"},
                    {"id": 2, "image_id": 9, "category_id": 5, "bbox": FOUND["bbox"]},
                ],
            }
        )
    )
    scores, notes = evaluate_files(gt, det)
    assert scores["per_class_AP"] == {"5": pytest.approx(1), "dog": pytest.approx(1)}
    assert notes == []


def test_detections_of_unknown_categories_are_noted(tmp_path: Path) -> None:
    scores, notes = evaluate_files(
        *coco_files(tmp_path, FOUND, FOUND | {"category_id": 1}, FOUND | {"category_id": "90.0"})
    )
    assert scores["stats"][0] == pytest.approx(1)
    assert notes[0].startswith("2 of 3 detections are of categories that ")


def test_no_coco_results_are_zero(tmp_path: Path) -> None:
    assert evaluate_files(*coco_files(tmp_path))[0]["stats"][0] == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (FOUND | {"image_id": 8}, "detection number 1: image_id 8 is not among the annotated images"),
        (FOUND | {"image_id": [7]}, r"detection number 1: image_id \[7\] is not among the annotated images"),
        (FOUND | {"category_id": [90]}, r"detection number 1: category_id \[90\] must be a number or text"),
        (FOUND | {"score": "0.5"}, "detection number 1: score '0.5' is not a finite number"),
        (FOUND | {"score": 10**400}, "detection number 1: score 1000.*… is not a finite number"),
        (FOUND | {"score": True}, "detection number 1: score True is not a finite number"),
        (FOUND | {"score": float("nan")}, "detection number 1: score nan is not a finite number"),
        (
            FOUND | {"bbox": [1, 2, 3]},
            r"detection number 1: bbox must be \[left, top, width, height\], got \[1, 2, 3\]",
        ),
        (FOUND | {"bbox": [1, 2, -3, 4]}, r"detection number 1: bbox \[1, 2, -3, 4\] has a negative side"),
        ("cat", "detections: number 1 must be an object, got 'cat'"),
    ],
)
def test_a_detection_that_does_not_fit_is_named(tmp_path: Path, found: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"det\.json: {said}"):
        evaluate_files(*coco_files(tmp_path, FOUND, found))


def test_results_that_are_no_list(tmp_path: Path) -> None:
    truth, _ = coco_files(tmp_path)
    with pytest.raises(InputError, match="detections must be a list, got "):
        evaluate_files(truth, truth)


def test_coco_results_need_coco_annotations(tmp_path: Path, labels: Path) -> None:
    truth, found = coco_files(tmp_path)
    for pair in ((labels, found), (truth, tmp_path / "results")):
        with pytest.raises(InputError, match="COCO results need a JSON file of annotations"):
            evaluate_files(*pair)

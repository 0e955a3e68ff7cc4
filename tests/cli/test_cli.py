"""The command line, end to end: its output, its files and its exit status."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tests.data.test_coco import annotation, content, write_coco
from tests.data.test_yolo import YAML, write_yolo
from tests.kitti_folders import label_line, write_kitti
from tests.test_video import FRAMES, write_clip
from tinydet import bench
from tinydet.cli import main
from tinydet.convert import convert_data
from tinydet.data.kitti import KittiDataset
from tinydet.metrics.coco import STATS
from tinydet.model.config import COCO_CLASSES
from tinydet.weights import pretrained
from tinydet.weights.load import load_weights

ROOT = Path(__file__).parents[2]
LISTS = {"train": ["000000", "000001", "000002"], "val": ["000003", "000004"]}
MODEL = ["--model", "lite0", "--size", "64x128", "--classes", "Car,Pedestrian"]
TINY = [*MODEL, "--epochs", "1", "--batch-size", "3", "--workers", "0", "--device", "cpu"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refusal(*arguments: str | Path) -> str:
    """The one line that a command refuses with."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data in kitti/ and a finished run in runs/lite0-1/."""
    folder = tmp_path_factory.mktemp("home")
    write_kitti(folder / "kitti", 5, lists=LISTS)
    result = run("train", folder / "kitti", *TINY, "--out", folder / "runs/lite0-1")
    assert result.exit_code == 0, result.output
    (folder / "train.txt").write_text(result.stdout)
    return folder


def test_train_prints_a_header_and_a_row_an_epoch(home: Path) -> None:
    lines = (home / "train.txt").read_text().splitlines()
    assert lines[0].startswith("model     lite0, 2 classes")
    assert lines[1].startswith("start     efficientnet-lite0-57934424.pth (lukemelas")
    assert lines[2].startswith("input     64x128")
    assert "Car" in lines[3]
    assert lines[-2].split()[0] == "1"
    assert str(home / "runs/lite0-1/best.pt") in lines[-1]
    assert {path.name for path in (home / "runs/lite0-1").iterdir()} >= {
        *("best.pt", "last.pt", "metrics.jsonl", "config.json", "command.txt", "train-sheet.jpg", "val-sheet.jpg"),
        *("losses.png", "ap.png", "precision-recall.png"),
    }
    assert (home / "runs/lite0-1/command.txt").read_text().split()[0] == "tinydet"
    assert json.loads((home / "runs/lite0-1/config.json").read_text())["weights"] in lines[1]


def test_train_names_its_own_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert run("train", "kitti", *TINY).exit_code == 0
    assert (home / "runs/lite0-2/best.pt").is_file()


def test_train_leaves_a_finished_run_alone(home: Path) -> None:
    before = {path: path.read_bytes() for path in (home / "runs/lite0-1").iterdir() if path.is_file()}
    assert "holds a run already" in refusal("train", home / "kitti", *TINY, "--out", home / "runs/lite0-1")
    assert before == {path: path.read_bytes() for path in before}


def test_resume_refuses_other_settings(home: Path) -> None:
    resume: list[str | Path] = ["train", home / "kitti", "--out", home / "runs/lite0-1", "--resume"]
    assert "lr None and cannot go on with 0.5" in refusal(*resume, "--lr", "0.5")
    assert "ema_decay 0.9998 and cannot go on with 0.0" in refusal(*resume, "--no-ema")
    assert "batch_size 3 and cannot go on with None" in refusal(*resume, "--batch-size", "auto")


def test_resume_takes_any_workers_and_another_way_to_the_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / "kitti")
    result = run("train", ".", "--out", home / "runs/lite0-1", "--resume", "--workers", "2", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "1 epochs, of which 1 are done" in result.stdout


def test_a_run_is_as_long_as_it_was_told_one_way(home: Path) -> None:
    assert refusal("train", home / "kitti", "--epochs", "3", "--minutes", "5") == (
        "error: --epochs and --minutes: give one of them"
    )
    assert "not a number or auto" in run("train", home / "kitti", "--batch-size", "many").stderr


def test_runs_and_what_tells_two_apart(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs/other"
    result = run("train", home / "kitti", *TINY, "--lr", "0.001", "--no-ema", "--out", other)
    assert result.exit_code == 0, result.output
    listed = run("runs", tmp_path / "runs").stdout
    assert "other" in listed
    assert "lite0" in listed
    result = run("compare", home / "runs/lite0-1", other, "--plot", tmp_path / "both.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.split()[:1] == ["lr"] and "0.001" in line for line in lines)
    assert any(line.split()[:1] == ["ema_decay"] for line in lines)
    assert (tmp_path / "both.png").is_file()
    assert "not the folder of a run" in refusal("compare", home, other)


def test_a_run_starts_from_another_runs_weights(home: Path, tmp_path: Path) -> None:
    """All but the class head, of which it keeps the rows of what both know."""
    options = ["--classes", "Car,Cyclist", "--class-map", "Cyclist=Pedestrian", "--epochs", "1"]
    options += ["--batch-size", "3", "--workers", "0", "--device", "cpu", "--freeze", "backbone", "--weights-report"]
    best = home / "runs/lite0-1/best.pt"
    data = write_kitti(tmp_path / "kitti", 5, lists=LISTS)
    for path in (data / "training/label_2").glob("*.txt"):
        path.write_text(path.read_text().replace("Pedestrian", "Cyclist"))
    result = run("train", data, "--weights", best, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "start     best.pt (tinydet lite0): " in result.stdout
    assert "2 partially, 0 missing, " in result.stdout
    assert "; class rows kept: Car, Cyclist from Pedestrian" in result.stdout
    assert re.search(r"partially loaded +class_net.predict.pointwise.weight\n", result.stdout)
    assert "input     64x128" in result.stdout  # the input size of those weights
    old, new = (load_weights(path) for path in (best, tmp_path / "run/last.pt"))
    changed = {name.split(".")[0] for name, x in new.params.items() if not torch.equal(x, old.params[name])}
    assert changed == {"bifpn", "class_net", "box_net"}
    assert all(torch.equal(new.buffers[name], x) for name, x in old.buffers.items() if name.startswith("backbone."))
    resumed = run("train", data, "--out", tmp_path / "run", "--resume", "--freeze", "backbone")
    assert resumed.exit_code == 0
    assert "start     best.pt (tinydet lite0)\n" in resumed.stdout


def test_weights_that_cannot_be_had_or_do_not_fit(home: Path, tmp_path: Path) -> None:
    best = home / "runs/lite0-1/best.pt"
    train: list[str | Path] = ["train", home / "kitti", *TINY[2:], "--out", tmp_path / "run"]
    assert "best.pt: holds a lite0, not a d1" in refusal(*train, "--model", "d1", "--weights", best)
    assert "nothing.pt: no such file" in refusal(*train, "--weights", tmp_path / "nothing.pt")
    assert "tf_efficientnet_b1_ns-99dd0c41.pth" in refusal(*train, "--model", "d1", "--weights", "imagenet")
    assert "freeze norms: the run starts from random weights" in refusal(
        *train, "--model", "lite0", "--weights", "none", "--freeze", "norms"
    )
    assert "NEW=OLD" in run(*train, "--class-map", "Car").stderr
    assert "no class bus" in refusal(*train, "--weights", best, "--class-map", "Car=bus")
    assert "no whole detector" in refusal("evaluate", home / "kitti", "--model", "lite0", "--weights", "imagenet")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default:starts from random weights")
def test_auto_trains_from_random_weights_only_after_a_warning(home: Path, tmp_path: Path) -> None:
    result = run("train", home / "kitti", *TINY, "--model", "lite3", "--out", tmp_path / "run")
    assert result.exit_code == 0
    (warning,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert warning.startswith("warning: starts from random weights, because cannot fetch https://")
    assert "start     random weights\n" in result.stdout


def test_evaluate_prints_the_same_scores_as_a_table_and_as_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    weights = ["--weights", "runs/lite0-1/best.pt"]
    scores = json.loads(run("evaluate", "kitti", *weights, "--json").stdout)
    assert set(scores["KITTI"]["R40"]) == {"Car", "Pedestrian"}
    assert set(scores["KITTI"]["R11"]["Car"]) == {"easy", "moderate", "hard"}
    row = json.loads((home / "runs/lite0-1/metrics.jsonl").read_text())
    assert scores == {name: row[name] for name in ("COCO", "KITTI")}
    table = run("evaluate", "kitti", *weights).stdout
    assert f"{scores['KITTI']['R40']['Car']['moderate']:.2f}" in table
    assert "cannot exceed" in table  # two frames hold fewer than 41 objects


def test_evaluate_scores_result_files_against_a_bare_folder_of_labels(home: Path, tmp_path: Path) -> None:
    labels, results = home / "kitti/training/label_2", tmp_path / "results"
    results.mkdir()
    for path in labels.glob("*.txt"):
        lines = [f"{line} 0.9\n" for line in path.read_text().splitlines()]
        (results / path.name).write_text("".join(lines))
    perfect = json.loads(run("evaluate", labels, "--predictions", results, "--json").stdout)
    assert perfect["R40"]["Car"]["hard"] == pytest.approx((5 - 1) / 40 * 100)  # five cars: the cap of few objects
    (results / "000002.txt").unlink()
    result = run("evaluate", labels, "--predictions", results, "--json")
    assert "000002" in result.stderr
    assert json.loads(result.stdout)["R40"]["Car"]["hard"] < perfect["R40"]["Car"]["hard"]


def test_predict_writes_images_and_boxes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    out = tmp_path / "out"
    result = run("predict", "kitti/training/image_2", "--score", "0", "--out", out)  # the newest run's weights
    assert result.exit_code == 0
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 5
    assert len(list((out / "kitti").iterdir())) == len(list((out / "images").iterdir())) == 5
    assert "best.pt" in result.stdout


def test_predict_from_standard_input(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    images = sorted((home / "kitti/training/image_2").iterdir())

    def piped(content: bytes, out: Path) -> list[str]:
        command = ["predict", "-", "--score", "0", "--out", str(out)]
        result = CliRunner().invoke(main, command, input=content, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return [Path(json.loads(line)["image"]).name for line in (out / "predictions.jsonl").read_text().splitlines()]

    listed = "".join(f"{path}\n" for path in images[:2]).encode()
    assert piped(listed, tmp_path / "list") == [path.name for path in images[:2]]
    assert piped(images[0].read_bytes(), tmp_path / "image") == ["stdin"]


def test_predict_goes_on_over_what_it_cannot_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (tmp_path / "junk.png").write_bytes(b"not an image")
    good = home / "kitti/training/image_2/000000.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    command: list[str | Path] = ["predict", tmp_path / "junk.png", good, tmp_path / "gone.png", tmp_path / "cut.png"]
    result = run(*command, "--score", "0", "--classes", "Car", "--tta", "--out", tmp_path / "out")
    assert result.exit_code == 1
    *errors, last = result.stderr.splitlines()
    unreadable = [re.findall(r"/(\w+)\.png: not a readable image", line) for line in errors]
    assert unreadable == [["junk"], ["gone"], ["cut"]]
    assert last == "3 images could not be read"
    (line,) = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert {found["class"] for found in json.loads(line)["detections"]} == {"Car"}


def test_predictions_of_a_coco_file_are_scored_by_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same detections by way of COCO files and by way of the KITTI folder."""
    monkeypatch.chdir(home)
    kitti = KittiDataset("kitti", "val", classes=("Car", "Pedestrian"))
    convert_data("kitti", tmp_path / "coco", to="coco", classes=kitti.classes)
    options: list[str | Path] = [
        "--score",
        "0.01",
        "--coco",
        tmp_path / "coco/val.json",
        "--out",
        tmp_path / "out",
    ]
    assert run("predict", *kitti.paths, *options).exit_code == 0
    ids = {one["image_id"] for one in json.loads((tmp_path / "out/coco.json").read_text())}
    assert ids == {1, 2}
    result = run("evaluate", tmp_path / "coco/val.json", "--predictions", tmp_path / "out/coco.json", "--json")
    scores = json.loads(result.stdout)
    assert set(scores) == {"stats", "per_class_AP"}
    assert set(scores["per_class_AP"]) == {"1", "2"}
    folder = json.loads(run("evaluate", "kitti", "--json").stdout)
    ap = [folder["COCO"][name] for name in STATS]
    assert scores["stats"] == pytest.approx([-1 if one is None else one / 100 for one in ap], abs=1e-3)
    shown = run("evaluate", tmp_path / "coco/val.json", "--predictions", tmp_path / "out/coco.json").stdout
    assert shown.startswith("COCO AP %")


def test_predictions_have_the_ids_of_their_own_image(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = home / "kitti/training/image_2/000000.png"
    images = [{"id": i, "file_name": f"cam{i}\\1.png", "width": 200, "height": 60} for i in (1, 2)]
    truth = {"images": images, "annotations": [], "categories": [{"id": 5, "name": "pedestrian"}]}
    Path("gt.json").write_text(json.dumps(truth))
    for path in (Path("cam2/1.png"), Path("cam3/1.png")):
        path.parent.mkdir()
        path.write_bytes(image.read_bytes())
    options: list[str | Path] = [
        "--weights",
        home / "runs/lite0-1/best.pt",
        "--score",
        "0",
        "--coco",
        "gt.json",
        "--out",
        "out",
    ]
    result = run("predict", "cam2/1.png", *options)
    assert result.stderr == "note: gt.json has no category Car; coco.json leaves them out\n"
    rows = json.loads(Path("out/coco.json").read_text())
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(2, 5)}
    shutil.rmtree("out")
    assert "1.png: may be cam1" in refusal("predict", "cam3/1.png", *options)
    assert "no category Car; they are pedestrian" in refusal("predict", "cam2", *options, "--classes", "car")
    assert not Path("out").exists()


def test_tiles_and_several_weights_are_for_both_commands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").symlink_to(home / "runs/lite0-1/best.pt")
    (tmp_path / "b.pt").symlink_to(home / "runs/lite0-1/best.pt")
    views = ["--weights", "a.pt,b.pt", "--tiles", "40x120", "--overlap", "0.1"]
    images = home / "kitti/training/image_2"
    result = run("predict", images, *views, "--score", "0.01", "--classes", "car", "--out", "out")
    assert re.search(r"[1-9]\d* Car with a.pt \(tinydet lite0\) and b.pt", result.stdout)
    assert len(Path("out/predictions.jsonl").read_text().splitlines()) == 5
    result = run("evaluate", home / "kitti", *views, "--report", "report.html")
    assert result.exit_code == 0, result.output
    assert "a.pt (tinydet lite0) and b.pt (tinydet lite0)" in Path("report.html").read_text()
    assert "c.pt: no such file" in refusal("predict", images, "--weights", "a.pt,c.pt")


def test_predict_draws_a_video(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights: list[str | Path] = ["--weights", home / "runs/lite0-1/best.pt"]
    result = run("predict", write_clip(Path("clip.mp4")), *weights, "--classes", "car", "--score", "0.01")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == "video in predictions/clip.mp4, boxes in predictions/predictions.jsonl"
    assert len(Path("predictions/predictions.jsonl").read_text().splitlines()) == FRAMES
    for others in (["clip.mp4", "camera:0"], ["clip.mp4", "--coco", "gt.json"]):
        assert "a video or a camera is predicted by itself, and without --coco" in refusal("predict", *others, *weights)
    assert "is in the output folder" in refusal("predict", "predictions/clip.mp4", *weights)
    assert "earlier prediction" in refusal("predict", "clip.mp4", *weights, "--out", ".")


def test_evaluate_writes_a_report(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    result = run("evaluate", "kitti", "--report", tmp_path / "new/out.html")
    assert result.exit_code == 0
    assert "COCO AP %" in result.stdout
    assert "<h2>Precision-recall curves</h2>" in (tmp_path / "new/out.html").read_text()
    assert "--report" in refusal("evaluate", "kitti", "--predictions", tmp_path, "--report", tmp_path / "a.html")


def test_check_counts_and_names_errors(home: Path, tmp_path: Path) -> None:
    result = run("check", home / "kitti", "--classes", "Car,Pedestrian", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"KITTI: {home / 'kitti'}\n3 train images")
    assert "0 errors, " in result.stdout
    assert "best: --size " in result.stdout
    assert "<h2>Problems</h2>" in (tmp_path / "page.html").read_text()
    write_kitti(tmp_path / "kitti", 5, lists=LISTS)
    label = tmp_path / "kitti/training/label_2/000001.txt"
    label.write_text(f"{label.read_text()}Car\n")
    result = run("check", tmp_path / "kitti", "--classes", "Car,Pedestrian", "--size", "64x128", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["errors"] == ["label_2/000001.txt:3: expected 15 fields, got 1 ('Car')"]
    assert found["anchor_recall"]["image_size"] == [64, 128]
    assert found["splits"]["val"]["images"] == 2


def test_names_are_printed_as_data(tmp_path: Path) -> None:
    """A class name cannot move the cursor, and what the encoding of a pipe lacks is replaced."""
    names = 'names: ["a\\e[31mred", "汽车"]'
    write_yolo(tmp_path, YAML.replace("names: [cat, dog]", names), {"train/a": "0 0.5 0.5 0.5 0.5\n", "val/b": ""})
    assert "a class must be 1 to 200 characters, none of them a control character, got 'a\\x1b[31mred'" in refusal(
        "check", tmp_path
    )
    (tmp_path / "data.yaml").write_text(YAML.replace("names: [cat, dog]", 'names: ["汽车", dog]'), encoding="utf-8")
    shown = run("check", tmp_path)
    assert "\n汽车 " in shown.stdout
    program, cp1252 = "from tinydet.cli import main; main()", os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-c", program, "check", str(tmp_path)]
    result = subprocess.run(command, env=cp1252, capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (shown.exit_code, b"")
    assert b"?? " in result.stdout


def test_transforms_that_are_none_are_refused_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"transform": {"__class_fullname__": "Blurr", "p": 1}}')
    line = refusal("train", "no data", "--augment", tmp_path / "own.json")
    assert "own.json: not transforms of albumentations (KeyError: 'Blurr')" in line


def test_all_commands_print_by_the_echo_that_escapes() -> None:
    for path in (ROOT / "tinydet/cli").glob("*.py"):
        assert path.name == "base.py" or "click.echo" not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("check x --html", "a.html"),
        ("evaluate x --report", "a.html"),
        ("export x --out", "a.onnx"),
        ("strip x --out", "a.pt"),
        ("compare x y --plot", "a.svg"),
    ],
)
def test_a_file_to_write_is_no_folder_and_its_own_is_made(tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "file").touch()
    for wrong, said in ((tmp_path, "is a directory"), (tmp_path / "file" / name, "file: File exists")):
        result = run(*command.split(), wrong)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
    run(*command.split(), tmp_path / "new/folder" / name)
    assert (tmp_path / "new/folder").is_dir()


def test_files_of_weights(home: Path, tmp_path: Path) -> None:
    best = home / "runs/lite0-1/best.pt"
    text = run("info", best).stdout
    assert "classes   2: Car, Pedestrian" in text
    assert f"trained   on {home / 'kitti'}, from efficientnet-lite0" in text
    assert re.search(r"score     Moderate R40 \d+\.\d after epoch 1: Car ", text)
    assert json.loads(run("info", best, "--json").stdout)["model"] == "lite0"
    result = run("strip", best, "--out", tmp_path / "small.pt")
    assert re.search(r"small\.pt, \d+\.\d MB of \d+\.\d MB", result.stdout)
    assert "exists already" in refusal("strip", best, "--out", tmp_path / "small.pt")
    safe: list[str | Path] = ["strip", best, "--format", "safetensors", "--out", tmp_path / "hub/small.safetensors"]
    assert run(*safe).exit_code == 0
    card = (tmp_path / "hub/README.md").read_text()
    assert "Detects Car, Pedestrian." in card
    assert 'td.load("small.safetensors")' in card
    assert re.search(r"\| Moderate R40, Car \| \d+\.\d % \|", card)
    assert "README.md: exists already; name another folder" in refusal(*safe[:-1], tmp_path / "hub/other.safetensors")
    assert "writes only files named *.safetensors" in refusal(*safe[:-1], tmp_path / "other.pt")
    assert "writes no files named *.safetensors" in refusal("strip", best, "--out", tmp_path / "other.safetensors")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["README.md", "small.pt", "small.safetensors"]
    expected = run("evaluate", home / "kitti", "--weights", best, "--json").stdout
    for small in ("small.pt", "hub/small.safetensors"):
        assert run("evaluate", home / "kitti", "--weights", tmp_path / small, "--json").stdout == expected


def test_export_says_what_the_file_takes_and_gives(home: Path, tmp_path: Path) -> None:
    image = home / "kitti/training/image_2/000000.png"
    command: list[str | Path] = ["export", home / "runs/lite0-1/best.pt", "--format", "torch", "--image", image]
    result = run(*command, "--max-detections", "9", "--out", tmp_path / "a.pt2")
    assert result.exit_code == 0, result.output
    first, second, third = result.stdout.splitlines()
    assert first.endswith("MB: images uint8[B H W 3] of any size -> boxes, scores, labels")
    assert second == "labels: 0 Car, 1 Pedestrian"
    assert re.match(
        rf"tested on {image} at three sizes: \d+ objects; largest difference from eager PyTorch: boxes ", third
    )


def test_bench_prints_the_same_rows_as_a_table_and_as_json(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"measure": partial(bench.measure, seconds=0.01), "TURNS": 2, "LARGEST_BATCH": 1}.items():
        monkeypatch.setattr(bench, name, value)
    shutil.copy(home / "runs/lite0-1/best.pt", weights := tmp_path / "best.pt")
    weights.with_suffix(".onnx").write_text("none")
    result = run("bench", weights, home / "kitti", "--no-compile", "--device", "cpu")
    assert result.exit_code == 0, result.output
    first, _, head, eager, onnx, int8, *failed, _, advice = result.stdout.splitlines()
    assert first.startswith("weights best.pt (tinydet lite0), input 64x128, device cpu, torch ")
    assert first.endswith(f"images 2 of {home / 'kitti'}")
    assert head.split()[-3:] == ["postprocess", "batch", "images/s"]
    assert re.match(r"eager +1( +\d+\.\d){6} +\d+ +\d+\.\d$", eager)
    assert re.match(r"ONNX Runtime +1( +-){8}$", onnx)
    assert re.match(r"ONNX Runtime int8 +1( +-){8}$", int8)
    assert re.match(r"ONNX Runtime, threads 1: .*best\.onnx: ONNX Runtime cannot read it", failed[0])
    assert re.match(r"ONNX Runtime int8, threads 1: .*best\.onnx: not a readable ONNX file", failed[1])
    assert re.match(rf"fastest here: eager, 1 thread, .*: tinydet predict IMAGES --weights {weights}", advice)
    result = run("bench", weights, "--no-compile", "--device", "cpu", "--json")
    found = json.loads(result.stdout)
    assert [(row["engine"], row["network"] is None) for row in found["rows"]] == [
        ("eager", False),
        ("ONNX Runtime", True),
        ("ONNX Runtime int8", True),
    ]
    assert "images are noise" in result.stderr
    monkeypatch.setattr(bench, "measure", lambda *_, **__: [bench.Row("eager", 1, "it is NaN")])
    result = run("bench", weights, home / "kitti", "--no-compile")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"error: {weights}: nothing could be measured: it is NaN\n")


def test_export_in_8_bits_says_what_it_costs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(weights: object, out: Path, data: Path, **settings: object) -> tuple[str, float, float]:
        assert data == home / "kitti"
        out.write_bytes(b"")
        return "COCO AP", 40.0, after

    monkeypatch.setattr("tinydet.quantize.export_int8", fake)
    command: list[str | Path] = [
        "export",
        home / "runs/lite0-1/best.pt",
        "--int8",
        home / "kitti",
        "--out",
        tmp_path / "a.onnx",
    ]
    for after, warning in (
        (39.2, ""),
        (38.5, "warning: 8 bits lose 1.5 points; the float file may serve you better\n"),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[1] == f"COCO AP on val: 40.0 in float, {after:.1f} in 8 bits"
        assert result.stderr == warning
    result = run(*command, "--image", home / "kitti/training/image_2/000000.png")
    assert "--int8 is of --format onnx, and tests the file on its data, not on --image" in result.stderr


@pytest.mark.parametrize("kind", ["COCO", "YOLO"])
def test_other_data_are_trained_on_and_scored(tmp_path: Path, kind: str) -> None:
    if kind == "COCO":
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(6)]
        annotations = [annotation(i, i, (3, 90)[i % 2], [10 + i, 10, 30, 30]) for i in range(6)]
        data = write_coco(tmp_path / "coco/set.json", content(images=images, annotations=annotations))
    else:
        names = [f"{split}/{i}" for split in ("train", "val") for i in range(4)]
        data = write_yolo(tmp_path / "yolo", YAML, {name: f"{i % 2} .5 .5 .4 .6" for i, name in enumerate(names)})
    tiny = ["--model", "lite0", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    result = run("train", data, *tiny, "--size", "auto", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(rf"data      {kind}: [45] train images", result.stdout)
    assert "input     320x320" not in result.stdout
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["metric"] == "COCO AP"
    assert row["ap"] == pytest.approx(row["COCO"]["AP"] or 0)
    assert (tmp_path / "run/precision-recall.png").is_file()
    result = run("evaluate", data, "--weights", tmp_path / "run/best.pt", "--split", "val", "--json")
    assert json.loads(result.stdout) == {"COCO": row["COCO"]}
    assert re.match(rf"{kind}: \d val images", result.stderr)
    result = run("evaluate", data, "--weights", tmp_path / "run/best.pt")
    assert result.stderr.startswith("COCO: 6 images" if kind == "COCO" else "YOLO: 4 val images")
    assert "COCO AP" in run("runs", tmp_path).stdout
    again = run("train", data, *tiny, "--val", data, "--out", tmp_path / "whole")
    assert again.exit_code == 0, again.output
    assert re.search(r"data      \w+: (6 images, those of|all 8 images that)", again.stdout)


@pytest.fixture
def release(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that publishes a detector, random but with the names and shapes of the real one, to an empty cache."""
    folder = tmp_path / "release"
    folder.mkdir()
    shapes = json.loads((shared / "checkpoints/effdet_tf_efficientdet_lite0.json").read_text())
    torch.manual_seed(0)
    torch.save({key: torch.rand(shape) * 0.1 for key, shape in shapes.items()}, folder / "new")
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    path = (folder / "new").rename(folder / f"tf_efficientdet_lite0-{digest[:8]}.pth")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TINYDET_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(pretrained.RELEASES, "coco", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setitem(pretrained.FILES, "lite0", (path.name, "none"))
        yield path
        server.shutdown()
        thread.join()


def test_a_published_detector_from_download_to_images(
    home: Path, tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = home / "kitti/training/image_2"
    first = run("predict", images, "--model", "lite0", "--score", "0", "--max-detections", "7", "--out", "out")
    assert first.exit_code == 0, first.output
    assert first.stderr == "note: there is no run in runs/; using a published detector of COCO's classes\n"
    assert f"with {release.name} (effdet tf_efficientdet_lite0" in first.stdout
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert [len(line["detections"]) for line in lines] == [7] * 5
    assert {found["class"] for line in lines for found in line["detections"]} <= {*COCO_CLASSES}
    release.unlink()  # once is enough
    again = run("predict", images, "--model", "lite0", "--weights", "coco", "--out", "out")
    assert (again.exit_code, again.stderr) == (0, "")
    scores = run("evaluate", home / "kitti", "--model", "lite0", "--weights", "coco", "--json")
    assert list(json.loads(scores.stdout)["KITTI"]["R40"]) == ["Car", "Pedestrian", "Cyclist"]
    trained = run("train", home / "kitti", *TINY, "--weights", "coco", "--out", "run")
    assert trained.exit_code == 0
    assert " 0 missing, " in trained.stdout
    assert "class rows kept: Car from car, Pedestrian from person" in trained.stdout


def test_predict_without_a_run_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a published detector, which cannot be had here."""
    write_kitti(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    result = run("predict", "training/image_2", "--model", "lite0")
    assert (result.exit_code, result.stdout) == (2, "")
    note, error = result.stderr.splitlines()
    assert note.startswith("note: there is no run in runs/")
    assert re.match(r"error: .*tf_efficientdet_lite0-dfacfc78\.pth .*the tests are offline", error)
    assert os.environ["TINYDET_CACHE"] in error
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["Car 0 0 -1.57 10 20"], "label_2/000001.txt:1"),
        ([label_line("Car", (10, 20, 60, 50)), label_line("Car", (60, 20, 10, 50))], "label_2/000001.txt:2"),
        ([label_line("Car", (10, 20, 60, 50)).replace("60.00", "sixty")], "sixty"),
    ],
)
def test_bad_labels_stop_before_anything_is_written(tmp_path: Path, lines: list[str], said: str) -> None:
    write_kitti(tmp_path, 5, lists=LISTS)
    (tmp_path / "training/label_2/000001.txt").write_text("\n".join(lines))
    assert said in refusal("train", tmp_path, *TINY, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_bad_input(home: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "junk.png").write_bytes(b"not an image")
    weights = home / "runs/lite0-1/best.pt"
    assert "junk.pt" in refusal("evaluate", home / "kitti", "--weights", tmp_path / "junk.pt")
    assert "junk.png" in refusal("predict", tmp_path / "junk.png", "--weights", weights, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "image_2" in refusal("train", tmp_path, *TINY)
    assert "d9" in refusal("train", home / "kitti", "--model", "d9")
    assert "batch_size" in refusal("train", home / "kitti", *MODEL, "--batch-size", "99", "--out", tmp_path / "run")


@pytest.mark.parametrize("size", ["256", "256x", "x896", "0x896", "256x896x3", "-1x5"])
def test_sizes_that_are_none(size: str) -> None:
    result = run("train", "anywhere", "--size", size)
    assert result.exit_code == 2
    assert "HEIGHTxWIDTH" in result.stderr


def test_every_option_is_explained() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        text = run(name, "--help").stdout
        assert re.search(rf"Examples:\n(    .*\n)*    .*tinydet {name}", text), name
        for parameter in command.params:
            assert all(option in text for option in parameter.opts if option.startswith("--")), name
            explained = getattr(parameter, "help", None)
            assert isinstance(parameter, click.Argument) or (explained and explained.endswith((".", "mps."))), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "DATA", "--model", "lite-0"], "did you mean lite0"),
        (["train", "DATA", "--model", "d0s"], "did you mean d0"),
        (["train", "DATA", "--freeze", "bakbone"], "did you mean backbone"),
        (["train", "DATA", "--optimizer", "adam"], "did you mean adamw"),
        (["evaluate", "DATA", "--split", "vall"], "did you mean val"),
        (["predict", "DATA", "--nms", "softer"], "did you mean soft"),
        (["export", "DATA", "--format", "onx"], "did you mean onnx"),
        (["trian"], "did you mean train"),
    ],
)
def test_a_misspelt_choice_is_one_line_with_the_nearest(home: Path, arguments: list[str], said: str) -> None:
    result = run(*(str(home / "kitti") if word == "DATA" else word for word in arguments))
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from tinydet.cli import main\n"
        "main(['train', '--help'], standalone_mode=False)\n"
        "slow = ('torch', 'numpy', 'albumentations', 'PIL', 'matplotlib')\n"
        "sys.exit(sum(name in sys.modules for name in slow))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, capture_output=True)


def test_garbage_is_not_looked_for_in_what_torch_brings(tmp_path: Path) -> None:
    code = (
        "import atexit, gc, sys\n"
        "from tinydet.cli import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 100_000, gc.isenabled()))\n"
        "main(['info', sys.argv[1]])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "none.pt")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True True\n"

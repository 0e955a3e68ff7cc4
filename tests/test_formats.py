"""One data set in each format goes through the whole command line: all of them train alike, stop and go on."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.kitti_folders import label_line
from tinydet.cli import main
from tinydet.training.diagnose import RULES
from tinydet.training.events import Validated
from tinydet.training.loop import train as train_loop
from tinydet.training.settings import TrainSettings

HEIGHT, WIDTH, TRAIN, EPOCHS = 96, 128, 8, 5
COLOURS = {"Car": (200, 40, 40), "Pedestrian": (40, 200, 40), "Cyclist": (40, 40, 200)}
CLASSES = tuple(COLOURS)
# Every image holds a car at its left and, at its right, a pedestrian or a cyclist.
OBJECTS = [
    [("Car", (2 + i % 3, 10 + 4 * i, 74 + i % 3, 54 + 4 * i)), (CLASSES[1 + i % 2], (80, 8 + i, 124, 84 + i))]
    for i in range(TRAIN + 3)
]
NAMES = [f"{i:06d}" for i in range(len(OBJECTS))]
SPLITS = {"train": range(TRAIN), "val": range(TRAIN, len(OBJECTS))}


def write_image(path: Path, i: int) -> None:
    """Draw an image's objects as rectangles on noise."""
    pixels = np.random.default_rng(i).integers(90, 160, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name, (left, top, right, bottom) in OBJECTS[i]:
        pixels[top:bottom, left:right] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_kitti(root: Path) -> None:
    for split, rows in SPLITS.items():
        write_text(root / f"ImageSets/{split}.txt", [NAMES[i] for i in rows])
        for i in rows:
            write_image(root / f"training/image_2/{NAMES[i]}.png", i)
            write_text(root / f"training/label_2/{NAMES[i]}.txt", [label_line(*one) for one in OBJECTS[i]])


def write_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, rows in SPLITS.items():
        images = [{"id": i, "file_name": f"{NAMES[i]}.png", "width": WIDTH, "height": HEIGHT} for i in rows]
        objects = [(i, CLASSES.index(name), box) for i in rows for name, box in OBJECTS[i]]
        annotations = [
            {"id": n, "image_id": i, "category_id": 10 * label, "bbox": [x, y, right - x, bottom - y]}
            for n, (i, label, (x, y, right, bottom)) in enumerate(objects)
        ]
        categories = [{"id": 10 * label, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        for i in rows:
            write_image(root / f"images/{split}/{NAMES[i]}.png", i)


def write_yolo(root: Path) -> None:
    write_text(root / "data.yaml", ["train: images/train", "val: images/val", f"names: [{', '.join(CLASSES)}]"])
    for split, rows in SPLITS.items():
        for i in rows:
            lines = [
                f"{CLASSES.index(name)} {(x + right) / 2 / WIDTH} {(y + bottom) / 2 / HEIGHT} "
                f"{(right - x) / WIDTH} {(bottom - y) / HEIGHT}"
                for name, (x, y, right, bottom) in OBJECTS[i]
            ]
            write_image(root / f"images/{split}/{NAMES[i]}.png", i)
            write_text(root / f"labels/{split}/{NAMES[i]}.txt", lines)


WRITERS = {"KITTI": write_kitti, "COCO": write_coco, "YOLO": write_yolo}


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


class Trained(NamedTuple):
    """A data set of some kind, and the run on it."""

    kind: str
    data: Path
    out: Path
    """`whole` of a folder of runs of its own."""
    result: Result

    @property
    def weights(self) -> tuple[str | Path, ...]:
        return ("--weights", self.out / "best.pt", "--device", "cpu")


def train_on(kind: str, *, folder: Path) -> Trained:
    data, out = folder / f"{kind}-data", folder / f"{kind}-runs/whole"
    WRITERS[kind](data)
    options = ["--model", "lite0", "--weights", "none", "--size", "64x64", "--epochs", str(EPOCHS)]
    options += ["--batch-size", "4", "--workers", "0", "--device", "cpu"]
    return Trained(kind, data, out, run("train", data, *options, "--out", out))


@pytest.fixture(scope="module")
def train_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trained]]:
    folder = tmp_path_factory.mktemp("formats")
    yield cache(partial(train_on, folder=folder))
    shutil.rmtree(folder)  # pytest would keep hundreds of megabytes of checkpoints


@pytest.fixture(params=WRITERS)
def trained(request: pytest.FixtureRequest, train_once: Callable[[str], Trained]) -> Trained:
    return train_once(request.param)


def test_every_epoch_is_validated_and_diagnosed(trained: Trained) -> None:
    rows = read_rows(trained.out)
    assert [row["epoch"] for row in rows] == [*range(1, EPOCHS + 1)]
    assert all(list(row["ap_by_class"]) == list(row["COCO"]["per_class"]) == [*CLASSES] for row in rows)
    assert {row["metric"] for row in rows} == {"Moderate R40" if trained.kind == "KITTI" else "COCO AP"}
    assert all(min(row["positives"].values()) > 0 for row in rows)
    settings = TrainSettings(**json.loads((trained.out / "config.json").read_text())["settings"])
    for rule in RULES:  # not guarded: an error comes through
        for epoch in range(1, EPOCHS + 1):
            rule(rows[:epoch], settings)
    assert "the diagnostics failed" not in trained.result.stderr
    assert f"data      {trained.kind}: {TRAIN} train images" in trained.result.stdout
    assert "objects   8 Car, 4 Pedestrian, 4 Cyclist" in trained.result.stdout


def test_all_formats_train_alike(train_once: Callable[[str], Trained]) -> None:
    kitti, coco, yolo = (read_rows(train_once(kind).out) for kind in WRITERS)
    for other in (coco, yolo):
        for row, same in zip(kitti, other, strict=True):
            for key in ("train", "val", "positives"):
                assert row[key] == pytest.approx(same[key], rel=1e-3), (row["epoch"], key)
    assert kitti[-1]["train"]["total"] < kitti[0]["train"]["total"]


def test_evaluate_scores_the_best_epoch_again_and_reports(trained: Trained, tmp_path: Path) -> None:
    best = max(read_rows(trained.out), key=lambda row: (row["ap"], -row["val"]["total"]))
    arguments = ["evaluate", trained.data, *trained.weights, "--batch-size", "4"]
    scores = json.loads(run(*arguments, "--json").stdout)
    assert scores == {name: best[name] for name in ("COCO", "KITTI") if name in best}
    assert ("KITTI" in scores) == (trained.kind == "KITTI")
    table = run(*arguments, "--report", tmp_path / "report.html").stdout
    assert "COCO AP %" in table
    page = (tmp_path / "report.html").read_text()
    assert all(name in table and name in page for name in CLASSES)


def test_predict_writes_every_format(trained: Trained, tmp_path: Path) -> None:
    images = [path for path in sorted(trained.data.rglob("*.png")) if path.stem in NAMES[TRAIN:]]
    result = run("predict", *images, *trained.weights, "--score", "0", "--max-detections", "5", "--out", tmp_path)
    assert "best.pt" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).stem for line in lines] == NAMES[TRAIN:]
    assert all(len(line["detections"]) == 5 for line in lines)
    assert len(json.loads((tmp_path / "coco.json").read_text())) == 5 * len(images)
    for folder in ("kitti", "yolo"):
        files = [tmp_path / folder / f"{path.stem}.txt" for path in images]
        assert [len(file.read_text().splitlines()) for file in files] == [5] * len(images)


def test_a_finished_run_has_nothing_to_resume(trained: Trained) -> None:
    before = (trained.out / "metrics.jsonl").read_bytes()
    result = run("train", trained.data, "--out", trained.out, "--resume", "--workers", "0", "--device", "cpu")
    assert f"{EPOCHS} epochs, of which {EPOCHS} are done" in result.stdout
    assert (trained.out / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_broken_off_goes_on_to_the_same_end(trained: Trained) -> None:
    """And beside the whole one it is the same run, in `runs` and in `compare`."""
    out = trained.out.with_name("resumed")
    settings = TrainSettings(**json.loads((trained.out / "config.json").read_text())["settings"])
    for event in train_loop(settings, out):
        if isinstance(event, Validated) and event.row["epoch"] == 2:
            break
    assert len(read_rows(out)) == 2
    result = run("train", trained.data, "--out", out, "--resume", "--workers", "0", "--device", "cpu")
    assert f"{EPOCHS} epochs, of which 2 are done" in result.stdout
    assert "the diagnostics failed" not in result.stderr
    assert timeless(read_rows(out)) == timeless(read_rows(trained.out))

    listed = run("runs", out.parent).stdout.splitlines()
    assert {line.split()[0] for line in listed[1:]} == {"whole", "resumed"}
    assert all(f"{EPOCHS}/{EPOCHS}" in line for line in listed[1:])
    compared = run("compare", trained.out, out).stdout
    assert f"of {EPOCHS}" in compared
    assert compared.endswith("no setting differs\n")

"""Predictions are what validation finds, and what is written reads back."""

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.detector
import tinydet.predict
from tests.checkpoints import weights_of
from tests.kitti_folders import HEIGHT, WIDTH, write_kitti
from tinydet.data.example import read_image
from tinydet.data.kitti import KittiDataset
from tinydet.data.kitti_labels import read_objects
from tinydet.data.loader import val_batches
from tinydet.detector import Detector
from tinydet.draw import draw
from tinydet.errors import InputError
from tinydet.evaluate import validate
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.detect import Detections
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import Tensors, state
from tinydet.model.fuse import network
from tinydet.predict import ahead, collect_pictures, newest_weights, predict, readable, save_predictions
from tinydet.prediction import Prediction
from tinydet.weights.checkpoint import Checkpoint, save_checkpoint
from tinydet.weights.formats import Weights

CLASSES = ("Car", "Pedestrian")
FRAMES = 5


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights."""
    torch.manual_seed(0)
    config = model_config("lite0", classes=CLASSES, image_size=(64, 128))
    params, buffers = state(EfficientDet(config))
    return weights_of(config, params, buffers)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    root = write_kitti(tmp_path_factory.mktemp("kitti"), FRAMES, lists={"val": [f"{i:06d}" for i in range(FRAMES)]})
    return KittiDataset(root, "val", classes=CLASSES)


def found(count: int, *, seed: int = 0) -> Detections:
    """Random detections, best first, with as many digits as a float32 has."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 600, (count, 2)), rng.uniform(0, 600, (count, 2))
    scores = np.sort(10.0 ** rng.uniform(-6, 0, count))[::-1].copy()
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return Detections(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(rng.integers(0, 2, count))
    )


class Watched(np.ndarray):
    """An array that can be in a set of what is alive."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def prediction(name: str, count: int = 3) -> Prediction:
    image = np.random.default_rng(count).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    return Prediction(Path(name), image, found(count), CLASSES)


def assert_same(one: Detections, other: Detections) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# Working ahead


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_ahead_is_map(depth: int) -> None:
    for count in (0, 1, depth, depth + 1, 20):
        assert list(ahead(str, range(count), depth=depth)) == list(map(str, range(count)))


def test_what_comes_next_is_made_while_the_caller_is_busy_but_no_more() -> None:
    drawn: list[int] = []
    made = [threading.Event() for _ in range(9)]

    def items() -> Iterator[int]:
        for i in range(9):
            drawn.append(i)
            yield i

    results = ahead(lambda i: made[i].set(), items(), depth=2)
    threads = threading.active_count()
    assert drawn == []
    for i in range(9):
        next(results)
        assert drawn == list(range(min(i + 3, 9)))
        assert all(event.wait(10) for event in made[: len(drawn)])
        assert not any(event.is_set() for event in made[len(drawn) :])
        assert threading.active_count() <= threads + 2
    assert next(results, None) is None
    assert threading.active_count() == threads


def test_an_error_comes_where_its_result_would() -> None:
    results = ahead(lambda i: 6 // (3 - i), range(9), depth=2)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results, None) is None


@pytest.mark.parametrize("end", ["let go", "raise"])
def test_what_has_begun_is_finished_and_its_threads_end(end: str) -> None:
    made: list[int] = []
    go = threading.Event()

    def make(i: int) -> None:
        if i:
            go.wait(10)
        made.append(i)

    def items() -> Iterator[int]:
        yield from range(2)
        go.set()
        raise InputError("no more")

    threads = threading.active_count()
    results = ahead(make, items(), depth=1)
    next(results)
    assert made == [0]
    if end == "let go":
        threading.Timer(0.1, go.set).start()
        del results
    else:
        with pytest.raises(InputError, match="no more"):
            next(results)
    assert made == [0, 1]
    assert threading.active_count() <= threads + (end == "let go")  # the timer may take its time to end


# Predicting


def test_predictions_are_what_validation_finds(dataset: KittiDataset, weights: Weights) -> None:
    config = weights.config
    batches = val_batches(dataset, config.image_size, batch_size=2, workers=0, fill=config.fill)
    expected = validate(weights.params, weights.buffers, batches, config=config).detections
    predictions = list(predict(dataset.paths, Detector(weights), batch_size=2, score_threshold=0.01, method="soft"))
    assert [one.path for one in predictions] == dataset.paths
    for one, detections in zip(predictions, expected, strict=True):
        assert len(one.detections.scores) > 10
        assert_same(one.detections, detections)
        np.testing.assert_array_equal(one.image, read_image(one.path))
        assert (one.detections.boxes >= 0).all()
        assert (one.detections.boxes <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all()


def test_a_compiled_network_sees_batches_of_one_size(
    dataset: KittiDataset, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(predict(dataset.paths, Detector(weights), batch_size=2, score_threshold=0.01))
    sizes, asked = [], []

    def uncompiled(*given: Tensors, config: ModelConfig, compile: bool) -> Callable[[torch.Tensor], Outputs]:
        asked.append(compile)
        forward = network(*given, config=config)

        def watched(images: torch.Tensor) -> Outputs:
            sizes.append(len(images))
            return forward(images)

        return watched

    monkeypatch.setattr(tinydet.detector, "network", uncompiled)
    predictions = list(predict(dataset.paths, Detector(weights, compile=True), batch_size=2, score_threshold=0.01))
    assert (asked, sizes) == ([True], [2, 2, 2])
    assert [one.path for one in predictions] == [one.path for one in expected]
    # A convolution rounds by the size of the batch, which may change the order of the last picture's detections.
    for one, other in zip(predictions, expected, strict=True):
        torch.testing.assert_close(one.detections.scores, other.detections.scores, rtol=1e-3, atol=0)
    for one, other in zip(predictions[:4], expected[:4], strict=True):
        assert_same(one.detections, other.detections)


def test_settings_reach_the_detector(dataset: KittiDataset, weights: Weights) -> None:
    paths = dataset.paths[:1]
    (every,) = predict(paths, Detector(weights), score_threshold=0.0, max_detections=50)
    assert len(every.detections.scores) == 50
    threshold = every.detections.scores[9].item()
    (ten,) = predict(paths, Detector(weights), score_threshold=threshold, max_detections=50)
    assert torch.equal(ten.scores, every.scores[:10])
    assert torch.equal(ten.labels, every.labels[:10])
    apart = (ten.boxes - every.boxes[:10]).abs().amax(1)  # fewer candidates have a say in where they are
    assert apart.max() < 0.2 * WIDTH
    (soft,) = predict(paths, Detector(weights), score_threshold=0.0, max_detections=50, method="soft")
    assert not torch.equal(soft.detections.boxes, every.detections.boxes)
    (none,) = predict(paths, Detector(weights), score_threshold=1.0)
    assert [len(field) for field in none.detections] == [0, 0, 0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"max_detections": -1}, "max_detections must be positive, got -1"),
        ({"score_threshold": 30}, r"score_threshold must be in \[0, 1\], got 30"),
        ({"method": "none"}, "method must be one of hard, soft; got 'none'"),
    ],
)
def test_a_senseless_setting_is_named(weights: Weights, setting: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict([], Detector(weights), **setting)


def test_one_batch_is_read_ahead(dataset: KittiDataset, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def spy(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(tinydet.predict, "read_image", spy)
    predictions = predict(dataset.paths, Detector(weights), batch_size=2)
    assert read == []
    for least, most in ((2, 4), (2, 4), (4, 5), (4, 5), (5, 5)):
        next(predictions)
        assert least <= len(read) <= most
    assert read == dataset.paths


def test_pictures_that_are_done_with_leave_memory(
    dataset: KittiDataset, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    counts: list[int] = []

    def spy(path: Path) -> np.ndarray:
        image = read_image(path).view(Watched)
        alive.add(image)
        counts.append(len(alive))
        return image

    paths = [tmp_path / f"{i}.png" for i in range(50)]
    for path in paths:
        path.hardlink_to(dataset.paths[0])
    monkeypatch.setattr(tinydet.predict, "read_image", spy)
    save_predictions(predict(paths, Detector(weights)), tmp_path / "out", classes=CLASSES)
    assert len(counts) == 50
    assert max(counts) <= 6  # three that are read or in the network, and three that are drawn or about to be


def test_what_is_no_picture_is_said_and_the_others_go_on(
    dataset: KittiDataset, weights: Weights, tmp_path: Path
) -> None:
    text, cut = tmp_path / "notes.png", tmp_path / "cut.png"
    text.write_text("no picture")
    cut.write_bytes(dataset.paths[0].read_bytes()[:3000])
    given = [dataset.paths[0], text, tmp_path / "gone.png", cut, dataset.paths[1]]
    errors: list[InputError] = []
    made = list(predict(given, Detector(weights), batch_size=2, unreadable=errors.append))
    assert [one.path for one in made] == dataset.paths[:2]
    said = [str(error).removeprefix(f"{tmp_path}/").split(" (")[0] for error in errors]
    assert said == [f"{name}: not a readable picture" for name in ("notes.png", "gone.png", "cut.png")]
    errors.clear()
    assert readable(given, errors.append) == [dataset.paths[0], cut, dataset.paths[1]]
    assert len(errors) == 2
    with pytest.raises(InputError, match=r"notes\.png: not a readable picture \(unknown format\)"):
        readable([text], errors.append)


def test_a_truncated_picture_is_named_when_reached(dataset: KittiDataset, weights: Weights, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(dataset.paths[0].read_bytes()[:3000])
    predictions = predict([dataset.paths[0], cut], Detector(weights))
    assert next(predictions).path == dataset.paths[0]
    with pytest.raises(InputError, match=r"cut\.png: not a readable picture"):
        next(predictions)


def test_pictures_are_files_and_the_pictures_of_folders(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "deeper/c.png", "other/d.webp", "e.dat", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "f.bmp").touch()
    assert collect_pictures([]) == []
    given: list[Path | str] = [tmp_path / "other", str(tmp_path / "e.dat"), tmp_path / "folder.png"]
    assert collect_pictures(given) == [tmp_path / "other/d.webp", tmp_path / "e.dat", tmp_path / "folder.png/f.bmp"]
    assert [path.name for path in collect_pictures([tmp_path])] == ["a.jpg", "b.PNG"]
    with pytest.raises(InputError, match=r"empty: holds no picture \(\.png, "):
        collect_pictures([tmp_path / "empty"])
    assert collect_pictures([tmp_path / "gone.png"]) == [tmp_path / "gone.png"]  # who reads it will say so
    assert [path.name for path in collect_pictures([tmp_path / "*.[jP]*"])] == ["a.jpg", "b.PNG"]
    (tmp_path / "other" / "a.png").touch()
    with pytest.raises(InputError, match=r"other/a\.png: its results would overwrite those of .*a\.jpg"):
        collect_pictures([tmp_path, tmp_path / "other"])


def test_the_newest_weights_are_of_the_run_that_improved_last(tmp_path: Path) -> None:
    assert newest_weights(tmp_path / "runs") is None
    for name, seconds in (("d0-1", 100), ("d0-3", 300), ("d0-2", 200)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "best.pt").touch()
        os.utime(tmp_path / "runs" / name / "best.pt", (seconds, seconds))
    (tmp_path / "runs" / "d0-4").mkdir()
    assert newest_weights(tmp_path / "runs") == tmp_path / "runs" / "d0-3" / "best.pt"


def test_a_json_line_holds_all_of_a_prediction() -> None:
    one = prediction("folder/frame.png", 200)
    line = one.to_json()
    assert "\n" not in line
    read = json.loads(line)
    assert {name: read[name] for name in ("image", "width", "height")} == {
        "image": "folder/frame.png",
        "width": 120,
        "height": 80,
    }
    rows = read["detections"]
    assert_same(
        one.detections,
        Detections(
            torch.tensor([row["box"] for row in rows]),
            torch.tensor([row["score"] for row in rows]),
            torch.tensor([row["label"] for row in rows]),
        ),
    )
    assert [row["class"] for row in rows] == [CLASSES[row["label"]] for row in rows]
    assert len(line) < 200 * 110  # no digits that a float32 does not have


def result_of(detections: Detections, classes: tuple[str, ...] = CLASSES) -> Prediction:
    """A prediction in a picture of 100x50."""
    return Prediction(Path("a.png"), np.zeros((50, 100, 3), np.uint8), detections, classes)


ONE = Detections(torch.tensor([[10.0, 5, 30, 45]]), torch.tensor([0.5]), torch.tensor([1]))


def test_coco_results_have_sides_and_ids() -> None:
    assert result_of(ONE).to_coco(7) == [{"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 40], "score": 0.5}]
    assert result_of(ONE).to_coco(7, category_ids={"Pedestrian": 90})[0]["category_id"] == 90
    assert result_of(found(0)).to_coco(7) == []


def test_yolo_results_are_shares_of_the_picture() -> None:
    assert result_of(ONE).to_yolo() == "1 0.2 0.5 0.2 0.8 0.5\n"
    assert result_of(found(0)).to_yolo() == ""


def test_a_prediction_says_what_it_holds() -> None:
    one = result_of(ONE)
    assert (len(one), one.names, one.labels.tolist()) == (1, ["Pedestrian"], [1])
    assert one.draw().size == (100, 50)
    assert np.asarray(one.draw()).any()


def test_coco_results_of_a_folder(tmp_path: Path) -> None:
    made = [prediction("in/a.png", 2), prediction("in/b.jpg", 0), prediction("in/c.jpg", 1)]
    save_predictions(iter(made), tmp_path / "out", classes=CLASSES)
    assert json.loads((tmp_path / "out/coco.json").read_text()) == [*made[0].to_coco(1), *made[2].to_coco(3)]
    named = {"category_ids": {"Car": 3, "Pedestrian": 1}}
    ids = {"image_ids": {"a.png": 30, "b.jpg": 20, "c.jpg": 10}, **named}
    save_predictions(iter(made), tmp_path / "out", classes=CLASSES, **ids)
    expected = [*made[0].to_coco(30, **named), *made[2].to_coco(10, **named)]
    assert json.loads((tmp_path / "out/coco.json").read_text()) == expected
    with pytest.raises(InputError, match=r"in/b\.jpg: the annotations have no picture 'b\.jpg'"):
        save_predictions(iter(made), tmp_path / "out", classes=CLASSES, image_ids={"a.png": 1})


def test_a_kitti_result_reads_back(tmp_path: Path) -> None:
    detections = found(500)
    path = tmp_path / "000001.txt"
    path.write_text(result_of(detections, ("Car", "traffic light")).to_kitti())
    read = read_objects(path, scored=True)
    assert read.types == [("Car", "traffic_light")[label] for label in detections.labels.tolist()]
    assert read.scores is not None
    np.testing.assert_array_equal(read.boxes.astype(np.float32), detections.boxes.numpy())
    np.testing.assert_array_equal(read.scores.astype(np.float32), detections.scores.numpy())
    assert result_of(found(0)).to_kitti() == ""


def test_a_kitti_line_leaves_out_what_only_3d_detectors_know() -> None:
    one = Detections(torch.tensor([[712.4, 143, 810.73, 307.92]]), torch.tensor([0.87]), torch.tensor([1]))
    expected = "Pedestrian -1 -1 -10 712.4 143.0 810.73 307.92 -1 -1 -1 -1000 -1000 -1000 -10 0.87\n"
    assert result_of(one).to_kitti() == expected


def test_saved_predictions_are_a_line_a_result_and_a_drawing_each(tmp_path: Path) -> None:
    made = [prediction("in/a.png"), prediction("in/b.jpg", 0)]
    before = made[0].image.copy()
    counts = save_predictions(iter(made), tmp_path / "deep" / "out", classes=CLASSES)
    out = tmp_path / "deep" / "out"
    assert counts == {name: int((made[0].detections.labels == i).sum()) for i, name in enumerate(CLASSES)}
    assert list(counts) == list(CLASSES)
    assert (out / "predictions.jsonl").read_text().splitlines() == [one.to_json() for one in made]
    assert sorted(path.name for path in (out / "kitti").iterdir()) == ["a.txt", "b.txt"]
    assert (out / "kitti" / "a.txt").read_text() == made[0].to_kitti()
    assert (out / "kitti" / "b.txt").read_text() == ""
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["a.jpg", "b.jpg"]
    boxes, scores, labels = made[0].detections
    expected = draw(made[0].image, boxes, labels, scores, classes=CLASSES)
    with Image.open(out / "pictures" / "a.jpg") as picture:
        assert np.abs(np.asarray(picture).astype(float) - expected).mean() < 5
    np.testing.assert_array_equal(made[0].image, before)


def test_what_comes_before_a_broken_picture_is_saved_whole(
    dataset: KittiDataset, weights: Weights, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(dataset.paths[0].read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.png: not a readable picture"):
        save_predictions(predict([*dataset.paths[:3], cut], Detector(weights)), tmp_path / "out", classes=CLASSES)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    for path in dataset.paths[:3]:
        assert (tmp_path / "out" / "kitti" / f"{path.stem}.txt").is_file()
        assert read_image(tmp_path / "out" / "pictures" / f"{path.stem}.jpg").shape == (HEIGHT, WIDTH, 3)


def test_what_cannot_be_saved_is_an_error_and_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", Mock(side_effect=OSError("the disk is full")))
        with pytest.raises(OSError, match="disk is full"):
            save_predictions([prediction("a.png")], tmp_path, classes=CLASSES)
    assert (tmp_path / "kitti" / "a.txt").is_file()
    save_predictions([prediction("b.png")], tmp_path, classes=CLASSES)
    assert [path.name for path in (tmp_path / "kitti").iterdir()] == ["b.txt"]


def test_a_new_prediction_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    save_predictions([prediction("a.png"), prediction("b.png")], tmp_path / "out", classes=CLASSES)
    kept = tmp_path / "out" / "kitti" / "mine.txt"
    kept.write_text("mine")
    save_predictions([prediction("c.png", 1)], tmp_path / "out", classes=CLASSES)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"predictions.jsonl", "coco.json", "kitti/c.txt", "kitti/mine.txt", "yolo/c.txt", "pictures/c.jpg"}
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["out", "out/kitti/a.txt"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="out: neither empty nor an earlier prediction; choose another folder"):
        save_predictions([prediction("a.png")], tmp_path / "out", classes=CLASSES)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("line", ["{", "3", '{"picture": "a.png"}', '{"image": 3}'])
def test_lines_of_something_else_are_left_alone(tmp_path: Path, line: str) -> None:
    lines = tmp_path / "predictions.jsonl"
    lines.write_text(f"{prediction('a.png').to_json()}\n{line}\n")
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match=r"predictions\.jsonl: not written by a prediction"):
        save_predictions([prediction("a.png")], tmp_path, classes=CLASSES)
    assert len(lines.read_text().splitlines()) == 2
    assert (tmp_path / "kitti" / "a.txt").read_text() == "mine"


def test_results_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two/a\.jpg: its results would overwrite those of another 'a'"):
        save_predictions([prediction("one/a.png"), prediction("two/a.jpg", 0)], tmp_path, classes=CLASSES)
    assert len((tmp_path / "kitti" / "a.txt").read_text().splitlines()) == 3


def test_predicting_loads_nothing_that_it_does_not_need(
    dataset: KittiDataset, weights: Weights, tmp_path: Path
) -> None:
    params, buffers = weights.params, weights.buffers
    save_checkpoint(tmp_path / "best.pt", Checkpoint(weights.config, params, buffers, params, buffers, {}))
    code = f"""if True:
        import sys
        from tinydet.detector import load
        from tinydet.predict import collect_pictures, predict, save_predictions

        detector = load({str(tmp_path / "best.pt")!r})
        pictures = collect_pictures([{str(dataset.paths[0])!r}])
        save_predictions(predict(pictures, detector), {str(tmp_path / "out")!r}, classes=detector.classes)
        print([name for name in ("albumentations", "cv2", "click", "matplotlib", "scipy") if name in sys.modules])"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300)
    assert ran.stdout == "[]\n"
    assert (tmp_path / "out" / "kitti" / "000000.txt").is_file()

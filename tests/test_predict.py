"""Predictions are what validation finds, and what is written reads back."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.engines
from tests.checkpoints import weights_of
from tests.kitti_folders import HEIGHT, WIDTH, write_kitti
from tests.random_detections import found
from tinydet.data.images import read_image
from tinydet.data.kitti import KittiDataset
from tinydet.detector import Detector
from tinydet.draw import draw
from tinydet.errors import InputError
from tinydet.evaluation import validate
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.fold import inference_fn
from tinydet.model.functional import Variables, params_and_buffers
from tinydet.model.postprocess import Detections
from tinydet.predict import (
    CocoIds,
    coco_ids,
    collect_images,
    earlier_results,
    newest_weights,
    read_stdin,
    save_predictions,
)
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
    return weights_of(config, *params_and_buffers(EfficientDet(config)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    root = write_kitti(tmp_path_factory.mktemp("kitti"), FRAMES, lists={"val": [f"{i:06d}" for i in range(FRAMES)]})
    return KittiDataset(root, "val", classes=CLASSES)


@pytest.fixture(scope="module")
def paths(dataset: KittiDataset) -> list[Path]:
    """Image files."""
    return [frame.path for frame in dataset.frames()]


class Watched(np.ndarray):
    """An array that can be in a set of what is alive."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def prediction(name: str, count: int = 3) -> Prediction:
    image = np.random.default_rng(count).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    return Prediction(Path(name), image, CLASSES, *found(count))


def assert_same(one: Detections, other: Detections) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# Predicting


def test_predictions_are_what_validation_finds(dataset: KittiDataset, paths: list[Path], weights: Weights) -> None:
    variables = Variables(weights.params, weights.buffers)
    expected = validate(variables, dataset, config=weights.config, batch_size=2).detections
    predictions = list(Detector(weights).predict(paths, batch_size=2, score_threshold=0.01, workers=0))
    assert [one.path for one in predictions] == paths
    for one, detections in zip(predictions, expected, strict=True):
        assert len(one.detections.scores) > 10
        assert_same(one.detections, detections)
        np.testing.assert_array_equal(one.image, read_image(one.path))
        assert (one.detections.boxes >= 0).all()
        assert (one.detections.boxes <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all()


def test_a_compiled_network_sees_batches_of_one_size(
    paths: list[Path], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(Detector(weights).predict(paths, batch_size=2, score_threshold=0.01, workers=0))
    sizes, asked = [], []

    def uncompiled(variables: Variables, *, config: ModelConfig, compile: bool) -> Callable[[torch.Tensor], Outputs]:
        asked.append(compile)
        forward = inference_fn(variables, config=config)

        def watched(images: torch.Tensor) -> Outputs:
            sizes.append(len(images))
            return forward(images)

        return watched

    monkeypatch.setattr(tinydet.engines, "inference_fn", uncompiled)
    detector = Detector(weights, compile=True)
    predictions = list(detector.predict(paths, batch_size=2, score_threshold=0.01))
    assert (asked, sizes) == ([True], [2, 2, 2])
    assert [one.path for one in predictions] == [one.path for one in expected]
    # A convolution rounds by the size of the batch, which may change the order of the last image's detections.
    for one, other in zip(predictions, expected, strict=True):
        torch.testing.assert_close(one.detections.scores, other.detections.scores, rtol=1e-3, atol=0)
    for one, other in zip(predictions[:4], expected[:4], strict=True):
        assert_same(one.detections, other.detections)


def test_settings_reach_the_detector(paths: list[Path], weights: Weights) -> None:
    (every,) = Detector(weights).predict(paths[:1], score_threshold=0.001, max_detections=50, method="hard")
    assert len(every.detections.scores) == 50
    threshold = every.detections.scores[9].item()
    settings: dict[str, Any] = {"score_threshold": threshold, "max_detections": 50, "method": "hard"}
    (ten,) = Detector(weights).predict(paths[:1], **settings)
    assert torch.equal(ten.scores, every.scores[:10])
    assert torch.equal(ten.labels, every.labels[:10])
    apart = (ten.boxes - every.boxes[:10]).abs().amax(1)  # fewer candidates vote
    assert apart.max() < 0.2 * WIDTH
    (soft,) = Detector(weights).predict(paths[:1], score_threshold=0.001, max_detections=50)
    assert not torch.equal(soft.detections.boxes, every.detections.boxes)
    (none,) = Detector(weights).predict(paths[:1], score_threshold=1.0)
    assert [len(field) for field in none.detections] == [0, 0, 0]
    (cars,) = Detector(weights).predict(paths[:1], score_threshold=0.001, classes=["car"])
    assert set(cars.names) == {"Car"}


def test_one_batch_is_read_ahead(paths: list[Path], weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def spy(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(tinydet.detector, "read_image", spy)
    predictions = Detector(weights).predict(paths, batch_size=2, workers=1)
    assert read == []
    for least, most in ((2, 4), (2, 4), (4, 5), (4, 5), (5, 5)):
        next(predictions)
        assert least <= len(read) <= most
    assert read == paths


def test_images_that_are_done_with_leave_memory(
    paths: list[Path], weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    counts: list[int] = []

    def spy(path: Path) -> np.ndarray:
        image = read_image(path).view(Watched)
        alive.add(image)
        counts.append(len(alive))
        return image

    links = [tmp_path / f"{i}.png" for i in range(20)]
    for link in links:
        link.hardlink_to(paths[0])
    monkeypatch.setattr(tinydet.detector, "read_image", spy)
    save_predictions(Detector(weights).predict(links), tmp_path / "out", classes=CLASSES)
    assert len(counts) == 20
    assert max(counts) <= 6  # three that are read or in the network, and three that are drawn or about to be


def test_files_that_are_no_images_are_reported_and_left_out(
    paths: list[Path], weights: Weights, tmp_path: Path
) -> None:
    text, cut = tmp_path / "notes.png", tmp_path / "cut.png"
    text.write_text("no image")
    cut.write_bytes(paths[0].read_bytes()[:3000])
    given = [paths[0], text, tmp_path / "gone.png", cut, paths[1]]
    errors: list[InputError] = []
    made = list(Detector(weights).predict(given, batch_size=2, on_error=errors.append))
    assert [one.path for one in made] == paths[:2]
    said = [str(error).removeprefix(f"{tmp_path}/").split(" (")[0] for error in errors]
    assert said == [f"{name}: not a readable image" for name in ("notes.png", "gone.png", "cut.png")]
    errors.clear()
    assert collect_images(given, on_error=errors.append) == [paths[0], cut, paths[1]]
    assert len(errors) == 2
    with pytest.raises(InputError, match=r"notes\.png: not a readable image \(unknown format\)"):
        collect_images([text, tmp_path / "gone.png"], on_error=errors.append)
    assert len(errors) == 2
    with pytest.raises(InputError, match=r"notes\.png: not a readable image \(unknown format\)"):
        collect_images(given)


def test_a_truncated_image_is_named_when_reached(paths: list[Path], weights: Weights, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:3000])
    predictions = Detector(weights).predict([paths[0], cut])
    assert next(predictions).path == paths[0]
    with pytest.raises(InputError, match=r"cut\.png: not a readable image"):
        next(predictions)


def test_images_are_files_and_the_images_of_folders(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2))
    for name in ("b.PNG", "a.jpg", "deeper/c.png", "other/d.webp", "e.dat", "folder.png/f.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name, format="PNG")
    for name in ("notes.txt", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert collect_images([]) == []
    given: list[Path | str] = [tmp_path / "other", str(tmp_path / "e.dat"), tmp_path / "folder.png"]
    assert collect_images(given) == [tmp_path / "other/d.webp", tmp_path / "e.dat", tmp_path / "folder.png/f.bmp"]
    assert [path.name for path in collect_images([tmp_path])] == ["a.jpg", "b.PNG"]
    with pytest.raises(InputError, match=r"empty: holds no image \(\.png, "):
        collect_images([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"gone\.png: not a readable image \(No such file"):
        collect_images([tmp_path / "gone.png"])
    assert [path.name for path in collect_images([tmp_path / "*.[jP]*"])] == ["a.jpg", "b.PNG"]
    image.save(tmp_path / "other" / "a.png")
    with pytest.raises(InputError, match=r"other/a\.png: its results would overwrite those of .*a\.jpg"):
        collect_images([tmp_path, tmp_path / "other"])


def test_standard_input_is_a_list_of_paths_or_an_image(tmp_path: Path) -> None:
    assert read_stdin(io.BytesIO(b"a.png\n\nb c.png\n"), tmp_path) == ["a.png", "b c.png"]
    content = io.BytesIO()
    Image.new("RGB", (3, 2)).save(content, format="PNG")
    (path,) = read_stdin(io.BytesIO(content.getvalue()), tmp_path)
    assert read_image(path).shape == (2, 3, 3)
    with pytest.raises(InputError, match="standard input: neither UTF-8 text that lists images nor a readable image"):
        read_stdin(io.BytesIO(b"\xff\xfe\xfd"), tmp_path)
    for nothing in (b"", b"\n \n"):
        with pytest.raises(InputError, match="standard input: lists no image"):
            read_stdin(io.BytesIO(nothing), tmp_path)


def test_the_newest_weights_are_of_the_run_that_improved_last(tmp_path: Path) -> None:
    assert newest_weights(tmp_path / "runs") is None
    for name, seconds in (("d0-1", 100), ("d0-3", 300), ("d0-2", 200)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "best.pt").touch()
        os.utime(tmp_path / "runs" / name / "best.pt", (seconds, seconds))
    (tmp_path / "runs" / "d0-4").mkdir()
    assert newest_weights(tmp_path / "runs") == tmp_path / "runs" / "d0-3" / "best.pt"


def test_coco_results_of_a_folder(tmp_path: Path) -> None:
    made = [prediction("in/a.png", 2), prediction("in/b.jpg", 0), prediction("in/c.jpg", 9)]
    save_predictions(iter(made), tmp_path / "out", classes=CLASSES)
    assert json.loads((tmp_path / "out/coco.json").read_text()) == [*made[0].to_coco(1), *made[2].to_coco(3)]
    images = {Path("in/a.png"): 30, Path("in/b.jpg"): 20, Path("in/c.jpg"): 10}
    for categories in ({"Car": 3, "Pedestrian": 1}, {"Car": 7}):
        save_predictions(iter(made), tmp_path / "out", classes=CLASSES, ids=CocoIds(images, categories))
        expected = [row for one in made for row in one.to_coco(images[one.path], category_ids=categories)]
        assert json.loads((tmp_path / "out/coco.json").read_text()) == expected
        assert {row["category_id"] for row in expected} == set(categories.values())


def annotations(path: Path, names: list[str], categories: list[str]) -> Path:
    """Write annotations whose ids are 5, 7, ... of images and 3, 4, ... of categories."""
    content = {
        "images": [{"id": 5 + 2 * i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=3)],
        "annotations": [],
    }
    path.write_text(json.dumps(content))
    return path


def test_ids_are_those_of_the_same_path_and_of_the_class_in_any_case(tmp_path: Path) -> None:
    path = annotations(tmp_path / "gt.json", ["cam1/1.jpg", "cam2\\1.jpg", "2.jpg"], ["cat", "PEDESTRIAN"])
    images = [tmp_path / "cam2/1.jpg", Path("x/2.jpg")]
    ids = coco_ids(path, images, classes=CLASSES)
    assert ids == CocoIds({images[0]: 7, images[1]: 9}, {"Pedestrian": 4})
    with pytest.raises(InputError, match=r"gt\.json: there is no category Car; they are cat, PEDESTRIAN"):
        coco_ids(path, images, classes=["Car"])
    with pytest.raises(InputError, match=r"/3\.jpg: the annotations have no image '3\.jpg'"):
        coco_ids(path, [Path("3.jpg")], classes=CLASSES)


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
    assert sorted(path.name for path in (out / "images").iterdir()) == ["a.jpg", "b.jpg"]
    boxes, scores, labels = made[0].detections
    expected = draw(made[0].image, boxes, labels, scores, classes=CLASSES)
    with Image.open(out / "images" / "a.jpg") as image:
        assert np.abs(np.asarray(image).astype(float) - expected).mean() < 5
    np.testing.assert_array_equal(made[0].image, before)


def test_what_comes_before_a_broken_image_is_saved_whole(paths: list[Path], weights: Weights, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.png: not a readable image"):
        save_predictions(Detector(weights).predict([*paths[:3], cut]), tmp_path / "out", classes=CLASSES)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    for path in paths[:3]:
        assert (tmp_path / "out" / "kitti" / f"{path.stem}.txt").is_file()
        assert read_image(tmp_path / "out" / "images" / f"{path.stem}.jpg").shape == (HEIGHT, WIDTH, 3)


def test_what_cannot_be_saved_is_an_error_and_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError("the disk is full")))
        with pytest.raises(InputError, match=r"coco\.json: the disk is full; not written; .* of 1 image$"):
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
    assert files == {"predictions.jsonl", "coco.json", "kitti/c.txt", "kitti/mine.txt", "yolo/c.txt", "images/c.jpg"}
    assert kept.read_text() == "mine"


def test_results_that_are_inputs_now_are_left_alone(tmp_path: Path) -> None:
    save_predictions([prediction("a.png")], tmp_path, classes=CLASSES)
    drawn = tmp_path / "images/a.jpg"
    assert drawn in earlier_results(tmp_path, inputs=["camera:0"])
    (tmp_path / "link.jpg").symlink_to(drawn)
    for path in (drawn, tmp_path / "kitti/../images/a.jpg", os.path.relpath(drawn), tmp_path / "link.jpg"):
        with pytest.raises(InputError, match=r"\.jpg: is in the output folder; choose another than "):
            earlier_results(tmp_path, inputs=[path])
    assert drawn.is_file()


@pytest.mark.parametrize("name", ["out", "out/kitti/a.txt"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(
        InputError, match=r"out: (neither empty nor an earlier prediction; choose another folder|File exists)"
    ):
        save_predictions([prediction("a.png")], tmp_path / "out", classes=CLASSES)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("line", ["{", "3", '{"file": "a.png"}', '{"image": 3}'])
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
    with pytest.raises(InputError, match=r"two/a\.jpg: its results would overwrite .*kitti/a\.txt; .* of 1 image"):
        save_predictions([prediction("one/a.png"), prediction("two/a.jpg", 0)], tmp_path, classes=CLASSES)
    assert len((tmp_path / "kitti" / "a.txt").read_text().splitlines()) == 3


def test_predicting_loads_nothing_that_it_does_not_need(paths: list[Path], weights: Weights, tmp_path: Path) -> None:
    params, buffers = weights.params, weights.buffers
    save_checkpoint(tmp_path / "best.pt", Checkpoint(weights.config, params, buffers, params, buffers, {}))
    code = f"""if True:
        import sys
        from tinydet.detector import load
        from tinydet.predict import collect_images, save_predictions

        detector = load({str(tmp_path / "best.pt")!r})
        images = collect_images([{str(paths[0])!r}])
        save_predictions(detector.predict(images), {str(tmp_path / "out")!r}, classes=detector.classes)
        print([name for name in ("albumentations", "cv2", "click", "matplotlib", "scipy") if name in sys.modules])"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300)
    assert ran.stdout == "[]\n"
    assert (tmp_path / "out" / "kitti" / "000000.txt").is_file()


def test_globs_may_match_folders_and_lists_begin_with_a_mark(tmp_path: Path) -> None:
    for name in ("new1", "new2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / f"{name}.png")
    assert [path.name for path in collect_images([tmp_path / "ne*"])] == ["new1.png", "new2.png"]
    assert read_stdin(io.BytesIO("\ufeffa.png\nb.png\n".encode()), tmp_path) == ["a.png", "b.png"]


def test_memory_stays_flat_however_many_images(tmp_path: Path) -> None:
    boxes, labels = torch.tensor([[1.0, 2, 6, 7]]).repeat(30, 1), torch.zeros(30, dtype=torch.int64)
    held = []

    def predictions() -> Iterator[Prediction]:
        for i in range(50):
            held.append(tracemalloc.get_traced_memory()[0])
            yield Prediction(Path(f"{i}.png"), np.zeros((8, 8, 3), np.uint8), ("cat",), boxes, torch.ones(30), labels)

    tracemalloc.start()
    save_predictions(predictions(), tmp_path / "out", classes=("cat",))
    tracemalloc.stop()
    assert held[-1] - held[10] < 100_000  # all results would be 400,000
    assert len(json.loads((tmp_path / "out/coco.json").read_text())) == 1500

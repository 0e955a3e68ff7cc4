"""The pictures of a run are in its folder when an epoch is over, and the run is none the wiser."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.pictures
from tests.kitti_folders import write_kitti
from tinydet.data.kitti import KittiDataset
from tinydet.draw import PALETTE
from tinydet.labels import IGNORE
from tinydet.model.config import model_config
from tinydet.model.detect import Detections
from tinydet.ops.losses import Losses
from tinydet.pictures import Frame, illustrated, scalars, tensorboarded, train_sheet, val_frames, val_sheet
from tinydet.training.events import Event, Noted, Started, Stepped, Validated
from tinydet.training.settings import TrainSettings
from tinydet.training.start import training_batches

CLASSES, TRAIN, VAL = ("Car", "Pedestrian"), 18, 20
CURVES = {"losses.png", "ap.png"}
SHEETS = {"train-sheet.jpg", "val-sheet.jpg"}
plotted = pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = [f"{i:06d}" for i in range(TRAIN + VAL)]
    lists = {"train": names[:TRAIN], "val": names[TRAIN:]}
    data = write_kitti(tmp_path_factory.mktemp("kitti"), TRAIN + VAL, lists=lists)
    return SimpleNamespace(
        settings=TrainSettings(data=str(data), classes=CLASSES, batch_size=3, seed=5),
        config=model_config("lite0", classes=CLASSES, image_size=(64, 192)),
        train_set=KittiDataset(data, "train", classes=CLASSES),
        val_set=KittiDataset(data, "val", classes=CLASSES),
        device=torch.device("cpu"),
    )


def found(run: Any, score: float = 0.9) -> list[Detections]:
    """The truth of the validation frames, as detections of one score."""
    return [
        Detections(torch.from_numpy(boxes), torch.full((len(boxes),), score), torch.from_numpy(labels))
        for boxes, labels in zip(run.val_set.boxes, run.val_set.labels, strict=True)
    ]


def row(epoch: int) -> dict[str, Any]:
    """A line of metrics.jsonl, each of its numbers another one."""
    losses = {"total": 0.5 / epoch, "classification": 0.25 / epoch, "box": 0.125 / epoch}
    ap = {name: {"easy": 50.0 + epoch, "moderate": 40.0 + epoch, "hard": 30.0 + epoch} for name in CLASSES}
    return {
        **dict.fromkeys(("train", "val"), losses),
        **dict.fromkeys(("R40", "R11"), ap),
        **dict.fromkeys(("train_seconds", "val_seconds"), 1.0),
        "epoch": epoch,
        "step": 6 * epoch,
        "lr": 2.0**-epoch,
        "metric": "Moderate R40",
        "ap": 40.0 + epoch,
        "ap_by_class": {name: levels["moderate"] for name, levels in ap.items()},
        "stats": [0.01 * i for i in range(11)] + [-1.0],
    }


def said(run: Any, out: Path, *, best: tuple[bool, ...] = (True, False), done: int = 0) -> list[Event]:
    """What a run of some epochs says, with two steps each."""
    events: list[Event] = [Started(out, run, {}, [row(i + 1) for i in range(done)])]
    for epoch, better in enumerate(best, done + 1):
        steps = (6 * epoch - 1, 6 * epoch)
        events += [Stepped(step, Losses(*(torch.tensor(float(step)) for _ in range(3)))) for step in steps]
        events.append(Validated(row(epoch), better, found(run)))
    return events


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@plotted
def test_events_pass_and_pictures_are_there_when_they_come(run: Any, tmp_path: Path) -> None:
    events, seen = said(run, tmp_path), []
    after = []
    for event in illustrated(events):
        seen.append(event)
        after.append(files(tmp_path))
    assert all(one is other for one, other in zip(seen, events, strict=True))
    assert set(after[0]) == set(after[2]) == {"train-sheet.jpg"}
    assert set(after[3]) == set(after[6]) == {*CURVES, *SHEETS, "precision-recall.png"}
    changed = {name for name in after[3] if after[3][name] != after[6][name]}
    assert changed == CURVES  # the same was found, and the second epoch is not the best
    for name in after[6]:
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.format == ("JPEG" if name.endswith("jpg") else "PNG")


@plotted
def test_precision_is_that_of_the_best_epoch_and_curves_go_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinydet import plots

    drawn: dict[str, list[Any]] = {"loss_curves": [], "ap_curves": [], "precision_recall": []}
    for name, calls in drawn.items():
        monkeypatch.setattr(plots, name, lambda what, path, calls=calls: calls.append(what))
    history = [row(1)]
    events = said(run, tmp_path, best=(False, True, True), done=1)
    list(illustrated(events))
    assert drawn["loss_curves"] == drawn["ap_curves"] == [[row(i + 1) for i in range(n)] for n in (2, 3, 4)]
    assert [row(1)] == history == events[0].history  # type: ignore[union-attr]
    assert len(drawn["precision_recall"]) == 2
    curves = drawn["precision_recall"][0]
    assert list(curves) == list(CLASSES)
    assert curves["Pedestrian"]["easy"].n_gt == VAL // 2
    assert curves["Pedestrian"]["easy"].precision[0] == 1


def test_without_matplotlib_the_sheets_are_drawn_and_one_line_says_so(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinydet.pictures, "find_spec", lambda name: None)
    events = said(run, tmp_path)
    seen = list(illustrated(events))
    assert [event for event in seen if not isinstance(event, Noted)] == events
    (note,) = (event.text for event in seen if isinstance(event, Noted))
    assert isinstance(seen[1], Noted)
    assert "pip install 'tinydet[plot]'" in note
    assert "\n" not in note
    assert set(files(tmp_path)) == SHEETS


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, tinydet.pictures; print([n for n in ('matplotlib', 'tensorboard') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_random_number_is_drawn_from_what_training_draws_from(run: Any, tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002
    list(illustrated(said(run, tmp_path)))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[np.ndarray], list[str]]]:
    """Pictures and captions of the sheets put together since."""
    made: list[tuple[list[np.ndarray], list[str]]] = []

    def spy(images: list[np.ndarray], captions: list[str], **_: int) -> np.ndarray:
        made.append((images, captions))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(tinydet.pictures, "sheet", spy)
    return made


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_train_sheet_shows_the_first_pictures_that_are_trained_on(
    run: Any, sheets: list[Any], monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(tinydet.pictures, "draw", lambda *given, classes: shown.append(given))
    batches = iter(training_batches(run, range(epoch, epoch + 9), batch_size=3, workers=0))
    trained = [next(batches) for _ in range(6)]
    train_sheet(run, epoch=epoch)
    ((_, captions),) = sheets
    names = [name for batch in trained for name in batch.names][:16]
    assert [caption.split(",")[0] for caption in captions] == names
    kept = [labels[labels != -1].tolist() for batch in trained for labels in batch.labels][:16]
    assert [labels[labels != -1].tolist() for _, _, labels in shown] == kept
    image, boxes, _ = shown[0]
    assert image.shape[0] * trained[0].images.shape[3] == pytest.approx(
        image.shape[1] * trained[0].images.shape[2], 0.01
    )
    np.testing.assert_allclose(boxes[0], trained[0].boxes[0, 0] * (image.shape[1] / trained[0].images.shape[3]))


def test_validation_frames_are_spread_over_the_split_and_their_boxes_fit(run: Any) -> None:
    frames = val_frames(run.val_set)
    rows = [frame.row for frame in frames]
    assert (rows[0], rows[-1], len(set(rows))) == (0, VAL - 1, 16)
    assert set(np.diff(rows)) == {1, 2}
    for frame in frames:
        assert frame.name == run.val_set.names[frame.row]
        assert frame.image.shape[1] == 900
        np.testing.assert_allclose(frame.boxes, run.val_set.boxes[frame.row] * 4.5)


@pytest.mark.parametrize(
    ("scores", "said", "shown"),
    [
        ([0.8, 0.3, 0.29], "2 detections scored 0.3 or more", 2),
        ([0.8, 0.2], "1 detection scored 0.3 or more", 1),
        ([0.25, 0.2, 0.1, 0.05], "no detection scored more than 0.25", 3),
        ([], "no detection", 0),
    ],
)
def test_a_frame_shows_what_is_sure_or_the_best_and_says_so(
    sheets: list[Any], scores: list[float], said: str, shown: int
) -> None:
    truth = np.array([[10.0, 10, 50, 60], [300, 20, 350, 60]], np.float32)
    frame = Frame(1, "000007", np.full((100, 400, 3), 90, np.uint8), 2.0, truth, np.array([0, IGNORE]))
    before = frame.image.copy()
    boxes = torch.tensor([[20.0 + 30 * i, 30, 30 + 30 * i, 45] for i in range(len(scores))]).reshape(-1, 4)
    one = Detections(boxes, torch.tensor(scores), torch.ones(len(scores), dtype=torch.int64))
    val_sheet([frame], [one._replace(scores=one.scores + 9), one], classes=CLASSES)
    (((picture,), captions),) = sheets
    assert captions == [f"000007: 1 object (dashed), {said}"]
    lines = [tuple(picture[80, 40 + 60 * i]) == PALETTE[1] for i in range(4)]  # the left edge of each box, doubled
    assert lines == [i < shown for i in range(4)]
    assert (picture[10:60, 9:12] == 255).all(axis=2).any()
    assert (picture[30:50, 310:340] == 128).all(axis=2).any()
    np.testing.assert_array_equal(frame.image, before)


@pytest.fixture
def board() -> Any:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        accumulator = EventAccumulator(str(folder)).Reload()
        return {
            tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
        }

    return read


def test_tensorboard_shows_every_number_over_steps(run: Any, tmp_path: Path, board: Any) -> None:
    events = said(run, tmp_path)
    assert list(tensorboarded(events)) == events
    shown = board(tmp_path / "tensorboard")
    assert shown["step/total"] == [(step, float(step)) for step in (5, 6, 11, 12)]
    assert set(shown) == {"step/total", *scalars(row(1))}
    for name in scalars(row(1)):
        assert shown[name] == [(6, pytest.approx(scalars(row(1))[name])), (12, pytest.approx(scalars(row(2))[name]))]
    assert scalars(row(1))["R40/Car/hard"] == 31
    assert scalars(row(1))["val/box"] == 0.125
    assert (scalars(row(1))["AP/mean"], scalars(row(1))["AP/Car"], scalars(row(1))["COCO/AP50"]) == (41, 41, 0.01)
    assert "COCO/AR large" not in scalars(row(1))


def test_a_run_that_goes_on_replaces_what_it_does_again(run: Any, tmp_path: Path, board: Any) -> None:
    list(tensorboarded(said(run, tmp_path, best=(True, True, True))[:-1]))  # stopped before the third is validated
    first = next((tmp_path / "tensorboard").iterdir())
    os.rename(first, first.with_name("events.out.tfevents.0000000001.first"))  # both may be of the same second
    list(tensorboarded(said(run, tmp_path, best=(True,), done=2)))
    shown = board(tmp_path / "tensorboard")
    assert [step for step, _ in shown["lr"]] == [6, 12, 18]
    assert [step for step, _ in shown["step/total"]] == [5, 6, 11, 12, 17, 18]


def test_without_tensorboard_nothing_happens(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinydet.pictures, "find_spec", lambda name: None)
    events = said(run, tmp_path)
    passed: Iterator[Event] = tensorboarded(events)
    assert list(passed) == events
    assert files(tmp_path) == {}

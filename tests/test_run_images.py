"""The images of a run are in its folder after every epoch, and training is none the wiser."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import tinydet.run_images
from tests.kitti_folders import write_kitti
from tests.run_rows import metrics_row
from tinydet.data.dataset import DetectionDataset, Frame
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch
from tinydet.draw import PALETTE
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.model.postprocess import Detections
from tinydet.run_images import (
    GRID_IMAGES,
    log_epoch,
    matplotlib_problem,
    open_tensorboard,
    save_epoch_images,
    save_train_grid,
    val_grid,
)

CLASSES, VAL = ("Car", "Pedestrian"), 20


@pytest.fixture(scope="module")
def val_set(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    return KittiDataset(write_kitti(tmp_path_factory.mktemp("kitti"), VAL), "all", classes=CLASSES)


@pytest.fixture(scope="module")
def found(val_set: KittiDataset) -> list[Detections]:
    """The ground truth, as detections of one score."""
    return [
        Detections(torch.tensor(frame.boxes), torch.full((len(frame.labels),), 0.9), torch.tensor(frame.labels))
        for frame in val_set.frames()
    ]


def row(epoch: int) -> dict[str, Any]:
    return metrics_row(epoch, dict.fromkeys(CLASSES, 40.0 + epoch)) | {"lr": 2.0**-epoch}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
def test_every_epoch_replaces_images_and_the_best_the_precision(
    val_set: KittiDataset, found: list[Detections], tmp_path: Path
) -> None:
    random = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002
    save_epoch_images(tmp_path, [row(1)], val_set, found, best=True)
    first = files(tmp_path)
    assert set(first) == {"losses.png", "ap.png", "val-sheet.jpg", "precision-recall.png"}
    nothing = [Detections(*(field[:0] for field in one)) for one in found]
    save_epoch_images(tmp_path, [row(1), row(2)], val_set, nothing, best=False)
    second = files(tmp_path)
    assert {name for name in second if first[name] != second[name]} == {"losses.png", "ap.png", "val-sheet.jpg"}
    for name in second:
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.format == ("JPEG" if name.endswith("jpg") else "PNG")
    assert torch.equal(random[0], torch.get_rng_state())
    np.testing.assert_array_equal(random[1], np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


def test_without_matplotlib_there_are_no_curves(
    val_set: KittiDataset, found: list[Detections], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinydet.run_images, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tinydet.plots", None)
    monkeypatch.delattr(tinydet, "plots", raising=False)
    assert matplotlib_problem() == "the curves are not drawn without matplotlib: pip install 'tinydet[plot]'"
    save_epoch_images(tmp_path, [row(1)], val_set, found, best=True)
    assert set(files(tmp_path)) == {"val-sheet.jpg"}
    assert open_tensorboard(tmp_path, step=0) is None


def test_settings_of_matplotlib_that_it_refuses_are_a_note() -> None:
    code = "from tinydet.run_images import matplotlib_problem; print(matplotlib_problem())"
    environment = {**os.environ, "MPLBACKEND": "foo"}
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert said.startswith(
        "the curves are not drawn, because matplotlib cannot be imported (Key backend: 'foo' is not "
    )


def test_matplotlib_is_loaded_only_to_plot() -> None:
    code = "import sys, tinydet.run_images; print([n for n in ('matplotlib', 'tensorboard') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[np.ndarray], list[str]]]:
    """Images and captions of the grids arranged since."""
    made: list[tuple[list[np.ndarray], list[str]]] = []

    def spy(images: list[Image.Image], captions: list[str], **_: int) -> Image.Image:
        made.append(([np.array(image) for image in images], captions))
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(tinydet.run_images, "image_grid", spy)
    return made


def test_train_grid_has_the_batch_with_its_boxes(grids: list[Any], tmp_path: Path) -> None:
    count = GRID_IMAGES + 2
    batch = Batch(
        images=torch.full((count, 3, 64, 192), 90, dtype=torch.uint8),
        boxes=torch.tensor([[[10.0, 10, 50, 50], [100, 10, 150, 50], [0, 0, 0, 0]]]).expand(count, -1, -1),
        labels=torch.tensor([[1, IGNORE, BACKGROUND]]).expand(count, -1),
        scales=torch.full((count,), 0.5),
        sizes=torch.tensor([[128, 384]]).expand(count, -1),
        names=[str(i) for i in range(count)],
    )
    save_train_grid(tmp_path, batch, classes=CLASSES)
    ((images, captions),) = grids
    assert captions == [f"{i}, scaled 0.50: 1 object, 1 ignore region" for i in range(GRID_IMAGES)]
    assert images[0].shape == (300, 900, 3)
    left, inside = images[0][180, 47], images[0][180, 150]  # the boxes are 900/192 times as large
    assert (tuple(left), tuple(inside)) == (PALETTE[1], (90, 90, 90))
    assert (images[0][60:220, 480:700] == 128).all(axis=2).any()
    assert set(files(tmp_path)) == {"train-sheet.jpg"}


def test_validation_images_are_spread_over_the_split(
    val_set: KittiDataset, found: list[Detections], grids: list[Any]
) -> None:
    val_grid(val_set, found)
    ((images, captions),) = grids
    rows = [int(caption.split(":")[0]) for caption in captions]
    assert (rows[0], rows[-1], len(set(rows))) == (0, VAL - 1, GRID_IMAGES)
    assert set(np.diff(rows)) == {1, 2}
    for image in images:
        assert image.shape == (270, 900, 3)
    left = images[0][100:220, 45]  # of the car, at 10 of 200 pixels
    assert (left == PALETTE[0]).all(axis=1).any()
    assert (left == 255).all(axis=1).any()


@pytest.mark.parametrize(
    ("scores", "caption", "shown"),
    [
        ([0.8, 0.3, 0.29], "2 detections scored 0.3 or more", 2),
        ([0.8, 0.2], "1 detection scored 0.3 or more", 1),
        ([0.25, 0.2, 0.1, 0.05], "no detection scored more than 0.25", 3),
        ([], "no detection", 0),
    ],
)
def test_confident_detections_or_the_best_few_are_drawn(
    grids: list[Any], tmp_path: Path, scores: list[float], caption: str, shown: int
) -> None:
    Image.new("RGB", (450, 100), (90, 90, 90)).save(tmp_path / "7.png")
    truth = np.array([[5.0, 5, 25, 30], [150, 10, 175, 30]], np.float32)
    frame = Frame("000007", tmp_path / "7.png", (100, 450), truth, np.array([0, IGNORE]))
    boxes = torch.tensor([[20.0 + 30 * i, 30, 30 + 30 * i, 45] for i in range(len(scores))]).reshape(-1, 4)
    found = Detections(boxes, torch.tensor(scores), torch.ones(len(scores), dtype=torch.int64))
    val_grid(DetectionDataset([frame], classes=CLASSES), [found])
    (((image,), captions),) = grids
    assert captions == [f"000007: 1 object (dashed), {caption}"]
    lines = [tuple(image[80, 40 + 60 * i]) == PALETTE[1] for i in range(4)]  # the left edge of each box, doubled
    assert lines == [i < shown for i in range(4)]
    assert (image[10:60, 9:12] == 255).all(axis=2).any()
    assert (image[30:50, 310:340] == 128).all(axis=2).any()


def test_numbers_of_an_epoch_are_grouped_and_undefined_ones_left_out() -> None:
    def scalars(row: dict[str, Any]) -> dict[str, float]:
        writer = Mock()
        log_epoch(writer, row)
        assert {call.args[2] for call in writer.add_scalar.call_args_list} == {6}
        writer.flush.assert_called_once()
        return {call.args[0]: call.args[1] for call in writer.add_scalar.call_args_list}

    every = scalars(row(1))
    assert every["lr"] == 0.5
    assert every["R40/Car/hard"] == pytest.approx(0.8 * 41)
    assert every["val/box"] == 0.005
    assert (every["AP/mean"], every["AP/Car"], every["COCO/AP50"]) == (41, 41, 20)
    assert not {"COCO/AR large", "COCO/per_class"} & set(every)
    coco = {name: value for name, value in row(1).items() if name != "KITTI"}
    assert set(every) - set(scalars(coco)) == {name for name in every if name.startswith("R40")}


def test_resumed_run_replaces_its_last_steps_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    def write(first: int, last: int) -> None:
        writer = open_tensorboard(tmp_path, step=6 * (first - 1))
        assert writer is not None
        with writer:
            for epoch in range(first, last + 1):
                writer.add_scalar("step/total", float(epoch), 6 * epoch - 1)
                log_epoch(writer, row(epoch))

    write(1, 3)
    earlier = next((tmp_path / "tensorboard").iterdir())
    os.rename(earlier, earlier.with_name("events.out.tfevents.0000000001.first"))  # both may be of the same second
    write(3, 4)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("step/total")] == [5, 11, 17, 23]
    for name, values in (("lr", [0.5, 0.25, 0.125, 0.0625]), ("R40/Car/moderate", [41, 42, 43, 44])):
        assert [(event.step, event.value) for event in board.Scalars(name)] == [
            *zip((6, 12, 18, 24), values, strict=True)
        ]

"""Tables and headers of the terminal are true, complete, and aligned."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tinydet.cli.text import (
    ap_table,
    counted,
    epoch_head,
    epoch_row,
    kitti_table,
    run_header,
    weights_lines,
    weights_summary,
)
from tinydet.distributed import World
from tinydet.evaluation import scores_by_name
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap
from tinydet.model.config import model_config
from tinydet.training.events import Started
from tinydet.training.schedule import Budget
from tinydet.training.settings import TrainSettings
from tinydet.training.start import Run
from tinydet.weights.load import LoadReport

LEVELS = ("easy", "moderate", "hard")


def scores_of(*classes: str, n_gt: float = 100) -> dict[str, dict[str, dict[str, float]]]:
    """Different numbers for every class and level; the first class has none, the last has all."""
    values = {name: i / max(1, len(classes) - 1) for i, name in enumerate(classes)}
    return {
        kind: {name: {level: share * (100 - i - j) for j, level in enumerate(LEVELS)} for name, share in values.items()}
        for i, kind in enumerate(("R40", "R11"))
    } | {"n_gt": {name: dict.fromkeys(LEVELS, n_gt) for name in classes}}


def ends(line: str) -> list[int]:
    """Where the words of a line end."""
    return [match.end() for match in re.finditer(r"\S+", line)]


# AP


@pytest.mark.parametrize("classes", [("Car", "Pedestrian", "Cyclist"), ("Person_sitting", "Car"), ("A",)])
def test_the_table_holds_every_number_in_its_column(classes: tuple[str, ...]) -> None:
    scores = scores_of(*classes)
    head, *rows = kitti_table(scores).splitlines()
    assert head.split() == ["AP", "%", "R40", "easy", "moderate", "hard", "R11", "easy", "moderate", "hard"]
    columns = [end for end, word in zip(ends(head), head.split(), strict=True) if word in LEVELS]
    assert [row.split()[0] for row in rows] == list(classes)
    for name, row in zip(classes, rows, strict=True):
        assert len(row) == len(head)
        assert ends(row)[1:] == columns
        assert [float(word) for word in row.split()[1:]] == [
            pytest.approx(scores[kind][name][level], abs=0.005) for kind in ("R40", "R11") for level in LEVELS
        ]


def perfect_scores(count: int) -> dict[str, dict[str, dict[str, float]]]:
    """What a detector gets that finds all of `count` cars and nothing else."""
    boxes = np.array([[100.0 * i, 0, 100.0 * i + 80, 60] for i in range(count)]).reshape(-1, 4)
    truth = KittiTruth(["Car"] * count, np.zeros(count), np.zeros(count, np.int64), boxes)
    result = KittiResult(["Car"] * count, boxes, np.arange(count, dtype=np.float64))
    return kitti_ap([truth], [result], classes=["Car"])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_few_objects_are_said_to_cap_what_they_cap(count: int) -> None:
    scores = perfect_scores(count)
    _, _, *notes = kitti_table(scores).splitlines()
    limit = scores["R40"]["Car"]["easy"]
    assert notes == [
        f"Car {level}: {count} objects; with fewer than 41 R40 cannot exceed {limit:.1f}" for level in LEVELS
    ]


def test_enough_objects_need_no_note() -> None:
    assert perfect_scores(41)["R40"]["Car"]["easy"] == 100
    assert len(kitti_table(perfect_scores(41)).splitlines()) == 2


def test_a_note_is_of_its_class_and_level() -> None:
    scores = scores_of("Car", "Tram")
    scores["n_gt"]["Tram"]["easy"] = 3
    (note,) = kitti_table(scores).splitlines()[3:]
    assert note.startswith("Tram easy: 3 objects; ")


STATS_SHARES = [0.1234, *(0.01 * i for i in range(1, 11)), -1.0]


def test_coco_numbers_are_in_percent_and_undefined_ones_a_dash() -> None:
    scores = scores_by_name({"stats": STATS_SHARES, "per_class_AP": {"Car": 0.5, "Tram": -1.0}})
    lines = ap_table(scores).splitlines()
    assert lines[0].split() == ["COCO", "AP", "%", "mean", "50", "75", "small", "medium", "large"]
    assert lines[1].split() == ["all", "classes", "12.34", "1.00", "2.00", "3.00", "4.00", "5.00"]
    assert lines[2].split() == ["COCO", "AR", "%", "@1", "@10", "@100", "small", "medium", "large"]
    assert lines[3].split() == ["all", "classes", "6.00", "7.00", "8.00", "9.00", "10.00", "-"]
    assert [line.split() for line in lines[4:]] == [["Car", "AP", "50.00"], ["Tram", "AP", "-"]]


# A run


REPORT = LoadReport(
    source="a.pth (effdet)",
    loaded=("a", "b"),
    partially_loaded=("c",),
    missing=("d",),
    unexpected=("x.e", "x.f", "x.g"),
    classes={"Car": "car"},
)


def started(done: int, *, device: str = "cpu", precision: str = "off", **changes: Any) -> Started:
    settings = TrainSettings(
        **{"data": "kitti", "model": "lite0", "classes": ("Car", "Tram"), "batch_size": 4, "seed": 3, **changes}
    )
    config = model_config("lite0", classes=settings.classes, image_size=(256, 896), anchor_scale=2.5)
    run = SimpleNamespace(
        settings=settings,
        config=config,
        train_set=SimpleNamespace(kind="KITTI", split_note="7 train images", counts={"Car": 12, "Tram": 3}),
        val_set=SimpleNamespace(split_note="3 val images"),
        weights="best.pt (tinydet lite0)",
        report=None if done else REPORT,
        budget=Budget(12, settings.epochs),
        frozen=frozenset() if settings.freeze == "none" else {"backbone.stem"},
        crop=(256, 896) if settings.recipe == "paper" else settings.crop or (256, 448),
        device=torch.device(device),
        precision=precision,
        world=World(0, settings.processes),
        sync_bn=settings.sync_bn == "on",
    )
    return Started(
        Path("runs/lite0-1"), cast(Run, run), {"Car": 0.987, "Tram": 0.5}, [{"epoch": i + 1} for i in range(done)], 0
    )


def test_the_header_describes_the_run() -> None:
    lines = run_header(started(0, lr=0.002)).splitlines()
    assert [line[:10].strip() for line in lines] == [
        *("model", "start", "input", "anchors", "data", "", "objects", "images", "batch", "learning", "device", "run")
    ]
    assert [line[10:] for line in lines] == [
        "lite0, 2 classes",
        "a.pth (effdet): 2 tensors loaded, 1 partially, 1 missing, 3 unexpected; class rows kept: Car from car",
        "256x896, trained on crops of 256x448, anchors of P3 to P7 at scale 2.5",
        "recall at IoU .5: Car 99%, Tram 50% of the training objects",
        "KITTI: 7 train images",
        "3 val images",
        "12 Car, 3 Tram to train on",
        "scale jitter 0.8 to 1.8, flips, colour jitter, copy-paste into 70%",
        "4, 12 steps an epoch",
        "adamw, peak lr 0.002, cosine, weight decay 0.01, early stages frozen, seed 3",
        "cpu, float32",
        "runs/lite0-1, 50 epochs",
    ]


def test_the_header_describes_the_settings() -> None:
    told: dict[str, Any] = {"recipe": "paper", "schedule": "plateau", "freeze": "backbone", "ema_decay": 0.0}
    header = run_header(started(0, device="cuda:1", precision="bf16", grad_accumulation=2, minutes=13.5, **told))
    rate = "peak lr 0.01 for 8 images a step"
    assert f"sgd, {rate}, plateau, weight decay 4e-05, no averaged weights, backbone frozen, seed 3\n" in header
    assert "cuda:1, bfloat16 where it is safe\n" in header
    assert "4 x 2 = 8, 12 steps an epoch\n" in header
    several = run_header(started(0, grad_accumulation=2, processes=3, sync_bn="on"))
    assert "batch     4 x 2 x 3 processes = 24, 12 steps an epoch, batch norms see all of it\n" in several
    assert "device    cpu, float32, 3 processes\n" in several
    assert "input     256x896, anchors of P3 to P7 at scale 2.5\n" in header
    assert "images    scale jitter 0.1 to 2, flips, colour jitter\n" in header
    whole = run_header(started(0, crop=(256, 896), freeze="none"))
    assert "images    scale jitter 0.6 to 1.2, flips, colour jitter\n" in whole
    assert "weight decay 0.01, seed 3\n" in whole
    assert "images    not augmented\n" in run_header(started(0, overfit=4))
    assert header.endswith("runs/lite0-1, 13.5 minutes")


def test_every_tensor_that_was_not_wholly_loaded_has_its_line() -> None:
    assert [line.split() for line in weights_lines(REPORT)] == [
        *(["partially", "loaded", "c"], ["missing", "d"]),
        *(["unexpected", "x.e"], ["unexpected", "x.f"], ["unexpected", "x.g"]),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": {}}, "3 unexpected; class rows kept: none"),
        ({"classes": {"car": "car", "Van": "car"}}, "3 unexpected; class rows kept: car, Van from car"),
        ({"partially_loaded": ()}, "a.pth (effdet): 2 tensors loaded, 0 partially, 1 missing, 3 unexpected"),
        ({"loaded": (), "source": "random weights"}, "random weights"),
    ],
)
def test_the_start_of_a_run_in_one_line(changes: dict[str, Any], said: str) -> None:
    assert weights_summary(REPORT._replace(**changes)).endswith(said)


def test_detections_are_counted_in_one_line() -> None:
    assert counted({"Car": 2, "Tram": 0, "Van": 1}) == "2 Car, 1 Van"
    assert counted({"Car": 0}) == "no objects"


@pytest.mark.parametrize("epoch", [1, 50])
def test_the_header_of_a_resumed_run(epoch: int) -> None:
    lines = run_header(started(epoch)).splitlines()
    assert lines[0].endswith(f"weights of epoch {epoch}")
    assert lines[-1].endswith(f"runs/lite0-1, 50 epochs, of which {epoch} are done")


def row_of(classes: tuple[str, ...], *, epoch: int = 7, lr: float = 0.00123, loss: float = 1.23456) -> dict[str, Any]:
    scores = scores_of(*classes)
    losses = {"total": loss, "classification": 0.5, "box": 0.01}
    return {
        "epoch": epoch,
        "step": 70,
        "lr": lr,
        "train": losses,
        "val": losses | {"total": loss / 2},
        "ap": 49.5,
        "ap_by_class": {name: levels["moderate"] for name, levels in scores["R40"].items()},
        "train_seconds": 12.3,
        "val_seconds": 4.4,
    }


def test_an_epoch_is_a_row() -> None:
    words = epoch_row(row_of(("Car", "Tram", "Van")), ("Car", "Tram", "Van"), best=False).split()
    assert words == ["7", "0.0012", "1.235", "0.617", "0.0", "49.5", "99.0", "49.5", "17", "s"]
    assert epoch_row(row_of(("Car",)), ("Car",), best=True) == epoch_row(row_of(("Car",)), ("Car",), best=False) + " *"


@pytest.mark.parametrize(
    "classes", [("Car", "Pedestrian", "Cyclist"), ("Person_sitting", "Car", "Motorcyclist_with_sidecar"), ("A",)]
)
@pytest.mark.parametrize(("epoch", "lr", "loss"), [(1, 1e-3, 0.5), (10000, 1.234e-12, 123456.789)])
def test_epochs_stand_under_their_head(classes: tuple[str, ...], epoch: int, lr: float, loss: float) -> None:
    head = epoch_head(classes)
    assert head.split() == ["epoch", "lr", "train", "loss", "val", "loss", *classes, "mean", "time"]
    row = epoch_row(row_of(classes, epoch=epoch, lr=lr, loss=loss), classes, best=False)
    words = [end for end, word in zip(ends(head), head.split(), strict=True) if word not in ("train", "val")]
    assert [*ends(row)[:-2], len(row)] == words  # "17 s" is one cell

"""Each cause is named once, in one line with the figures and the setting; nothing is said about a healthy run."""

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kitti_folders import label_line, write_frame
from tinydet.data.kitti import KittiDataset
from tinydet.evaluation import evaluate
from tinydet.model.config import model_config
from tinydet.model.postprocess import Detections
from tinydet.training import diagnose as module
from tinydet.training.diagnose import (
    RULES,
    diagnose,
    diagnose_overfit,
    diagnose_start,
    everything_found,
    new_advice,
    overfit_faults,
)
from tinydet.training.settings import TrainSettings

CLASSES = ("Car", "Pedestrian", "Cyclist")
# Twelve epochs on KITTI: training loss, validation loss, Moderate R40 of each class.
HEALTHY = """
1.561 1.355  0.1  1.0  0.3
1.094 1.016  9.9 15.2 11.9
0.891 0.894 15.9 24.0 19.7
0.789 0.819 29.4 28.4 23.3
0.748 0.775 34.7 33.1 28.5
0.686 0.756 41.1 34.9 28.5
0.654 0.754 41.4 37.1 29.4
0.612 0.722 45.2 40.9 35.5
0.577 0.719 42.1 42.9 40.0
0.551 0.727 44.8 42.2 39.9
0.530 0.728 46.6 42.0 40.6
0.525 0.729 44.3 41.8 42.4"""
TABLE = [[float(word) for word in line.split()] for line in HEALTHY.split("\n") if line]


def row(epoch: int, train: float, val: float, aps: Sequence[float], **more: Any) -> dict[str, Any]:
    """A row of metrics.jsonl; `more` replaces or adds keys."""
    ap_by_class = dict(zip(CLASSES, aps, strict=True))
    levels = {name: dict.fromkeys(("easy", "moderate", "hard"), ap) for name, ap in ap_by_class.items()}
    return {
        "epoch": epoch,
        "step": 58 * epoch,
        "lr": 0.004,
        "train": {"total": train, "classification": 0.6 * train, "box": 0.008 * train},
        "val": {"total": val, "classification": 0.6 * val, "box": 0.008 * val},
        "ap": float(np.mean(aps)),
        "ap_by_class": ap_by_class,
        "COCO": {"AP": 20.0, "AP50": 40.0, "per_class": dict(ap_by_class)},
        "KITTI": {"R40": levels, "R11": levels},
        "positives": dict(zip(CLASSES, (5120, 800, 350), strict=True)),
        "train_seconds": 100.0,
        "wait_seconds": 0.4,
        "val_seconds": 9.0,
    } | more


def history_of(train: Sequence[float], val: Sequence[float] | None = None, **more: Any) -> list[dict[str, Any]]:
    """Rows that are healthy but for the losses and what is in `more`."""
    pairs = zip(train, train if val is None else val, strict=True)
    return [row(i, *pair, (3.0 * i, 2.0 * i, 2.0 * i), **more) for i, pair in enumerate(pairs, start=1)]


def healthy(**more: Any) -> list[dict[str, Any]]:
    return [row(i, train, val, aps, **more) for i, (train, val, *aps) in enumerate(TABLE, start=1)]


def settings_of(epochs: int, **changes: Any) -> TrainSettings:
    return TrainSettings("kitti", epochs=epochs, **changes)


def advice_of(history: list[dict[str, Any]], settings: TrainSettings | None = None) -> dict[int, list[str]]:
    """The advice after each epoch that has some. An error in a rule comes through; arguments stay as they are."""
    before = copy.deepcopy(history)
    settings = settings or settings_of(len(history))
    epochs = range(1, len(history) + 1)
    lines = {n: [line for rule in RULES for line in new_advice(rule, history[:n], settings)] for n in epochs}
    assert lines == {n: diagnose(history[:n], settings) for n in epochs}
    assert history == before
    assert not any("\n" in line or "{}" in line or line != line.strip() for each in lines.values() for line in each)
    return {n: each for n, each in lines.items() if each}


def only(advice: dict[int, list[str]], *, epoch: int) -> str:
    """The one line of all epochs, which is that epoch's."""
    assert list(advice) == [epoch]
    (line,) = advice[epoch]
    return line


def test_nothing_is_said_about_a_healthy_run() -> None:
    assert advice_of(healthy()) == {}


def failing() -> list[dict[str, Any]]:
    """A history that every rule but that of the loss has something to say about."""
    train, val = OVERFITTED
    more: dict[str, Any] = {"positives": {"Car": 0, "Pedestrian": 9, "Cyclist": 9}, "wait_seconds": 50.0}
    pairs = enumerate(zip(train, val, strict=True), start=1)
    return [row(i, *losses, (0.0, 3.0 * i, 2.0 * i), **more) for i, losses in pairs]


def without_kitti(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows as training on COCO or YOLO data writes them: one class has no object to validate on."""
    rows = [{key: value for key, value in one.items() if key != "KITTI"} for one in history]
    for one in rows:
        one["ap_by_class"] = {name: ap for name, ap in one["ap_by_class"].items() if name != "Cyclist"}
        one["COCO"] = {"AP": one["ap"], "AP50": 40.0, "per_class": {**one["ap_by_class"], "Cyclist": None}}
        one["metric"] = "COCO AP"
    return rows


@pytest.mark.parametrize("rows", [lambda history: history, without_kitti], ids=["KITTI", "COCO"])
def test_every_rule_reads_the_rows_of_every_kind_of_data(rows: Any) -> None:
    """Every rule speaks, and also after the rows went through metrics.jsonl."""
    history, flat = rows(failing()), rows(history_of([1.5] * 8))
    spoke = {
        rule
        for rule in RULES
        for each in (history, flat)
        for n in range(1, len(each) + 1)
        if new_advice(rule, each[:n], settings_of(20))
    }
    assert spoke == set(RULES)
    written = [json.loads(json.dumps(one)) for one in history]
    assert advice_of(written, settings_of(20)) == advice_of(history, settings_of(20))
    assert advice_of(rows(healthy())) == {}


def test_a_class_without_an_ap_is_not_zero() -> None:
    """KITTI's is None where nothing counts; COCO's counts objects of all sizes."""
    history = with_aps([(9, 9, 0)] * 5)
    for one in history:
        one["ap_by_class"]["Cyclist"] = None
    assert advice_of(history) == {}
    for one in history:
        one["ap_by_class"]["Cyclist"] = 0.0
        one["COCO"]["per_class"]["Cyclist"] = None
    assert "AP of Cyclist is still 0" in only(advice_of(history), epoch=3)


def test_of_many_classes_the_first_are_named() -> None:
    positives = {f"class {i}": 0 for i in range(80)}
    line = only(advice_of(healthy(positives=positives)), epoch=1)
    assert "for class 0, class 1, class 2, class 3, class 4 and 75 more in epoch 1" in line


def test_a_rule_that_fails_is_a_line_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(history: Any, settings: TrainSettings) -> None:
        raise KeyError("R40")

    monkeypatch.setattr(module, "RULES", (broken, *RULES))
    first, *others = diagnose(healthy(wait_seconds=12.0)[:1], settings_of(12))
    assert first == "the diagnostics failed (KeyError: 'R40'): please report it; the run is not affected"
    assert len(others) == 1  # the other rules go on
    monkeypatch.undo()
    assert "the diagnostics failed (Attr" in diagnose_start({"Car": 0.1}, None)[0]  # type: ignore[arg-type]
    assert "the diagnostics failed (Index" in diagnose_overfit([], [], CONFIG, [])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("epochs", [5, 12, 50])
def test_noise_on_falling_losses_raises_no_alarm(seed: int, epochs: int) -> None:
    # Averages of an epoch waver by about one percent on some hundred images. The validation loss flattens out, or
    # rises a little, as it does where there are few images.
    rng = np.random.default_rng(seed)
    done = np.arange(epochs) / epochs
    train = (0.5 + 1.1 * np.exp(-4 * done)) * rng.normal(1, 0.012, epochs)
    val = (0.7 + 0.7 * np.exp(-8 * done) + 0.02 * done) * rng.normal(1, 0.006, epochs)
    waits = rng.uniform(0, 4, epochs)
    rows = history_of(train.tolist(), val.tolist())
    assert advice_of([one | {"wait_seconds": wait} for one, wait in zip(rows, waits.tolist(), strict=True)]) == {}


def test_a_loss_that_stays_is_named_after_three_epochs() -> None:
    line = only(advice_of(history_of([2.0, 1.5, 1.51, 1.49, 1.5, 1.51, 1.5, 1.5, 1.5, 1.5])), epoch=5)
    assert line.startswith(
        "the training loss does not fall: it was 1.500 in epoch 2, the first after the warm-up, and is 1.500"
    )
    assert "in epoch 5; try --lr 0.0004 or 0.04 (now 0.004), and --overfit 4" in line


def test_a_loss_that_leaps_is_named_at_once() -> None:
    line = only(advice_of(history_of([2.0, 1.5, 1.7, 1.9, 2.5, 9.0]), settings_of(20, clip=5.0)), epoch=3)
    assert line.startswith("the training loss rises: it was 1.500 in epoch 2")
    assert "is 1.700 in epoch 3; try --lr 0.0004 (now 0.004), or a lower --clip (now 5), and --overfit 4" in line


def test_a_loss_that_fell_and_came_back_is_named() -> None:
    losses = [2.0, 1.5, 1.2, 1.0, 0.9, 1.2, 1.48, 1.5, 1.5, 1.5]
    assert "does not fall" in only(advice_of(history_of(losses)), epoch=9)


def test_the_rate_named_is_the_highest_so_far() -> None:
    history = [one | {"lr": lr} for one, lr in zip(history_of([1.5] * 5), (0.01, 0.02, 0.01, 5e-3, 1e-3), strict=True)]
    assert "--lr 0.002 or 0.2 (now 0.02)" in only(advice_of(history), epoch=5)


@pytest.mark.parametrize(
    ("changes", "epoch"),
    [
        ({"warmup_epochs": 0.0}, 4),
        ({"warmup_epochs": 1.0}, 5),
        ({"warmup_epochs": 1.5}, 6),
        ({"warmup_epochs": 3.0}, 6),  # at most a tenth of the run
        ({"warmup_epochs": 3.0, "minutes": 60.0}, 7),  # whose epochs nobody knows
    ],
)
def test_epochs_of_the_warm_up_do_not_count(changes: dict[str, Any], epoch: int) -> None:
    settings = TrainSettings("kitti", **changes) if "minutes" in changes else settings_of(20, **changes)
    assert "does not fall" in only(advice_of(history_of([1.5] * 8), settings), epoch=epoch)
    before = history_of([0.5] * (epoch - 4) + [1.5, 1.3, 1.1, 1.0])  # lower while it warmed up
    assert advice_of(before, settings) == {}


def test_a_cause_that_comes_back_is_named_again() -> None:
    flat, fall = [1.5] * 4, [1.2, 1.0, 0.8]
    assert list(advice_of(history_of([2.0, *flat, *fall, *flat]), settings_of(20))) == [5, 11]


def with_aps(aps: Sequence[Sequence[float]], **more: Any) -> list[dict[str, Any]]:
    return [row(i, 2 - 0.1 * i, 2 - 0.1 * i, ap, **more) for i, ap in enumerate(aps, start=1)]


def test_ap_that_stays_zero_is_named_after_three_epochs() -> None:
    line = only(advice_of(with_aps([(0, 0, 0.01)] * 6)), epoch=3)
    assert line.startswith("AP is still 0 after epoch 3, though the training loss fell from 1.900 to 1.700; ")
    assert "class names" in line
    assert "order of the boxes" in line
    assert line.endswith("look at val-sheet.jpg in the run's folder, and try --overfit 4")


def test_random_weights_are_another_reason() -> None:
    line = only(advice_of(with_aps([(0, 0, 0)] * 3), settings_of(20, weights="none")), epoch=3)
    assert "to 1.700; from random weights it can also just take longer; check" in line


def test_ap_of_some_classes_that_stays_zero_is_named() -> None:
    line = only(advice_of(with_aps([(0.1, 0, 0), (4, 0, 0), (8, 0, 0), (9, 0, 0)])), epoch=3)
    assert line.startswith("AP of Pedestrian and Cyclist is still 0 after epoch 3")
    assert "and Car has 8.0" in line
    assert "--classes" in line
    assert "val-sheet.jpg" in line


def test_a_class_is_not_named_while_others_hardly_have_more() -> None:
    assert "Cyclist" in only(advice_of(with_aps([(0.5, 1, 0)] * 4 + [(2, 6, 0)] * 2)), epoch=5)


def test_nothing_is_said_of_ap_that_was_once_there() -> None:
    assert advice_of(with_aps([(1, 1, 0.2), (9, 9, 0), (9, 9, 0), (9, 9, 0)])) == {}


def test_a_true_positive_that_only_coco_sees_is_not_nothing() -> None:
    history = with_aps([(0, 0, 0)] * 4)
    history[1]["COCO"]["per_class"]["Car"] = 0.6
    assert advice_of(history) == {}


def test_ap_zero_is_no_wonder_while_the_loss_does_not_fall() -> None:
    history = [row(i, 1.5, 1.5, (0, 0, 0)) for i in range(1, 5)]
    assert advice_of(history) == {}


OVERFITTED = ([1.5, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [1.3, 1.0, 0.8, 0.78, 0.81, 0.83, 0.85, 0.9, 0.95])


def test_overfitting_is_named_after_three_epochs() -> None:
    history = history_of(*OVERFITTED)
    history[4]["ap"] = 90.0
    line = only(advice_of(history, settings_of(20, weight_decay=0.02)), epoch=8)
    assert line.startswith(
        "the model overfits: since epoch 4 the validation loss rose from 0.780 to 0.900 while the training loss fell "
        "from 0.700 to 0.300; best.pt keeps the best epoch, 5; try fewer --epochs or --early-stop, "
    )
    assert line.endswith("a higher --weight-decay (now 0.02), --weights coco, --freeze backbone")


def test_overfitting_names_what_there_is_to_change() -> None:
    settings = TrainSettings("kitti", minutes=30.0, freeze="backbone")
    line = only(advice_of(history_of(*OVERFITTED), settings), epoch=8)
    assert "fewer --minutes" in line
    assert line.endswith("--weights coco")


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    train, val = OVERFITTED
    assert advice_of(history_of([*train[:4], *[0.7] * 5], val)) == {}


def test_two_bad_epochs_are_not_overfitting() -> None:
    train, val = OVERFITTED
    assert advice_of(history_of(train, [*val[:5], 0.9, 0.9, 0.79, 0.9])) == {}


def test_a_class_without_positives_is_named_at_once() -> None:
    history = healthy()
    for one in history[3:]:
        one["positives"] = {"Car": 5000, "Pedestrian": 0, "Cyclist": 10}
    line = only(advice_of(history), epoch=4)
    assert line.startswith("no anchor was positive for Pedestrian in epoch 4; ")
    assert "--classes" in line
    assert "--size" in line


def test_each_class_without_positives_is_named_when_it_is_new() -> None:
    history = healthy()
    history[0]["positives"] = dict.fromkeys(CLASSES, 0)
    history[5]["positives"] = {"Car": 1, "Pedestrian": 0, "Cyclist": 1}
    history[6]["positives"] = {"Car": 0, "Pedestrian": 0, "Cyclist": 1}
    advice = {epoch: line.split(" in epoch")[0] for epoch, (line,) in advice_of(history).items()}
    assert advice == {
        1: "no anchor was positive for Car, Pedestrian and Cyclist",
        6: "no anchor was positive for Pedestrian",
        7: "no anchor was positive for Car",
    }


def test_waiting_for_data_is_named() -> None:
    line = only(advice_of(healthy(wait_seconds=12.0), settings_of(12, workers=3)), epoch=1)
    assert line.startswith(
        "12% of the training time went by waiting for data (12 of 100 s); try more --workers (now 3)"
    )


def test_waiting_is_that_of_the_run_so_far() -> None:
    history = [one | {"wait_seconds": 4.0 if i < 3 else 14.0} for i, one in enumerate(healthy())]
    assert only(advice_of(history), epoch=4).startswith(
        "6% of the training time went by waiting for data (26 of 400 s)"
    )


def test_the_start_of_the_workers_is_not_waiting() -> None:
    history = [one | {"train_seconds": 20.0, "wait_seconds": 6.0 if i < 1 else 0.1} for i, one in enumerate(healthy())]
    assert advice_of(history) == {}


def test_several_causes_have_a_line_each() -> None:
    history = [row(i, 1.5, 1.5, (0, 0, 0), positives={"Car": 0}, wait_seconds=50.0) for i in range(1, 6)]
    advice = advice_of(history)
    assert {epoch: len(lines) for epoch, lines in advice.items()} == {1: 2, 5: 1}


CONFIG = model_config("lite0", classes=CLASSES, image_size=(256, 896), anchor_scale=2.0)


def test_low_anchor_recall_is_named() -> None:
    (line,) = inspect.unwrap(diagnose_start)({"Car": 0.98, "Pedestrian": 0.541, "Cyclist": 0.79}, CONFIG)
    assert "at IoU .5 the anchors cover only 54% of Pedestrian and 79% of Cyclist; " in line
    assert line.endswith("try --anchor-scale 1.5 (now 2), or a larger --size (now 256x896)")


@pytest.mark.parametrize("recall", [{}, {"Car": 0.8, "Pedestrian": 1.0}, {"Car": float("nan")}])
def test_enough_anchor_recall_is_not_mentioned(recall: Mapping[str, float]) -> None:
    assert inspect.unwrap(diagnose_start)(recall, CONFIG) == []


SMALL = model_config("lite0", classes=("Car", "Pedestrian"), image_size=(128, 256), anchor_scale=2.0)
CAR, PEDESTRIAN, TINY = (20, 30, 80, 70), (120, 20, 150, 90), (200, 50, 203, 54)


@pytest.fixture
def dataset(tmp_path: Path) -> KittiDataset:
    """Two images of the input's size, one with a DontCare."""
    lines = [
        [label_line("Car", CAR), label_line("Pedestrian", PEDESTRIAN)],
        [label_line("Car", TINY), label_line("DontCare", (0, 0, 50, 50))],
    ]
    for i, of_image in enumerate(lines):
        write_frame(tmp_path, f"{i:06d}", of_image, size=(128, 256))
    return KittiDataset(tmp_path, "all", classes=SMALL.classes)


def detections_of(*rows: tuple[tuple[int, int, int, int], int, float]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor([s for *_, s in rows]), torch.tensor([n for _, n, _ in rows]).long())


ALL_FOUND = [detections_of((CAR, 0, 0.9), (PEDESTRIAN, 1, 0.8)), detections_of((TINY, 0, 0.5))]
NOTHING = [detections_of(), detections_of()]


def test_every_object_that_is_not_found_is_named_with_its_reason(dataset: KittiDataset) -> None:
    assert overfit_faults(dataset, ALL_FOUND, SMALL) == []
    wrong = [detections_of((CAR, 1, 0.9), (PEDESTRIAN, 1, 0.2)), detections_of()]
    confused, missed, tiny = overfit_faults(dataset, wrong, SMALL)
    assert confused.startswith("000000: Car of 60x40 input pixels is detected as Pedestrian: check its label")
    assert missed.startswith("000000: Pedestrian of 30x70 input pixels is missed: check its box")
    assert tiny.startswith("000001: Car of 3x4 input pixels fits no anchor (best IoU 0.0")
    assert "--size" in tiny
    moved = [detections_of(((50, 30, 110, 70), 0, 0.9), (PEDESTRIAN, 1, 0.8)), ALL_FOUND[1]]
    assert [line.split(" ")[1] for line in overfit_faults(dataset, moved, SMALL)] == ["Car"]  # IoU of a third


def overfit_row(ap50: float) -> dict[str, Any]:
    return {"step": 60, "ap": 50.0, "COCO": {"AP": 50.0, "AP50": ap50}}


def test_the_verdict(dataset: KittiDataset) -> None:
    verdict = inspect.unwrap(diagnose_overfit)  # an error comes through
    (good,) = verdict(dataset, NOTHING, SMALL, [overfit_row(100.0)])
    assert "every object in 2 images is found after 60 steps" in good
    assert diagnose_overfit(dataset, NOTHING, SMALL, [overfit_row(100.0)]) == [good]
    head, *faults = verdict(dataset, NOTHING, SMALL, [overfit_row(12.3)])
    assert "after 60 steps COCO AP50 is 12.3, not 100, in the same 2 images" in head
    assert faults == overfit_faults(dataset, NOTHING, SMALL)
    assert "something else" in verdict(dataset, ALL_FOUND, SMALL, [overfit_row(12.3)])[1]
    lines = verdict(dataset.take([0, 1] * 4), NOTHING * 4, SMALL, [overfit_row(0.0)])
    assert len(lines) == 7
    assert lines[-1] == "... and 7 more"


def test_few_objects_can_all_be_found(dataset: KittiDataset) -> None:
    """Boxes that are good but not exact, of a class of one object too; KITTI's AP of so few is never 100."""
    near = [one._replace(boxes=one.boxes + 0.5) for one in ALL_FOUND]
    scores = evaluate(dataset, near)
    assert everything_found(scores)
    assert scores["COCO"]["AP"] < 100
    assert not everything_found(evaluate(dataset, [ALL_FOUND[0], detections_of()]))

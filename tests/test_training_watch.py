"""What goes wrong is said once, in one line that names the figures and the setting; a healthy run is left in peace."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tinydet.model.config import model_config
from tinydet.training.settings import TrainSettings
from tinydet.training.watch import watch, watch_start

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
    levels = {name: dict.fromkeys(("easy", "moderate", "hard"), ap) for name, ap in zip(CLASSES, aps, strict=True)}
    return {
        "epoch": epoch,
        "step": 58 * epoch,
        "lr": 0.004,
        "train": {"total": train, "classification": 0.6 * train, "box": 0.008 * train},
        "val": {"total": val, "classification": 0.6 * val, "box": 0.008 * val},
        "ap": float(np.mean(aps)),
        "ap_by_class": dict(zip(CLASSES, aps, strict=True)),
        "R40": levels,
        "R11": copy.deepcopy(levels),
        "matches": dict(zip(CLASSES, (5120, 800, 350), strict=True)),
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


def said(history: list[dict[str, Any]], settings: TrainSettings | None = None) -> dict[int, list[str]]:
    """What is said after each epoch, of those after which something is; and that arguments stay as they are."""
    before = copy.deepcopy(history)
    settings = settings or settings_of(len(history))
    lines = {n: watch(history[:n], settings) for n in range(len(history) + 1)}
    assert history == before
    assert not any("\n" in line or line != line.strip() for each in lines.values() for line in each)
    return {n: each for n, each in lines.items() if each}


def only(spoken: dict[int, list[str]], *, epoch: int) -> str:
    """The one line, which is said after that epoch."""
    assert list(spoken) == [epoch]
    (line,) = spoken[epoch]
    return line


def test_a_healthy_run_is_left_in_peace() -> None:
    assert said(healthy()) == {}


def test_of_what_older_rows_do_not_hold_nothing_is_said() -> None:
    unknown = ("matches", "wait_seconds")
    assert said([{key: value for key, value in one.items() if key not in unknown} for one in healthy()]) == {}


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("epochs", [5, 12, 50])
def test_noise_on_falling_losses_is_no_alarm(seed: int, epochs: int) -> None:
    # Averages of an epoch waver by about one percent on some hundred pictures. The validation loss flattens out, or
    # rises a little, as it does where there are few pictures.
    rng = np.random.default_rng(seed)
    done = np.arange(epochs) / epochs
    train = (0.5 + 1.1 * np.exp(-4 * done)) * rng.normal(1, 0.012, epochs)
    val = (0.7 + 0.7 * np.exp(-8 * done) + 0.02 * done) * rng.normal(1, 0.006, epochs)
    waits = rng.uniform(0, 4, epochs)
    rows = history_of(train.tolist(), val.tolist())
    assert said([one | {"wait_seconds": wait} for one, wait in zip(rows, waits.tolist(), strict=True)]) == {}


def test_a_loss_that_stays_is_named_after_three_epochs() -> None:
    line = only(said(history_of([2.0, 1.5, 1.51, 1.49, 1.5, 1.51, 1.5, 1.5, 1.5, 1.5])), epoch=5)
    assert line.startswith("the training loss does not fall: 1.500 in epoch 2, the first after the warm-up, and 1.500")
    assert "in epoch 5; try --lr 0.0004 or 0.04 (now 0.004), and --overfit 4" in line


def test_a_loss_that_leaps_is_named_at_once() -> None:
    line = only(said(history_of([2.0, 1.5, 1.7, 1.9, 2.5, 9.0]), settings_of(20, clip=5.0)), epoch=3)
    assert line.startswith("the training loss rises: 1.500 in epoch 2")
    assert "1.700 in epoch 3; try --lr 0.0004 (now 0.004), or a lower --clip (now 5), and --overfit 4" in line


def test_a_loss_that_fell_and_came_back_is_named() -> None:
    losses = [2.0, 1.5, 1.2, 1.0, 0.9, 1.2, 1.48, 1.5, 1.5, 1.5]
    assert "does not fall" in only(said(history_of(losses)), epoch=9)


def test_the_rate_named_is_the_highest_so_far() -> None:
    history = [one | {"lr": lr} for one, lr in zip(history_of([1.5] * 5), (0.01, 0.02, 0.01, 5e-3, 1e-3), strict=True)]
    assert "--lr 0.002 or 0.2 (now 0.02)" in only(said(history), epoch=5)


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
    assert "does not fall" in only(said(history_of([1.5] * 8), settings), epoch=epoch)
    before = history_of([0.5] * (epoch - 4) + [1.5, 1.3, 1.1, 1.0])  # lower while it warmed up
    assert said(before, settings) == {}


def test_a_cause_that_comes_back_is_named_again() -> None:
    flat, fall = [1.5] * 4, [1.2, 1.0, 0.8]
    assert list(said(history_of([2.0, *flat, *fall, *flat]), settings_of(20))) == [5, 11]


def with_aps(aps: Sequence[Sequence[float]], **more: Any) -> list[dict[str, Any]]:
    return [row(i, 2 - 0.1 * i, 2 - 0.1 * i, ap, **more) for i, ap in enumerate(aps, start=1)]


def test_ap_that_stays_zero_is_named_after_three_epochs() -> None:
    line = only(said(with_aps([(0, 0, 0.01)] * 6)), epoch=3)
    assert line.startswith("AP is still 0 after 3 epochs, though the training loss fell from 1.900 to 1.700: ")
    assert "class names" in line
    assert "order of the boxes" in line
    assert line.endswith("look at val-sheet.jpg in the run's folder, and try --overfit 4")


def test_random_weights_are_another_reason() -> None:
    line = only(said(with_aps([(0, 0, 0)] * 3), settings_of(20, weights="none")), epoch=3)
    assert line.endswith("; from random weights it can also just take longer")


def test_ap_of_some_classes_that_stays_zero_is_named() -> None:
    line = only(said(with_aps([(0.1, 0, 0), (4, 0, 0), (8, 0, 0), (9, 0, 0)])), epoch=3)
    assert line.startswith("AP of Pedestrian and Cyclist is still 0 after 3 epochs")
    assert "and Car has 8.0" in line
    assert "--classes" in line
    assert "val-sheet.jpg" in line


def test_a_class_is_not_named_while_others_hardly_have_more() -> None:
    assert "Cyclist" in only(said(with_aps([(0.5, 1, 0)] * 4 + [(2, 6, 0)] * 2)), epoch=5)


def test_nothing_is_said_of_ap_that_was_once_there() -> None:
    assert said(with_aps([(1, 1, 0.2), (9, 9, 0), (9, 9, 0), (9, 9, 0)])) == {}


def test_a_true_positive_that_only_r11_sees_is_not_nothing() -> None:
    history = with_aps([(0, 0, 0)] * 4)
    history[1]["R11"]["Car"]["hard"] = 0.6
    assert said(history) == {}


def test_ap_zero_is_no_wonder_while_the_loss_does_not_fall() -> None:
    history = [row(i, 1.5, 1.5, (0, 0, 0)) for i in range(1, 5)]
    assert said(history) == {}


OVERFITTED = ([1.5, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [1.3, 1.0, 0.8, 0.78, 0.81, 0.83, 0.85, 0.9, 0.95])


def test_overfitting_is_named_after_three_epochs() -> None:
    history = history_of(*OVERFITTED)
    history[4]["ap"] = 90.0
    line = only(said(history, settings_of(20, weight_decay=0.02)), epoch=8)
    assert line.startswith(
        "overfitting: since epoch 4 the validation loss rose from 0.780 to 0.900 while the training loss fell from "
        "0.700 to 0.300; best.pt keeps the best epoch, 5; try fewer --epochs or --early-stop, "
    )
    assert line.endswith("a higher --weight-decay (now 0.02), --weights coco, --freeze trunk")


def test_overfitting_names_what_there_is_to_change() -> None:
    settings = TrainSettings("kitti", minutes=30.0, freeze="trunk")
    line = only(said(history_of(*OVERFITTED), settings), epoch=8)
    assert "fewer --minutes" in line
    assert line.endswith("--weights coco")


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    train, val = OVERFITTED
    assert said(history_of([*train[:4], *[0.7] * 5], val)) == {}


def test_two_bad_epochs_are_not_overfitting() -> None:
    train, val = OVERFITTED
    assert said(history_of(train, [*val[:5], 0.9, 0.9, 0.79, 0.9])) == {}


def test_a_class_without_a_match_is_named_at_once() -> None:
    history = healthy()
    for one in history[3:]:
        one["matches"] = {"Car": 5000, "Pedestrian": 0, "Cyclist": 10}
    line = only(said(history), epoch=4)
    assert line.startswith("no anchor was matched to Pedestrian in epoch 4: ")
    assert "--classes" in line
    assert "--size" in line


def test_each_class_without_a_match_is_named_when_it_is_new() -> None:
    history = healthy()
    history[0]["matches"] = dict.fromkeys(CLASSES, 0)
    history[5]["matches"] = {"Car": 1, "Pedestrian": 0, "Cyclist": 1}
    history[6]["matches"] = {"Car": 0, "Pedestrian": 0, "Cyclist": 1}
    spoken = {epoch: line.split(" in epoch")[0] for epoch, (line,) in said(history).items()}
    assert spoken == {
        1: "no anchor was matched to Car, Pedestrian and Cyclist",
        6: "no anchor was matched to Pedestrian",
        7: "no anchor was matched to Car",
    }


def test_waiting_for_data_is_named() -> None:
    line = only(said(healthy(wait_seconds=12.0), settings_of(12, workers=3)), epoch=1)
    assert line.startswith(
        "12% of the training time went by waiting for data (12 of 100 s): try more --workers (now 3)"
    )


def test_waiting_is_that_of_the_run_so_far() -> None:
    history = [one | {"wait_seconds": 4.0 if i < 3 else 14.0} for i, one in enumerate(healthy())]
    assert only(said(history), epoch=4).startswith("6% of the training time went by waiting for data (26 of 400 s)")


def test_the_start_of_the_workers_is_not_waiting() -> None:
    history = [one | {"train_seconds": 20.0, "wait_seconds": 6.0 if i < 1 else 0.1} for i, one in enumerate(healthy())]
    assert said(history) == {}


def test_time_of_epochs_that_do_not_know_their_waiting_does_not_count() -> None:
    history = healthy(wait_seconds=20.0)
    for one in history[:6]:
        del one["wait_seconds"]
    assert only(said(history), epoch=7).startswith("20% of the training time went by waiting for data (20 of 100 s)")


def test_several_causes_have_a_line_each() -> None:
    history = [row(i, 1.5, 1.5, (0, 0, 0), matches={"Car": 0}, wait_seconds=50.0) for i in range(1, 6)]
    spoken = said(history)
    assert {epoch: len(lines) for epoch, lines in spoken.items()} == {1: 2, 5: 1}


CONFIG = model_config("lite0", classes=CLASSES, image_size=(256, 896), anchor_scale=2.0)


def test_anchors_that_miss_many_objects_are_named() -> None:
    (line,) = watch_start({"Car": 0.98, "Pedestrian": 0.541, "Cyclist": 0.79}, config=CONFIG)
    assert line.startswith("the anchors reach only 54% of Pedestrian and 79% of Cyclist at IoU .5: ")
    assert line.endswith("try --anchor-scale 1.5 (now 2), or a larger --size (now 256x896)")


@pytest.mark.parametrize("coverage", [{}, {"Car": 0.8, "Pedestrian": 1.0}, {"Car": float("nan")}])
def test_anchors_that_reach_are_not_mentioned(coverage: dict[str, float]) -> None:
    assert watch_start(coverage, config=CONFIG) == []


def test_every_rule_reads_the_history_of_data_that_have_no_kitti_scores() -> None:
    rows = [
        {key: value for key, value in one.items() if key not in ("R40", "R11")}
        for one in history_of([2.0 - 0.1 * i for i in range(6)], ap_by_class={"Car": 30.0, "Cyclist": 0.0}, ap=15.0)
    ]
    line = only(said(rows), epoch=3)
    assert line.startswith("AP of Cyclist is still 0 after 3 epochs")

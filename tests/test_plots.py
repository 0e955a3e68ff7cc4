"""Every figure is drawn whole, from one epoch or hundreds, of one class or twenty, and touches nothing else."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinydet.score import PrCurve

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.figure import Figure
from matplotlib.text import Text

from tinydet import plots


def row(epoch: int, moderate: dict[str, float], *, loss: float = 0.5, seconds: float = 60.0) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    ap = {name: {"easy": 1.2 * value, "moderate": value, "hard": 0.8 * value} for name, value in moderate.items()}
    losses = {"total": loss, "classification": loss / 2, "box": loss / 100}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 1e-3,
        "train": losses,
        "val": losses,
        "R40": ap,
        "R11": ap,
        "metric": "Moderate R40",
        "ap": float(np.mean([*moderate.values()])),
        "ap_by_class": moderate,
        "train_seconds": seconds,
        "val_seconds": 0.0,
    }


def history(epochs: int, classes: int) -> list[dict[str, Any]]:
    """A run that rises and then stays."""
    return [
        row(epoch, {f"class {k}": 80 * (1 - math.exp(-epoch / (k + 1))) for k in range(classes)}, loss=1 + 1 / epoch)
        for epoch in range(1, epochs + 1)
    ]


def curve(best: float, count: int = 100) -> PrCurve:
    """A curve that falls from a precision."""
    return PrCurve(50 * best, count, np.linspace(best, 0, 41))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved since."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **settings: Any) -> None:
        saved.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def points(line: Any) -> tuple[list[float], list[float]]:
    """What a line joins."""
    x, y = (np.ravel(values).tolist() for values in line.get_data())
    return x, y


def texts(figure: Figure) -> list[str]:
    """Every text of a figure that is not of a tick."""
    ticks = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()}
    return [text.get_text() for text in figure.findobj(Text) if text not in ticks and text.get_text()]


@pytest.mark.parametrize("draw", [plots.loss_curves, plots.ap_curves])
@pytest.mark.parametrize(("epochs", "classes"), [(1, 1), (12, 3), (300, 20)])
def test_a_history_of_any_length_is_drawn_and_stays_as_it_was(
    tmp_path: Path, draw: Callable[..., None], epochs: int, classes: int
) -> None:
    rows = history(epochs, classes)
    before = copy.deepcopy(rows)
    draw(rows, tmp_path / "picture.png")
    assert rows == before
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_losses_are_those_of_both_parts_and_the_rate_below(tmp_path: Path, figures: list[Figure]) -> None:
    rows = history(4, 2)
    for i, one in enumerate(rows):
        one["val"] = {"total": [4.0, 2.0, 1.0, 3.0][i]}
    plots.loss_curves(rows, tmp_path / "losses.png")
    top, bottom = figures[0].axes
    lines = [points(line)[1] for line in top.lines]
    assert [one["train"]["total"] for one in rows] in lines
    assert [4.0, 2.0, 1.0, 3.0] in lines
    assert [1e-3] * 4 in [points(line)[1] for line in bottom.lines]
    assert {"total loss", "learning rate", "epoch", "training 1.250", "validation 3.000"} <= set(texts(figures[0]))


@pytest.mark.parametrize(
    ("means", "losses", "best"),
    [((1, 3, 2), (1, 1, 1), 2), ((1, 3, 3), (1, 1, 1), 2), ((1, 3, 3), (1, 1, 0.5), 3), ((0, 0, 0), (3, 1, 2), 2)],
)
def test_the_best_epoch_is_the_one_that_is_kept(
    tmp_path: Path, figures: list[Figure], means: tuple[float, ...], losses: tuple[float, ...], best: int
) -> None:
    rows = [row(i + 1, {"Car": mean}, loss=loss) for i, (mean, loss) in enumerate(zip(means, losses, strict=True))]
    plots.loss_curves(rows, tmp_path / "losses.png")
    plots.ap_curves(rows, tmp_path / "ap.png")
    for figure in figures:
        assert f"best: epoch {best}" in texts(figure)
        for axes in figure.axes:
            assert [best, best] in [points(line)[0] for line in axes.lines]


@pytest.mark.parametrize(("classes", "lines"), [(1, 3), (3, 10), (20, 21)])
def test_ap_has_a_line_for_each_class_and_difficulty_and_the_mean(
    tmp_path: Path, figures: list[Figure], classes: int, lines: int
) -> None:
    rows = history(5, classes)
    plots.ap_curves(rows, tmp_path / "ap.png")
    drawn = [y for y in (points(line)[1] for line in figures[0].axes[0].lines) if len(y) == 5]
    assert len(drawn) == lines
    for name in rows[0]["R40"]:
        assert [one["R40"][name]["moderate"] for one in rows] in drawn
        assert f"{name} {rows[-1]['R40'][name]['moderate']:.1f}" in texts(figures[0])
    assert ([one["ap"] for one in rows] in drawn[3:]) == (classes > 1)
    styles = {(line.get_color(), line.get_marker()) for line in figures[0].axes[0].lines if line.get_marker() != ""}
    assert len({style for style in styles if style[1] not in ("None", "")}) == classes  # told apart without colour too


def test_ap_of_other_data_than_kitti_has_a_line_for_each_class(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [{k: v for k, v in one.items() if k not in ("R40", "R11")} for one in history(5, 2)]
    plots.ap_curves(rows, tmp_path / "ap.png")
    drawn = [y for y in (points(line)[1] for line in figures[0].axes[0].lines) if len(y) == 5]
    expected = [[one["ap_by_class"][f"class {k}"] for one in rows] for k in range(2)]
    assert drawn == [*expected, [one["ap"] for one in rows]]
    assert "COCO AP, %" in texts(figures[0])


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 20])
def test_precision_is_drawn_in_a_panel_for_each_class(tmp_path: Path, figures: list[Figure], classes: int) -> None:
    levels = {"easy": curve(1.0), "moderate": curve(0.5, 41), "hard": curve(0.25, 1)}
    plots.precision_recall({f"class {k}": levels for k in range(classes)}, tmp_path / "curves.png")
    shown = [axes for axes in figures[0].axes if axes.axison]
    assert len(shown) == classes
    for axes in shown:
        x, y = points(axes.lines[1])
        np.testing.assert_allclose(x, np.arange(41) * 2.5)
        np.testing.assert_allclose(y, 100 * levels["moderate"].precision)
        assert axes.lines[1].get_drawstyle() == "steps-pre"  # or the area would not be the AP
    words = texts(figures[0])
    assert {"class 0, AP", "moderate 25.0, 41 objects", "hard 12.5, 1 object", "recall, %"} <= set(words)


def test_runs_are_compared_by_epoch_and_by_minute(tmp_path: Path, figures: list[Figure]) -> None:
    quick = [row(i + 1, {"Car": ap}, seconds=30) for i, ap in enumerate((10, 30, 20))]
    slow = [row(i + 1, {"Car": ap}, seconds=120) for i, ap in enumerate((20, 40))]
    plots.score_curves({"quick": quick, "slow": slow}, tmp_path / "scores.png")
    by_epoch, by_minute = ([points(line) for line in axes.lines] for axes in figures[0].axes)
    for x, y, lines in (
        ([1, 2, 3], [10, 30, 20], by_epoch),
        ([0.5, 1, 1.5], [10, 30, 20], by_minute),
        ([2, 4], [20, 40], by_minute),
        ([1], [30], by_minute),  # the ring
    ):
        assert (x, y) in lines
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["slow: best 40.0 after epoch 2", "quick: best 30.0 after epoch 2"]


def test_many_runs_with_long_names_fit(tmp_path: Path, figures: list[Figure]) -> None:
    plots.score_curves({f"{'a long name of a run' * 3} {i}": history(1 + i, 1) for i in range(12)}, tmp_path / "a.png")
    assert all(axes.get_window_extent().height > 250 for axes in figures[0].axes)


def test_what_is_not_whole_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "losses.png"
    plots.loss_curves(history(1, 1), path)
    before = path.read_bytes()

    def full(figure: Figure, file: IO[bytes], **_: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plots.loss_curves(history(2, 1), path)
    assert path.read_bytes() == before


def test_drawing_needs_no_window_and_leaves_no_state(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.ap_curves(history(2, 2), tmp_path / "ap.png")
    assert dict(matplotlib.rcParams) == before
    code = "import sys, tinydet.plots; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@settings(deadline=None)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=25), st.floats(0.001, 0.3))
@example([0.5, 0.5, 0.5], 0.1)
@example([0.0, 1.0], 0.1)
def test_labels_are_apart_in_their_order_and_within_bounds(values: list[float], gap: float) -> None:
    before = list(values)
    moved = plots.spread(values, gap=gap, low=0.0, high=1.0)
    assert values == before
    order = np.argsort(values, kind="stable")
    room = min(gap, 1 / max(1, len(values) - 1))
    assert (np.diff(moved[order]) >= room - 1e-9).all()
    assert moved.min() >= -1e-9
    assert moved.max() <= 1 + 1e-9


def test_labels_move_no_further_than_they_must() -> None:
    np.testing.assert_allclose(plots.spread([0.2, 0.5, 0.8], gap=0.1, low=0, high=1), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(plots.spread([0.5, 0.5, 0.9], gap=0.1, low=0, high=1), [0.45, 0.55, 0.9])
    np.testing.assert_allclose(plots.spread([1.0, 0.98], gap=0.1, low=0, high=1), [1.0, 0.9])

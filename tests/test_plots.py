"""Figures have the numbers of their history: of one epoch or hundreds, of one class or twenty."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from tinydet.errors import InputError
from tinydet.evaluation import PrCurve

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.run_rows import metrics_history as history
from tests.run_rows import metrics_row as row
from tinydet import plots


def points(line: Any) -> tuple[list[float], list[float]]:
    """What a line joins."""
    x, y = (np.ravel(values).tolist() for values in line.get_data())
    return x, y


def texts(figure: Figure) -> list[str]:
    """Every text of a figure that is not of a tick."""
    ticks = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()}
    return [text.get_text() for text in figure.findobj(Text) if text not in ticks and text.get_text()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("plot", [plots.loss_curves, plots.ap_curves])
@pytest.mark.parametrize(("epochs", "classes"), [(1, 1), (12, 3), (300, 20)])
def test_history_of_any_length_is_plotted(
    tmp_path: Path, plot: Callable[..., Figure], epochs: int, classes: int
) -> None:
    rows = history(epochs, classes)
    before = copy.deepcopy(rows)
    plots.save_figure(plot(rows), tmp_path / "curves.png")
    assert rows == before
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    with Image.open(tmp_path / "curves.png") as image:
        assert min(image.size) > 500
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_loss_curves_are_of_both_splits_with_the_learning_rate_below() -> None:
    rows = [one | {"val": {"total": loss}} for one, loss in zip(history(4, 2), (4.0, 2.0, 1.0, 3.0), strict=True)]
    figure = plots.loss_curves(rows)
    top, bottom = figure.axes
    lines = [points(line)[1] for line in top.lines]
    assert [one["train"]["total"] for one in rows] in lines
    assert [4.0, 2.0, 1.0, 3.0] in lines
    assert [1e-3] * 4 in [points(line)[1] for line in bottom.lines]
    assert {"total loss", "learning rate", "training: 1.250", "validation: 3.000"} <= set(texts(figure))
    assert texts(figure).count("epoch") == 1


@pytest.mark.parametrize(
    ("means", "losses", "best"),
    [((1, 3, 2), (1, 1, 1), 2), ((1, 3, 3), (1, 1, 1), 2), ((1, 3, 3), (1, 1, 0.5), 3), ((0, 0, 0), (3, 1, 2), 2)],
)
def test_best_epoch_is_marked(means: tuple[float, ...], losses: tuple[float, ...], best: int) -> None:
    rows = [row(i + 1, {"Car": mean}, loss=loss) for i, (mean, loss) in enumerate(zip(means, losses, strict=True))]
    for figure in (plots.loss_curves(rows), plots.ap_curves(rows)):
        assert f"best: epoch {best}" in texts(figure)
        for axes in figure.axes:
            assert [best, best] in [points(line)[0] for line in axes.lines]


@pytest.mark.parametrize(("classes", "lines"), [(1, 3), (3, 10), (12, 13), (20, 21)])
def test_ap_has_a_line_for_each_class_and_difficulty_and_the_mean(classes: int, lines: int) -> None:
    rows = history(5, classes)
    figure = plots.ap_curves(rows)
    drawn = {tuple(y): line for line in figure.axes[0].lines if len(y := points(line)[1]) == 5}
    assert len(drawn) == lines
    ap = {name: [one["ap_by_class"][name] for one in rows] for name in rows[0]["ap_by_class"]}
    named = [text for name in ap if (text := f"{name}: {ap[name][-1]:.1f}") in texts(figure)]
    assert len(named) == min(classes, 12)
    assert ("8 other classes" in texts(figure)) == (classes == 20)
    assert tuple(one["ap"] for one in rows) in drawn
    of_classes = [drawn[tuple(values)] for values in ap.values()]
    styles = {(line.get_color(), line.get_marker()) for line in of_classes if line.get_marker() not in ("", "None")}
    assert len(styles) == min(classes, 12)  # told apart without colour too
    ranked = [float(text.split(": ")[1]) for text in legend(figure) if text.startswith("class")]
    assert ranked == sorted(ranked, reverse=True)


def test_undefined_ap_is_a_gap() -> None:
    rows = [row(1, {"Car": 1.0, "Tram": None}), row(2, {"Car": 2.0, "Tram": 5.0}), row(3, {"Car": 3.0, "Tram": None})]
    figure = plots.ap_curves(rows)
    drawn = [points(line)[1] for line in figure.axes[0].lines]
    assert any(math.isnan(y[0]) and y[1] == 5 and math.isnan(y[2]) for y in drawn if len(y) == 3)
    assert {"Car: 3.0", "Tram: -"} <= set(texts(figure))


def test_ap_of_coco_data_has_no_difficulties() -> None:
    rows = [{key: value for key, value in one.items() if key != "KITTI"} for one in history(5, 2)]
    figure = plots.ap_curves([one | {"metric": "COCO AP"} for one in rows])
    drawn = [y for y in (points(line)[1] for line in figure.axes[0].lines) if len(y) == 5]
    expected = [[one["ap_by_class"][f"class {k}"] for one in rows] for k in range(2)]
    assert drawn == [[one["ap"] for one in rows], *expected]
    assert "COCO AP, %" in texts(figure)
    assert "easy" not in texts(figure)


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 20])
def test_precision_is_plotted_in_a_panel_for_each_class(classes: int) -> None:
    falling = np.linspace(1, 0, 41)
    levels = {
        "easy": PrCurve(50, 100, falling),
        "moderate": PrCurve(25, 41, falling / 2),
        "hard": PrCurve(9, 1, falling),
    }
    figure = plots.precision_recall({f"class {k}": levels for k in range(classes)})
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == classes
    for axes in shown:
        x, y = points(axes.lines[1])
        np.testing.assert_allclose(x, np.arange(41) * 2.5)
        np.testing.assert_allclose(y, 50 * falling)
        assert axes.lines[1].get_drawstyle() == "steps-pre"  # or the area would not be the AP
    expected = {"class 0, AP", "moderate: 25.0, 41 objects", "hard: 9.0, 1 object", "recall, %", "precision, %"}
    assert expected <= set(texts(figure))


def test_runs_are_compared_by_epoch_and_by_minute() -> None:
    quick = [row(i + 1, {"Car": ap}, seconds=30) for i, ap in enumerate((10, 30, 20))]
    slow = [row(i + 1, {"Car": ap}, seconds=120) for i, ap in enumerate((20, 40))]
    figure = plots.score_curves({"quick": quick, "_slow": slow})
    by_epoch, by_minute = ([points(line) for line in axes.lines] for axes in figure.axes)
    for x, y, lines in (
        ([1, 2, 3], [10, 30, 20], by_epoch),
        ([0.5, 1, 1.5], [10, 30, 20], by_minute),
        ([2, 4], [20, 40], by_minute),
        ([1], [30], by_minute),  # the ring
    ):
        assert (x, y) in lines
    assert legend(figure) == ["_slow: best 40.0 after epoch 2", "quick: best 30.0 after epoch 2"]


def test_many_runs_with_long_names_fit(tmp_path: Path) -> None:
    figure = plots.score_curves({f"{'a long name of a run' * 3} {i}": history(1 + i, 1) for i in range(12)})
    plots.save_figure(figure, tmp_path / "a.png")
    assert all(axes.get_window_extent().height > 250 for axes in figure.axes)


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    rows = [row(1, {"$1_$": 1.0, "_$^": 2.0}), row(2, {"$1_$": 2.0, "_$^": 1.0})]
    curves = plots.precision_recall({"$1_$": {"IoU 0.5": PrCurve(50, 9, np.linspace(1, 0, 101))}})
    for figure, said in (
        (plots.ap_curves(rows), {"$1_$: 2.0", "_$^: 1.0"}),
        (plots.score_curves({"$_$": rows}), {"$_$: best 1.5 after epoch 1"}),
        (curves, {"$1_$, AP"}),
    ):
        assert said <= set(texts(figure))
        plots.save_figure(figure, tmp_path / "a.svg")  # matplotlib would parse these as formulas, and fail
        with pytest.raises(InputError, match=r"a\.xyz: no format of a plot; name it \.png, \.svg or \.pdf$"):
            plots.save_figure(figure, tmp_path / "a.xyz")


def test_names_of_other_alphabets_and_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glyph that is missing would be a warning, which fails a test; boxes take its place where no font has it."""
    names = ("Fußgänger", "汽车", "a\x1b[31m\nb")
    monkeypatch.setattr(plots, "find_font", lambda characters: (None, characters))
    figure = plots.ap_curves([row(1, dict.fromkeys(names, 1.0))])
    assert {"Fußgänger: 1.0", "□□: 1.0", "a\\x1b[31m\\nb: 1.0"} <= set(texts(figure))
    plots.save_figure(figure, tmp_path / "a.png")


def test_interrupted_figure_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        plots.save_figure(plots.loss_curves(history(1, 1)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_plots_need_no_window_and_leave_no_state() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.ap_curves(history(2, 2))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, tinydet.plots; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"

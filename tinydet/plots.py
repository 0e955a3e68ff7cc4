"""Plots: the curves of a run, each function one figure in one file; legible at half size and to the colour-blind.

A history is the rows of a run's metrics.jsonl, one for each epoch. The files are of the kind that their suffix says.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tinydet.files import replacing
from tinydet.score import PrCurve
from tinydet.training.history import best_row

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette, without the yellow, which white paper swallows; black is the mean's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEVELS: dict[str, Any] = {"easy": (0, (5, 2)), "moderate": "-", "hard": (0, (1, 1.5))}
"""How each difficulty is dashed."""
GREY = "#666666"
SIZE = 15.0  # points, of all text: 10 pixels high where a figure is shown at half size
MANY = 40  # epochs, above which markers would hide their line
FEW = 6  # classes, above which easy and hard would hide moderate


def loss_curves(history: Rows, path: str | os.PathLike[str]) -> None:
    """Draw the total losses of training and validation over the epochs, and the learning rate below.

    Args:
        history: at least one row.
        path: where to.
    """
    epochs = [row["epoch"] for row in history]
    figure = _figure(10, 7.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ends = []
    for i, (name, part) in enumerate((("training", "train"), ("validation", "val"))):
        losses = [row[part]["total"] for row in history]
        _line(top, epochs, losses, color=COLOURS[i], linestyle=("-", (0, (5, 2)))[i], marker=MARKERS[i])
        ends.append((losses[-1], f"{name} {losses[-1]:.3f}", COLOURS[i]))
    _line(bottom, epochs, [row["lr"] for row in history], color=GREY, marker="o")
    bottom.set_ylim(bottom=0)
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter("{x:g}")
    for axes, name in ((top, "total loss"), (bottom, "learning rate")):
        _dress(axes, x="", y=name)
    _mark_best(top, history)
    _over_epochs(bottom, epochs)
    _end_labels(top, ends)
    figure.align_ylabels()
    _save(figure, path)


def ap_curves(history: Rows, path: str | os.PathLike[str]) -> None:
    """Draw the AP of every class over the epochs, and their mean; KITTI's easy and hard too where the classes are few.

    Args:
        history: at least one row; all of the same classes.
        path: where to.
    """
    epochs = [row["epoch"] for row in history]
    figure = _figure(10, 7)
    axes = figure.subplots()
    classes, kitti = list(history[0]["ap_by_class"]), "R40" in history[0]
    ends: list[tuple[float, str, str]] = []
    for name, colour, marker in zip(classes, cycle(COLOURS), _markers(), strict=False):
        ap = [row["ap_by_class"][name] for row in history]
        _line(axes, epochs, ap, color=colour, marker=marker)
        ends.append((ap[-1], f"{name} {ap[-1]:.1f}", colour))
        for level in ("easy", "hard") if kitti and len(classes) <= FEW else ():
            style = {"linestyle": LEVELS[level], "linewidth": 1.6, "alpha": 0.6, "zorder": 1}
            _line(axes, epochs, [row["R40"][name][level] for row in history], color=colour, **style)
    if len(classes) > 1:
        mean = [row["ap"] for row in history]
        _line(axes, epochs, mean, color="black", linewidth=3.5, zorder=3)
        ends.append((mean[-1], f"mean {mean[-1]:.1f}", "black"))
    axes.set_ylim(bottom=0)
    _dress(axes, x="", y="AP (R40), %" if kitti else "COCO AP, %")
    _mark_best(axes, history)
    _over_epochs(axes, epochs)
    _end_labels(axes, ends)
    if kitti and len(classes) <= FEW:
        keys = [Line2D([], [], color=GREY, linestyle=dashes, linewidth=2, label=key) for key, dashes in LEVELS.items()]
        _legend(figure, keys)
    _save(figure, path)


def precision_recall(curves: Mapping[str, Mapping[str, PrCurve]], path: str | os.PathLike[str]) -> None:
    """Draw precision over recall, a panel for each class, lines with their AP and their objects.

    The area under a line is its AP: the steps are those that AP is summed over.

    Args:
        curves: from `tinydet.score.pr_curves`, of at least one class.
        path: where to.
    """
    columns = len(curves) if len(curves) <= 3 else int(np.ceil(len(curves) ** 0.5))
    rows = -(-len(curves) // columns)
    figure = _figure(max(6, 4.6 * columns), 5.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, lines) in zip(panels.flat, curves.items(), strict=False):
        for (key, curve), dashes, colour in zip(lines.items(), LEVELS.values(), COLOURS, strict=False):
            label = f"{key} {curve.ap:.1f}, {curve.n_gt} object{'s' * (curve.n_gt != 1)}"
            style = {"drawstyle": "steps-pre", "color": colour, "linestyle": dashes, "linewidth": 2.5}
            recall = np.linspace(0, 100, len(curve.precision))
            axes.plot(recall, 100 * curve.precision, label=label, **style)
        _dress(axes, x="recall, %", y="precision, %")
        axes.label_outer()
        axes.set(xlim=(0, 102), ylim=(0, 102), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            borderaxespad=0.2,
            fontsize=SIZE,
            labelspacing=0.2,
            handlelength=2.4,
            title=f"{name}, AP",
            alignment="left",
            title_fontproperties={"size": SIZE, "weight": "bold"},
        )
    for axes in panels.flat[len(curves) :]:
        axes.set_axis_off()
    _save(figure, path)


def score_curves(histories: Mapping[str, Rows], path: str | os.PathLike[str]) -> None:
    """Draw the AP of several runs over their epochs and over the time that they took, their best ringed.

    Args:
        histories: by the run's name, each of at least one row.
        path: where to.
    """
    figure = _figure(13, 6 + 0.3 * len(histories))
    panels = figure.subplots(1, 2, sharey=True)
    keys = []
    best = {name: best_row(history) for name, history in histories.items()}
    styles = zip(histories, cycle(COLOURS), _markers(), cycle(LEVELS.values()), strict=False)
    for name, colour, marker, dashes in sorted(styles, key=lambda one: -best[one[0]]["ap"]):
        history, top = histories[name], best[name]
        epochs = np.array([row["epoch"] for row in history])
        minutes = np.cumsum([row["train_seconds"] + row["val_seconds"] for row in history]) / 60
        mean = [row["ap"] for row in history]
        for axes, x in zip(panels, (epochs, minutes), strict=True):
            line = _line(axes, x, mean, color=colour, marker=marker, linestyle=dashes)
            axes.plot(x[epochs == top["epoch"]], top["ap"], "o", ms=15, mfc="none", mec=colour, mew=2)
        line.set_label(f"{name}: best {top['ap']:.1f} after epoch {top['epoch']}")
        keys.append(line)
    metrics = dict.fromkeys(history[0]["metric"] for history in histories.values())
    _dress(panels[0], x="epoch", y=f"mean {' and '.join(metrics)}, %")
    _dress(panels[1], x="training and validation, minutes", y="")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    _legend(figure, keys, ncols=1)
    _save(figure, path)


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> np.ndarray:
    """Move values as little as need be until each is a gap from the next, within bounds where they hold all.

    Args:
        values: N numbers; equal ones stay in their order.
        gap: between neighbours; less where N of them do not fit.
        low, high: the bounds.

    Returns:
        float64[N]
    """
    order = np.argsort(values, kind="stable")
    steps = min(gap, (high - low) / max(1, len(values) - 1)) * np.arange(len(values))
    # Without their steps the values need only be in order: the least squares answer pools those that are not.
    pools: list[list[float]] = []
    for value in np.asarray(values, dtype=float)[order] - steps:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    moved = np.empty(len(values))
    moved[order] = level.clip(low, high - steps[-1]) + steps
    return moved


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that knows how to draw itself."""
    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of its file's name."""
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:])


def _line(axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float], *, marker: str = "", **style: Any) -> Line2D:
    """Draw a line, with markers where there is room for them; a single point, of which there is no line, as a dot."""
    every = max(1, -(-len(x) // MANY))
    marker = marker or ("." if len(x) == 1 else "")
    return axes.plot(x, y, marker=marker, markevery=every, markersize=7, **{"linewidth": 2.5, **style})[0]


def _markers() -> Any:
    """Marker after marker, such that equal colours have different ones."""
    return cycle(MARKERS)


def _dress(axes: Axes, *, x: str, y: str) -> None:
    """Name the axes, in letters large enough, over a faint grid."""
    axes.set_xlabel(x, fontsize=SIZE)
    axes.set_ylabel(y, fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _over_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Make a horizontal axis one of epochs, with room where there is only one."""
    axes.set_xlabel("epoch", fontsize=SIZE)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _mark_best(axes: Axes, history: Rows) -> None:
    """Mark the epoch that was the best, in all panels that share the epochs, and say above which it is."""
    best = best_row(history)
    for one in axes.figure.axes:
        one.axvline(best["epoch"], color=GREY, linewidth=1.2, linestyle=(0, (2, 2)), zorder=0)
    text = f"best: epoch {best['epoch']}"
    axes.set_title(text, fontsize=SIZE, color=GREY, loc="right")


def _end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines in their colours on the right of a panel, beside where they end or as near as there is room.

    Args:
        axes: whose limits are final.
        ends: of each line the last value, the text and the colour.
    """
    low, high = axes.get_ylim()
    height = 0.6 * 72 * float(axes.figure.bbox.height / axes.figure.dpi)  # points, more or less
    size = min(SIZE, height / (1.2 * len(ends)))
    at = [(value - low) / (high - low) for value, *_ in ends]
    for y, end, (_, text, colour) in zip(
        spread(at, gap=1.2 * size / height, low=0.02, high=0.98), at, ends, strict=True
    ):
        axes.plot((1, 1.02), (end, y), transform=axes.transAxes, clip_on=False, color=colour, linewidth=1)
        axes.text(1.03, y, text, transform=axes.transAxes, fontsize=size, color=colour, va="center")


def _legend(figure: Figure, keys: Sequence[Artist], *, ncols: int = 3) -> None:
    """Explain the lines below all panels."""
    figure.legend(
        handles=list(keys), loc="outside lower center", ncols=ncols, frameon=False, fontsize=SIZE, handlelength=3
    )

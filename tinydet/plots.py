"""Plot the curves of a run with matplotlib: legible at half size, and for colour-blind readers."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import ImageFont

from tinydet.draw import count_text
from tinydet.errors import InputError, visible
from tinydet.evaluation import PrCurve
from tinydet.files import PathLike, write_file
from tinydet.fonts import find_font, lacking
from tinydet.training.schedule import best_row

P = ParamSpec("P")
Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl, one for each epoch and at least one

# Okabe and Ito's palette, without the yellow, which white paper swallows; black is the mean's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: dict[str, Any] = {"easy": (0, (5, 2)), "moderate": "-", "hard": (0, (1, 1.5))}
FONT = "DejaVu Sans"  # matplotlib's own
GREY, FAINT = "#666666", "#BBBBBB"
MAX_MARKERS = 40  # on a line; more would hide it
MAX_LEVELS = 6  # classes, above which easy and hard would hide moderate
MAX_NAMES = 12  # classes, above which only the best and the worst are named
STYLE: Any = (  # 15 points are 10 pixels where a figure is shown at half size; a class may be called $1
    {"font.size": 15, "text.parse_math": False, "lines.linewidth": 2.5, "lines.markersize": 7}
    | {"axes.axisbelow": True, "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False}
    | {"legend.frameon": False, "legend.handlelength": 2.6, "legend.labelspacing": 0.3}
    | {"figure.constrained_layout.use": True, "grid.color": "#DDDDDD"}
)


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Plot in the house's style, with a font that has the characters of the names, or boxes in place of those."""

    @wraps(plot)
    def call(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = plot(*args, **kwargs)
        texts: list[Any] = figure.findobj(Text)
        characters = frozenset("".join(visible(text.get_text()) for text in texts))
        strange = lacking(ImageFont.truetype(font_manager.findfont(FONT), 16), characters)
        path, missing = find_font(strange) if strange else (None, strange)
        if path:
            font_manager.fontManager.addfont(path)
        for text in texts:
            shown = visible(text.get_text())
            text.set_text("".join("\N{WHITE SQUARE}" if one in missing else one for one in shown))
            text.set_fontfamily([FONT, *([font_manager.get_font(path).family_name] if path else [])])
        return figure

    return call


@styled
def loss_curves(history: Rows) -> Figure:
    """Plot training and validation loss by epoch, and the learning rate below."""
    figure = Figure(figsize=(10, 7.5))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs = [row["epoch"] for row in history]
    train, val = ([row[split]["total"] for row in history] for split in ("train", "val"))
    _plot(top, epochs, train, color=COLOURS[0], marker="o", label=f"training: {train[-1]:.3f}")
    dashed: Any = {"color": COLOURS[1], "marker": "s", "linestyle": DASHES["easy"]}
    _plot(top, epochs, val, label=f"validation: {val[-1]:.3f}", **dashed)
    _plot(bottom, epochs, [row["lr"] for row in history], color=GREY, marker="o")
    _mark_best(top, history)
    _mark_best(bottom, history)
    top.label_outer()
    top.set_ylabel("total loss")
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    bottom.set(ylabel="learning rate", ylim=(0, None))
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter("{x:g}")
    figure.align_ylabels()
    return figure


@styled
def ap_curves(history: Rows) -> Figure:
    """Plot AP by epoch: of each class, the mean, and KITTI's easy and hard."""
    figure, lines = Figure(figsize=(11, 6.5)), []
    axes, epochs = figure.subplots(), [row["epoch"] for row in history]
    classes = dict.fromkeys(name for row in history for name in row["ap_by_class"])
    aps = {name: np.array([row["ap_by_class"].get(name) for row in history], float) for name in classes}
    ranked = sorted(aps, key=lambda name: -np.nan_to_num(aps[name][-1], nan=-1.0))
    others = ranked[MAX_NAMES // 2 : -MAX_NAMES // 2] if len(ranked) > MAX_NAMES else []
    levels = DASHES if "KITTI" in history[0] and len(aps) <= MAX_LEVELS else {}
    if len(aps) != 1:
        mean = [row["ap"] for row in history]
        lines.append(_plot(axes, epochs, mean, color="black", linewidth=3.5, zorder=3, label=f"mean: {mean[-1]:.1f}"))
    looks = dict(zip(aps, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    for name in (name for name in ranked if name not in others):  # the legend goes down as the lines do
        colour, marker = looks[name]
        last = "-" if np.isnan(aps[name][-1]) else f"{aps[name][-1]:.1f}"
        lines.append(_plot(axes, epochs, aps[name], color=colour, marker=marker, label=f"{name}: {last}"))
        for level in ("easy", "hard") if levels else ():
            values = np.array([row["KITTI"]["R40"][name][level] for row in history], float)
            _plot(axes, epochs, values, color=colour, linestyle=levels[level], linewidth=1.6, alpha=0.6, zorder=1)
    faint: Any = {"color": FAINT, "linewidth": 1, "zorder": 1, "label": f"{len(others)} other classes"}
    lines += [_plot(axes, epochs, aps[name], **faint) for name in others][:1]
    lines += [Line2D([], [], color=GREY, linestyle=dashes, label=level) for level, dashes in levels.items()]
    axes.set(ylabel=f"{history[0]['metric']}, %", ylim=(0, None))
    figure.legend(handles=[*lines, _mark_best(axes, history)], loc="outside right upper")
    return figure


@styled
def precision_recall(curves: Mapping[str, Mapping[str, PrCurve]]) -> Figure:
    """Plot precision by recall, a panel for each class of `pr_curves`; the area under a line is its AP."""
    columns = len(curves) if len(curves) <= 3 else int(np.ceil(len(curves) ** 0.5))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(6, 4.6 * columns), 5.6 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    ticks = range(0, 101, 25)
    for axes, (name, lines) in zip(panels.flat, curves.items(), strict=False):
        for (key, curve), dashes, colour in zip(lines.items(), DASHES.values(), COLOURS, strict=False):
            label = f"{key}: {f'{curve.ap:.1f}' if curve.n_gt else '-'}, {count_text(curve.n_gt, 'object')}"
            recall, precision = np.linspace(0, 100, len(curve.precision)), 100 * curve.precision
            axes.plot(recall, precision, drawstyle="steps-pre", color=colour, linestyle=dashes, label=label)
        axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 102), ylim=(0, 102), xticks=ticks, yticks=ticks)
        axes.label_outer()
        legend = axes.legend(title=f"{name}, AP", loc="lower left", bbox_to_anchor=(0, 1), alignment="left")
        legend.get_title().set_fontweight("bold")
    for axes in panels.flat[len(curves) :]:
        axes.set_axis_off()
    return figure


@styled
def score_curves(histories: Mapping[str, Rows]) -> Figure:
    """Plot the mean AP of runs, by name, by epoch and minute, their best ringed."""
    figure = Figure(figsize=(13, 6 + 0.3 * len(histories)))
    panels = figure.subplots(1, 2, sharey=True)
    looks = zip(histories.items(), cycle(COLOURS), cycle(MARKERS), cycle(DASHES.values()), strict=False)
    for (name, history), colour, marker, dashes in sorted(looks, key=lambda look: -best_row(look[0][1])["ap"]):
        best, mean = best_row(history), [row["ap"] for row in history]
        epochs = np.array([row["epoch"] for row in history])
        minutes = np.cumsum([row["train_seconds"] + row["val_seconds"] for row in history]) / 60
        label = f"{name}: best {best['ap']:.1f} after epoch {best['epoch']}"
        for axes, x in zip(panels, (epochs, minutes), strict=True):
            _plot(axes, x, mean, color=colour, marker=marker, linestyle=dashes, label=label)
            axes.plot(x[epochs == best["epoch"]], best["ap"], "o", ms=15, mfc="none", mec=colour, mew=2)
    metrics = dict.fromkeys(history[0]["metric"] for history in histories.values())
    panels[0].set(xlabel="epoch", ylabel=f"mean {' and '.join(metrics)}, %", xlim=(0, None), ylim=(0, None))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[1].set(xlabel="training and validation, minutes", xlim=(0, None))
    figure.legend(handles=panels[0].lines[::2], loc="outside lower center")  # every other line is a ring
    return figure


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write a figure in the format of its file's suffix; raise InputError where there is no such format."""
    if Path(path).suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path}: no format of a plot; name it .png, .svg or .pdf")
    kind = Path(path).suffix[1:]
    figure.savefig(content := io.BytesIO(), format=kind, metadata={"Software": "tinydet"} if kind == "png" else None)
    write_file(path, content.getvalue())


def _plot(axes: Axes, x: Any, y: Any, *, marker: str = "", **style: Any) -> Line2D:
    """Plot a line, with markers where there is room, and a single point as a dot."""
    return axes.plot(x, y, marker=marker or "." * (len(x) == 1), markevery=-(-len(x) // MAX_MARKERS), **style)[0]


def _mark_best(axes: Axes, history: Rows) -> Line2D:
    """Make the horizontal axis one of whole epochs, even of a single one, and mark the best by a vertical line."""
    axes.set(xlabel="epoch", xlim=(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    epoch = best_row(history)["epoch"]
    return axes.axvline(epoch, color=GREY, linewidth=1.2, linestyle="-.", zorder=0, label=f"best: epoch {epoch}")

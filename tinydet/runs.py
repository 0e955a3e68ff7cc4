"""Runs: what lies in runs/, and how two of them compare."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.errors import InputError
from tinydet.training.history import best_row

Row = dict[str, Any]
WIDTH, HEIGHT = 80, 14  # of a terminal and of a chart, in characters
MOST_CLASSES = 6  # that a table of runs has columns for
LEAST_AXIS = 1.0  # percent; runs that differ by less are shown as equal
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a Braille character, from U+2800 on


class Run(NamedTuple):
    """A run's folder, read."""

    path: Path
    settings: dict[str, Any]
    model: dict[str, Any]
    weights: str
    """What it began from."""
    rows: list[Row]
    """An epoch each, at least one."""


class RunSummary(NamedTuple):
    """One folder of runs/: a run in short, or what is wrong with it."""

    name: str
    changed: float
    """When an epoch was last done, in seconds since 1970; of a folder without any, when it changed."""
    wrong: str = ""
    """Why it could not be read; then nothing below is known."""
    model: str = ""
    done: int = 0
    """Epochs."""
    asked: str = ""
    """How long the run was to be: "50", or "30 min"."""
    best_epoch: int = 0
    metric: str = ""
    """What runs on such data are compared by, as of `tinydet.score.headline`."""
    ap: float = math.nan
    """Of the best epoch, in percent."""
    by_class: Mapping[str, float] = {}
    """The same of each class."""
    minutes: float = 0.0
    """Spent on training and validation."""
    data: str = ""


class Comparison(NamedTuple):
    """Two runs side by side."""

    a: Run
    b: Run
    epochs: dict[int, tuple[Row | None, Row | None]]
    """Of each epoch that either has done, the rows."""
    settings: dict[str, tuple[Any, Any]]
    """What differs of settings and model, by name; None where one does not have it."""


def read_run(path: str | PathLike[str]) -> Run:
    """Read config.json and metrics.jsonl of a run's folder.

    Raises:
        InputError: it is no run, or no epoch is done, or one of the files is broken: names the file, and the line.
    """
    path = Path(path)
    config_file, metrics_file = path / "config.json", path / "metrics.jsonl"
    if not path.is_dir():
        raise InputError(f"{path}: not the folder of a run; there is no such folder")
    for file, meaning in ((config_file, "not the folder of a run"), (metrics_file, "no epoch is done")):
        if not file.is_file():
            raise InputError(f"{path}: {meaning}; {file.name} is missing")
    config = _parsed(config_file.read_bytes(), path=config_file)
    try:
        settings, model, weights = dict(config["settings"]), dict(config["model"]), str(config["weights"])
        _ = settings["data"], model["name"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{config_file}: not the config of a run ({error!r})") from None
    lines = metrics_file.read_bytes().splitlines()
    rows = [_row(text, path=metrics_file, line=number) for number, text in enumerate(lines, start=1)]
    if not rows:
        raise InputError(f"{metrics_file}: empty, no epoch is done")
    return Run(path, settings, model, weights, rows)


def _parsed(text: bytes, *, path: Path, line: int = 1) -> Any:
    """JSON that begins in some line of a file."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{line}: not UTF-8 ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg}, character {error.colno})") from None


def _row(text: bytes, *, path: Path, line: int) -> Row:
    """A line of metrics.jsonl, which holds what is read of it here."""
    row = _parsed(text, path=path, line=line)
    try:
        numbers = [row["epoch"], row["ap"], row["train_seconds"], row["val_seconds"]]
        numbers += [row["train"]["total"], row["val"]["total"], *row["ap_by_class"].values()]
        _ = row["metric"] + ""
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}:{line}: not the row of an epoch ({error!r})") from None
    if odd := [number for number in numbers if type(number) not in (int, float) or not math.isfinite(number)]:
        raise InputError(f"{path}:{line}: not the row of an epoch ({odd[0]!r} is no number)")
    return row


def _minutes(run: Run) -> float:
    return sum(row["train_seconds"] + row["val_seconds"] for row in run.rows) / 60


def list_runs(runs: str | PathLike[str]) -> list[RunSummary]:
    """Every folder in runs/, the one that changed last first.

    Raises:
        InputError: there is no such folder.
    """
    if not Path(runs).is_dir():
        raise InputError(f"{runs}: no such folder")
    found = [_summary(folder) for folder in sorted(Path(runs).iterdir()) if folder.is_dir()]
    return sorted(found, key=lambda run: -run.changed)


def _summary(folder: Path) -> RunSummary:
    metrics = folder / "metrics.jsonl"
    changed = (metrics if metrics.exists() else folder).stat().st_mtime
    try:
        run = read_run(folder)
    except InputError as error:
        return RunSummary(folder.name, changed, str(error).removeprefix(str(folder)).lstrip(f":{os.sep} "))
    best, minutes = best_row(run.rows), run.settings.get("minutes")
    return RunSummary(
        name=folder.name,
        changed=changed,
        model=str(run.model["name"]),
        done=len(run.rows),
        asked=f"{_shown(minutes)} min" if minutes else str(run.settings.get("epochs", "?")),
        best_epoch=best["epoch"],
        metric=best["metric"],
        ap=best["ap"],
        by_class=best["ap_by_class"],
        minutes=_minutes(run),
        data=str(run.settings["data"]),
    )


def runs_table(runs: Sequence[RunSummary]) -> str:
    """A line for each run, with the AP of its best epoch: the mean, and where the classes are few that of each."""
    names = list(dict.fromkeys(name for run in runs for name in run.by_class))
    names = names if len(names) <= MOST_CLASSES else []
    head = ["run", "changed", "model", "epochs", "best", "mean", *names, "of", "minutes", "data"]
    rows = [_cells(run, names) + [""] * (len(head) - 2 if run.wrong else 0) for run in runs]
    first, *lines = aligned([head, *rows], left=(0, 1, 2, len(head) - 3, len(head) - 1))
    return "\n".join([first, *(f"{line}  {run.wrong}".rstrip() for line, run in zip(lines, runs, strict=True))])


def _cells(run: RunSummary, names: Iterable[str]) -> list[str]:
    """A line of the table; of what could not be read its first two cells."""
    first = [run.name, datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M")]
    if run.wrong:
        return first
    by_class = [f"{run.by_class[name]:.1f}" if name in run.by_class else "-" for name in names]
    best = [str(run.best_epoch), f"{run.ap:.1f}", *by_class, run.metric]
    return [*first, run.model, f"{run.done}/{run.asked}", *best, f"{run.minutes:.0f}", run.data]


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Rows as lines, of which some columns stand to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def compare(a: str | PathLike[str], b: str | PathLike[str]) -> Comparison:
    """Read two runs' folders and set them side by side.

    Raises:
        InputError: one of them is no run, as of `read_run`.
    """
    runs = read_run(a), read_run(b)
    of_a, of_b = ({row["epoch"]: row for row in run.rows} for run in runs)
    epochs = {epoch: (of_a.get(epoch), of_b.get(epoch)) for epoch in sorted(of_a | of_b)}
    one, other = map(_settings, runs)
    differ = {name: (one.get(name), other.get(name)) for name in one | other}
    return Comparison(*runs, epochs, {name: pair for name, pair in differ.items() if pair[0] != pair[1]})


def _settings(run: Run) -> dict[str, Any]:
    """Settings and model as one: what a setting came to in the model, or in the weights, goes before the setting."""
    model = {"model": run.model["name"], **run.model, "weights": run.weights}
    return {name: value for name, value in (run.settings | model).items() if name not in ("name", "out", "command")}


def comparison(compared: Comparison) -> str:
    """Two runs as text, 80 columns wide: how their AP went, what they came to, and what differs."""
    a, b = compared.a, compared.b
    metrics = " and ".join(dict.fromkeys(run.rows[0]["metric"] for run in (a, b)))
    lines = [f"mean {metrics}, %, after each epoch", *_chart(a.rows, b.rows)]
    lines += [f"A ⠒⠒⠒⠒ {a.path}", f"B ⠂ ⠂  {b.path}", "", *aligned(_results(compared)), ""]
    if not compared.settings:
        return "\n".join([*lines, "no setting differs"])
    width = (WIDTH - 4 - max(len("setting"), *map(len, compared.settings))) // 2
    differ = [[name, *_shortened(*map(_shown, pair), width=width)] for name, pair in compared.settings.items()]
    return "\n".join([*lines, *aligned([["setting", "A", "B"], *differ], left=(0, 1, 2))])


def _results(compared: Comparison) -> list[list[str]]:
    """The best epochs, the last that both have done, and what it took."""
    runs, best = (compared.a, compared.b), (best_row(compared.a.rows), best_row(compared.b.rows))
    by_class = [row["ap_by_class"] for row in best]
    names = dict.fromkeys(name for aps in by_class for name in aps)
    aps = {name: [f"{one[name]:.1f}" if name in one else "-" for one in by_class] for name in names}
    both = [(one, other) for one, other in compared.epochs.values() if one and other][-1:]
    return [
        ["", "A", "B"],
        ["best epoch", *(f"{row['epoch']} of {len(run.rows)}" for row, run in zip(best, runs, strict=True))],
        *([name, *cells] for name, cells in aps.items()),
        ["mean", *(f"{row['ap']:.1f}" for row in best)],
        *([f"mean, epoch {pair[0]['epoch']}", *(f"{row['ap']:.1f}" for row in pair)] for pair in both),
        *([f"{part} loss", *(f"{row[part]['total']:.3f}" for row in best)] for part in ("train", "val")),
        ["minutes", *(f"{_minutes(run):.0f}" for run in runs)],
    ]


def _shown(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        value = ", ".join("=".join(map(_shown, one)) if isinstance(one, list) else _shown(one) for one in value)
    return "-" if value in (None, "") else str(value)


def _shortened(one: str, other: str, *, width: int) -> tuple[str, str]:
    """Two different values, cut so that where they part is still seen."""
    if max(len(one), len(other)) <= width:
        return one, other
    alike = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    start = max(0, alike - width // 3)
    cut = [f"…{text[start + 1 :]}" if start else text for text in (one, other)]
    one, other = (text if len(text) <= width else f"{text[: width - 1]}…" for text in cut)
    return one, other


def _chart(*runs: Sequence[Row]) -> list[str]:
    """AP over epochs: a solid line ends in A, a dotted one in B. In Braille, 2 x 4 dots a character."""
    epochs, values = ([row[key] for rows in runs for row in rows] for key in ("epoch", "ap"))
    first, last, ticks = min(epochs), max(epochs), _ticks(min(values), max(values))

    def down(values: Sequence[float] | np.ndarray) -> np.ndarray:
        """How many dots below the top."""
        return np.rint((ticks[-1] - np.array(values)) / (ticks[-1] - ticks[0]) * (4 * HEIGHT - 1)).astype(int)

    marks = {row: f"{tick:g}" for row, tick in zip(down(ticks) // 4, ticks, strict=True)}
    margin = max(map(len, marks.values()))
    width = WIDTH - margin - 5
    step = max(1, last - first) / (2 * width - 1)  # epochs a dot
    cells, ends = np.zeros((HEIGHT, width + 2), dtype=int), {}
    for name, every, rows in zip("AB", (1, 4), runs, strict=True):
        xs, ys = ([row[key] for row in rows] for key in ("epoch", "ap"))
        x = np.arange(round((xs[0] - first) / step), round((xs[-1] - first) / step) + 1)
        y = down(np.interp(first + x * step, xs, ys))
        end = y[-1] // 4, x[-1] // 2 + 1
        ends[end if end not in ends else (end[0], end[1] + 1)] = name
        x, y = x[::every], y[::every]
        np.bitwise_or.at(cells, (y // 4, x // 2), DOTS[y % 4, x % 2])
    lines = []
    for i, row in enumerate(cells):
        drawn = "".join(ends.get((i, j)) or (chr(0x2800 + cell) if cell else " ") for j, cell in enumerate(row))
        lines.append(f"{marks.get(i, ''):>{margin}} {'┤' if i in marks else '│'}{drawn}".rstrip())
    axis = f"{first}{f'epoch {last}' if last > first else '(epoch)':>{width - len(str(first))}}"
    return [*lines, f"{'':{margin}} └{'─' * width}", f"{'':{margin}}  {axis}"]


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers, evenly spaced, from at most `low` to at least `high`."""
    span = max(high - low, LEAST_AXIS)
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)
    first = math.floor(low / step)
    last = math.ceil(round(max(high / step, first + span / step), 6))
    return [round(step * i, 6) for i in range(first, last + 1)]

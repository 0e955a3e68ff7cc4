"""Read runs/: a table of its runs, and two of them side by side."""

from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tinydet.errors import InputError, shorten, try_call
from tinydet.files import PathLike, short_path
from tinydet.reading import check_field, parse_json, read_json, read_text
from tinydet.training.schedule import best_row
from tinydet.weights.load import SCORES

Row = dict[str, Any]
WIDTH, MIN_WIDTH = 80, 20  # of a terminal and of a setting in it, in characters
MAX_CLASS_COLUMNS = 6  # of a table
MAX_EPOCHS = 8  # of both runs, in a comparison
# What is read of config.json and of a row of metrics.jsonl.
CONFIG = {"settings": {"data": str}, "model": {"name": str}, "weights": str}
ROW = SCORES | {"train": {"total": float}, "val": {"total": float}, "train_seconds": float, "val_seconds": float}


class Run(NamedTuple):
    """A run's folder, read."""

    path: Path
    settings: dict[str, Any]
    model: dict[str, Any]
    weights: str  # that it started from
    rows: list[Row]  # of metrics.jsonl: one for each epoch, at least one

    @property
    def minutes(self) -> float:
        """Sum what training and validation took."""
        return sum(row["train_seconds"] + row["val_seconds"] for row in self.rows) / 60


class RunEntry(NamedTuple):
    """One folder of runs/."""

    name: str
    changed: float  # when the last epoch was done, in seconds since 1970; without an epoch, when the folder changed
    run: Run | str  # or why it cannot be read


class Comparison(NamedTuple):
    """Two runs, and the settings of training and model that differ; None where a run does not have one."""

    a: Run
    b: Run
    differences: dict[str, tuple[Any, Any]]


def read_run(path: PathLike) -> Run:
    """Read config.json and metrics.jsonl of a run's folder; an InputError names the file, and the line."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: not the folder of a run; there is no such folder")
    for name, problem in (("config.json", "not the folder of a run"), ("metrics.jsonl", "no epoch is done")):
        if not (path / name).is_file():
            raise InputError(f"{short_path(path)}: {problem}; {name} is missing")
    config, metrics = read_json(path / "config.json"), path / "metrics.jsonl"
    check_field(config, CONFIG, where=short_path(path / "config.json"))
    rows = [parse_json(text, path=metrics, line=n) for n, text in enumerate(read_text(metrics).splitlines(), start=1)]
    for n, row in enumerate(rows, start=1):
        check_field(row, ROW, where=f"{short_path(metrics)}:{n}")
    if not rows:
        raise InputError(f"{short_path(metrics)}: empty, no epoch is done")
    return Run(path, config["settings"], config["model"], config["weights"], rows)


def list_runs(folder: PathLike) -> list[RunEntry]:
    """List every folder in runs/, the one that changed last first."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    entries = []
    for path in sorted(one for one in Path(folder).iterdir() if one.is_dir()):
        metrics, errors = path / "metrics.jsonl", list[InputError]()
        run = try_call(errors.append, read_run, path) or str(errors[0]).removeprefix(f"{short_path(path)}: ")
        entries.append(RunEntry(path.name, (metrics if metrics.exists() else path).stat().st_mtime, run))
    return sorted(entries, key=lambda entry: -entry.changed)


def runs_table(entries: Sequence[RunEntry]) -> str:
    """Format runs as a table, with the AP of their best epochs."""
    best = [best_row(entry.run.rows) for entry in entries if isinstance(entry.run, Run)]
    classes = class_columns(list(dict.fromkeys(name for row in best for name in row["ap_by_class"])))
    rows = [["run", "changed", "model", "epochs", "best", "mean", *classes, "metric", "minutes", "data"]]
    for name, changed, run in entries:
        cells = [name, _when(changed)]
        if isinstance(run, Run):
            row, minutes = best_row(run.rows), run.settings.get("minutes")
            length = f"{_text(minutes)} min" if minutes else run.settings.get("epochs", "?")
            cells += [str(run.model["name"]), f"{len(run.rows)}/{length}", str(row["epoch"]), f"{row['ap']:.1f}"]
            cells += [*_class_aps(row, classes), row["metric"], f"{run.minutes:.0f}", str(run.settings["data"])]
        rows.append(cells + [""] * (len(rows[0]) - len(cells)))
    head, *lines = table_lines(rows, left=(0, 1, 2, len(rows[0]) - 3, len(rows[0]) - 1))
    errors = ["" if isinstance(entry.run, Run) else f"  {entry.run}" for entry in entries]
    return "\n".join([head, *map("".join, zip(lines, errors, strict=True))])


def compare(a: PathLike, b: PathLike) -> Comparison:
    """Read two runs' folders and find the settings that differ."""
    runs = read_run(a), read_run(b)
    # Model and weights go before the settings that they were resolved from.
    of_a, of_b = ({**run.settings, "model": run.model["name"], **run.model, "weights": run.weights} for run in runs)
    pairs = {name: (of_a.get(name), of_b.get(name)) for name in of_a | of_b if name not in ("name", "out", "command")}
    return Comparison(*runs, {name: pair for name, pair in pairs.items() if pair[0] != pair[1]})


def comparison(compared: Comparison) -> str:
    """Format two runs: AP by epoch, best epochs, settings that differ."""
    runs = compared.a, compared.b
    best = [best_row(run.rows) for run in runs]
    aps = [{row["epoch"]: f"{row['ap']:.1f}" for row in run.rows} for run in runs]
    common = sorted(aps[0].keys() & aps[1].keys())
    spaced = {common[i * (len(common) - 1) // (MAX_EPOCHS - 1)] for i in range(MAX_EPOCHS)} if common else set()
    by_epoch = [[str(n), *(ap.get(n, "-") for ap in aps)] for n in sorted({*spaced, max(aps[0]), max(aps[1])})]

    classes = list(dict.fromkeys([*best[0]["ap_by_class"], *best[1]["ap_by_class"]]))
    columns = [["best epoch", *classes, "mean", "train loss", "val loss", "minutes"]]
    for run, row in zip(runs, best, strict=True):
        numbers = [*_class_aps(row, classes), f"{row['ap']:.1f}", *(f"{row[x]['total']:.3f}" for x in ("train", "val"))]
        columns += [[f"{row['epoch']} of {len(run.rows)}", *numbers, f"{run.minutes:.0f}"]]
    width = max(MIN_WIDTH, (WIDTH - 4 - max(map(len, ["setting", *compared.differences]))) // 2)
    settings = [[name, *_shorten(*map(_text, pair), width=width)] for name, pair in compared.differences.items()]
    tables = [
        [f"A  {compared.a.path}", f"B  {compared.b.path}", ""],
        [f"mean {' and '.join(dict.fromkeys(shorten(row['metric']) for row in best))}, %"],
        [*table_lines([["epoch", "A", "B"], *by_epoch]), ""],
        [*table_lines([["", "A", "B"], *zip(*columns, strict=True)]), ""],
        table_lines([["setting", "A", "B"], *settings], left=(0, 1, 2)) if settings else ["no setting differs"],
    ]
    return "\n".join(line for table in tables for line in table)


def class_columns(classes: Sequence[str]) -> Sequence[str]:
    """Select the classes, where a table has room for a column of each."""
    return classes if len(classes) <= MAX_CLASS_COLUMNS else ()


def table_lines(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Format rows as lines, the columns in `left` flush left, others right; a cell is cut at 200 characters."""
    rows = [[shorten(cell, most=200) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def _when(seconds: float) -> str:
    """Format a time; a question mark where the calendar has no such year."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "?"


def _class_aps(row: Row, classes: Sequence[str]) -> list[str]:
    """Format the AP of classes; a dash where there is none."""
    return ["-" if (ap := row["ap_by_class"].get(name)) is None else f"{ap:.1f}" for name in classes]


def _text(value: Any) -> str:
    """Format a setting as one would type it."""
    if isinstance(value, list):
        return ", ".join("=".join(map(_text, one)) if isinstance(one, list) else _text(one) for one in value) or "-"
    return "-" if value in (None, "") else f"{value:.6g}" if isinstance(value, float) else str(value)


def _shorten(a: str, b: str, *, width: int) -> list[str]:
    """Shorten two different texts to a width such that where they part is still seen."""
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, common - width // 3) if max(len(a), len(b)) > width else 0
    texts = [f"…{text[start + 1 :]}" if start else text for text in (a, b)]
    return [text if len(text) <= width else f"{text[: width - 1]}…" for text in texts]

"""What the terminal shows: results as text."""

from collections.abc import Iterable
from typing import Any

from tinydet.evaluate import Scores
from tinydet.train import Started

LEVELS = ("easy", "moderate", "hard")


def ap_table(scores: Scores) -> str:
    """AP in percent of every class, and a note wherever so few objects were asked for that they cap it."""
    rows = [["AP %", "R40 easy", "moderate", "hard", "R11 easy", "moderate", "hard"]]
    for name in scores["R40"]:
        numbers = [scores[kind][name][level] for kind in ("R40", "R11") for level in LEVELS]
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    notes = [
        f"{name} {level}: {int(count)} objects; with fewer than 41 R40 cannot exceed {max(0, count - 1) / 0.4:.1f}"
        for name, counts in scores["n_gt"].items()
        for level, count in counts.items()
        if count < 41
    ]
    return "\n".join([*_aligned(rows), *notes])


def run_header(started: Started, *, device: str) -> str:
    """What a run came to, before its first step."""
    config, settings = started.config, started.settings
    height, width = config.image_size
    reached = ", ".join(f"{name} {share:.0%}" for name, share in started.coverage.items())
    lines = {
        "model": f"{config.name}, {len(config.classes)} classes, random weights",
        "input": f"{height}x{width}, anchor scale {config.anchor_scale:g}",
        "anchors": f"reach at IoU .5: {reached} of the training objects",
        "data": started.splits[0],
        "": started.splits[1],
        "batch": f"{settings.batch_size}, {started.steps} steps an epoch",
        "learning": f"{settings.optimizer}, peak lr {settings.peak_lr:g}, {settings.schedule}, "
        f"weight decay {settings.decay:g}, seed {settings.seed}",
        "device": f"{device}, float32",
        "run": str(started.out) + (f", going on after epoch {started.epoch}" if started.epoch else ""),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def epoch_head(classes: Iterable[str]) -> str:
    """The head of the table that `epoch_row` fills."""
    return _epoch_line(["epoch", "lr", "train loss", "val loss", *classes, "mean", "time"])


def epoch_row(row: dict[str, Any], *, best: bool) -> str:
    """One epoch: losses, Moderate R40 of every class and their mean, seconds; a star marks the best so far."""
    cells = [str(row["epoch"]), f"{row['lr']:.2g}", f"{row['train']['total']:.3f}", f"{row['val']['total']:.3f}"]
    cells += [f"{levels['moderate']:.1f}" for levels in row["R40"].values()]
    cells += [f"{row['mean_moderate']:.1f}", f"{row['train_seconds'] + row['val_seconds']:.0f} s"]
    return _epoch_line(cells) + (" *" if best else "")


def _epoch_line(cells: list[str]) -> str:
    return f"{cells[0]:>5} " + " ".join(f"{cell:>10}" for cell in cells[1:])


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]

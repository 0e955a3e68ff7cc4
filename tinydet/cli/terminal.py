"""What the terminal shows: results as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tinydet.check import Check, counts, reaches, sizes
from tinydet.runs import MOST_CLASSES, aligned
from tinydet.score import Scores, coco_rows, percent
from tinydet.training.events import Started
from tinydet.training.settings import TrainSettings, fit_crop
from tinydet.weights.load import Report

LEVELS = ("easy", "moderate", "hard")


def ap_table(scores: Scores) -> str:
    """KITTI's AP, where there is any, and COCO's."""
    return "\n\n".join([*([kitti_table(scores)] if "R40" in scores else []), coco_table(scores)])


def coco_table(scores: Scores) -> str:
    """COCO's twelve numbers and the AP of every class, in percent; a dash where there is nothing to be found."""
    by_class = aligned([[f"{name} AP", percent(one)] for name, one in scores["per_class_AP"].items()])
    return "\n".join([*aligned(coco_rows(scores)), *by_class])


def kitti_table(scores: Scores) -> str:
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
    return "\n".join([*aligned(rows), *notes])


def check_lines(found: Check) -> str:
    """What a data set holds, and what is wrong with it."""
    best = found.best
    advice = f"--size {'x'.join(map(str, best.image_size))} --anchor-scale {best.anchor_scale:g}, or --size auto"
    lines = [found.data, *(part.dataset.split_note for part in found.parts.values())]
    for rows in (counts(found), sizes(found), reaches(found)):
        lines += ["", *aligned(rows)]
    lines += ["", f"best: {advice}"]
    errors = sum(problem.level == "error" for problem in found.problems)
    lines += [f"{errors} errors, {len(found.problems) - errors} warnings"]
    return "\n".join([*lines, *(f"{problem.level}: {problem.text}" for problem in found.problems)])


def info_lines(known: Mapping[str, Any]) -> str:
    """What a file of weights is."""
    height, width = known["image_size"]
    lines = {
        "file": f"{known['file']}, {known['bytes'] / 1e6:.1f} MB",
        "weights": known["source"],
        "model": f"{known['model']}, {known['parameters']:,} parameters",
        "input": f"{height}x{width}, anchor scale {known['anchor_scale']:g}",
        "classes": f"{len(known['classes'])}: {', '.join(known['classes'])}",
        "trained": f"on {known['data']}, from {known['began_from']}" if "data" in known else "",
    }
    if "ap" in known:
        by_class = ", ".join(f"{name} {ap:.1f}" for name, ap in known["ap_by_class"].items())
        lines["score"] = f"{known['metric']} {known['ap']:.1f} after epoch {known['epoch']}: {by_class}"
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def run_header(started: Started) -> str:
    """What a run came to, before its first step."""
    run, done = started.run, started.history[-1]["epoch"] if started.history else 0
    config, settings = run.config, run.settings
    reached = ", ".join(f"{name} {share:.0%}" for name, share in started.coverage.items() if share == share)
    crop = fit_crop(settings, config)
    parts = {
        "seen in parts of " + "x".join(map(str, crop)): crop != config.image_size,
        f"anchor scale {config.anchor_scale:g}": True,
    }
    learning = {
        str(settings.optimizer): True,
        f"peak lr {settings.peak_lr:.3g}": True,
        settings.schedule: True,
        f"weight decay {settings.decay:g}": True,
        "no averaged weights": not settings.ema_decay,
        f"{settings.freeze} frozen": settings.freeze != "none",
        f"seed {settings.seed}": True,
    }
    length = f"{settings.epochs} epochs" if settings.minutes is None else f"{settings.minutes:g} minutes"
    lines = {
        "model": f"{config.name}, {len(config.classes)} classes" + (f", weights of epoch {done}" if done else ""),
        "start": weights_summary(run.report) if run.report else run.weights,
        "input": "x".join(map(str, config.image_size)) + "".join(f", {text}" for text, told in parts.items() if told),
        "anchors": f"reach at IoU .5: {reached} of the training objects",
        "data": f"{run.train_set.kind}: {run.train_set.split_note}",
        "": run.val_set.split_note,
        "objects": ", ".join(f"{count} {name}" for name, count in run.train_set.counts.items()) + " to train on",
        "pictures": _changes(settings),
        "batch": f"{_batch(settings)}, {run.plan.steps} steps an epoch",
        "learning": ", ".join(text for text, told in learning.items() if told),
        "device": f"{run.device}, {_PRECISE[run.precision]}",
        "run": f"{started.out}, {length}" + (f", of which {done} are done" if done else ""),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


_PRECISE = {"off": "float32", "bf16": "bfloat16 where it is safe", "fp16": "float16 where it is safe"}


def _changes(settings: TrainSettings) -> str:
    """What becomes of a training picture before the network sees it."""
    if settings.overfit or settings.scale_range is None:
        return "always the same"
    smallest, largest = settings.scale_range
    pasted = f", objects of others pasted into {settings.paste:.0%}" if settings.paste else ""
    return f"{smallest:g} to {largest:g} times as large, mirrored, recoloured{pasted}"


def _batch(settings: TrainSettings) -> str:
    times = settings.grad_accumulation
    return f"{settings.batch_size}" + (f" x {times} = {settings.step_size}" if times > 1 else "")


def counted(found: Mapping[str, int]) -> str:
    """How many objects were found of each class, those apart that there were none of."""
    return ", ".join(f"{count} {name}" for name, count in found.items() if count) or "nothing"


def weights_summary(report: Report) -> str:
    """What became of the tensors of a file of weights, how many of the model are new, and which classes it knew."""
    if not report.taken:
        return report.source
    taken, replaced, left_out = len(report.taken), len(report.replaced), len(report.left_out)
    kept = ", ".join(f"{new} from {old}" if new != old else new for new, old in report.classes.items())
    counts = f"{taken} taken, {replaced} replaced, {left_out} left out; {len(report.new)} new"
    rows = f"; class rows kept: {kept or 'none'}" if replaced else ""
    return f"{report.source}, {taken + replaced + left_out} tensors: {counts}{rows}"


def weights_lines(report: Report) -> Iterator[str]:
    """What became of every tensor, a line each."""
    for kind, names in (("taken", report.taken), ("replaced", report.replaced)):
        yield from (f"{kind:<9} {ours} <- {theirs}" for ours, theirs in names.items())
    yield from (f"new       {name}" for name in report.new)
    yield from (f"left out  {name}" for name in report.left_out)


def epoch_head(classes: Sequence[str]) -> str:
    """The head of the table that `epoch_row` fills."""
    shown = _few(classes)
    return _epoch_line(["epoch", "lr", "train loss", "val loss", *shown, "mean", "time"], shown)


def epoch_row(row: dict[str, Any], classes: Sequence[str], *, best: bool) -> str:
    """One epoch: losses, AP of every class and their mean, seconds; a star marks the best so far."""
    shown = _few(classes)
    cells = [str(row["epoch"]), f"{row['lr']:.2g}", f"{row['train']['total']:.3f}", f"{row['val']['total']:.3f}"]
    cells += [f"{row['ap_by_class'][name]:.1f}" if name in row["ap_by_class"] else "-" for name in shown]
    cells += [f"{row['ap']:.1f}", f"{row['train_seconds'] + row['val_seconds']:.0f} s"]
    return _epoch_line(cells, shown) + (" *" if best else "")


def _few(classes: Sequence[str]) -> Sequence[str]:
    """The classes, where there is room for a column of each."""
    return classes if len(classes) <= MOST_CLASSES else ()


def _epoch_line(cells: list[str], classes: Iterable[str]) -> str:
    """Cells of an epoch as a line; columns are wide enough for the names of their classes."""
    widths = [5, 10, 10, 10, *(max(10, len(name)) for name in classes), 10, 10]
    return " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

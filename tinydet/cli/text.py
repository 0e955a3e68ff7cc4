"""Results as text for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydet.check import Check, check_tables
from tinydet.data.loader import resolve_augmentation
from tinydet.metrics.coco import STATS
from tinydet.metrics.kitti import DIFFICULTIES
from tinydet.runs import class_columns, table_lines
from tinydet.training.events import Started
from tinydet.training.replay import Replay
from tinydet.training.settings import EARLY
from tinydet.weights.load import LoadReport

MODEL_CARD = """---
library_name: tinydet
pipeline_tag: object-detection
---

# EfficientDet {model}

Detects {classes}.

| | |
|---|---|
{facts}

```python
import tinydet as td

detector = td.load("{file}")
detector("img.png").draw().save("found.png")
```
"""
PRECISE = {"off": "float32", "bf16": "bfloat16 where it is safe", "fp16": "float16 where it is safe"}


def ap_table(scores: Mapping[str, Any]) -> str:
    """Format scores by name as KITTI's and COCO's tables."""
    kitti = [kitti_table(scores["KITTI"])] if "KITTI" in scores else []
    return "\n\n".join([*kitti, coco_table(scores["COCO"])])


def coco_table(scores: Mapping[str, Any]) -> str:
    """Format COCO's twelve numbers and the AP of every class, in percent."""
    rows = []
    for kind, names in (("AP", STATS[:6]), ("AR", STATS[6:])):
        rows += [[f"COCO {kind} %", *(name.removeprefix(kind).strip() or "mean" for name in names)]]
        rows += [["all classes", *(percent(scores[name]) for name in names)]]
    by_class = table_lines([[f"{name} AP", percent(ap)] for name, ap in scores["per_class"].items()])
    return "\n".join([*table_lines(rows), *by_class])


def percent(value: float | None) -> str:
    """Format a percentage; a dash where it is undefined."""
    return "-" if value is None else f"{value:.2f}"


def kitti_table(scores: Mapping[str, Any]) -> str:
    """Format KITTI AP in percent, with a note wherever so few objects were asked for that they cap it."""
    rows = [["AP %", "R40 easy", "moderate", "hard", "R11 easy", "moderate", "hard"]]
    columns = [(kind, level) for kind in ("R40", "R11") for level in DIFFICULTIES]
    rows += [[name, *(percent(scores[kind][name][level]) for kind, level in columns)] for name in scores["R40"]]
    notes = [
        f"{name} {level}: {int(count)} objects; with fewer than 41 R40 cannot exceed {max(0, count - 1) / 0.4:.1f}"
        for name, levels in scores["n_gt"].items()
        for level, count in levels.items()
        if count < 41
    ]
    return "\n".join([*table_lines(rows), *notes])


def check_lines(found: Check) -> str:
    """Format what a data set holds, and what is wrong with it."""
    size, scale = "x".join(map(str, found.best.image_size)), found.best.anchor_scale
    lines = [found.data, *(split.dataset.split_note for split in found.splits.values())]
    for rows in check_tables(found).values():
        lines += ["", *table_lines(rows)]
    lines += ["", f"best: --size {size} --anchor-scale {scale:g}, or --size auto"]
    errors = sum(problem.level == "error" for problem in found.problems)
    lines += [f"{errors} errors, {len(found.problems) - errors} warnings"]
    return "\n".join([*lines, *(f"{problem.level}: {problem.text}" for problem in found.problems)])


def info_lines(known: Mapping[str, Any]) -> str:
    """Format the description of a file of weights."""
    height, width = known["image_size"]
    lines = {
        "file": f"{known['file']}, {known['bytes'] / 1e6:.1f} MB",
        "weights": known["source"],
        "model": known["model"] + (f", {known['parameters']:,} parameters" if "parameters" in known else ""),
        "input": f"{height}x{width}, anchor scale {known['anchor_scale']:g}",
        "classes": f"{len(known['classes'])}: {', '.join(known['classes'])}",
        "exported": ", ".join(f"{name} {value}" for name, value in known.get("suppression", {}).items()),
        "trained": f"on {known['data']}, from {known['began_from']}" if "data" in known else "",
    }
    if "ap" in known:
        by_class = ", ".join(f"{name} {ap:.1f}" for name, ap in known["ap_by_class"].items())
        lines["score"] = f"{known['metric']} {known['ap']:.1f} after epoch {known['epoch']}: {by_class}"
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def bench_table(rows: Sequence[Any]) -> str:
    """Format rows of `tinydet.bench`, and under the table why there are no figures of some."""
    head = ["engine", "threads", "load s", "latency ms", "90%", "prepare", "network", "postprocess", "batch"]
    table = [[*head, "images/s"]]
    for row in rows:
        figures = (row.load, row.latency, row.latency_90, row.prepare, row.network, row.postprocess)
        cells = ["-" if value is None else f"{value:.1f}" for value in (*figures, row.images_per_second)]
        table += [[row.engine, str(row.threads), *cells[:-1], str(row.batch or "-"), cells[-1]]]
    return "\n".join(
        [*table_lines(table), *(f"{row.engine}, threads {row.threads}: {row.note}" for row in rows if row.note)]
    )


def model_card(known: Mapping[str, Any], *, file: str) -> str:
    """Format the description of a file of weights as a model card: Markdown, with the head that model hubs read."""
    facts = {"input": "x".join(map(str, known["image_size"])), "parameters": f"{known['parameters']:,}"}
    facts |= {"trained on": Path(known["data"]).name, "from": known["began_from"]} if known.get("data") else {}
    if "ap" in known:
        facts[known["metric"]] = f"{known['ap']:.1f} %, after epoch {known['epoch']}"
        facts |= {f"{known['metric']}, {name}": f"{ap:.1f} %" for name, ap in known["ap_by_class"].items()}
    rows = [f"| {name} | {text} |" for name, text in facts.items()]
    return MODEL_CARD.format(
        model=known["model"], classes=", ".join(known["classes"]), facts="\n".join(rows), file=file
    )


def run_header(started: Started) -> str:
    """Format a run's model, data and settings, before its first step."""
    run, done = started.run, started.history[-1]["epoch"] if started.history else 0
    config, settings = run.config, run.settings
    recall = ", ".join(f"{name} {share:.0%}" for name, share in started.recall.items() if share == share)
    size = ["x".join(map(str, config.image_size))]
    size += ["trained on crops of " + "x".join(map(str, run.crop))] if run.crop != config.image_size else []
    batch = f"{settings.batch_size}"
    batch += f" x {settings.grad_accumulation}" if settings.grad_accumulation > 1 else ""
    batch += f" x {settings.processes} processes" if settings.processes > 1 else ""
    batch += f" = {settings.step_size}" if settings.step_size != settings.batch_size else ""
    peak = f"peak lr {settings.peak_lr:.3g}" + ("" if settings.lr else f" for {settings.step_size} images a step")
    learning = [str(settings.optimizer), peak, settings.schedule]
    learning += [f"weight decay {settings.decay:g}", *([] if settings.ema_decay else ["no averaged weights"])]
    what = "early stages" if settings.freeze in EARLY else settings.freeze
    learning += [f"{what} frozen"] if run.frozen else []
    length = f"{settings.epochs} epochs" if settings.minutes is None else f"{settings.minutes:g} minutes"
    lines = {
        "model": f"{config.name}, {len(config.classes)} classes" + (f", weights of epoch {done}" if done else ""),
        "start": weights_summary(run.report) if run.report else run.weights,
        "input": ", ".join([*size, f"anchors of P3 to P{config.levels[-1]} at scale {config.anchor_scale:g}"]),
        "anchors": f"recall at IoU .5: {recall} of the training objects",
        "data": f"{run.train_set.kind}: {run.train_set.split_note}",
        "": run.val_set.split_note,
        "objects": ", ".join(f"{count} {name}" for name, count in run.train_set.counts.items()) + " to train on",
        "images": augmentation(run),
        "batch": f"{batch}, {run.budget.epoch_steps} steps an epoch"
        + (", batch norms see all of it" if run.sync_bn else ""),
        "learning": ", ".join([*learning, f"seed {settings.seed}"]),
        "device": f"{run.device}, {PRECISE[run.precision]}"
        + (f", {run.world.size} processes" if run.world.size > 1 else ""),
        "run": f"{started.out}, {length}" + (f", of which {done} are done" if done else ""),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def augmentation(run: Any) -> str:
    """Format the augmentation of a run's training images."""
    settings = run.settings
    if settings.overfit:
        return "not augmented"
    given = {"scale_range": settings.scale_range, "copy_paste": settings.copy_paste}
    (low, high), pasted = resolve_augmentation(run.config.image_size, run.crop, **given)
    changes = "flips, colour jitter"
    if settings.augment:
        one = settings.augment["transform"]
        changes = ", ".join(part["__class_fullname__"].rpartition(".")[2] for part in one.get("transforms", [one]))
    return f"scale jitter {low:g} to {high:g}, {changes}" + (f", copy-paste into {pasted:.0%}" if pasted else "")


def counted(found: Mapping[str, int]) -> str:
    """Format the number of objects of each class that has any."""
    return ", ".join(f"{count} {name}" for name, count in found.items() if count) or "no objects"


def weights_summary(report: LoadReport) -> str:
    """Format how many tensors of a file of weights were loaded, and which classes it knew."""
    if not report.loaded:
        return report.source
    counts = [len(report.loaded), len(report.partially_loaded), len(report.missing), len(report.unexpected)]
    loaded, partial, missing, unexpected = counts
    text = f"{report.source}: {loaded} tensors loaded, {partial} partially, {missing} missing, {unexpected} unexpected"
    if not report.partially_loaded:
        return text
    kept = (f"{new} from {old}" if new != old else new for new, old in report.classes.items())
    return f"{text}; class rows kept: {', '.join(kept) or 'none'}"


def weights_lines(report: LoadReport) -> Iterator[str]:
    """Format the names of the tensors that were not wholly loaded, a line each."""
    for kind in ("partially_loaded", "missing", "unexpected"):
        yield from (f"{kind.replace('_', ' '):<16} {name}" for name in getattr(report, kind))


def epoch_head(classes: Sequence[str]) -> str:
    """Format the head of the table that `epoch_row` fills."""
    columns = class_columns(classes)
    return epoch_line(["epoch", "lr", "train loss", "val loss", *columns, "mean", "time"], columns)


def epoch_row(row: Mapping[str, Any], classes: Sequence[str], *, best: bool) -> str:
    """Format an epoch: losses, AP of every class and the primary metric, seconds; a star marks the best so far."""
    columns = class_columns(classes)
    cells = [str(row["epoch"]), f"{row['lr']:.2g}", f"{row['train']['total']:.3f}", f"{row['val']['total']:.3f}"]
    cells += [f"{row['ap_by_class'][name]:.1f}" if name in row["ap_by_class"] else "-" for name in columns]
    cells += [f"{row['ap']:.1f}", f"{row['train_seconds'] + row['val_seconds']:.0f} s"]
    return epoch_line(cells, columns) + (" *" if best else "")


def epoch_line(cells: list[str], classes: Iterable[str]) -> str:
    """Align the cells of an epoch; columns are wide enough for the names of their classes."""
    widths = [5, 10, 10, 10, *(max(10, len(name)) for name in classes), 10, 10]
    return " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def replay_lines(found: Replay) -> str:
    """Format a step that was run again: its images, the terms of its loss, and the layer where it fails."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in found.terms.items())
    where = f"first not finite: {found.layer}" if found.layer else "all is finite on this device"
    return f"step {found.step} on {', '.join(found.images)}, learning rate {found.lr:.3g}\n{terms}\n{where}"

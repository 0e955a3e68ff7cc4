"""Report how good a detector is and where it errs, as one HTML page."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from PIL.Image import Resampling

from tinydet.data.dataset import DetectionDataset
from tinydet.draw import JPEG, draw
from tinydet.evaluation import Scores, pr_curves
from tinydet.html import data_uri, render
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.metrics.coco import STATS
from tinydet.metrics.kitti import DIFFICULTIES
from tinydet.model.postprocess import Detections
from tinydet.tide import ERROR_TYPES, Outcome, detection_errors

SCORE_THRESHOLD = 0.3  # of the detections in the confusion matrix and among the errors
MAX_ERRORS = 12  # images of each type
CONTEXT = 3.0  # how much of the image is shown, in sizes of the box
MIN_CROP = 160  # height, in pixels of the image
TILE = (400, 300)  # width and height of a crop on the page, in pixels


def report_page(dataset: DetectionDataset, detections: Sequence[Detections], scores: Scores, *, source: str) -> str:
    """Make a page, which needs no other file, of scores, curves, confusion matrix and worst errors."""
    confident = [Detections(*(field[found.scores >= SCORE_THRESHOLD] for field in found)) for found in detections]
    errors, confusion = detection_errors(dataset, confident)
    curves = []
    if find_spec("matplotlib"):
        from tinydet.plots import precision_recall

        for name, lines in pr_curves(dataset, detections).items():
            curves.append((data_uri(precision_recall({name: lines}).savefig, "image/svg+xml", format="svg"), name))
    sections = []
    for kind, meaning in ERROR_TYPES.items():
        worst = [error for error in errors if error.kind == kind]
        images = [_error_image(error, dataset, confident[error.row]) for error in worst[:MAX_ERRORS]]
        sections.append((kind, meaning, len(worst), images))
    rows = zip([*dataset.classes, "background"], confusion.tolist(), strict=True)
    return render(
        "report.html",
        source=f"{source}, on {dataset.kind} data: {dataset.split_note}",
        scores=scores,
        tables=score_tables(scores),
        curves=curves,
        score_threshold=SCORE_THRESHOLD,
        confusion=[["", *dataset.classes, "missed"], *([name, *counts] for name, counts in rows)],
        errors=sections,
    )


def score_tables(scores: Scores) -> list[list[Sequence[Any]]]:
    """Arrange scores, in percent, as tables that begin with their heads; None where undefined."""
    coco, kitti = scores["COCO"], scores.get("KITTI", {"R40": {}})
    columns = [(kind, level) for kind in ("R40", "R11") for level in DIFFICULTIES]
    rows = [[name, *(kitti[kind][name][level] for kind, level in columns)] for name in kitti["R40"]]
    tables: list[list[Sequence[Any]]] = [[["KITTI %", *map(" ".join, columns)], *rows]] if rows else []
    tables += [[["COCO %", *names], ["all classes", *map(coco.get, names)]] for names in (STATS[:6], STATS[6:])]
    return [*tables, [["COCO %", "AP"], *coco["per_class"].items()]]


def _error_image(error: Outcome, dataset: DetectionDataset, found: Detections) -> tuple[str, str]:
    """Draw an error in the middle of a crop of its image -> (data URI, caption)."""
    example, (x1, y1, x2, y2), aspect = dataset[error.row], error.box.tolist(), TILE[0] / TILE[1]
    truth = example.boxes[example.labels != IGNORE]
    drawn = draw(example.image, found.boxes, found.labels, found.scores, classes=dataset.classes, truth=truth)
    wanted = max(MIN_CROP, CONTEXT * (y2 - y1), CONTEXT * (x2 - x1) / aspect)
    height = min(wanted, drawn.height, drawn.width / aspect)
    width = height * aspect
    left = min(max(0, (x1 + x2 - width) / 2), drawn.width - width)
    top = min(max(0, (y1 + y2 - height) / 2), drawn.height - height)
    tile = drawn.resize(TILE, Resampling.BILINEAR, box=(left, top, left + width, top + height))
    caption = " for ".join(dataset.classes[i] for i in (error.label, error.true_label) if i != BACKGROUND)
    score = "" if error.kind == "missed" else f" {error.weight:.2f}"
    return data_uri(tile.save, "image/jpeg", **JPEG), f"{example.name}: {caption}{score}"

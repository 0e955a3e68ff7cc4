"""Report: one page about how good a detector is, and where it errs."""

from collections.abc import Iterator, Sequence

import numpy as np

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import read_image, resample
from tinydet.draw import paint
from tinydet.labels import IGNORE
from tinydet.mistakes import KINDS, Mistake, mistakes
from tinydet.model.detect import Detections
from tinydet.page import curves, gallery, page, paragraph, section, table
from tinydet.score import Scores, coco_rows, headline, percent, pr_curves

SHOWN = 12  # pictures of each kind of mistake
VIEW = 3.0  # how much of the picture is shown, in sizes of the box
LEAST = 160  # pixels of the picture, of what is shown
TILE = (300, 400)  # height and width of a picture of a mistake, in pixels
ADVICE = {
    "missed": "Objects that nothing was found on, the largest first; the truth is dashed.",
    "false": "Detections of nothing, the surest first: are labels missing?",
    "confused": "Detections of one class on an object of another, the surest first.",
    "badly placed": "Detections that overlap an object of their class by less than half, the surest first.",
}


def report_page(
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    scores: Scores,
    *,
    source: str,
    score_threshold: float = 0.3,
) -> str:
    """A page of HTML with scores, curves, what was taken for what, and the worst mistakes; it needs no other file.

    Args:
        dataset: what was looked at.
        detections: of each picture, in original pixels.
        scores: theirs, from `tinydet.score.score_detections`.
        source: what detector this is, for people.
        score_threshold: of the detections that mistakes are looked for in.
    """
    number = headline(scores)
    found, confusion = mistakes(dataset, detections, score_threshold=score_threshold)
    parts = [
        paragraph(f"{source}, on {dataset.kind} data: {dataset.split_note}"),
        paragraph(f"{number.metric}: {number.ap:.1f} %"),
        section("Scores", *score_tables(scores)),
        section("Precision over recall", *(curves(name, lines) for name, lines in _lines(dataset, detections).items())),
        section(
            "What was taken for what",
            paragraph(f"Rows are the truth, columns what was found with a score of {score_threshold:g} or more."),
            table(_confusion(confusion, dataset.classes)),
        ),
    ]
    for kind in KINDS:
        worst = [one for one in found if one.kind == kind]
        shown = gallery(_views(worst[:SHOWN], dataset, detections, score_threshold))
        parts.append(section(f"{kind.capitalize()}: {len(worst)}", paragraph(ADVICE[kind]), shown))
    return page("Detector report", parts)


def score_tables(scores: Scores) -> list[str]:
    """KITTI's and COCO's numbers as tables."""
    tables = []
    if "R40" in scores:
        columns = [(kind, level) for kind in ("R40", "R11") for level in ("easy", "moderate", "hard")]
        head = ["KITTI AP %", *(f"{kind} {level}" for kind, level in columns)]
        rows = [[name, *(f"{scores[kind][name][level]:.2f}" for kind, level in columns)] for name in scores["R40"]]
        tables.append(table([head, *rows]))
    rows = coco_rows(scores)
    tables += [table(rows[:2]), table(rows[2:])]
    tables.append(table([["COCO AP %", ""], *([name, percent(ap)] for name, ap in scores["per_class_AP"].items())]))
    return tables


def _lines(dataset: DetectionDataset, detections: Sequence[Detections]) -> dict[str, dict[str, np.ndarray]]:
    """Precision in percent over evenly spaced recalls: by class, by what its AP says."""
    return {
        name: {f"{key}: AP {one.ap:.1f}, {one.n_gt} objects": 100 * one.precision for key, one in lines.items()}
        for name, lines in pr_curves(dataset, detections).items()
    }


def _confusion(confusion: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """The table of what was taken for what, its head first."""
    rows = [["", *classes, "nothing"]]
    names = [*classes, "nothing"]
    return [*rows, *([name, *map(str, counts)] for name, counts in zip(names, confusion.tolist(), strict=True))]


def _views(
    found: Sequence[Mistake], dataset: DetectionDataset, detections: Sequence[Detections], score_threshold: float
) -> Iterator[tuple[np.ndarray, str]]:
    """Each mistake in the middle of some of its picture, with what was found there and, dashed, the truth."""
    for one in found:
        shown = detections[one.row]
        sure = shown.scores >= score_threshold
        image = paint(
            read_image(dataset.paths[one.row]),
            *(shown.boxes[sure], shown.labels[sure], shown.scores[sure]),
            classes=dataset.classes,
            truth=dataset.boxes[one.row][dataset.labels[one.row] != IGNORE],
        )
        what = dataset.classes[one.label]
        if one.truth is not None:
            what += f" for {dataset.classes[one.truth]}"
        score = f" {one.weight:.2f}" if one.kind != "missed" else ""
        yield _around(np.array(image), one.box.numpy()), f"{dataset.names[one.row]}: {what}{score}"


def _around(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of a picture around a box, of the shape of a tile. -> uint8[H W 3]"""
    height, width = image.shape[:2]
    shape = TILE[0] / TILE[1]
    wanted = max(LEAST, VIEW * (box[3] - box[1]), VIEW * (box[2] - box[0]) * shape)
    tall = min(wanted, height, width * shape)
    wide = tall / shape
    left = float(np.clip((box[0] + box[2] - wide) / 2, 0, width - wide))
    top = float(np.clip((box[1] + box[3] - tall) / 2, 0, height - tall))
    return resample(image, (left, top, left + wide, top + tall), scale=TILE[0] / tall)

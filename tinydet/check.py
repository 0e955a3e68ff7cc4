"""Check: what a data set holds, how well a model can reach it, and what is wrong with it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import read_image, resample
from tinydet.data.opened import open_dataset
from tinydet.data.suspicious import doubles, tiny, twins
from tinydet.draw import draw
from tinydet.errors import InputError, attempt
from tinydet.labels import IGNORE
from tinydet.model.config import ModelConfig
from tinydet.page import gallery, items, page, paragraph, section, table
from tinydet.training.fit import SIZES, Reach, alternatives, best_input, reach

MOST_CLASSES = 6  # that have columns of their own
THREADS = 4  # that read pictures
COUNT, WIDTH = 12, 900  # of the pictures of a split that the page shows; their width, in pixels


class Problem(NamedTuple):
    """Something that is wrong with a data set."""

    level: str
    """"error": training would stop at it, or lose it; "warning": it may be meant."""
    text: str


class Part(NamedTuple):
    """What a split holds."""

    dataset: DetectionDataset
    ignored: int
    """Regions that are left alone."""
    empty: int
    """Pictures without objects."""
    sides: dict[str, tuple[float, float, float]]
    """Of the objects of each class, the 10th, 50th and 90th percentile of the root of their area, in input pixels."""


class Check(NamedTuple):
    """What a data set holds, and what is wrong with it."""

    data: str
    parts: dict[str, Part]
    """By split, train and val."""
    now: Reach
    """Of the training objects, by the input and the anchors that training would have."""
    others: list[Reach]
    """By other inputs, each with the anchor scale that reaches most."""
    best: Reach
    """The one of these to take."""
    problems: list[Problem]


def check(
    data: str | PathLike[str],
    *,
    val: str | PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    fit: Callable[[DetectionDataset], ModelConfig],
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Check:
    """Read all of a data set, its pictures too, and go on over what is wrong.

    Args:
        data, classes, seed: as for `open_dataset`.
        val: data to validate on, all of them; a split of `data` when None.
        fit: gives the model's config for a data set.
        progress: called with the number of pictures read, and of all.

    Raises:
        InputError: there is nothing to go on with: no data set, or a class that does not occur.
    """
    problems: list[Problem] = []

    def note(error: InputError) -> None:
        if (problem := Problem("error", str(error))) not in problems:
            problems.append(problem)

    train_set = open_dataset(data, "train" if val is None else "all", classes=classes, seed=seed, report=note)
    config = fit(train_set)
    sets = {"train": train_set}
    others = {"classes": train_set.classes, "seed": seed, "report": note}
    val_set = attempt(note, open_dataset, val or data, "val" if val is None else "all", **others)
    if val_set is not None:
        sets["val"] = val_set
    paths = [path for one in sets.values() for path in one.paths]
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow decodes without Python's lock
        for done, _ in enumerate(pool.map(partial(attempt, note, _decoded), paths), start=1):
            if progress:
                progress(done, len(paths))
    found = alternatives(train_set, config)
    warnings = [text for one in sets.values() for text in (*one.notes, *doubles(one), *tiny(one, config.image_size))]
    warnings += twins(sets["train"], sets["val"]) if "val" in sets else []
    return Check(
        data=f"{train_set.kind}: {data}",
        parts={name: _part(dataset, config) for name, dataset in sets.items()},
        now=reach(train_set, config),
        others=found,
        best=best_input(found),
        problems=[*problems, *(Problem("warning", text) for text in warnings)],
    )


def _decoded(path: Path) -> None:
    """Read a picture to its end, or raise InputError."""
    read_image(path)


def _part(dataset: DetectionDataset, config: ModelConfig) -> Part:
    """What a split holds."""
    labels = np.concatenate(dataset.labels)
    boxes = dataset.boxes_in(config.image_size)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1) ** 0.5
    spread = {}
    for i, name in enumerate(dataset.classes):
        if (labels == i).any():
            low, middle, high = np.percentile(sides[labels == i], (10, 50, 90)).tolist()
            spread[name] = (low, middle, high)
    return Part(
        dataset=dataset,
        ignored=int((labels == IGNORE).sum()),
        empty=sum(not (one != IGNORE).any() for one in dataset.labels),
        sides=spread,
    )


def as_json(found: Check) -> dict[str, Any]:
    """A check as plain values."""

    def plain(one: Reach) -> dict[str, Any]:
        shares = {name: share if share == share else None for name, share in one.by_class.items()}
        sizes = {name: share if share == share else None for name, share in one.by_size.items()}
        return {**one._asdict(), "image_size": list(one.image_size), "by_class": shares, "by_size": sizes}

    return {
        "data": found.data,
        "splits": {
            name: {
                "note": part.dataset.split_note,
                "pictures": len(part.dataset),
                "without_objects": part.empty,
                "ignore_regions": part.ignored,
                "objects": part.dataset.counts,
                "sides": part.sides,
            }
            for name, part in found.parts.items()
        },
        "reach": plain(found.now),
        "alternatives": [plain(one) for one in found.others],
        "best": plain(found.best),
        "errors": [problem.text for problem in found.problems if problem.level == "error"],
        "warnings": [problem.text for problem in found.problems if problem.level == "warning"],
    }


def counts(found: Check) -> list[list[str]]:
    """The table of what the splits hold, its head first."""
    held = [part.dataset.counts for part in found.parts.values()]
    rows = [["", *found.parts]]
    rows += [["pictures", *(str(len(part.dataset)) for part in found.parts.values())]]
    rows += [[name, *(str(one[name]) for one in held)] for name in held[0]]
    rows += [["ignore regions", *(str(part.ignored) for part in found.parts.values())]]
    return [*rows, ["pictures without objects", *(str(part.empty) for part in found.parts.values())]]


def sizes(found: Check) -> list[list[str]]:
    """The table of how large the training objects are in the input, its head first."""
    height, width = found.now.image_size
    head = [f"side in an input of {height}x{width}, pixels", "10%", "median", "90%", "reached by anchors"]
    rows = [
        [name, *(f"{side:.0f}" for side in sides), f"{found.now.by_class[name]:.0%}"]
        for name, sides in found.parts["train"].sides.items()
    ]
    return [head, *rows]


def reaches(found: Check) -> list[list[str]]:
    """The table of inputs and anchors, what training would have first, and which to take."""
    classes = [name for name, share in found.now.by_class.items() if share == share]
    classes = classes if len(classes) <= MOST_CLASSES else []
    rows = [["input", "anchor scale", "mean", *classes, *SIZES, ""]]
    for one, mark in [(found.now, "now"), *((one, "best" if one == found.best else "") for one in found.others)]:
        shares = [one.mean, *(one.by_class[name] for name in classes), *one.by_size.values()]
        shown_shares = [f"{share:.0%}" if share == share else "-" for share in shares]
        rows.append(["x".join(map(str, one.image_size)), f"{one.anchor_scale:g}", *shown_shares, mark])
    return rows


def as_page(found: Check) -> str:
    """A check as one HTML page, with pictures of each split."""
    parts = [paragraph(found.data), *(paragraph(part.dataset.split_note) for part in found.parts.values())]
    parts.append(section("What it holds", table(counts(found))))
    parts.append(section("How large the objects are", table(sizes(found))))
    text = "Share of the training objects that some anchor overlaps by half at least; small to large are in the input."
    parts.append(section("What anchors reach", paragraph(text), table(reaches(found))))
    wrong = items(found.problems) if found.problems else paragraph("Nothing.")
    parts.append(section("What is wrong", wrong))
    for name, part in found.parts.items():
        parts.append(section(f"Pictures of {name}", gallery(examples(part.dataset))))
    return page("Data check", parts)


def examples(dataset: DetectionDataset) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures spread evenly over a data set with their truth, uint8[H W 3], and what each is."""
    for row in np.linspace(0, len(dataset) - 1, min(COUNT, len(dataset))).round().astype(int).tolist():
        image, boxes, labels = read_image(dataset.paths[row]), dataset.boxes[row], dataset.labels[row]
        drawn = draw(image, boxes, labels, classes=dataset.classes)
        height, width = image.shape[:2]
        shown = resample(drawn, (0, 0, width, height), scale=min(1.0, WIDTH / width))
        yield shown, f"{dataset.names[row]}: {(labels >= 0).sum()} objects"

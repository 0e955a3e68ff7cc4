"""Check a data set: its contents, its anchor recall, its problems."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.checks import duplicate_boxes, small_objects, train_val_leakage
from tinydet.data.dataset import DetectionDataset
from tinydet.data.open import open_dataset
from tinydet.draw import JPEG, count_text, draw, spread_rows
from tinydet.errors import InputError, try_call
from tinydet.html import data_uri, render
from tinydet.labels import IGNORE
from tinydet.model.config import ModelConfig
from tinydet.prefetch import prefetch
from tinydet.runs import class_columns
from tinydet.training.autosize import AnchorRecall, anchor_recall, best_input, compare_inputs
from tinydet.training.choices import resolve_config
from tinydet.training.settings import TrainSettings

THREADS = 4  # that read images: Pillow decodes without Python's lock
PAGE_IMAGES, PAGE_WIDTH = 12, 600  # images of each split on the page; their width at most, in pixels


class Problem(NamedTuple):
    """Something that is wrong with a data set."""

    level: str  # "error": training would stop at it, or lose it; "warning": it may be meant
    text: str


class Split(NamedTuple):
    """What a split holds."""

    dataset: DetectionDataset
    images: int
    images_without_objects: int
    ignore_regions: int
    objects: dict[str, int]  # by class
    object_sizes: dict[str, list[float]]  # by class: 10th, 50th, 90th percentile of the root of the area, input pixels


class Check(NamedTuple):
    """What a data set holds, and what is wrong with it."""

    data: str
    splits: dict[str, Split]  # by name: train and val
    anchor_recall: AnchorRecall  # of the training objects, with the input that training would have and all levels
    inputs: list[AnchorRecall]  # with other inputs, each at its best anchor scale
    best: AnchorRecall  # the one of these to take
    problems: list[Problem]


def check_data(
    settings: TrainSettings, *, base: ModelConfig, progress: Callable[[int, int | None], None] | None = None
) -> Check:
    """Read all of a data set, images too, and collect what is wrong.

    Raises:
        InputError: there is nothing to train on; a line for each error, which may be the reason, and that one last.
    """
    errors, ends, classes = list[InputError](), list[InputError](), settings.classes
    splits = ("train", "val") if settings.val is None else ("all", "all")
    options: dict[str, Any] = {"on_error": errors.append}
    train_set = try_call(ends.append, open_dataset, settings.data, splits[0], classes=classes, **options)
    classes = classes if train_set is None else train_set.classes
    val_set = try_call(ends.append, open_dataset, settings.val or settings.data, splits[1], classes=classes, **options)
    if train_set is None:
        raise InputError("\n".join(dict.fromkeys(map(str, [*errors, *ends[1:], ends[0]]))))
    errors += ends
    config = resolve_config(settings, train_set, base=base)
    datasets = {"train": train_set} if val_set is None else {"train": train_set, "val": val_set}

    def read(image: tuple[DetectionDataset, int]) -> list[InputError]:
        """Read an image to its end, and return only what is wrong with it."""
        wrong, (dataset, row) = list[InputError](), image
        try_call(wrong.append, dataset.__getitem__, row)
        return wrong

    images = ((dataset, row) for dataset in datasets.values() for row in range(len(dataset)))
    total = sum(map(len, datasets.values()))
    for done, wrong in enumerate(prefetch(read, images, depth=THREADS), start=1):
        errors += wrong
        if progress:
            progress(done, total)

    warnings: list[str] = []
    for name, dataset in datasets.items():
        texts = [*dataset.notes, *duplicate_boxes(dataset), *small_objects(dataset, config.image_size)]
        warnings += [f"{name}: {text}" if text[0].isdigit() else text for text in texts]  # counts are of a split
    if val_set is not None:
        warnings += try_call(errors.append, train_val_leakage, train_set, val_set) or []
    inputs = compare_inputs(train_set, config)
    return Check(
        data=f"{train_set.kind}: {settings.data}",
        splits={name: _split(dataset, config.image_size) for name, dataset in datasets.items()},
        anchor_recall=anchor_recall(train_set, config),
        inputs=inputs,
        best=best_input(inputs),
        problems=[Problem("error", text) for text in dict.fromkeys(map(str, errors))]
        + [Problem("warning", text) for text in dict.fromkeys(warnings)],
    )


def _split(dataset: DetectionDataset, image_size: tuple[int, int]) -> Split:
    """Count what a split holds."""
    boxes, labels = dataset.boxes_in(image_size), dataset.labels
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1) ** 0.5
    of_class = {name: sides[labels == i] for i, name in enumerate(dataset.classes)}
    sizes = {name: np.percentile(some, (10, 50, 90)).tolist() for name, some in of_class.items() if len(some)}
    empty = len(dataset) - len(np.unique(dataset.image_index[labels != IGNORE]))
    return Split(dataset, len(dataset), empty, int((labels == IGNORE).sum()), dataset.counts, sizes)


def as_json(check: Check) -> dict[str, Any]:
    """Convert a check to plain values for JSON, in which nan is None."""
    splits = {name: split._asdict() for name, split in check.splits.items()}
    for split in splits.values():
        split["note"] = split.pop("dataset").split_note
    known: dict[str, Any] = {"data": check.data, "splits": splits, "anchor_recall": check.anchor_recall._asdict()}
    known |= {"inputs": [one._asdict() for one in check.inputs], "best": check.best._asdict()}
    for level in ("error", "warning"):
        known[f"{level}s"] = [one.text for one in check.problems if one.level == level]
    return json.loads(json.dumps(known), parse_constant=lambda _: None)


def as_page(check: Check) -> str:
    """Make an HTML page of a check, with images spread over each split."""
    images: dict[str, list[tuple[str, str]]] = {name: [] for name in check.splits}
    for name, (dataset, *_) in check.splits.items():
        for row in spread_rows(len(dataset), most=PAGE_IMAGES):
            if example := try_call(lambda _: None, dataset.__getitem__, row):  # else it is among the problems
                image, boxes, labels, width = example.image, example.boxes, example.labels, example.image.shape[1]
                drawn = draw(image, boxes, labels, classes=dataset.classes, width=min(PAGE_WIDTH, width))
                caption = f"{example.name}: {count_text(int((labels >= 0).sum()), 'object')}"
                images[name].append((data_uri(drawn.save, "image/jpeg", **JPEG), caption))
    return render("check.html", check=check, tables=check_tables(check), images=images)


def check_tables(check: Check) -> dict[str, list[list[str]]]:
    """Format a check as tables by title, which begin with their heads."""
    train, now = check.splits["train"], check.anchor_recall
    columns = [["", "images", *train.objects, "ignore regions", "images without objects"]]
    for name, one in check.splits.items():
        counts = one.images, *one.objects.values(), one.ignore_regions, one.images_without_objects
        columns.append([name, *map(str, counts)])
    contents = [list(row) for row in zip(*columns, strict=True)]
    title = f"root of the area in an input of {'x'.join(map(str, now.image_size))}, pixels"
    sizes = [[title, "10%", "median", "90%", "anchor recall"]]
    for name, percentiles in train.object_sizes.items():
        sizes.append([name, *(f"{side:.0f}" for side in percentiles), _percent(now.by_class[name])])

    classes = class_columns([name for name, share in now.by_class.items() if not math.isnan(share)])
    recalls = [["input", "anchor scale", "mean recall", *classes, *now.by_size, ""]]
    for recall, mark in [(now, "now"), *((one, "best" if one == check.best else "") for one in check.inputs)]:
        shares = [recall.mean, *(recall.by_class[name] for name in classes), *recall.by_size.values()]
        size = "x".join(map(str, recall.image_size))
        recalls.append([size, f"{recall.anchor_scale:g}", *map(_percent, shares), mark])
    return {"Contents": contents, "Object sizes": sizes, "Anchor recall": recalls}


def _percent(share: float) -> str:
    """Format a share; a dash where there is nothing to share."""
    return "-" if math.isnan(share) else f"{share:.0%}"

"""Which images are of a split, and which classes they hold."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinydet.errors import InputError, OnError, list_names, list_some, nearest, quoted
from tinydet.fields import MOST_NAMES, check_name
from tinydet.files import composed
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.reading import parse_lines

T = TypeVar("T")
DONT_CARE = "dontcare"  # KITTI's name, in lower case, of what is neither object nor background
SPLITS = ("train", "val")
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def split_of(name: str) -> str | None:
    """Tell the split, test too, from the words in a file's or a folder's name, such as val2017; None if none does."""
    splits = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def check_split(split: str) -> None:
    """Raise InputError unless the split is train, val or all."""
    if split not in (*SPLITS, "all"):
        raise InputError(f"split must be one of train, val, all; got {split!r}")


def of_split(split: str) -> str:
    """Return what messages say before "images": the split and a blank, or nothing for all."""
    return "" if split == "all" else f"{split} "


def read_lists(
    folder: Path, splits: Iterable[str], resolve: Callable[..., str], *, what: str, on_error: OnError
) -> dict[str, list[str]]:
    """Read the lists of some splits, SPLIT.txt, each name once in all of them.

    `resolve(name, where=file:line)` returns the name as the folder has it, or raises InputError; `what` has the name.
    """
    listed: dict[str, str] = {}

    def check(line: str, *, where: str) -> str:
        name = resolve(composed(line.strip()), where=where)
        if (first := listed.setdefault(name, where)) != where:
            raise InputError(f"{where}: {what} {quoted(name)} was listed before, in {first}")
        return name

    return {split: [*parse_lines(folder / f"{split}.txt", check, on_error=on_error).values()] for split in splits}


def draw_split(images: Sequence[T], *, split: str, seed: int, reason: str) -> tuple[list[T], str]:
    """Draw those of train or val among all images, and say how in a note that begins with the reason."""
    count = len(images)
    if count < 2:
        raise InputError(f"{reason}, and {count} images cannot be split into train and val")
    # Neighbours, such as the frames of a drive, are near-duplicates: whole blocks of them go to one side.
    blocks = np.array_split(np.arange(count), min(10, count))
    val = np.random.default_rng(seed).permutation(len(blocks))[: max(1, len(blocks) // 5)]
    drawn = [images[i] for b, block in enumerate(blocks) if (b in val) == (split == "val") for i in block]
    how = f"{len(val)} of {len(blocks)} blocks of consecutive images, drawn with seed {seed}, are val"
    return drawn, f"{len(drawn)} {split} images of {count}: {reason}, so {how}"


def check_class_names(names: Sequence[str], *, where: str) -> None:
    """Raise InputError where there are more than 100,000 names of classes, or one cannot be printed in a line."""
    if len(names) > MOST_NAMES:
        raise InputError(f"{where}: {len(names):,} classes; there may be {MOST_NAMES:,}")
    for name in names:
        check_name(name, kind=f"{where}: a class")


def resolve_classes(
    classes: Sequence[str] | None, counts: Mapping[str, int], *, split: str, where: str, named: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[str]]:
    """Choose the classes of a split, all that a file has `named` when None, and note which of these hold no object.

    DontCare, in any case, is no class: its boxes are ignore regions. `where` names the data in messages.
    """
    check_class_names(named, where=where)
    check_class_names(classes or (), where="classes")
    held = {name: count for name, count in counts.items() if count and name.lower() != DONT_CARE}
    named = [name for name in named if name.lower() != DONT_CARE]
    if classes is None:
        if split != "val" and not held:
            raise InputError(f"{where}: the {of_split(split)}images hold no objects")
        absent = [name for name in named if name not in held]
        return tuple(named), [f"no {of_split(split)}image holds {list_names(absent)}"] if absent else []
    lower, occurring = [name.lower() for name in classes], {name.lower() for name in held}
    if not classes or len(set(lower)) < len(lower) or DONT_CARE in lower:
        raise InputError(f"classes must be distinct names other than DontCare, got {list_names(classes) or 'none'}")
    known = {name.lower() for name in named}
    unknown = [name for name in classes if known and name.lower() not in known]
    if unknown and (split == "train" or len(unknown) == len(classes)):
        there = f"there are {list_names(named)}{nearest(unknown[0], named)}"
        raise InputError(f"{where}: no class {quoted(unknown[0])}; {there}")
    missing = [name for name in classes if name.lower() not in occurring]
    if missing and (split == "train" or len(missing) == len(classes)):  # all must occur to train, one to validate
        there = list_names([f"{name} {held[name]}" for name in sorted(held, key=lambda name: -held[name])]) or "nothing"
        raise InputError(f"{where}: no {of_split(split)}label holds class {quoted(missing[0])}; they hold {there}")
    return tuple(classes), [f"{where}: does not name {list_names(unknown)}"] if unknown else []


def class_labels(names: Iterable[str], classes: Sequence[str], *, ignored: Collection[str] = ()) -> np.ndarray:
    """Label class names, in any case, int64[N]: DontCare and `ignored` (lower case) IGNORE, all others BACKGROUND."""
    regions = dict.fromkeys((DONT_CARE, *ignored), IGNORE)
    known = {**regions, **{name.lower(): label for label, name in enumerate(classes)}}
    return np.array([known.get(name.lower(), BACKGROUND) for name in names], dtype=np.int64)


def unlabelled_note(labelled: Sequence[bool], *, split: str, what: str) -> list[str]:
    """Say in a sentence how many images of a split have no file of labels, where there are any."""
    bare = labelled.count(False)
    text = f"{bare} of {len(labelled)} {of_split(split)}images have no {what} file: they count as without objects"
    return [text] if bare else []


def left_over_note(what: str, names: Collection[str], folder: Path) -> list[str]:
    """Say in a sentence which files of a folder have no image, where there are any."""
    return [f"{folder}: {len(names)} {what} have no image ({list_some(sorted(names))})"] if names else []

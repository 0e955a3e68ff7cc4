"""KITTI's label and result files: text to arrays."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydet.data.text import number, read_lines, shown
from tinydet.errors import InputError, Report, attempt, stop

FIELDS = (
    *("type", "truncated", "occluded", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)


class KittiObjects(NamedTuple):
    """The lines of one label or result file, in the file's order.

    Attributes:
        types: N class names, as written.
        truncated: float64[N], 0..1, -1 where it does not apply.
        occluded: int64[N], 0..3, -1 where it does not apply.
        boxes: float64[N 4], xyxy, original pixels, not clipped.
        scores: float64[N] of a result file, None for labels.
        lines: the number of each line, from 1.
    """

    types: list[str]
    truncated: np.ndarray
    occluded: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None
    lines: Sequence[int] = ()


def read_objects(path: str | PathLike[str], *, scored: bool = False, report: Report = stop) -> KittiObjects:
    """Parse a label file, or a result file.

    An inverted box (x2 < x1) is an error in both, since it means that the file holds something else, such as widths.
    An empty box (x2 == x1) is an error in a label. In a result it is kept: detectors that clip to the picture write
    such boxes, and the official program counts them as detections that match nothing.

    Args:
        path: 15 fields a line, 16 in a result file. An empty file holds no objects.
        scored: whether it is a result file.
        report: of each line that is no object; if it returns, the line is left out.

    Raises:
        InputError: names the file, the line and the value.
    """
    lines = enumerate(read_lines(Path(path)), start=1)
    tried = {n: attempt(report, _object, line, where=f"{shown(path)}:{n}", scored=scored) for n, line in lines}
    read = {n: one for n, one in tried.items() if one}
    types, rows = [kind for kind, _ in read.values()], [values for _, values in read.values()]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(FIELDS) - 1 - (not scored))
    return KittiObjects(
        types=types,
        truncated=table[:, 0],
        occluded=table[:, 1].astype(np.int64),
        boxes=table[:, 3:7],
        scores=table[:, -1] if scored else None,
        lines=tuple(read),
    )


def _object(line: str, *, where: str, scored: bool) -> tuple[str, list[float]]:
    """The type and the numbers of one line."""
    fields, words = FIELDS if scored else FIELDS[:-1], line.split()
    if len(words) != len(fields):
        raise InputError(f"{where}: expected {len(fields)} fields, got {len(words)} ({line.strip()!r})")
    values = [number(word, where=f"{where}: {field}") for field, word in zip(fields[1:], words[1:], strict=True)]
    _check_box(values[3:7], where=where, may_be_empty=scored)
    if not values[1].is_integer():
        raise InputError(f"{where}: occluded is not a whole number ({words[2]!r})")
    return words[0], values


def _check_box(box: Sequence[float], *, where: str, may_be_empty: bool) -> None:
    """Raise for an inverted box, and for an empty one unless it may be."""
    for axis, low, high in (("x", box[0], box[2]), ("y", box[1], box[3])):
        if high < low or (high == low and not may_be_empty):
            raise InputError(f"{where}: {axis}2 {'<' if high < low else '=='} {axis}1 ({high:g}, {low:g})")

"""The rows of YOLO's text files: a box, an outline, a box with keypoints, or with a score and a track id."""

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydet.errors import InputError, OnError, quoted, raise_error, shorten
from tinydet.files import short_path
from tinydet.reading import LARGEST, parse_float, parse_lines

FARTHEST = 2.0  # sides of an image from its corner: what is further is no share of it
BESIDE = 0.5  # sides of an image by which the points of an outline may lie outside
MARGIN = 0.05  # sides of a box by which its keypoints may lie outside
SHORT = 6  # words of a row of a class, a box, and a score or a track id
USUAL = 0.8  # of the longer rows: outlines are not of one length
FEW_ROWS = 3  # from which on a length may be usual
EXPECTED = "expected a class, and a box, an outline, a box and keypoints, or a box with a score or a track id"


def box_shares(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Convert an xyxy box in pixels of an image of (height, width) to centre, width and height, shares of it."""
    (x1, y1, x2, y2), (height, width) = box, size
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


class Objects(NamedTuple):
    """The objects of one image."""

    labels: np.ndarray  # int64[N], class
    boxes: np.ndarray  # float64[N 4], xyxy, shares of the image
    lines: list[int]  # N


def read_yolo(
    paths: Sequence[Path], *, classes: int, keypoints: tuple[int, int] | None = None, on_error: OnError = raise_error
) -> list[Objects]:
    """Read the text files of images, none of which need be there.

    What the numbers after a class are is told by how many there are, by `keypoints` (of an object, and the numbers of
    each), and by what all rows of that length can be; where that may be two things, it is an error that names both.
    """
    files = [
        parse_lines(path, _parse_row, classes, on_error=on_error) if os.path.exists(path) else {} for path in paths
    ]
    rows = [(i, n, row) for i, file in enumerate(files) for n, row in file.items()]
    lengths, boxes, good = np.array([len(row) for *_, row in rows]), np.zeros((len(rows), 4)), np.zeros(len(rows), bool)
    last = np.array([row[-1] for *_, row in rows if len(row) > 8])
    tracked = len(last) > 0 and np.mean((last >= 1) & (last % 1 == 0)) > 0.5
    for length in np.unique(lengths):
        index = np.flatnonzero(lengths == length)
        usual = len(index) >= USUAL * (lengths > SHORT).sum()
        boxes[index], faults = _to_boxes(
            np.array([rows[m][2][1:] for m in index]), keypoints, usual=usual, tracked=tracked
        )
        good[index] = [not fault for fault in faults]
        for m, fault in zip(index, faults, strict=True):
            if fault:
                on_error(InputError(f"{short_path(paths[rows[m][0]])}:{rows[m][1]}: {fault}"))
    labels = np.array([row[0] for *_, row in rows], dtype=np.int64)
    lines = np.array([n for _, n, _ in rows], dtype=np.int64)
    ends = np.cumsum([0, *map(len, files)])
    parts = (np.arange(start, end)[good[start:end]] for start, end in pairwise(ends))
    return [Objects(labels[part], boxes[part], lines[part].tolist()) for part in parts]


def _parse_row(line: str, classes: int, *, where: str) -> list[float]:
    """Parse one line, a class and at least four numbers."""
    words = line.split()
    if len(words) < 5:
        raise InputError(f"{where}: {EXPECTED} ({quoted(line.strip())})")
    try:
        row = [*map(float, words)] if "_" not in line else [math.nan]
    except ValueError:
        row = [math.nan]
    if not all(map(LARGEST.__ge__, map(abs, row))):
        for i, word in enumerate(words):
            parse_float(word, where=f"{where}: {f'value {i}' if i else 'class'}")
    if not row[0].is_integer() or not 0 <= row[0] < classes:
        raise InputError(f"{where}: class {quoted(words[0])} is not one of 0 .. {classes - 1}")
    return row


def _to_boxes(
    rows: np.ndarray, keypoints: tuple[int, int] | None, *, usual: bool, tracked: bool
) -> tuple[np.ndarray, list[str]]:
    """Compute xyxy boxes of rows of one length, float[R n] -> float[R 4], shares of the image, and what is wrong."""
    corners, error = _row_kind(rows, keypoints, usual=usual, tracked=tracked)
    kind = "outline" if corners else "box"
    if corners:
        points = rows[:, : 2 * corners].reshape(len(rows), -1, 2)
        boxes = np.concatenate([points.min(1), points.max(1)], axis=1)
    else:
        centres, halves = rows[:, :2], rows[:, 2:4] / 2
        boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    faults = [""] * len(rows)
    for i in np.flatnonzero((boxes[:, 2:] <= boxes[:, :2]).any(1)).tolist():
        faults[i] = f"the {kind} {_format(boxes[i])} (x1 y1 x2 y2) has no width or no height"
    for i in np.flatnonzero((abs(boxes) > FARTHEST).any(1)).tolist():
        faults[i] = f"the {kind} {_format(boxes[i])} (x1 y1 x2 y2) is not in shares of its image; are these pixels?"
    for i in np.flatnonzero(error != "").tolist():
        faults[i] = f"{error[i]} ({_format(rows[i])})"
    return boxes, faults


def _format(row: np.ndarray) -> str:
    """Format numbers as messages do."""
    return shorten(" ".join(f"{value:g}" for value in row.tolist()))


def _row_kind(
    rows: np.ndarray, keypoints: tuple[int, int] | None, *, usual: bool, tracked: bool
) -> tuple[int, np.ndarray]:
    """Tell how many corners the outlines have that rows of one length, float[R n], are, 0: boxes; and what is wrong.

    `usual`: most rows that are longer than a box and a score are of this length, as among outlines few are. `tracked`:
    most of the long rows of any length end in what may be a track id.
    """
    n, nothing = rows.shape[1], np.full(len(rows), "", dtype=object)
    if n == 4 or (keypoints and n - 4 - keypoints[0] * keypoints[1] in (0, 1)):  # with a score, where it was predicted
        return 0, nothing
    if keypoints and keypoints[0]:
        text = f"expected a class, a box, and {keypoints[0]} keypoints of {keypoints[1]} numbers, as kpt_shape says"
        return 0, nothing + text
    shares, whole = abs(rows - 0.5) <= 0.5, np.equal(rows % 1, 0) & (rows >= 0)
    corners = (abs(rows - 0.5) <= 0.5 + BESIDE).cumprod(axis=1).astype(bool)  # up to here
    readings: dict[tuple[int, str], np.ndarray] = {}  # by corners, and what follows the outline or box: bool[R]
    if n == 5:
        readings[0, "a score or a track id"] = shares[:, 4] | whole[:, 4]
    if n == 6:
        readings[0, "a score and a track id"] = shares[:, 4] & whole[:, 5]
    if n >= 7 and n % 3 == 1:
        readings[0, f"{n // 3 - 1} keypoints and their visibility"] = np.isin(rows[:, 6::3], (0, 1, 2)).min(1)
    if n % 2 == 0:
        readings[0, f"{n // 2 - 2} keypoints"] = _like_keypoints(rows, usual=usual)
    if n >= 7 and n % 2:
        readings[n // 2, "a score or a track id"] = corners[:, -2] & (shares[:, -1] | whole[:, -1])
    if n >= 8 and n % 2 == 0 and tracked:
        readings[n // 2 - 1, "a score and a track id"] = (
            corners[:, -3] & shares[:, -2] & whole[:, -1] & (rows[:, -1] > 0)
        )
    outline = corners[:, -1] if n % 2 == 0 else np.zeros(len(rows), bool)
    fitting = [key for key, fits in readings.items() if fits.mean() > 0.5]
    if outline.all():
        fitting = [(n // 2, ""), *(key for key in fitting if keypoints is None and (usual or key[0]))]
    elif not fitting:
        return n // 2 * (1 - n % 2), nothing + (EXPECTED if n % 2 else "")
    if len(fitting) > 1:
        both = ", or ".join(
            f"{f'an outline of {k} points' if k else 'a box'}{what and f' and {what}'}" for k, what in fitting
        )
        return 0, nothing + f"may be {both}: name kpt_shape in data.yaml, [0, 0] for outlines"
    fits = readings.get(fitting[0], outline)
    return fitting[0][0], np.where(fits, "", EXPECTED)


def _like_keypoints(rows: np.ndarray, *, usual: bool) -> np.ndarray:
    """Tell which rows look like a box and points within, and would be odd outlines. float[R n] -> bool[R]."""
    points = rows.reshape(len(rows), -1, 2)
    centres, sizes, others = points[:, :1], points[:, 1:2], np.delete(points, 1, axis=1)
    missing = (others == 0).all(2)  # keypoints that nobody sees
    inside = ((abs(others - centres) <= (0.5 + MARGIN) * sizes).all(2) | missing).all(1)
    extent = others.max(1) - others.min(1)
    if usual and len(rows) >= FEW_ROWS and points.shape[1] >= 4 and inside.mean() > 0.95:
        # Outlines have as many points as they need, or are four corners: those of a rotated box end where they began.
        turned = abs(points[:, 0] + points[:, 2] - points[:, 1] - points[:, 3]) <= 0.25 * extent
        if points.shape[1] > 4 or turned.all(1).mean() < 0.5:
            return inside
    # As the second point of an outline, the sizes lie further from all other points than these from each other.
    distance = np.maximum(others.min(1) - points[:, 1], points[:, 1] - others.max(1))
    return inside & (distance > extent).any(1)

"""Draw: boxes on a picture, legible in print and to the colour-blind."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from tinydet.data.example import resample
from tinydet.files import replacing
from tinydet.labels import IGNORE

Colour = tuple[int, int, int]

# Okabe and Ito's palette for all kinds of colour vision, without the black, which asphalt swallows.
PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (230, 159, 0),  # orange
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
)
GREY = 128
DARK, LIGHT = (0, 0, 0), (255, 255, 255)


def draw(
    image: np.ndarray, boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike | None = None, *, classes: Sequence[str]
) -> np.ndarray:
    """Draw boxes with their class names and scores; what scores best lies on top, without scores what is smallest.

    Args:
        image: uint8[H W 3], RGB.
        boxes: float[N 4], xyxy, pixels of `image`.
        labels: int[N], class index. Rows labelled IGNORE are hatched in grey, those labelled BACKGROUND left out.
        scores: float[N], or None to draw names alone.
        classes: their names; a class has the same colour however many there are.

    Returns:
        uint8[H W 3]: a new picture.
    """
    return np.array(paint(image, boxes, labels, scores, classes=classes))


def paint(
    image: np.ndarray,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None = None,
    *,
    classes: Sequence[str],
    truth: ArrayLike = (),
) -> Image.Image:
    """What `draw` returns, as Pillow's picture: to be saved, it need not be copied twice.

    `truth`, float[T 4], are true boxes to compare with, in white dashes on the lines of the others: what was found is
    then in colour and dashed, what was missed only dashed, and what is not there only in colour.
    """
    boxes, labels = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(labels)
    ranks = -(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if scores is None else np.asarray(scores)
    rows = [int(row) for row in ranks.argsort(kind="stable") if labels[row] >= 0]
    texts = [classes[labels[row]] + ("" if scores is None else f" {ranks[row]:.2f}") for row in rows]
    colours = [PALETTE[labels[row] % len(PALETTE)] for row in rows]

    height, width = image.shape[:2]
    side = (height * width) ** 0.5
    line, letter = max(2, round(side / 350)), max(10, round(side / 52))
    font = ImageFont.load_default(size=letter)
    picture = Image.fromarray(hatch(image, boxes[labels == IGNORE], line=line))
    pen = ImageDraw.Draw(picture)
    frames = _frames(boxes[rows], line=line, size=picture.size)
    for frame, colour in zip(frames.tolist(), colours, strict=True):
        _draw_plate(pen, frame, outline=colour, width=line)
    for frame in _frames(np.asarray(truth, dtype=np.float64).reshape(-1, 4), line=line, size=picture.size).tolist():
        _draw_dashes(pen, frame, line=line)
    tags = [(round(font.getlength(text) + 0.6 * letter), round(1.3 * letter)) for text in texts]
    for text, colour, tag in zip(texts, colours, place_tags(tags, frames, size=picture.size), strict=True):
        _draw_plate(pen, tag, fill=colour)
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        pen.text(middle, text, fill=text_colour(colour), font=font, anchor="mm")
    return picture


def hatch(image: np.ndarray, boxes: np.ndarray, *, line: int) -> np.ndarray:
    """Hatch boxes in grey, inside a dashed line.

    Args:
        image: uint8[H W 3]
        boxes: float[N 4], xyxy, pixels of `image`.
        line: width of the lines, in pixels.

    Returns:
        uint8[H W 3]: a new picture.
    """
    hatched = image.copy()
    for x1, y1, x2, y2 in boxes.round().astype(np.int64).clip(0):
        part = hatched[y1:y2, x1:x2]
        row, column = np.ogrid[: part.shape[0], : part.shape[1]]
        edge = np.minimum(np.minimum(row, part.shape[0] - 1 - row), np.minimum(column, part.shape[1] - 1 - column))
        grey = (row + column) % (8 * line) < np.where(edge < line, 5 * line, line)
        part[grey] = GREY
    return hatched


def place_tags(tags: Sequence[tuple[int, int]], boxes: np.ndarray, *, size: tuple[int, int]) -> list[list[int]]:
    """Place a tag beside each box, within the picture, where it hides the least of other tags and of boxes.

    Args:
        tags: (width, height) of each, in pixels.
        boxes: int[N 4], xyxy, pixels; the last one is the first to choose.
        size: (width, height) of the picture, in pixels.

    Returns:
        xyxy of each tag; a tag wider or higher than the picture starts at its left or top.
    """
    placed = np.zeros((0, 4), dtype=int)
    for tag, (x1, y1, x2, y2) in zip(reversed(tags), reversed(boxes), strict=True):
        width, height = tag
        outside = [(x, y) for y in (y1 - height, y2) for x in (x1, x2 - width)]
        beside = [(x, y) for y in (y1, y2 - height) for x in (x2, x1 - width)]
        inside = [(x, y) for y in (y1, y2 - height) for x in (x1, x2 - width)]
        last = max(0, size[0] - width), max(0, size[1] - height)
        corners = np.array([*outside, *beside, *inside]).clip(0, last)
        places = np.hstack([corners, corners + np.array(tag)])
        hidden = _overlap(places, boxes) + 10 * _overlap(places, placed)
        hidden[1:] += width * height // 10  # unless it hides a tenth less elsewhere, a tag stands above on the left
        placed = np.vstack([places[hidden.argmin()], placed])
    return placed.tolist()


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever contrasts more. Reference: WCAG 2, contrast ratio."""
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 for c in background)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return DARK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else LIGHT


def sheet(images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int, width: int = 640) -> np.ndarray:
    """Put pictures side by side, each over its caption.

    Args:
        images: uint8[H W 3] each, of any sizes.
        captions: one for each.
        columns: pictures in a row.
        width: of each picture on the sheet, in pixels.

    Returns:
        uint8[H W 3]: in rows, from left to right.
    """
    gap, line = width // 64, width // 24
    scaled = [resample(x, (0, 0, x.shape[1], x.shape[0]), scale=width / x.shape[1]) for x in images]
    rows = [scaled[first : first + columns] for first in range(0, len(scaled), columns)]
    tops = np.cumsum([gap, *(max(len(x) for x in row) + line + gap for row in rows)])
    canvas = Image.new("RGB", (gap + columns * (width + gap), int(tops[-1])), LIGHT)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=0.7 * line)
    for i, (picture, caption) in enumerate(zip(scaled, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), int(tops[i // columns])
        canvas.paste(Image.fromarray(picture), (x, y))
        pen.text((x, y + len(picture) + line / 2), caption, fill=DARK, font=font, anchor="lm")
    return np.array(canvas)


def save_jpeg(image: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture, uint8[H W 3], as JPEG."""
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="JPEG", quality=90, subsampling=0)  # thin lines keep their colour


def _frames(boxes: np.ndarray, *, line: int, size: tuple[int, int]) -> np.ndarray:
    """The outer edges, int[N 4], of lines around boxes: half in the box, half around it, within the picture."""
    frames = (boxes.round() + line // 2 * np.array((-1, -1, 1, 1))).clip(0, (*size, *size)).astype(int)
    frames[:, 2:] = np.maximum(frames[:, 2:], frames[:, :2] + 1)
    return frames


def _draw_dashes(pen: ImageDraw.ImageDraw, box: Sequence[int], *, line: int) -> None:
    """Draw a rectangle of white dashes that leave open more than they cover."""
    x1, y1, x2, y2 = box
    for x in range(x1, x2, 6 * line):
        for y in (y1, max(y1, y2 - line)):
            _draw_plate(pen, (x, y, min(x + 2 * line, x2), min(y + line, y2)), fill=LIGHT)
    for y in range(y1, y2, 6 * line):
        for x in (x1, max(x1, x2 - line)):
            _draw_plate(pen, (x, y, min(x + line, x2), min(y + 2 * line, y2)), fill=LIGHT)


def _draw_plate(pen: ImageDraw.ImageDraw, box: Sequence[int], **paint: Any) -> None:
    """Draw a rectangle and, around it, a thin dark line that sets it off from the picture and from its like."""
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=DARK)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), **paint)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many pixels of each box the others cover, those that several cover several times.

    Args:
        boxes: int[N 4], xyxy.
        others: int[M 4], xyxy.

    Returns:
        int[N]
    """
    first = np.maximum(boxes[:, None, :2], others[:, :2])
    last = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (last - first).clip(0).prod(axis=2).sum(axis=1)

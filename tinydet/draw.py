"""Draw boxes on images, legible in print and to colour-blind readers."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from tinydet.errors import visible
from tinydet.files import PathLike, write_file
from tinydet.fonts import load_font
from tinydet.labels import IGNORE

# Okabe and Ito's palette for all kinds of colour vision, without the black, which asphalt swallows.
BLUE = (0, 114, 178)
PALETTE = ((86, 180, 233), (213, 94, 0), (240, 228, 66), (0, 158, 115), (230, 159, 0), (204, 121, 167), BLUE)
BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
JPEG: dict[str, Any] = {"format": "JPEG", "quality": 92, "subsampling": 0}  # thin lines keep their colour


def draw(
    image: np.ndarray,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None = None,
    *,
    classes: Sequence[str],
    truth: ArrayLike = (),
    width: int | None = None,
) -> Image.Image:
    """Draw boxes, float[N 4] xyxy pixels, with class names and scores on a copy of an image, uint8[H W 3].

    The highest score lies on top; without scores, the smallest box. IGNORE regions are hatched in grey, BACKGROUND rows
    left out. `truth`, float[T 4], is dashed in white over the other lines: an object that was detected is then in
    colour and dashed, a missed one only dashed, a background error only in colour. `width`: to scale the image to.
    """
    scale: float = (width or image.shape[1]) / image.shape[1]
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    boxes, truth = (scale * np.asarray(one, dtype=np.float64).reshape(-1, 4) for one in (boxes, truth))
    labels = np.asarray(labels)
    ranks = -(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if scores is None else np.asarray(scores)
    rows = [int(row) for row in ranks.argsort(kind="stable") if labels[row] >= 0]
    texts = [visible(classes[labels[row]]) + ("" if scores is None else f" {ranks[row]:.2f}") for row in rows]
    colours = [PALETTE[labels[row] % len(PALETTE)] for row in rows]
    side = math.prod(size) ** 0.5
    line, letter = max(2, round(side / 350)), max(10, round(side / 52))

    for x1, y1, x2, y2 in boxes[labels == IGNORE].round().clip(0, (*size, *size)).astype(np.int64):
        dash = np.full(np.maximum((y2 - y1, x2 - x1), 0), 5 * line)  # of 8 lines' width, and 1 inside: a hatch
        dash[line:-line, line:-line] = line
        hatch = Image.fromarray(np.indices(dash.shape).sum(0) % (8 * line) < dash)
        canvas.paste(GREY, (int(x1), int(y1)), hatch)
    pen, font = ImageDraw.Draw(canvas), load_font("".join(texts), size=letter)
    outlines = _line_edges(boxes[rows], line=line, size=canvas.size)
    for outline, colour in zip(outlines.tolist(), colours, strict=True):
        _draw_rectangle(pen, outline, outline=colour, width=line)
    for x1, y1, x2, y2 in _line_edges(truth, line=line, size=canvas.size).tolist():  # dashes leave more open
        dashes = [(x, y, x + 2 * line, y + line) for x in range(x1, x2, 6 * line) for y in (y1, max(y1, y2 - line))]
        dashes += [(x, y, x + line, y + 2 * line) for y in range(y1, y2, 6 * line) for x in (x1, max(x1, x2 - line))]
        for left, top, right, bottom in dashes:
            _draw_rectangle(pen, (left, top, min(right, x2), min(bottom, y2)), fill=WHITE)
    tags = [(round(font.getlength(text) + 0.6 * letter), round(1.3 * letter)) for text in texts]
    for text, colour, tag in zip(texts, colours, place_tags(tags, outlines, size=canvas.size), strict=True):
        _draw_rectangle(pen, tag, fill=colour)
        centre = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        pen.text(centre, text, fill=WHITE if colour == BLUE else BLACK, font=font, anchor="mm")
    return canvas


def place_tags(tags: Sequence[tuple[int, int]], boxes: np.ndarray, *, size: tuple[int, int]) -> list[list[int]]:
    """Place tags of (width, height) at boxes, int[N 4], where they hide least -> xyxy; the last one chooses first."""
    placed = np.zeros((0, 4), dtype=np.int64)
    for (width, height), (x1, y1, x2, y2) in zip(reversed(tags), reversed(boxes), strict=True):
        outside = [(x, y) for y in (y1 - height, y2) for x in (x1, x2 - width)]
        beside = [(x, y) for y in (y1, y2 - height) for x in (x2, x1 - width)]
        inside = [(x, y) for y in (y1, y2 - height) for x in (x1, x2 - width)]
        corners = np.array(outside + beside + inside).clip(0, (max(0, size[0] - width), max(0, size[1] - height)))
        places = np.hstack([corners, corners + np.array((width, height))])
        others = np.vstack([boxes, placed])
        sides = np.minimum(places[:, None, 2:], others[:, 2:]) - np.maximum(places[:, None, :2], others[:, :2])
        hidden = sides.clip(0).prod(2) @ np.repeat((1, 10), (len(boxes), len(placed)))
        hidden[1:] += width * height // 10  # a tag leaves its place above on the left only to hide a tenth less
        placed = np.vstack([places[hidden.argmin()], placed])
    return placed.tolist()


def image_grid(images: Sequence[Image.Image], captions: Sequence[str], *, columns: int) -> Image.Image:
    """Arrange images of one width in rows, each above its caption; one that is too long loses its middle."""
    width = images[0].width
    gap, line = width // 64, width // 24
    rows = [images[first : first + columns] for first in range(0, len(images), columns)]
    tops = np.cumsum([gap, *(max(image.height for image in row) + line + gap for row in rows)]).tolist()
    canvas = Image.new("RGB", (gap + columns * (width + gap), tops[-1]), WHITE)
    captions = [*map(visible, captions)]
    pen, font = ImageDraw.Draw(canvas), load_font("".join(captions), size=0.7 * line)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), tops[i // columns]
        canvas.paste(image, (x, y))
        shorter = (f"{caption[:12]}…{caption[start:]}" for start in range(13, len(caption)))
        text = next((one for one in (caption, *shorter) if font.getlength(one) <= width), "")
        pen.text((x, y + image.height + line / 2), text, fill=BLACK, font=font, anchor="lm")
    return canvas


def save_jpeg(image: Image.Image, path: PathLike) -> None:
    """Write an image as JPEG."""
    image.save(content := io.BytesIO(), **JPEG)
    write_file(path, content.getvalue())


def spread_rows(total: int, *, most: int) -> list[int]:
    """Choose rows spread evenly over all, the first and the last among them."""
    return np.linspace(0, total - 1, min(most, total)).round().astype(int).tolist()


def count_text(number: int, noun: str) -> str:
    """Format a number of things for a caption, such as "1 object"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _line_edges(boxes: np.ndarray, *, line: int, size: tuple[int, int]) -> np.ndarray:
    """Compute the outer edges, int[N 4], of lines around boxes."""
    edges = (boxes.round() + line // 2 * np.array((-1, -1, 1, 1))).clip(0, (*size, *size)).astype(np.int64)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    return edges


def _draw_rectangle(pen: ImageDraw.ImageDraw, box: Sequence[int], **style: Any) -> None:
    """Draw a rectangle inside a thin dark line, which sets it off from the image."""
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=BLACK)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), **style)

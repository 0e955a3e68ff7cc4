"""One picture with its boxes, and how it becomes the network's input."""

from os import PathLike
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tinydet.errors import InputError


class Example(NamedTuple):
    """A picture and what is known about it.

    Attributes:
        image: uint8[H W 3], RGB.
        boxes: float32[N 4], xyxy, pixels of `image`.
        labels: int64[N], class index; rows labelled IGNORE are ignore regions. No padding here.
        name: the frame's name.
        size: (height, width) of the original picture.
        scale: pixels of `image` per original pixel.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    name: str
    size: tuple[int, int]
    scale: float = 1.0


def read_image(path: str | PathLike[str]) -> np.ndarray:
    """Read a picture as RGB, upright.

    The EXIF orientation is applied. Palette, grey and CMYK pictures are converted, 16-bit ones keep their upper byte,
    and an alpha channel is dropped, not blended.

    Args:
        path: a file that Pillow can read.

    Returns:
        uint8[H W 3]

    Raises:
        InputError: the file is missing, truncated, or no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture_to_rgb(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({_reason(error)})") from error


def picture_to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8[H W 3] of Pillow's picture, which is left as it is: upright RGB, by the rules of `read_image`."""
    return np.array(_to_rgb(ImageOps.exif_transpose(picture)))


def read_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Read the (height, width) that `read_image` would give, from the file's header alone.

    Raises:
        InputError: the file is missing, or its header is not that of a picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Without this guard Pillow decodes a whole PNG in search of an orientation.
            sideways = "exif" in picture.info and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({_reason(error)})") from error
    return (width, height) if sideways else (height, width)


def fit_scale(picture: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the largest scale at which a picture of (height, width) still fits into `size`."""
    return min(size[0] / picture[0], size[1] / picture[1])


def resample(image: np.ndarray, window: tuple[float, float, float, float], *, scale: float) -> np.ndarray:
    """Scale a window of a picture, filtering when it shrinks.

    Args:
        image: uint8[H W 3]
        window: xyxy, pixels of `image`, within it; need not be whole pixels.
        scale: new pixels per pixel of `image`.

    Returns:
        uint8[h w 3], whose sides are those of the window times `scale`, rounded, at least 1.
    """
    x1, y1, x2, y2 = window
    sides = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    return np.array(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR, box=window))


def pad(image: np.ndarray, size: tuple[int, int], *, fill: tuple[int, int, int]) -> np.ndarray:
    """Put a picture at the top left of a canvas of one colour.

    Args:
        image: uint8[h w 3], no larger than `size`.
        size: (height, width) of the canvas.
        fill: its RGB colour, 0..255; the mean colour becomes zero when the network normalises it.

    Returns:
        uint8[H W 3]
    """
    canvas = np.empty((*size, 3), dtype=np.uint8)
    height, width = image.shape[:2]
    canvas[:height, :width] = image
    canvas[height:] = fill
    canvas[:height, width:] = fill
    return canvas


def letterbox_image(
    image: np.ndarray, size: tuple[int, int], *, fill: tuple[int, int, int]
) -> tuple[np.ndarray, float]:
    """Scale a picture until it fills `size` in one direction, and pad the other on the right or below.

    Args:
        image: uint8[h w 3]
        size: (height, width) of the network's input.
        fill: RGB colour of the padding, 0..255.

    Returns:
        uint8[H W 3] and the scale, in input pixels per pixel of `image`. Original pixel x is input pixel x * scale, to
        within the half pixel that rounding the scaled picture's sides may cost at its far edge.
    """
    height, width = image.shape[:2]
    scale = fit_scale((height, width), size)
    return pad(resample(image, (0, 0, width, height), scale=scale), size, fill=fill), scale


def letterbox(example: Example, size: tuple[int, int], *, fill: tuple[int, int, int]) -> Example:
    """Letterbox an example: see `letterbox_image`. Boxes scale with the picture and `scale` records by how much."""
    image, scale = letterbox_image(example.image, size, fill=fill)
    boxes = (example.boxes * scale).astype(np.float32)
    return example._replace(image=image, boxes=boxes, scale=example.scale * scale)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any of Pillow's modes to RGB."""
    if picture.mode == "F":
        raise ValueError("floating point pixels have no known range")
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips to 255 instead of scaling
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.has_transparency_data:  # Pillow warns of a transparent palette that is not taken through RGBA
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")


def _reason(error: BaseException) -> str:
    """Say in a few words what went wrong; the path is the caller's to name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)

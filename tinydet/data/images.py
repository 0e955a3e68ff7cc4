"""An image with its boxes, and how it becomes the network's input."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tinydet.errors import InputError
from tinydet.files import PathLike

Box = tuple[float, float, float, float]
# By content, whatever the suffix; PostScript, a program, is not among them.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".avif")
# What makes an image upright, by EXIF's orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Example(NamedTuple):
    """An image and its boxes, without padding."""

    image: np.ndarray  # uint8[H W 3], RGB
    boxes: np.ndarray  # float32[N 4], xyxy, pixels of `image`
    labels: np.ndarray  # int64[N], class index, or IGNORE for ignore regions
    name: str
    size: tuple[int, int]  # (height, width) of the original image
    scale: float = 1.0  # pixels of `image` per original pixel


@cache
def _formats() -> list[str]:
    """List the formats that this Pillow reads, some of which older ones do not."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _open_image(path: PathLike) -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever fails meanwhile is an InputError that names it."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: not a file")  # a folder, or a pipe, which might never end
    try:
        with Image.open(path, formats=_formats()) as image:
            yield image
    except Exception as error:  # its decoders raise all kinds
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None)
        raise InputError(f"{path}: not a readable image ({reason or str(error) or type(error).__name__})") from error


def _orientation(image: Image.Image) -> int:
    """Read the orientation, 1 to 8, in the EXIF or XMP before an image's pixels; 1, upright, where there is none."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        return Image.Image.getexif(image).get(0x0112, 1)  # PngImageFile's decodes the whole image in search of it
    except Exception:  # EXIF that is none, which viewers pass over
        return 1


def read_image(path: PathLike) -> np.ndarray:
    """Read an image as uint8[H W 3], RGB, upright by its orientation; raise InputError where that fails."""
    with _open_image(path) as image:
        return image_to_rgb(image)


def read_size(path: PathLike) -> tuple[int, int]:
    """Read the (height, width) of what `read_image` would give, from the file's header alone; raise as it does."""
    with _open_image(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def image_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert Pillow's image to upright RGB, uint8[H W 3]: 16 bits to their upper byte, and without its alpha."""
    if (method := UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(method)
    if image.mode == "F":
        raise ValueError("floating point pixels have no known range")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips to 255 instead of scaling
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    elif image.has_transparency_data:  # Pillow warns of a transparent palette that is not taken through RGBA
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def letterbox_scale(size: tuple[int, int], image_size: tuple[int, int]) -> float:
    """Return the largest scale at which an image of (height, width) fits into an input of `image_size`."""
    return min(image_size[0] / size[0], image_size[1] / size[1])


def resample(image: np.ndarray, crop: Box, *, scale: float) -> np.ndarray:
    """Scale a crop, xyxy, within an image uint8[H W 3], filtering when it shrinks; rounded sides, of at least 1."""
    x1, y1, x2, y2 = crop
    sides = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    return np.array(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR, box=crop))


def pad(image: np.ndarray, size: tuple[int, int], *, value: tuple[int, int, int]) -> np.ndarray:
    """Pad an image on the right and below to (height, width) with an RGB value: uint8[h w 3] -> uint8[H W 3]."""
    padded, (height, width) = np.empty((*size, 3), dtype=np.uint8), image.shape[:2]
    padded[:height, :width] = image
    padded[height:] = value
    padded[:height, width:] = value
    return padded


def letterbox(example: Example, image_size: tuple[int, int], *, pad_value: tuple[int, int, int]) -> Example:
    """Scale an example to fill (height, width) in one direction, and pad the other; pixel x becomes x * scale."""
    height, width = example.image.shape[:2]
    scale = letterbox_scale((height, width), image_size)
    image = pad(resample(example.image, (0, 0, width, height), scale=scale), image_size, value=pad_value)
    return example._replace(image=image, boxes=(example.boxes * scale).astype(np.float32), scale=example.scale * scale)


def to_example(item: Any, name: str) -> Example:
    """Convert (image uint8[H W 3] or tensor uint8[3 H W], boxes [N 4] in its pixels, labels [N]) to an `Example`."""
    if isinstance(item, Example):
        return item
    where = f"item {name} of the data set"
    if not isinstance(item, tuple | list) or len(item) != 3:
        what = type(item).__name__ + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        raise InputError(f"{where} must be an Example or (image, boxes, labels), got a {what}")
    image = item[0].movedim(0, -1).cpu().numpy() if isinstance(item[0], Tensor) else np.asarray(item[0])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype}[{' '.join(map(str, image.shape))}]"
        raise InputError(f"{where}: image must be uint8[H W 3], or a tensor uint8[3 H W]; got {got}")
    boxes, labels = np.asarray(item[1], dtype=np.float32).reshape(-1, 4), np.asarray(item[2], dtype=np.int64)
    if labels.shape != (len(boxes),):
        raise InputError(f"{where} has {len(boxes)} boxes, and labels of shape {labels.shape}")
    return Example(np.ascontiguousarray(image), boxes, labels, name, (image.shape[0], image.shape[1]))

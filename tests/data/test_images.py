"""Images of every kind come out as upright RGB, and a letterbox moves boxes with their objects."""

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from tinydet.data.images import (
    Example,
    image_to_rgb,
    letterbox,
    letterbox_scale,
    pad,
    read_image,
    read_size,
    resample,
    to_example,
)
from tinydet.errors import InputError
from tinydet.labels import IGNORE

PAD_VALUE = (124, 116, 104)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path: Path, original: Image.Image, **options: Any) -> Path:
    original.save(path, **options)
    return path


def test_a_png_is_read_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, COLOURS)
    assert read_size(path) == (6, 9)


def test_grey_images_have_three_equal_channels(tmp_path: Path) -> None:
    grey = COLOURS[:, :, 0]
    image = read_image(save(tmp_path / "a.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


def test_sixteen_bits_keep_the_upper_byte(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(deep)))
    np.testing.assert_array_equal(image[:, :, 1], [[0, 0, 1], [128, 255, 255]])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))))
    np.testing.assert_array_equal(image, COLOURS)


def test_palettes_become_their_colours_even_with_transparency(tmp_path: Path) -> None:
    original = Image.new("P", (2, 1))
    original.putpalette([10, 20, 30, 200, 100, 50])
    original.putpixel((1, 0), 1)
    image = read_image(save(tmp_path / "a.png", original, transparency=b"\x00\x80"))
    np.testing.assert_array_equal(image, [[[10, 20, 30], [200, 100, 50]]])


def test_cmyk_becomes_its_colour(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), quality=100)
    assert np.abs(read_image(path).astype(int) - [0, 255, 255]).max() <= 4


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(InputError, match=r"a\.tiff: not a readable image \(floating"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_comes_out_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # one bright corner tells all eight orientations apart from an image left as stored
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation]))
    path = save(tmp_path / f"a{suffix}", stored, exif=exif)
    assert read_size(path) == (32, 48)
    np.testing.assert_array_equal(read_image(path) > 128, upright > 128)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_broken_image_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a{suffix}", Image.fromarray(noise))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"a\{suffix}: not a readable image \("):
            read_image(path)
    path.write_text("not an image")
    for read in (read_image, read_size):
        with pytest.raises(InputError, match=r"not a readable image \(unknown format\)"):
            read(path)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    for read in (read_image, read_size):
        with pytest.raises(InputError, match=r"gone\.png: not a readable image \(No such file"):
            read(tmp_path / "gone.png")


def test_a_crop_of_whole_pixels_at_scale_one_is_a_slice() -> None:
    np.testing.assert_array_equal(resample(COLOURS, (2, 1, 7, 5), scale=1), COLOURS[1:5, 2:7])


def test_shrinking_averages_instead_of_picking() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    small = resample(stripes, (0, 0, 64, 64), scale=0.25)
    assert np.abs(small[:, 1:-1].astype(int) - 100).max() <= 10


def test_a_sliver_keeps_one_pixel() -> None:
    assert resample(np.zeros((1, 900, 3), dtype=np.uint8), (0, 0, 900, 1), scale=0.1).shape == (1, 90, 3)


def test_padding_is_the_pad_value_and_the_image_is_top_left() -> None:
    canvas = pad(COLOURS, (8, 12), value=PAD_VALUE)
    np.testing.assert_array_equal(canvas[:6, :9], COLOURS)
    canvas[:6, :9] = PAD_VALUE
    assert (canvas == PAD_VALUE).all()


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_the_letterbox_scale_is_the_largest_that_fits(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    scale = letterbox_scale(size, image_size)
    ratios = [side * scale / room for side, room in zip(size, image_size, strict=True)]
    assert max(ratios) == pytest.approx(1)


@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    image_size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    corners=st.tuples(*[st.floats(0, 1) for _ in range(4)]),
)
def test_a_letterboxed_box_frames_its_object(
    size: tuple[int, int], image_size: tuple[int, int], corners: tuple[float, ...]
) -> None:
    height, width = size
    x1, x2 = sorted(int(side * (width - 4)) for side in corners[:2])
    y1, y2 = sorted(int(side * (height - 4)) for side in corners[2:])
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[y1 : y2 + 4, x1 : x2 + 4] = 255
    boxes = np.array([[x1, y1, x2 + 4, y2 + 4]], dtype=np.float32)
    example = Example(image, boxes, np.array([IGNORE]), "frame", size)
    before = image.copy(), boxes.copy()
    fitted = letterbox(example, image_size, pad_value=(0, 0, 0))

    assert fitted.image.shape == (*image_size, 3)
    assert fitted.scale == letterbox_scale(size, image_size)
    assert (fitted.size, fitted.name, fitted.labels.tolist()) == (size, "frame", [IGNORE])
    assert fitted.boxes.dtype == np.float32
    seen = np.argwhere(fitted.image[:, :, 0] >= 128)
    if fitted.scale > 0.5:  # at less an object of four pixels blurs into its surroundings
        top, left = seen.min(axis=0)
        bottom, right = seen.max(axis=0) + 1
        assert np.abs(fitted.boxes[0] - [left, top, right, bottom]).max() <= 1 + fitted.scale / 2
    np.testing.assert_array_equal(example.image, before[0])
    np.testing.assert_array_equal(example.boxes, before[1])


def test_a_letterboxed_letterbox_knows_the_scale_to_the_original() -> None:
    example = Example(COLOURS, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), "frame", (6, 9))
    twice = letterbox(letterbox(example, (12, 18), pad_value=PAD_VALUE), (36, 54), pad_value=PAD_VALUE)
    assert twice.scale == 6
    wide = letterbox(example, (12, 40), pad_value=PAD_VALUE)
    assert wide.scale == 2
    assert (wide.image[:, 18:] == PAD_VALUE).all()


def test_pillow_images_are_converted_and_left_as_they_are() -> None:
    original = Image.fromarray(COLOURS[:, :, 0])
    np.testing.assert_array_equal(image_to_rgb(original), np.repeat(COLOURS[:, :, :1], 3, axis=2))
    assert original.mode == "L"


@pytest.mark.parametrize("image", [COLOURS, torch.from_numpy(COLOURS.transpose(2, 0, 1).copy())])
@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_items_become_examples(image: Any, make: Any) -> None:
    example = to_example((image, make([[1, 2, 3, 4.5]]), make([7])), "12")
    np.testing.assert_array_equal(example.image, COLOURS)
    assert (example.boxes.tolist(), example.labels.tolist()) == ([[1, 2, 3, 4.5]], [7])
    assert (example.boxes.dtype, example.labels.dtype) == (np.float32, np.int64)
    assert (example.name, example.size, example.scale) == ("12", (6, 9), 1.0)
    assert to_example(example, "13") is example
    assert to_example((image, [], []), "12").boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({"image": 1}, "must be an Example or (image, boxes, labels), got a dict"),
        ((COLOURS, []), "must be an Example or (image, boxes, labels), got a tuple of 2"),
        ((COLOURS / 255, [], []), "image must be uint8[H W 3], or a tensor uint8[3 H W]; got float64[6 9 3]"),
        ((COLOURS[:, :, 0], [], []), "got uint8[6 9]"),
        ((COLOURS, [[1, 2, 3, 4]], []), "has 1 boxes, and labels of shape (0,)"),
    ],
)
def test_other_items_are_named(item: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"^item 5 of the data set.*{re.escape(complaint)}"):
        to_example(item, "5")


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RESOLUTIONS = {"text": (2, b"72 dpi\0"), "-1/0": (10, struct.pack(">ii", -1, 0))}  # EXIF's type and value


def orientation_of(path: Path, way: str) -> Path:
    """Write 96x160 pixels that lie on their side by XMP, by a raw profile of ImageMagick's, or by EXIF."""
    image, exif = Image.fromarray(np.zeros((96, 160, 3), np.uint8)), Image.Exif()
    exif[0x0112] = 6
    if way == "JPEG's XMP":
        image.save(path, "JPEG", xmp=XMP)
    elif way == "PNG's XMP":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        image.save(path, "PNG", pnginfo=info)
    elif way == "raw profile":
        info, data = PngInfo(), exif.tobytes()
        info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
        image.save(path, "PNG", pnginfo=info)
    else:
        kind, data = RESOLUTIONS[way]
        entries = struct.pack(">HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x011A, kind, 7 if kind == 2 else 1, 38, 0)
        image.save(path, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + entries + data)
    return path


@pytest.mark.parametrize("way", ["JPEG's XMP", "PNG's XMP", "raw profile", "text", "-1/0"])
def test_size_and_image_agree_on_what_is_upright(tmp_path: Path, way: str) -> None:
    path = orientation_of(tmp_path / "a", way)
    assert read_size(path) == read_image(path).shape[:2] == (160, 96)
    with Image.open(path) as image:
        assert image_to_rgb(image).shape == (160, 96, 3)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, struct.error, KeyError, AssertionError])
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (8, 8)))

    def fail(*_: Any, **__: Any) -> None:
        raise error("no such tile")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(InputError, match=r"a\.png: not a readable image \('?no such tile'?\)"):
        read_image(path)


def test_programs_and_pipes_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{} loop\n")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    for name, said in (("a", r"not a readable image \(unknown format\)"), ("b", "not a file"), ("c", "not a file")):
        for read in (read_image, read_size):
            with pytest.raises(InputError, match=rf"{name}\.png: {said}"):
                read(tmp_path / f"{name}.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exif_that_is_none_is_passed_over(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", Image.new("RGB", (8, 6)), exif=b"Exif\0\0no such thing")
    assert read_size(path) == read_image(path).shape[:2] == (6, 8)

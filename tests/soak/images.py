"""Images that lie, are cut off, or are none: read as RGB or refused in one line, in bounded time and memory."""

import io
import os
import random
import re
import resource
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tests.soak.harness import Trial, fresh, last_line, run
from tinydet.data.images import read_image, read_size
from tinydet.errors import InputError

SIDES = (24, 40)  # width and height of the images that are damaged
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
BATCH = 50  # images that a child reads
SECONDS, MEGABYTES = 5, 2000  # for one of them, which Pillow lets have 179 million pixels
Content = bytes | Callable[[Path], object]


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    """Encode an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIDES[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """Make a PNG that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def hostile() -> Iterator[tuple[str, Content]]:
    """Yield images of every odd kind: a name, and the content or what makes the file."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\nshowpage\n"
    yield "PostScript.png", postscript
    yield "PostScript.eps", postscript
    yield "svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"{mode}.png", encoded("PNG", mode)
    yield "16 bits.png", png(2, 2, depth=16, color=0, data=b"\0\1\2\3\4" * 2)
    yield "transparent palette.png", encoded("PNG", "P", transparency=3)
    yield "transparent bytes.png", encoded("PNG", "P", transparency=bytes(range(256)))
    for mode in ("L", "CMYK", "YCbCr"):
        yield f"{mode}.jpg", encoded("JPEG", mode)
    for mode in ("1", "L", "CMYK", "F", "I"):
        yield f"{mode}.tif", encoded("TIFF", mode)
    frames = [Image.new("RGB", SIDES, (i, 0, 0)) for i in range(9)]
    for format in ("WEBP", "GIF", "PNG", "TIFF"):
        frames[0].save(file := io.BytesIO(), format, save_all=True, append_images=frames[1:])
        yield f"animated.{format.lower()}", file.getvalue()
    for value in (0, 3, 6, 9, 65535, "six", b"\xff" * 9, (1, 2)):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12" + (value if isinstance(value, bytes) else repr(value).encode() * 3)
        yield f"orientation {value!r:.20}.jpg", encoded("JPEG", exif=exif)
        if isinstance(value, int):
            known = Image.Exif()
            known[0x0112] = value
            yield f"orientation {value}.webp", encoded("WEBP", exif=known.tobytes())
    for format in FORMATS:
        whole = encoded(format)
        for share in (0, 1, 4, 7):
            yield f"{share} eighths of {format}.img", whole[: len(whole) * share // 8]
        yield f"{format} twice.img", whole * 2
    yield "zeros.png", bytes(100_000)
    yield "text.jpg", b"an image\n" * 1000
    yield "pipe.png", os.mkfifo
    yield "folder.png", Path.mkdir
    yield "endless.png", lambda path: path.symlink_to("/dev/zero")
    yield "circle.png", lambda path: path.symlink_to(path)
    yield "missing.png", lambda path: None
    for width, height in ((0, 0), (1, 0), (2**31 - 1, 2**31 - 1), (10**5, 10**5), (13_000, 13_000), (9000, 9000)):
        yield f"{width}x{height} without pixels.png", png(width, height)
    for side in (8000, 13_000, 20_000):
        yield f"{side}x{side} of zeros.png", png(side, side, depth=1, color=0, data=bytes((side // 8 + 1) * side))
    yield "a line of 10 million.png", png(10_000_000, 1, data=bytes(30_000_001))
    yield "text of 100 MB.png", encoded("PNG")[:33] + _text(100_000_000) + encoded("PNG")[33:]


def _text(size: int) -> bytes:
    """Make the compressed text of a PNG that grows to a size."""
    content = b"Comment\0\0" + zlib.compress(bytes(size), 9)
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


def damaged(rng: random.Random) -> Iterator[tuple[str, Content]]:
    """Yield valid images with bytes flipped, changed, cut out or put in, most of them in the header."""
    wholes = [(format, encoded(format)) for format in FORMATS]
    while True:
        format, whole = rng.choice(wholes)
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            place = rng.randrange(len(content) if rng.random() < 0.3 else min(len(content), 120))
            way = rng.randrange(4)
            if way == 0:
                content[place] ^= 1 << rng.randrange(8)
            elif way == 1:
                content[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif way == 2:
                del content[place : place + rng.choice([1, 2, 4])]
            else:
                content[place:place] = rng.randbytes(rng.choice([1, 4]))
        yield f"damaged {format}", bytes(content)


def images(rng: random.Random, folder: Path, count: int) -> Iterator[Trial]:
    """Read odd images, then damaged ones, in children, fifty each."""
    source = islice((one for each in (hostile(), damaged(rng)) for one in each), count)
    while batch := list(islice(source, BATCH)):
        place, named = fresh(folder / "trial"), []
        for number, (name, content) in enumerate(batch):
            named.append((name, place / f"{number}{Path(name).suffix}"))
            if isinstance(content, bytes):
                named[-1][1].write_bytes(content)
            else:
                content(named[-1][1])
        while named:
            ended = run(partial(read_all, [path for _, path in named]), place)
            said = re.findall("^\t(.*)\n", ended.output, re.MULTILINE)
            for (name, _), problem in zip(named, said, strict=False):
                yield name, problem or None
            if ended.status:
                yield named[len(said)][0], f"the reader ended with status {ended.status}: {last_line(ended.output)}"
            named = named[len(said) + 1 :]
        if (place / "ran").exists():
            yield "PostScript.png", "it ran"


def read_all(paths: list[Path]) -> None:
    """Read images, and print for each a line of what is wrong with that."""
    start = memory()
    for path in paths:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing; then the process ends
        problem = fault(path)
        if memory() - start > MEGABYTES:
            problem, start = f"took {memory() - start:.0f} MB", memory()
        print(f"\t{' '.join(problem.split())}", flush=True)


def memory() -> float:
    """Return the most megabytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def fault(path: Path) -> str:
    """Say what is wrong with what comes of a file; nothing if it is RGB, or an error of one line."""
    try:
        read_size(path)
        found = read_image(path)
    except InputError as error:
        fine = len(str(error).splitlines()) == 1 and len(str(error)) < 400 + len(str(path))
        return "" if fine else f"an error that is not one line: {str(error)[:200]!a}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]!a}"
    fine = found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.size > 0
    return "" if fine else f"gave {found.dtype}{found.shape}"

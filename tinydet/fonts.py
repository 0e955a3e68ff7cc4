"""Find a font that has the characters of class names: Pillow's own has those of English, and no ä."""

import re
import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
# Files of upright, regular sans-serif fonts, first those of most alphabets, then those of Chinese, Japanese, Korean.
NAMES = re.compile(
    r"(DejaVuSans|Arial|LiberationSans-Regular|NotoSans-Regular|segoeui|Arial Unicode|NotoSans(Mono)?CJK.*Regular"
    r"|SourceHanSans.*Regular|DroidSansFallback(Full)?|wqy-(micro|zen)hei|msyh|simhei|simsun|PingFang|Hiragino Sans GB"
    r"|meiryo|YuGoth.*|ipag|ipaexg|malgun|AppleSDGothicNeo|NanumGothic)\.(ttf|ttc|otf)",
    re.IGNORECASE,
)


def load_font(text: str, *, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load a font to draw a text with: Pillow's own where it has all characters, else the first installed one."""
    plain = ImageFont.load_default(size=size)
    if text.isascii() or not (lacked := lacking(plain, frozenset(text))):
        return plain
    path, _ = find_font(lacked)
    return ImageFont.truetype(path, size) if path else plain


@lru_cache(maxsize=64)
def find_font(characters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """Find the installed font with most of some characters -> its file, and those that it lacks; warn of such once."""
    found = _font_files()
    lacked = {path: _lacking_in(path, characters) for path in found}
    best = min((path for path in found if lacked[path] != characters), key=lambda path: len(lacked[path]), default=None)
    missing = lacked[best] if best else lacking(ImageFont.load_default(size=16), characters)
    if missing:
        warn_of_boxes()
    return (str(best) if best else None), missing


@lru_cache
def _font_files() -> list[Path]:
    """List the installed files of the fonts that are looked for."""
    folders = [Path(folder).expanduser() for folder in FOLDERS]
    if matplotlib := find_spec("matplotlib"):  # which brings DejaVu Sans
        folders += [Path(place) / "mpl-data/fonts/ttf" for place in matplotlib.submodule_search_locations or ()]
    return [path for folder in folders for path in folder.rglob("*") if NAMES.fullmatch(path.name)]


def _lacking_in(path: Path, characters: frozenset[str]) -> frozenset[str]:
    """List the characters that a file of a font has not: all of them, if it cannot be read."""
    try:
        return lacking(ImageFont.truetype(path, 16), characters)
    except OSError:
        return characters


@lru_cache
def warn_of_boxes() -> None:
    """Warn, once, that no font has some characters."""
    warnings.warn(
        "some names are drawn as boxes, for want of a font with their characters; install one, such as Noto Sans CJK",
        stacklevel=2,
    )


def lacking(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, characters: frozenset[str]) -> frozenset[str]:
    """List the characters that a font has not, and draws as it draws one that does not exist."""
    nothing = bytes(font.getmask("\U0010ffff"))
    return frozenset(one for one in characters if not one.isspace() and bytes(font.getmask(one)) == nothing)

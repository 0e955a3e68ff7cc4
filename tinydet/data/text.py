"""Lines and numbers of text files, and how a file is called in an error."""

import math
from os import PathLike
from pathlib import Path

from tinydet.errors import InputError


def shown(path: str | PathLike[str]) -> str:
    """A path shortened to its file and folder."""
    return "/".join(Path(path).parts[-2:])


def read_text(path: Path) -> str:
    """All of a text file.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{shown(path)}: not a text file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def read_lines(path: Path) -> list[str]:
    """A text file's lines without the blank ones at its end; errors are those of `read_text`."""
    return read_text(path).rstrip().splitlines()


def number(word: str, *, where: str) -> float:
    """One finite number.

    Raises:
        InputError: it is none; `where` begins the message.
    """
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{where} is not a number ({word!r})") from None
    if not math.isfinite(value):
        raise InputError(f"{where} is not finite ({word!r})")
    return value

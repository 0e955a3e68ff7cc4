"""Errors about the user's input, and how readers collect them."""

import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
# Control characters, those that end a line or turn its direction, and halves of characters, which no encoding has.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BRIEF = reprlib.Repr()  # never deeper than a few lists, or longer than a few of their items
BRIEF.maxlevel, BRIEF.maxstring, BRIEF.maxlong, BRIEF.maxother = 3, 10**9, 100, 100
MAX_WORD = 60  # characters of a word in a message
MAX_CHOICES = 1000  # that are compared with a word for the most similar one


class InputError(ValueError):
    """An error in what the user gave: names the file, the line and the value; the command line exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(visible, message.split("\n"))))


class SharedError(InputError):
    """An error of one or all of several processes that each of them raises; the first prints it."""


class LostProcessError(RuntimeError):
    """Another process has ended, or cannot be reached."""


class NotFoundError(InputError):
    """An error that a path holds nothing of the kind that was looked for."""


# What a reader calls with an error: if it returns, the reader leaves out what is wrong and goes on.
OnError = Callable[[InputError], None]


def raise_error(error: Exception) -> None:
    """Raise the error: the default of every `on_error`."""
    raise error


def try_call(on_error: OnError, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T | None:
    """Call the function, and pass an InputError on to `on_error`: the result is None then."""
    try:
        return function(*args, **kwargs)
    except InputError as error:
        on_error(error)
        return None


def visible(text: str) -> str:
    """Replace control characters, which a class name or a path may hold, by their escapes, such as \\x1b."""
    return CONTROL.sub(lambda one: repr(one[0])[1:-1], text)


def shorten(text: str, *, most: int = MAX_WORD) -> str:
    """Cut a text, its control characters visible, at a number of characters."""
    text = visible(text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: object) -> str:
    """Quote a value that a file holds, of any type, length and depth, as Python writes it; cut at 60 characters."""
    return shorten(BRIEF.repr(value))


def list_some(texts: Sequence[str], *, most: int = 3, between: str = ", ") -> str:
    """List the first of many texts, each cut at 100 characters, and three dots for others."""
    return between.join([*(shorten(text, most=100) for text in texts[:most]), *(["..."] if len(texts) > most else [])])


def list_names(names: Iterable[str]) -> str:
    """List names of classes, cut at 200 characters."""
    return shorten(", ".join(names), most=200)


def nearest(value: object, choices: Iterable[str]) -> str:
    """End a message with the most similar choice, "; did you mean lite0?", or with nothing where none is similar."""
    found = get_close_matches(str(value)[:MAX_WORD].lower(), [*islice(choices, MAX_CHOICES)], n=1)
    return f"; did you mean {shorten(found[0])}?" if found else ""

"""Errors about the user's input, and how readers collect them."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class InputError(ValueError):
    """An error in what the user gave: names the file, the line and the value; the command line exits with status 2."""


class NotFoundError(InputError):
    """An error that a path holds nothing of the kind that was looked for."""


# What a reader calls with an error: if it returns, the reader leaves out what is wrong and goes on.
OnError = Callable[[InputError], None]


def raise_error(error: InputError) -> None:
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


def list_some(texts: Sequence[str], *, most: int = 3, between: str = ", ") -> str:
    """List the first of many texts, and three dots for others."""
    return between.join([*texts[:most], *(["..."] if len(texts) > most else [])])


def nearest(value: object, choices: Iterable[str]) -> str:
    """End a message with the most similar choice, "; did you mean lite0?", or with nothing where none is similar."""
    found = get_close_matches(str(value).lower(), [*choices], n=1)
    return f"; did you mean {found[0]}?" if found else ""

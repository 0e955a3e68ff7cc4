"""The one error that is about the user's input, and what becomes of it."""

from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


class InputError(ValueError):
    """Something given by the user cannot be used: the message names the file, the line and the value.

    The command line prints it as one line and exits with status 2; code gets an ordinary `ValueError`.
    """


Report = Callable[[InputError], None]
"""What a reader does with an error: if it returns, the reader goes on without what is wrong."""


def stop(error: InputError) -> None:
    """The report that does not go on."""
    raise error


def attempt(report: Report, make: Callable[..., Made], /, *args: Any, **kwargs: Any) -> Made | None:
    """What a function makes of its arguments, or None where that is an error that was reported."""
    try:
        return make(*args, **kwargs)
    except InputError as error:
        report(error)
        return None

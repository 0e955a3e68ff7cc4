"""Fields of records, each declared once: default, help text, choices and bounds; and their check."""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

from tinydet.errors import CONTROL, InputError, nearest, quoted

NUMBERS: dict[Any, type] = {int: Integral, float: Real}
LONGEST_NAME = 200  # characters
MOST_NAMES = 100_000  # of the classes of a model or of data


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    low: float = -sys.float_info.max,
    above: bool = False,
    high: float = sys.float_info.max,
    most: int | None = None,
) -> Any:
    """Declare a field: default, help text, choices, bounds of its numbers and most values, if it holds several.

    Args:
        default: without one, the field must be given.
        help: for the command line.
        choices: a text must be one of these.
        low: least number, which each must lie `above` if so said.
        high: largest number.
        most: largest length of a tuple.
    """
    facts = {"help": help, "choices": choices, "low": low, "above": above, "high": high, "most": most}
    return dataclasses.field(default=default, metadata=facts)


def check_fields(record: Any) -> None:
    """Check every field of a frozen dataclass against its type and what `setting` declared; lists become tuples.

    Raises:
        InputError: naming the field and its value. A bool is no number, a whole number is one of `float`, and no
            number is NaN or infinite.
    """
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value, hint = getattr(record, field.name), hints[field.name]
        try:
            value = _typed(value, hint)
        except TypeError:
            wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
            raise InputError(f"{field.name} must be of type {wanted}, got {quoted(value)}") from None
        object.__setattr__(record, field.name, value)
        if field.metadata and value is not None:
            _check(field.name, value, field.metadata)


def check_name(name: str, *, kind: str) -> None:
    """Raise InputError unless a name is 1 to `LONGEST_NAME` characters that can be printed."""
    if not 0 < len(name) <= LONGEST_NAME or CONTROL.search(name):
        wanted = f"1 to {LONGEST_NAME} characters, none of them a control character"
        raise InputError(f"{kind} must be {wanted}, got {quoted(name)}")


def _typed(value: Any, hint: Any) -> Any:
    """Return a value of the type, its lists as tuples; raise TypeError if it is of another."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for one in args:
            with suppress(TypeError):
                return _typed(value, one)
    elif origin is tuple and isinstance(value, (list, tuple)):
        items = args[:1] * len(value) if args[-1] is ... else args
        if len(items) == len(value):
            return tuple(map(_typed, value, items))
    elif isinstance(value, NUMBERS.get(hint, origin or hint)) and not (hint in NUMBERS and isinstance(value, bool)):
        return value
    raise TypeError


def _check(name: str, value: Any, facts: Mapping[str, Any]) -> None:
    """Raise InputError for a value that is none of the choices, too long, or holds a number too low or too high."""
    choices, low, high, most = (facts[fact] for fact in ("choices", "low", "high", "most"))
    if choices and value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {quoted(value)}{nearest(value, choices)}")
    if most is not None and len(value) > most:
        raise InputError(f"{name} must hold at most {most}, got {len(value)}")
    for number in _numbers(value):
        if not (number > low if facts["above"] else number >= low):
            raise InputError(f"{name} must be {'above' if facts['above'] else 'at least'} {low:g}, got {quoted(value)}")
        if not number <= high:
            raise InputError(f"{name} must be at most {high:.10g}, got {quoted(value)}")


def _numbers(value: Any) -> Iterator[Any]:
    """Yield the numbers of a value, however deep in tuples."""
    if isinstance(value, tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, Real):
        yield value

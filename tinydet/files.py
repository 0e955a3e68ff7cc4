"""Reading text with errors that name the file and the line, and writing files that are whole or not there."""

import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from tinydet.errors import InputError, OnError, raise_error, try_call

PathLike = str | os.PathLike[str]
T = TypeVar("T")


@contextmanager
def atomic_write(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once it is whole; an error or a crash leaves the old one."""
    partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def short_path(path: PathLike) -> str:
    """Shorten a path to its file and folder, the way that messages name it."""
    return "/".join(Path(path).parts[-2:])


def match_paths(paths: Sequence[PathLike], names: Sequence[str]) -> list[int]:
    """Find the name of each path: the one that agrees with it in the most parts, counted from the file name.

    Backslashes are slashes.

    >>> match_paths(["data/cam2/0001.jpg"], ["cam1/0001.jpg", "cam2/0001.jpg"])
    [1]

    Returns:
        The row of each path's name in `names`.

    Raises:
        InputError: a path has no such name, or several that agree equally well, or that of another path.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, name in enumerate(names):
        for end in _endings(name):
            rows.setdefault(end, []).append(row)
    matched: dict[int, PathLike] = {}
    for path in paths:
        found = next((rows[end] for end in _endings(path) if end in rows), [])
        if not found:
            raise InputError(f"{path}: the annotations have no image {Path(path).name!r}")
        if len(found) > 1:
            raise InputError(f"{path}: may be {names[found[0]]} or {names[found[1]]} of the annotations")
        if (other := matched.setdefault(found[0], path)) is not path:
            raise InputError(f"{path}: the annotations have one image, {names[found[0]]}, for it and for {other}")
    return [*matched]


def _endings(path: PathLike) -> list[tuple[str, ...]]:
    """List the last parts of a path, first all of them, last the file name alone."""
    parts = tuple(os.fspath(path).replace("\\", "/").split("/"))
    return [parts[i:] for i in range(len(parts))]


def read_text(path: PathLike) -> str:
    """Read a text file; raise InputError if it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{short_path(path)}: not a text file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def parse_lines(path: PathLike, parse: Callable[..., T], *args: Any, on_error: OnError = raise_error) -> dict[int, T]:
    """Map the numbers of a file's lines, but for blank ones at its end, to `parse(line, *args, where=file:number)`."""
    lines, where = read_text(path).rstrip().splitlines(), short_path(path)
    tried = ((n, try_call(on_error, parse, line, *args, where=f"{where}:{n}")) for n, line in enumerate(lines, start=1))
    return {n: parsed for n, parsed in tried if parsed is not None}


def read_json(path: PathLike) -> Any:
    """Read a JSON file as `read_text` does; the error where it is not JSON names the line and the character."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"{short_path(path)}:{error.lineno}"
        raise InputError(f"{where}: not JSON ({error.msg}, character {error.colno})") from None


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the search for cycles, which millions of new objects of a JSON file would start again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse_float(word: str, *, where: str) -> float:
    """Parse one finite number; `where` begins the message of the InputError where it is not one."""
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{where} is not a number ({word!r})") from None
    if not math.isfinite(value):
        raise InputError(f"{where} is not finite ({word!r})")
    return value

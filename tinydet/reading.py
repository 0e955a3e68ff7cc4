"""Read text, lines, JSON and YAML, and check what is in them: errors name the file, the line and the value."""

import codecs
import gc
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from tinydet.errors import InputError, OnError, quoted, raise_error, shorten, try_call
from tinydet.files import PathLike, short_path

T = TypeVar("T")
MAX_BYTES, MAX_JSON = 2**29, 2**32  # of a file
MAX_DEPTH = 100  # of lists and objects in each other
LARGEST = 1e15  # number of a box or a score
# JSON's backslashes, its characters of two halves, and a half alone
ESCAPES = re.compile(r"\\\\|\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|(\\u[dD][89a-fA-F]\w\w)")
# What a field of a file must hold: a type, float being any finite number; None; {key: field}; {str: field}, whatever
# the keys; [field] for each item; or a tuple of several of these.
Field = Any
KINDS: dict[Any, str] = {float: "a finite number", str: "text", list: "a list", dict: "an object", None: "nothing"}


def read_bytes(path: PathLike, *, largest: int = MAX_BYTES) -> bytes:
    """Read a file; raise InputError if it cannot be read, is larger, or is a pipe or a device, which may never end."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: not a file")
        if found.st_size > largest:
            raise InputError(f"{path}: {found.st_size:,} bytes, and at most {largest:,} of such a file are read")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def read_text(path: PathLike, *, largest: int = MAX_BYTES) -> str:
    """Read a text file, UTF-8 or with a mark of UTF-16, as `read_bytes` does; raise InputError if it is neither."""
    content = read_bytes(path, largest=largest)
    try:
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        good = len(text.partition("\0")[0].encode()) if "\0" in text else None
    except UnicodeDecodeError as error:
        good = error.start
    if good is not None:
        line = content[:good].count(b"\n") + 1
        raise InputError(f"{short_path(path)}:{line}: not UTF-8 text; save it as UTF-8")
    return text


def parse_lines(path: PathLike, parse: Callable[..., T], *args: Any, on_error: OnError = raise_error) -> dict[int, T]:
    """Map the numbers of a file's lines, but for blank ones, to `parse(line, *args, where=file:number)`."""
    lines, where = enumerate((try_call(on_error, read_text, path) or "").splitlines(), start=1), short_path(path)
    tried = ((n, try_call(on_error, parse, line, *args, where=f"{where}:{n}")) for n, line in lines if line.strip())
    return {n: parsed for n, parsed in tried if parsed is not None}


def read_json(path: PathLike) -> Any:
    """Read a JSON file as `read_text` does; the error where it is not JSON names the line and the character."""
    return parse_json(read_text(path, largest=MAX_JSON), path=path)


def parse_json(text: str, *, path: PathLike, line: int = 1) -> Any:
    """Parse JSON that begins at a line of a file; half a character, as of an emoji cut in two, becomes its escape."""
    if "\\u" in text:
        text = ESCAPES.sub(lambda one: "\\" * bool(one[1]) + one[0], text)
    try:
        return _check_depth(json.loads(text))
    except json.JSONDecodeError as error:
        where = f"{short_path(path)}:{line + error.lineno - 1}"
        raise InputError(f"{where}: not JSON ({error.msg}, character {error.colno})") from None
    except (ValueError, RecursionError) as error:
        reason = "a number of thousands of digits" if isinstance(error, ValueError) else "lists in lists in lists"
        raise InputError(f"{short_path(path)}:{line}: not JSON that can be read ({reason})") from None


def _check_depth(content: Any) -> Any:
    """Return lists and objects; raise RecursionError if they are too deep in each other to be compared or written."""
    level: list[Any] = [[content]]
    for _ in range(MAX_DEPTH + 1):
        inner = chain.from_iterable(one.values() if type(one) is dict else one for one in level)
        level = [one for one in inner if type(one) is dict or type(one) is list]
        if not level:
            return content
    raise RecursionError


def read_yaml(path: PathLike, *, as_text: bool = False) -> Any:
    """Read a YAML file as `read_json` reads JSON; with `as_text` all values are as they are written."""
    import yaml  # comes with albumentations

    largest = 2**20 if as_text else 2**17  # of which PyYAML takes seconds
    text, where = read_text(path, largest=largest), short_path(path)

    class Loader(yaml.BaseLoader if as_text else yaml.SafeLoader):  # type: ignore[misc]
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):  # of aliases of aliases a file of nine lines fills the memory
                line, name = event.start_mark.line + 1, shorten(event.anchor)
                raise InputError(f"{where}:{line}: *{name} stands for another value; write that out")
            deeper = isinstance(event, yaml.CollectionStartEvent)
            self.depth += deeper
            if self.depth > MAX_DEPTH:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.depth -= deeper
            if isinstance(node, yaml.ScalarNode):  # whose escapes may be halves of characters
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "backslashreplace")
            if isinstance(node, yaml.MappingNode):
                keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                first = {key.value: key for key in reversed(keys)}
                if twice := [key for key in keys if first[key.value] is not key]:
                    line, name = twice[0].start_mark.line + 1, shorten(twice[0].value)
                    raise InputError(f"{where}:{line}: {name} is there twice")
            return node

    try:
        return Loader(text).get_single_data()
    except InputError:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = shorten(problem or str(error).splitlines()[0], most=100)
        raise InputError(f"{where}{line}: not YAML ({reason})") from None
    except RecursionError:
        raise InputError(f"{where}: not YAML that can be read (lists in lists in lists)") from None
    except Exception as error:  # of all kinds, of values such as the date 2001-99-99
        raise InputError(f"{where}: not YAML that can be read ({shorten(str(error), most=100)})") from None


def check_field(value: Any, field: Field, *, where: str) -> None:
    """Check what was read of a file; `where`, and the keys that lead to what is wrong, begin the InputError's message.

    >>> check_field({"size": [10, "20"]}, {"size": [float]}, where="a.json")
    Traceback (most recent call last):
    tinydet.errors.InputError: a.json: size: number 1 must be a finite number, got '20'
    """
    fields = field if isinstance(field, tuple) else (field,)
    fitting = [one for one in fields if _fits(value, one)]
    if not fitting:
        kinds = (KINDS[one if one is None or isinstance(one, type) else type(one)] for one in fields)
        raise InputError(f"{where} must be {' or '.join(kinds)}, got {quoted(value)}")
    if isinstance(one := fitting[0], dict):
        for key in value if str in one else one:
            check_field(value.get(key), one.get(key, one.get(str)), where=f"{where}: {shorten(str(key))}")
    if isinstance(one, list):
        for n, inner in enumerate(value):
            check_field(inner, one[0], where=f"{where}: number {n}")


def _fits(value: Any, field: Field) -> bool:
    """Say whether a value is of a field's kind, whatever is in it; a bool is no number."""
    if field is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return value is None if field is None else type(value) is (field if isinstance(field, type) else type(field))


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
        value = float(word if "_" not in word else "")  # Python's own digits may be grouped
    except ValueError:
        raise InputError(f"{where} is not a number ({quoted(word)})") from None
    if not abs(value) <= LARGEST:
        problem = f"beyond {LARGEST:g}" if math.isfinite(value) else "not finite"
        raise InputError(f"{where} is {problem} ({quoted(word)})")
    return value

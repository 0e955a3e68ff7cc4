"""Files that a command writes: checked before the work, so that nothing else is replaced."""

from pathlib import Path
from typing import Any

import click

from tinydet.errors import InputError
from tinydet.files import check_writable, output_errors

# What the first kilobyte holds of a file that tinydet wrote, by its suffix.
MARKS = {".html": b'content="tinydet"', ".png": b"tinydet", ".svg": b"Matplotlib", ".pdf": b"%\xac\xdc \xab\xba"}
MARKS |= {".onnx": b"\x12\x07pytorch", ".pt2": b"model_weights_config"}


def check_output(path: Path, *suffixes: str, by: str) -> None:
    """Make the folder of a file to write; raise InputError unless it can hold that, and nothing else is replaced.

    A file with one of the suffixes, if there are any, replaces one that tinydet wrote.
    """
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{path}: {by} writes a file named *{' or *'.join(suffixes)}")
    with output_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; name another by {by}")
        if suffixes and path.exists():
            with open(path, "rb") as file:
                begin = file.read(1024)
            if begin and MARKS[path.suffix] not in begin:
                raise InputError(f"{path}: exists, and was not written by tinydet; name another file by {by}")
    check_writable(path.parent)


class Output(click.Path):
    """A path of a file to write, of these suffixes, that `check_output` checks before the work."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        check_output(path, *self.suffixes, by=param.opts[0] if param else "")
        return path

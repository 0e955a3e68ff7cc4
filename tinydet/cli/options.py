"""What the options of several verbs have in common: how they read, and on which device to compute."""

from typing import Any

import click

from tinydet.errors import InputError


class Size(click.ParamType):
    """HxW, such as 256x896; or auto, where that may be."""

    def __init__(self, *, auto: bool = False) -> None:
        self.auto, self.name = auto, "HxW|auto" if auto else "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int] | str:
        if isinstance(value, tuple) or (self.auto and value == "auto"):
            return value
        height, _, width = str(value).partition("x")
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            self.fail(f"{value!r} is not HEIGHTxWIDTH in pixels, such as 256x896", param, ctx)
        return int(height), int(width)


class Names(click.ParamType):
    """Names with commas between."""

    name = "A,B,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        if not all(names) or len({name.lower() for name in names}) != len(names):
            self.fail(f"{value!r} is not a list of different names with commas between", param, ctx)
        return names


class BatchSize(click.ParamType):
    """N, or auto, which is None."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if not (str(value).isdecimal() and int(value)):
            self.fail(f"{value!r} is neither a positive number nor auto", param, ctx)
        return int(value)


class Pairs(click.ParamType):
    """NEW=OLD with commas between."""

    name = "NEW=OLD,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        if isinstance(value, tuple):
            return value
        pairs = tuple(tuple(name.strip() for name in pair.split("=")) for pair in str(value).split(","))
        if not all(len(pair) == 2 and all(pair) for pair in pairs):
            self.fail(f"{value!r} is not NEW=OLD with commas between, such as Cyclist=bicycle,Van=car", param, ctx)
        return pairs


def choose_device(name: str) -> str:
    """The device to compute on; "auto" is a GPU where there is one."""
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
model_option = click.option(
    "--model", help="d0 .. d7, d7x, lite0 .. lite4, lite3x, d0-symmetric; that of the weights, or d0."
)
weights_option = click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="A checkpoint of tinydet, effdet or zylo117, or coco; auto is the newest run's best.pt, else coco.",
)
class_map_option = click.option(
    "--class-map", type=Pairs(), default=(), help="Names that the weights have for classes, where theirs differ."
)

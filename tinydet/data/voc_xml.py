"""The XML files of Pascal VOC."""

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from tinydet.errors import InputError, OnError, quoted, raise_error, shorten, try_call
from tinydet.files import short_path
from tinydet.reading import parse_float, read_bytes


class VocObjects(NamedTuple):
    """The N objects of an XML file."""

    path: Path | None  # the XML file, if there is one
    filename: str  # the image, as the file names it
    size: tuple[int, ...]  # (height, width) of the image, as the file states it; empty where it does not
    names: list[str]  # class names; empty for an object that is marked difficult
    boxes: np.ndarray  # float64[N 4], xyxy, original pixels, not clipped
    numbers: list[int]  # which objects of the file these are, from 1


NO_OBJECTS = VocObjects(None, "", (), [], np.zeros((0, 4)), [])


def read_voc(path: Path, *, on_error: OnError = raise_error) -> VocObjects:
    """Read an XML file, without the objects whose error `on_error` took.

    VOC counts pixels from 1, and xmax and ymax are the last ones inside: a box is (xmin - 1, ymin - 1, xmax, ymax).
    """
    root, where = _read_xml(path), short_path(path)
    sides = [_text(root, f"size/{side}") for side in ("height", "width")]
    tried = [try_call(on_error, _parse_object, one, n, where=where) for n, one in enumerate(root.iterfind("object"), 1)]
    found = {n: parsed for n, parsed in enumerate(tried, 1) if parsed}
    return VocObjects(
        path=path,
        filename=_text(root, "filename"),
        size=tuple(int(float(side)) for side in sides)
        if all(re.fullmatch(r"\d{1,9}(\.\d*)?", side) for side in sides)
        else (),
        names=[name for name, _ in found.values()],
        boxes=np.array([box for _, box in found.values()], dtype=np.float64).reshape(-1, 4),
        numbers=[*found],
    )


class _WithoutDoctype(ElementTree.TreeBuilder):
    """A builder that refuses a DOCTYPE, whose entities may stand for each other until they fill the memory."""

    def doctype(self, *_: str | None) -> None:
        raise ValueError("it has a DOCTYPE: delete that")


def _read_xml(path: Path) -> ElementTree.Element:
    """Read the outer element of an XML file."""
    where, content = short_path(path), read_bytes(path)
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutDoctype()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of the encoding
        encoding = "; save it as UTF-8" if "\ufffd" in content.decode(errors="replace") else ""
        raise InputError(f"{where}: not readable XML ({shorten(str(error), most=100)}){encoding}") from None
    if root.tag != "annotation":
        raise InputError(f"{where}: not Pascal VOC; its outer element is <{shorten(root.tag)}>, not <annotation>")
    return root


def _text(element: ElementTree.Element, tags: str) -> str:
    """Get the text of an inner element, by tags such as bndbox/xmin; empty if there is none."""
    return (element.findtext(tags) or "").strip()


def _parse_object(element: ElementTree.Element, number: int, *, where: str) -> tuple[str, list[float]]:
    """Parse the class name, empty if it is difficult, and the xyxy box of one object."""
    name = _text(element, "name")
    where = f"{where}: object {number} ({shorten(name) or 'without name'})"
    texts = {tag: _text(element, f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")}
    if missing := [tag for tag, text in {"name": name, **texts}.items() if not text]:
        raise InputError(f"{where} has no {missing[0]}")
    x1, y1, x2, y2 = (parse_float(text, where=f"{where}: {tag}") for tag, text in texts.items())
    for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high <= low - 1:
            raise InputError(f"{where}: {axis}max < {axis}min ({high:g}, {low:g})")
    if (difficult := _text(element, "difficult")) not in ("", "0", "1"):
        raise InputError(f"{where}: difficult is {quoted(difficult)}; it must be 0 or 1")
    return "" if difficult == "1" else name, [x1 - 1, y1 - 1, x2, y2]

"""Pascal VOC: an XML file of objects for each image, in the folders of VOC and of the tools that write its format."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from tinydet.data.dataset import DetectionDataset, Frame, join_frames
from tinydet.data.images import IMAGE_SUFFIXES, read_size
from tinydet.data.splits import check_split, class_labels, draw_split, resolve_classes, split_of, unlabelled_note
from tinydet.errors import InputError, NotFoundError, OnError, raise_error, try_call
from tinydet.files import PathLike, files_by_stem, list_files, parse_float, parse_lines, short_path

# Where the XML files and the images of a folder lie: VOC's names, those of other tools, or the folder itself.
ANNOTATION_FOLDERS = ("Annotations", "annotations", "annotations/xmls", "")
IMAGE_FOLDERS = ("JPEGImages", "images", "")


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
        if all(re.fullmatch(r"\d+(\.\d*)?", side) for side in sides)
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
    where = short_path(path)
    try:
        content = path.read_bytes()
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutDoctype()))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of the encoding
        encoding = "; save it as UTF-8" if "\ufffd" in content.decode(errors="replace") else ""
        raise InputError(f"{where}: not readable XML ({error}){encoding}") from None
    if root.tag != "annotation":
        raise InputError(f"{where}: not Pascal VOC; its outer element is <{root.tag}>, not <annotation>")
    return root


def _text(element: ElementTree.Element, tags: str) -> str:
    """Get the text of an inner element, by tags such as bndbox/xmin; empty if there is none."""
    return (element.findtext(tags) or "").strip()


def _parse_object(element: ElementTree.Element, number: int, *, where: str) -> tuple[str, list[float]]:
    """Parse the class name, empty if it is difficult, and the xyxy box of one object."""
    name = _text(element, "name")
    where = f"{where}: object {number} ({name or 'without name'})"
    texts = {tag: _text(element, f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")}
    if missing := [tag for tag, text in {"name": name, **texts}.items() if not text]:
        raise InputError(f"{where} has no {missing[0]}")
    x1, y1, x2, y2 = (parse_float(text, where=f"{where}: {tag}") for tag, text in texts.items())
    for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high <= low - 1:
            raise InputError(f"{where}: {axis}max < {axis}min ({high:g}, {low:g})")
    if (difficult := _text(element, "difficult")) not in ("", "0", "1"):
        raise InputError(f"{where}: difficult is {difficult!r}; it must be 0 or 1")
    return "" if difficult == "1" else name, [x1 - 1, y1 - 1, x2, y2]


class VocPart(NamedTuple):
    """Where XML files and their images lie."""

    annotations: Path
    images: Path


class VocFolder(NamedTuple):
    """Where the parts of a Pascal VOC folder lie."""

    path: Path
    parts: dict[str, VocPart]  # of "train" and "val", or of "all"
    left_out: list[Path]  # folders of other splits


def find_voc(root: PathLike) -> VocFolder:
    """Find XML files and images in VOC's folder or its one year, side by side, or in folders of each split."""
    root = Path(root)
    years = [path for glob in ("VOC[0-9]*", "VOCdevkit/VOC[0-9]*") for path in sorted(root.glob(glob)) if _part(path)]
    if len(years) > 1:
        raise InputError(f"{root}: holds {len(years)} years of Pascal VOC; give one of {', '.join(map(str, years))}")
    place = years[0] if years else root
    if part := _part(place):
        return VocFolder(place, {"all": part}, [])
    found = {path: part for path in sorted(root.glob("*")) if (part := _part(path))}
    paths: dict[str, Path] = {}
    for path in found:
        split = split_of(path.name)
        if split in ("train", "val") and (first := paths.setdefault(split, path)) != path:
            raise InputError(f"{root}: both {first.name} and {path.name} hold {split} images")
    if not paths:
        raise NotFoundError(
            f"{root}: found no Pascal VOC annotations: no XML in Annotations, beside images, or in train"
        )
    parts = {split: found.pop(path) for split, path in paths.items()}
    return VocFolder(root, parts if len(parts) == 2 else {"all": next(iter(parts.values()))}, [*found])


def _part(folder: Path) -> VocPart | None:
    """Find the XML files and the images of one folder, if it holds any."""
    annotations = (folder / name for name in ANNOTATION_FOLDERS)
    images = (folder / name for name in IMAGE_FOLDERS)
    if (found := next((place for place in annotations if any(map(_is_annotation, _first_files(place)))), None)) is None:
        return None
    return VocPart(found, next(place for place in images if place.is_dir()))


def _first_files(folder: Path) -> list[Path]:
    """List a few XML files of a folder."""
    return list_files(folder, [".xml"])[:3]


def _is_annotation(file: Path) -> bool:
    """Say whether an XML file may be one of Pascal VOC, and not of another program's."""
    with open(file, "rb") as content:
        return b"annotation" in content.read(1024).replace(b"\0", b"")  # in UTF-16 too


Image = tuple[Path, VocObjects]  # an image file and what it holds


class VocDataset(DetectionDataset):
    """One split of a Pascal VOC folder; the arguments and errors are those of `open_dataset`.

    Classes are the names that objects of either split have, in the order of the alphabet, when None. An object marked
    difficult is an ignore region; an image without an XML file holds no objects.
    """

    kind = "Pascal VOC"

    def __init__(
        self,
        root: PathLike | VocFolder,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        folder = root if isinstance(root, VocFolder) else find_voc(root)
        splits, source = _read_splits(folder, split=split, on_error=on_error)
        everything = [image for images in splits.values() for image in images]
        if split == "all":
            chosen, note = everything, f"all {len(everything)} images of {folder.path}"
        elif split in splits:
            chosen = splits[split]
            note = f"{len(chosen)} {split} images, as {source}"
        else:
            rows, note = draw_split(len(everything), split=split, seed=seed, reason=source)
            chosen = [everything[row] for row in rows]
        sized = [(*image, size) for image in chosen if (size := try_call(on_error, _upright_size, *image))]
        spelled = Counter(name for _, one in everything for name in one.names if name)
        named = {name.lower(): name for name, _ in reversed(spelled.most_common())}  # by the most frequent spelling
        held = Counter(named[name.lower()] for _, one, _ in sized for name in one.names if name)
        names, notes = resolve_classes(
            classes, held, split=split, where=short_path(folder.path), named=sorted(named.values())
        )
        frames = [
            Frame(path.stem, path, size, one.boxes, class_labels(one.names, names, ignored=[""]))
            for path, one, size in sized
        ]
        columns = join_frames(frames, [one.numbers for _, one, _ in sized])
        self._files = [one.path for _, one, _ in sized]
        notes += [f"{path}: left out; it is neither train nor val" for path in folder.left_out]
        notes += unlabelled_note([file is not None for file in self._files], split=split, what="XML")
        notes += _size_note([(one, size) for _, one, size in sized])
        super().__init__(columns, classes=names, split_note=note, notes=notes, on_error=on_error)

    def _origin(self, row: int, line: int) -> str:
        return f"{short_path(self._files[row] or '')}: object {line}"


def _upright_size(image: Path, objects: VocObjects) -> tuple[int, int]:
    """Read the (height, width) of an image; raise InputError where its objects are of the image on its side."""
    height, width = read_size(image)
    if objects.path and objects.size == (width, height) != (height, width):
        stated = f"{short_path(objects.path)} is of an image of {height}x{width}"
        raise InputError(f"{stated}, but {image} is {width}x{height} upright")
    return height, width


def _size_note(images: Iterable[tuple[VocObjects, tuple[int, int]]]) -> list[str]:
    """Say which files state another size than their image of (height, width) has."""
    wrong = [
        f"{short_path(one.path)} {'x'.join(map(str, one.size[::-1]))}, image {size[1]}x{size[0]}"
        for one, size in images
        if one.path and one.size not in (size, (), (0, 0))
    ]
    some = "; ".join(wrong[:3]) + ("; ..." if len(wrong) > 3 else "")
    note = f"{len(wrong)} XML files state another size than their image has; the image's is used: {some}"
    return [note] if wrong else []


def _read_splits(folder: VocFolder, *, split: str, on_error: OnError) -> tuple[dict[str, list[Image]], str]:
    """Read the images of train and val, of which classes are those of both, or of "all"; and say what told them."""
    if "all" not in folder.parts:
        splits = {key: [*_read_part(part, on_error=on_error).values()] for key, part in folder.parts.items()}
        return splits, f"the folders of {folder.path} say"
    lists, part = folder.path / "ImageSets/Main", folder.parts["all"]
    there = [key for key in ("train", "val") if (lists / f"{key}.txt").is_file()]
    if split == "all" or not there:
        reason = f"{folder.path} has neither train.txt nor val.txt in ImageSets/Main, nor folders of both splits"
        return {"all": [*_read_part(part, on_error=on_error).values()]}, reason
    listed = _read_lists(lists, dict.fromkeys([*there, split]), part, on_error=on_error)
    images = _read_part(part, {name for names in listed.values() for name in names}, on_error=on_error)
    splits = {key: [images[name] for name in names if name in images] for key, names in listed.items()}
    return splits, f"listed in {lists}"


def _read_lists(lists: Path, splits: Iterable[str], part: VocPart, *, on_error: OnError) -> dict[str, list[str]]:
    """Read the lists of names, and check them against the folder and each other."""
    known = {*files_by_stem(part.annotations, (".xml",)), *files_by_stem(part.images, IMAGE_SUFFIXES)}
    listed: dict[str, str] = {}

    def check(line: str, *, where: str) -> str:
        name = line.strip()
        if name not in known:  # lists of one class say too whether an image holds it: -1, 0 or 1
            name = re.sub(r"\s+(-1|0|1)$", "", name)
        if name not in known:
            raise InputError(f"{where}: {name!r} has neither an XML file nor an image")
        if (first := listed.setdefault(name, where)) != where:
            raise InputError(f"{where}: image {name!r} was listed before, in {first}")
        return name

    return {split: [*parse_lines(lists / f"{split}.txt", check, on_error=on_error).values()] for split in splits}


def _read_part(part: VocPart, names: AbstractSet[str] | None = None, *, on_error: OnError) -> dict[str, Image]:
    """Read the objects of all images, or those of some names, and find the image of each XML file."""
    files = files_by_stem(part.annotations, (".xml",), on_error=on_error)
    images = files_by_stem(part.images, IMAGE_SUFFIXES, on_error=on_error)
    free = {name: path for name, path in images.items() if name not in files}
    found: dict[str, Image] = {}
    for name, file in files.items():
        if names is not None and name not in names and names <= files.keys():
            continue
        if (objects := try_call(on_error, read_voc, file, on_error=on_error)) is None:
            continue
        # The file's own name first: images are renamed and converted more often than their XML files are rewritten.
        stated = PureWindowsPath(objects.filename)
        image = images.get(name) or free.pop(stated.stem, None) or free.pop(stated.name, None)
        if image is None:
            said = f"{name!r} or {stated.name!r}" if stated.stem not in ("", name) else repr(name)
            on_error(InputError(f"{short_path(file)}: there is no image {said} in {part.images}"))
        else:  # lists may name the image, which has another name than the XML file
            found[name if names is None or name in names else image.stem] = image, objects
    found |= {name: (path, NO_OBJECTS) for name, path in free.items()}
    return {name: found[name] for name in sorted(found) if names is None or name in names}

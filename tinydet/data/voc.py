"""Pascal VOC: an XML file of objects for each image, in the folders of VOC and of the tools that write its format."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from tinydet.data.dataset import DetectionDataset, Frame, join_frames
from tinydet.data.images import IMAGE_SUFFIXES, read_size
from tinydet.data.splits import (
    SPLITS,
    check_split,
    class_labels,
    draw_split,
    read_lists,
    resolve_classes,
    split_of,
    unlabelled_note,
)
from tinydet.data.voc_xml import NO_OBJECTS, VocObjects, read_voc
from tinydet.errors import InputError, NotFoundError, OnError, list_some, quoted, raise_error, try_call
from tinydet.files import PathLike, composed, files_by_stem, list_files, list_folders, short_path
from tinydet.reading import read_bytes

# Where the XML files and the images of a folder lie, with folders of their own, if not in the folder itself.
ANNOTATION_FOLDERS, IMAGE_FOLDERS = ("annotations", "labels"), ("jpegimages", "images", "data")
Paths = dict[str, Path]  # files by their names without suffix


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
        if split in SPLITS and (first := paths.setdefault(split, path)) != path:
            raise InputError(f"{root}: both {first.name} and {path.name} hold {split} images")
    if not paths:
        places = "in Annotations, beside images, or in train"
        raise NotFoundError(f"{root}: found no Pascal VOC annotations: no XML {places}")
    parts = {split: found.pop(path) for split, path in paths.items()}
    return VocFolder(root, parts if len(parts) == 2 else {"all": next(iter(parts.values()))}, [*found])


def _part(folder: Path) -> VocPart | None:
    """Find the XML files and the images of one folder, if it holds any."""
    images = [*list_folders(folder, IMAGE_FOLDERS), folder]
    for place in (*list_folders(folder, ANNOTATION_FOLDERS), folder):
        files = list_files(place, [".xml"], recursive=_has_folders(place))[:3]
        if any(b"annotation" in read_bytes(file)[:1024].replace(b"\0", b"") for file in files):  # in UTF-16 too
            return VocPart(place, images[0])
    return None


def _has_folders(place: Path) -> bool:
    """Say whether a place may have folders of its own, which are part of names: cam1/0001."""
    return place.name.lower() in (*ANNOTATION_FOLDERS, *IMAGE_FOLDERS)


def _by_name(part: VocPart, *, on_error: OnError) -> tuple[Paths, Paths]:
    """Map names to the XML files and to the images of a part."""
    files = files_by_stem(part.annotations, [".xml"], recursive=_has_folders(part.annotations), on_error=on_error)
    images = files_by_stem(part.images, IMAGE_SUFFIXES, recursive=_has_folders(part.images), on_error=on_error)
    return {name.removeprefix("xmls/"): path for name, path in files.items()}, images


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
            chosen, note = splits[split], f"{len(splits[split])} {split} images, as {source}"
        else:
            chosen, note = draw_split(everything, split=split, seed=seed, reason=source)
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
    text = f"{len(wrong)} XML files state another size than their image has; the image's is used"
    return [f"{text}: {list_some(wrong, between='; ')}"] if wrong else []


def _read_splits(folder: VocFolder, *, split: str, on_error: OnError) -> tuple[dict[str, list[Image]], str]:
    """Read the images of train and val, of which classes are those of both, or of "all"; and say what told them."""
    if "all" not in folder.parts:
        splits = {key: [*_read_part(part, on_error=on_error).values()] for key, part in folder.parts.items()}
        return splits, f"the folders of {folder.path} say"
    lists, part = folder.path / "ImageSets/Main", folder.parts["all"]
    there = [key for key in (*SPLITS, "trainval") if (lists / f"{key}.txt").is_file()]
    if split == "all" or not there:
        reason = f"{folder.path} has neither train.txt nor val.txt in ImageSets/Main, nor folders of both splits"
        images = _read_part(part, on_error=on_error)
        inner = {key: [one for name, one in images.items() if split_of(name.split("/")[0]) == key] for key in SPLITS}
        if all(inner.values()) and all("/" in name for name in images):
            return inner, f"the folders of {part.images} say"
        return {"all": [*images.values()]}, reason
    if there == ["trainval"]:  # what it does not list is of test
        return _read_listed(lists, there, part, on_error=on_error), f"{lists} has trainval.txt, and no train.txt"
    both = [key for key in SPLITS if key in there or key == split]
    return _read_listed(lists, both, part, on_error=on_error), f"listed in {lists}"


def _read_listed(lists: Path, splits: Sequence[str], part: VocPart, *, on_error: OnError) -> dict[str, list[Image]]:
    """Read the images that the lists of some splits name, as their XML files or as they are called."""
    files, images = by_name = _by_name(part, on_error=on_error)
    known = files.keys() | images.keys()

    def resolve(name: str, *, where: str) -> str:
        if name not in known:  # lists of one class say too whether an image holds it: -1, 0 or 1
            name = re.sub(r"\s+(-1|0|1)$", "", name)
        if name not in known:
            raise InputError(f"{where}: {quoted(name)} has neither an XML file nor an image")
        return name

    listed = read_lists(lists, splits, resolve, what="image", on_error=on_error)
    names = {name for some in listed.values() for name in some}
    found = _read_images(part, by_name, names, on_error=on_error)
    return {key: [found[name] for name in some if name in found] for key, some in listed.items()}


def _read_part(part: VocPart, *, on_error: OnError) -> dict[str, Image]:
    """Read the objects of all images of a part."""
    return _read_images(part, _by_name(part, on_error=on_error), None, on_error=on_error)


def _read_images(
    part: VocPart, by_name: tuple[Paths, Paths], names: AbstractSet[str] | None, *, on_error: OnError
) -> dict[str, Image]:
    """Read the objects of all images, or those of some names, and find the image of each XML file."""
    files, images = by_name
    free = {name: path for name, path in images.items() if name not in files}
    if names is not None and names <= files.keys():  # else one names an image, whose XML file may be any
        files = {name: file for name, file in files.items() if name in names}
    found: dict[str, Image] = {}
    for name, file in files.items():
        if (objects := try_call(on_error, read_voc, file, on_error=on_error)) is None:
            continue
        # The file's own name first: images are renamed and converted more often than their XML files are rewritten.
        stated = PureWindowsPath(composed(objects.filename))
        image = images.get(name) or free.pop(stated.stem, None) or free.pop(stated.name, None)
        if image is None:
            names_of = [name, stated.name] if stated.stem not in ("", name) else [name]
            said = " or ".join(map(quoted, names_of))
            on_error(InputError(f"{short_path(file)}: there is no image {said} in {part.images}"))
        else:  # lists may name the image, which has another name than the XML file
            found[name if names is None or name in names else composed(image.stem)] = image, objects
    found |= {name: (path, NO_OBJECTS) for name, path in free.items()}
    return {name: found[name] for name in sorted(found) if names is None or name in names}

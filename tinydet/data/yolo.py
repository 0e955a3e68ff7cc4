"""YOLO's folders: images, a text file of boxes for each, and a data.yaml, obj.data or classes.txt of class names."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from os.path import exists, isdir, isfile  # Path's own raise where a name is too long
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydet.data.dataset import DetectionDataset, Frame, join_frames
from tinydet.data.images import IMAGE_SUFFIXES, read_size
from tinydet.data.splits import (
    check_split,
    class_labels,
    draw_split,
    left_over_note,
    of_split,
    resolve_classes,
    split_of,
    unlabelled_note,
)
from tinydet.data.yolo_rows import read_yolo
from tinydet.errors import InputError, NotFoundError, OnError, list_names, quoted, raise_error, shorten, try_call
from tinydet.files import PathLike, composed, list_files, short_path
from tinydet.reading import check_field, parse_lines, read_text, read_yaml

MAX_ERRORS, MAX_PARTS = 5, 100  # that are shown of lists of images; of a path of another machine
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation")}
OTHER_TEXT = re.compile(r"(classes|train|val|valid|test|notes|readme.*)\.txt", re.IGNORECASE)  # among label files
# What is read of a data.yaml.
CONFIG: dict[str, Any] = {key: (str, [str], None) for keys in SPLIT_KEYS.values() for key in keys}
CONFIG |= {"path": (str, None), "names": ([str], {str: str}), "nc": (str, None), "kpt_shape": ([str], None)}


class YoloFolder(NamedTuple):
    """What a YOLO folder holds."""

    path: Path  # of the file that names the classes
    names: tuple[str, ...]  # of the classes
    images: dict[str, list[Path]]  # by split
    keypoints: tuple[int, int] | None = None  # of each object, and the numbers of each: kpt_shape
    errors: Sequence[InputError] = ()  # in lists of images


def find_yolo(root: PathLike) -> YoloFolder:
    """Find and read the data.yaml, obj.data or classes.txt of a folder, or the YAML file itself."""
    root, kinds = Path(root), (".yaml", ".yml", ".data")
    files = list_files(root, kinds)
    usual = [file for file in files if file.stem.lower() in ("data", "obj")]
    files = usual or [file for file in files if re.search(r"\bnames\b", read_text(file))]  # not of another program
    if root.is_file() and root.suffix.lower() in kinds:
        files = [root]
    if len(files) > 1:
        raise InputError(f"{root}: {', '.join(file.name for file in files)}: give the path of one")
    if files:
        return _read_config(files[0])
    for file in (root / "classes.txt", *list_files(root, [".names"]), root / "labels/classes.txt"):
        if file.is_file():
            names = _read_names(file)
            images = _split_by_folder(root)
            if not any(text.is_file() for some in images.values() for text in find_labels(some).values()):
                raise InputError(f"{short_path(file)} names classes, but no image in {root} has a label file")
            return YoloFolder(file, _check_names(names, where=short_path(file)), images)
    if (root / "labels").is_dir():
        raise InputError(f"{root}: there are labels, but no data.yaml or classes.txt that names the classes")
    raise NotFoundError(f"{root}: found no data.yaml")


def _read_config(file: Path) -> YoloFolder:
    """Read a data.yaml, or darknet's obj.data, which names a file of class names."""
    content, where = (_read_yaml if file.suffix != ".data" else _read_data)(file), short_path(file)
    check_field(content, CONFIG, where=where)
    names, nc, shape = content["names"], content.get("nc"), content.get("kpt_shape")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise InputError(f"{where}: names must be numbered from 0 without gaps, got {list_names(names)}")
        names = [names[str(i)] for i in range(len(names))]
    known = _check_names(names, where=where)
    if nc not in (None, str(len(known))):
        raise InputError(f"{where}: nc is {shorten(nc)}, and there are {len(known)} names")
    if shape is not None and not (len(shape) == 2 and all(re.fullmatch(r"\d{1,4}", one) for one in shape)):
        raise InputError(f"{where}: kpt_shape must be [keypoints, numbers of each], got {quoted(shape)}")
    base, errors = file.parent / content.get("path", ""), list[InputError]()
    base, images = base if isdir(base) else file.parent, dict[str, list[Path]]()
    for split, keys in SPLIT_KEYS.items():
        if places := next((content[key] for key in keys if content.get(key) not in (None, "", "null", "~")), None):
            listed = places if isinstance(places, list) else [places]
            found = [try_call(errors.append, _list_images, base, place, file=file, errors=errors) for place in listed]
            images[split] = [image for some in found for image in some or ()]
    if not images:
        raise InputError(f"{where}: has neither train nor val; add the folders of their images")
    if errors and not all(images.values()):
        raise InputError("\n".join([*map(str, errors[:MAX_ERRORS]), *(["..."] if len(errors) > MAX_ERRORS else [])]))
    return YoloFolder(file, known, images, None if shape is None else (int(shape[0]), int(shape[1])), errors)


def _check_names(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Check that class names are different words."""
    if not names or "" in names:
        raise InputError(f"{where}: names must be a list of classes, got {quoted(names)}")
    if twice := [name for name, count in Counter(map(str.lower, names)).items() if count > 1]:
        raise InputError(f"{where}: two classes are called {quoted(twice[0])}")
    return tuple(names)


def _read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that has names, with all values as they are written: yes is a name, and 007 too."""
    content = read_yaml(file, as_text=True)
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{short_path(file)}: not a YOLO data file; it has no names of classes")
    return content


def _read_data(file: Path) -> dict[str, Any]:
    """Read darknet's lines "key = value", with the names in the file that they name."""
    pairs = (line.partition("=") for line in read_text(file).splitlines())
    content = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    if not content.get("names"):
        raise InputError(f"{short_path(file)}: has no line names = FILE")
    names = _read_names(_resolve_file(file.parent, content["names"], where=short_path(file)))
    return {**content, "nc": content.get("classes"), "names": names}


def _read_names(file: Path) -> list[str]:
    """Read a file of class names, one a line; an empty one among them would count as a class to other tools."""
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]
    if "" in names:
        where = f"{short_path(file)}:{names.index('') + 1}"
        raise InputError(f"{where}: an empty line among the classes; delete or name it")
    return names


def _resolve(base: Path, place: str, *, where: str) -> Path:
    """Find what a file names, in its folder too when it names folders of another machine."""
    place = place.strip()
    parts = PurePosixPath(place.replace("\\", "/")).parts
    path = base.joinpath(*parts)
    # Roboflow writes ../train/images, from a folder that the file does not lie in; CVAT data/obj_train_data.
    while 0 < len(parts) < MAX_PARTS and not exists(path) and _is_foreign(parts[0], base):
        parts = parts[1:]
        path = base.joinpath(*parts)
    if not parts or not exists(path):
        raise InputError(f"{where}: names {quoted(place)}, which is not there; looked for {base / shorten(place)}")
    if not (isfile(path) or isdir(path)):
        raise InputError(f"{where}: names {quoted(place)}, which is neither a file nor a folder")
    return path


def _resolve_file(base: Path, place: str, *, where: str) -> Path:
    """Find a file as `_resolve` does, which finds folders too."""
    if isdir(path := _resolve(base, place, where=where)):
        raise InputError(f"{where}: names {quoted(place.strip())}, which is a folder, not a file")
    return path


def _is_foreign(part: str, base: Path) -> bool:
    """Say whether the first part of a path may be a folder of another machine; that of a split is none."""
    return part in ("/", "..") or not (exists(base / part) or split_of(part))


def _list_images(base: Path, place: str, *, file: Path, errors: list[InputError]) -> list[Path]:
    """List the images of a folder, or those that a text file lists, in order, and what is wrong with its lines."""
    path = _resolve(base, place, where=short_path(file))
    if path.is_dir():
        if path.resolve() in file.resolve().parents[1:]:
            raise InputError(f"{short_path(file)}: names {quoted(place)}, in which it lies; give a folder of images")
        return list_files(path, IMAGE_SUFFIXES, recursive=True)

    def find(line: str, *, where: str) -> Path:
        return _resolve_file(path.parent, line, where=where)

    return [*parse_lines(path, find, on_error=errors.append).values()]


def _split_by_folder(root: Path) -> dict[str, list[Path]]:
    """List the images of a folder by the split that names of folders say, without those of test; as train, if none."""
    found: dict[str, list[Path]] = {}
    for image in list_files(root, IMAGE_SUFFIXES, recursive=True):
        splits = [split for part in image.relative_to(root).parts[:-1] if (split := split_of(part))]
        found.setdefault(splits[0] if splits else "", []).append(image)
    found.pop("test", None)
    return found if found.keys() == {*SPLIT_KEYS} else {"train": [image for some in found.values() for image in some]}


class YoloDataset(DetectionDataset):
    """One split of a YOLO folder; the arguments and errors are those of `open_dataset`.

    An image without a text file holds no objects. Of an outline the box around it is taken, of a row of keypoints its
    box.
    """

    kind = "YOLO"

    def __init__(
        self,
        root: PathLike | YoloFolder,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        on_error: OnError = raise_error,
    ) -> None:
        check_split(split)
        folder = root if isinstance(root, YoloFolder) else find_yolo(root)
        for error in folder.errors:
            on_error(error)
        listed, note = _split_images(folder, split=split, seed=seed)
        texts = find_labels([*dict.fromkeys(image for images in folder.images.values() for image in images)])
        owners = {text: image for image, text in reversed(texts.items())}
        for image in listed:
            if (owner := owners[texts[image]]) != image:
                same = f"{owner.name} has the same label file, {short_path(texts[image])}; rename one of them"
                on_error(InputError(f"{short_path(image)}: {same}"))
        images = [image for image in listed if owners[texts[image]] == image]
        sized = [(image, size) for image in images if (size := try_call(on_error, read_size, image))]
        where = short_path(folder.path)
        self._texts = [texts[image] for image, _ in sized]
        labelled = [text.is_file() for text in self._texts]
        if sized and not any(labelled):
            none = f"none of {len(sized)} {of_split(split)}images has a label file"
            raise InputError(f"{where}: {none}, such as {self._texts[0]}")
        objects = read_yolo(self._texts, classes=len(folder.names), keypoints=folder.keypoints, on_error=on_error)
        counts = Counter(folder.names[label] for labels, *_ in objects for label in labels.tolist())
        chosen, notes = resolve_classes(classes, counts, split=split, where=where, named=folder.names)
        if again := len(listed) - len(set(listed)):
            notes.append(f"{where}: {again} {split} images are listed more than once")
        notes += unlabelled_note(labelled, split=split, what="label")
        known = set(texts.values())
        for place in sorted({text.parent for text in self._texts}):
            names = {text.name for text in list_files(place, [".txt"]) if text not in known}
            notes += left_over_note("label files", {name for name in names if not OTHER_TEXT.fullmatch(name)}, place)
        label_of = class_labels(folder.names, chosen)
        frames = [
            Frame(image.stem, image, size, boxes * (size[::-1] * 2), label_of[labels])
            for (image, size), (labels, boxes, _) in zip(sized, objects, strict=True)
        ]
        columns = join_frames(frames, [numbers for *_, numbers in objects])
        super().__init__(columns, classes=chosen, split_note=note, notes=notes, on_error=on_error)

    def _origin(self, row: int, line: int) -> str:
        return f"{short_path(self._texts[row])}:{line}"


def _split_images(folder: YoloFolder, *, split: str, seed: int) -> tuple[list[Path], str]:
    """Choose the images of a split, and say how."""
    path, both = folder.path, folder.images
    everything = [*dict.fromkeys(image for images in both.values() for image in images)]
    if split == "all":
        return everything, f"all {len(everything)} images that {path} names"
    if len(both) == 2:
        return both[split], f"{len(both[split])} {split} images, as {path} says"
    return draw_split(everything, split=split, seed=seed, reason=f"{path} names only {'/'.join(both)}")


def find_labels(images: Sequence[Path]) -> dict[Path, Path]:
    """Find the text file of each image, or where it would be: in `labels` for `images` of its path, or beside it."""
    texts: dict[Path, Path] = {}
    by_folder: dict[Path, list[Path]] = {}
    for image in images:
        by_folder.setdefault(image.parent, []).append(image)
    for folder, some in by_folder.items():
        stems = [composed(image.stem) for image in some]
        listed = [
            (place, {composed(text.stem): text for text in list_files(place, [".txt"])})
            for place in _label_folders(folder)
        ]
        place, known = max(listed, key=lambda one: sum(stem in one[1] for stem in stems))
        texts |= {
            image: known.get(stem) or place / f"{image.stem}.txt" for image, stem in zip(some, stems, strict=True)
        }
    return texts


def _label_folders(folder: Path) -> Iterator[Path]:
    """List where the text files of a folder of images may be, the likeliest first."""
    parts = folder.parts
    for i in reversed(range(len(parts))):
        if parts[i].lower() == "images":
            yield from (Path(*parts[:i], name, *parts[i + 1 :]) for name in ("labels", "Labels", "LABELS"))
    yield folder

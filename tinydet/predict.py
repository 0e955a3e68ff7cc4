"""Predict: image files in, files of detections out."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import IO, NamedTuple

from tinydet.data.coco_file import Id, read_coco
from tinydet.data.images import IMAGE_SUFFIXES, read_image, read_size
from tinydet.draw import count_text, save_jpeg
from tinydet.errors import InputError, OnError, list_names, raise_error, try_call
from tinydet.files import (
    PathLike,
    atomic_write,
    list_files,
    lock_folder,
    match_paths,
    output_errors,
    run_files,
    write_file,
)
from tinydet.prediction import Prediction
from tinydet.prefetch import prefetch
from tinydet.reading import MAX_JSON, read_text

FOLDERS = {"kitti": ".txt", "yolo": ".txt", "images": ".jpg"}  # suffix of an image's file in each folder of an output
LINES = "predictions.jsonl"


def find_images(paths: Iterable[PathLike], *, missing: bool = True) -> Iterator[Path]:
    """Find the image files of files, folders and globs, in order; a file may be missing, or is an error."""
    for given in map(Path, paths):  # whose own methods raise where it is too long
        matching = [given] if exists(given) else [*map(Path, sorted(glob(str(given), recursive=True)))]
        if not (matching or missing):
            raise InputError(f"{given}: no such file or folder")
        every = matching or [given]
        found = [image for path in every for image in (list_files(path, IMAGE_SUFFIXES) if isdir(path) else [path])]
        if not found:
            raise InputError(f"{given}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        yield from found


def collect_images(paths: Iterable[PathLike], *, on_error: OnError = raise_error) -> list[Path]:
    """Collect the image files of files, folders and globs; report those whose header is not that of an image."""
    images = [*find_images(paths)]
    stems: dict[str, Path] = {}
    for image in images:
        if (first := stems.setdefault(image.stem, image)) is not image:
            twice = first == image
            text = "listed twice" if twice else f"its results would overwrite those of {first}; predict them separately"
            raise InputError(f"{image}: {text}")
    errors: list[InputError] = []
    readable = [image for image in images if try_call(errors.append, read_size, image)]
    if errors and not readable:
        raise InputError("\n".join(map(str, errors)))
    for error in errors:
        on_error(error)
    return readable


def read_stdin(stream: IO[bytes], folder: PathLike) -> list[str]:
    """Read the paths that a stream lists, a line each; or save the image that it is, to a folder."""
    content, image = stream.read(), Path(folder) / "stdin"
    try:
        return _listed(content.decode("utf-8-sig"), name="standard input")
    except UnicodeDecodeError:  # no image is valid UTF-8
        write_file(image, content)
    if try_call(lambda _: None, read_image, image) is None:
        raise InputError("standard input: neither UTF-8 text that lists images nor a readable image")
    return [str(image)]


def read_list(path: PathLike) -> list[str] | None:
    """Read the paths that a .txt file lists, a line each; None where it is no such file."""
    if Path(path).suffix.lower() != ".txt" or not isfile(path):
        return None
    return _listed(read_text(path, largest=MAX_JSON), name=path)


def _listed(text: str, *, name: PathLike) -> list[str]:
    """List the lines of a text that are not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{name}: lists no image")
    return lines


def newest_weights(runs: PathLike = "runs") -> Path | None:
    """Find the best weights of the run that improved last, or None where there is none."""
    return max(Path(runs).glob("*/best.pt"), key=lambda path: (path.stat().st_mtime_ns, path), default=None)


class CocoIds(NamedTuple):
    """Ids of annotations."""

    images: Mapping[Path, Id]  # by path
    categories: Mapping[str, Id]  # by the detector's name of the class, of those that the annotations have


def coco_ids(annotations: PathLike, images: Sequence[Path], *, classes: Sequence[str]) -> CocoIds:
    """Look up the ids of images, by `match_paths`, and of classes, by name in any case.

    Raises:
        InputError: the annotations cannot be read, or have not just one entry for an image, or none of the classes.
    """
    file = read_coco(annotations)
    rows = match_paths([path.absolute() for path in images], file.file_names.tolist())
    known = {name.lower(): id_ for id_, name in file.categories.items()}
    categories = {name: known[name.lower()] for name in classes if name.lower() in known}
    if not categories:
        there = list_names(file.categories.values())
        raise InputError(f"{annotations}: there is no category {list_names(classes)}; they are {there}")
    return CocoIds(dict(zip(images, file.image_ids[rows].tolist(), strict=True)), categories)


def save_predictions(
    predictions: Iterable[Prediction], out: PathLike, *, classes: Sequence[str], ids: CocoIds | None = None
) -> dict[str, int]:
    """Write each prediction as it comes, while the next is computed, and count the objects of each class.

    An image NAME.png leaves a line in predictions.jsonl and kitti/NAME.txt, yolo/NAME.txt and images/NAME.jpg, all of
    them coco.json, with the ids of annotations where given; detections of other classes than theirs are not in it.
    """
    out, counts = Path(out), Counter(dict.fromkeys(classes, 0))
    with open_lines(out, of="image") as write_line, atomic_write(out / "coco.json") as coco:
        with output_errors(out):
            for folder in FOLDERS:
                (out / folder).mkdir(exist_ok=True)
        coco.write(b"[")

        def write(numbered: tuple[int, Prediction]) -> None:
            number, prediction = numbered
            path = prediction.path
            kitti, yolo, drawn = files = image_files(out, path)
            for file in filter(os.path.lexists, files):
                raise InputError(f"{path}: its results would overwrite {file}; choose another folder")
            write_line(prediction.to_json())
            write_file(kitti, prediction.to_kitti())
            write_file(yolo, prediction.to_yolo())
            save_jpeg(prediction.draw(), drawn)
            counts.update(prediction.names)
            image_id, category_ids = (ids.images[path], ids.categories) if ids else (number, None)
            for result in prediction.to_coco(image_id, category_ids=category_ids):
                coco.write((", " if coco.tell() > 1 else "").encode() + json.dumps(result).encode())

        deque(prefetch(write, enumerate(predictions, start=1), depth=1), maxlen=0)  # run through it
        coco.write(b"]")
    return dict(counts)


@contextmanager
def open_lines(out: Path, *, of: str, new: Iterable[Path] = ()) -> Iterator[Callable[[str], None]]:
    """Hold a folder for results, clear it, and begin predictions.jsonl, to write a line before the files of an image.

    By it the next prediction knows what to remove; an error ends with how many images or frames it holds.
    """
    path, count = out / LINES, 0

    def write(line: str) -> None:
        nonlocal count
        append_line(path, line)
        count += 1

    with lock_folder(out):
        clear_folder(out, new=new)
        with output_errors(path):
            open(path, "wb").close()
        try:
            yield write
        except InputError as error:
            raise InputError(f"{error}; {path} has the detections of {count_text(count, of)}") from error


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; one that cannot be written leaves the file as it was."""
    size = path.stat().st_size
    try:
        with output_errors(path), open(path, "ab") as file:
            file.write(f"{line}\n".encode())
    except InputError:
        os.truncate(path, size)  # a full disk may have had room for a part
        raise


def clear_folder(out: PathLike, *, new: Iterable[Path] = ()) -> None:
    """Make a folder for results, some of them known by name, without those of an earlier prediction."""
    with output_errors(out):
        for file in earlier_results(out, new=new):
            file.unlink(missing_ok=True)
        Path(out).mkdir(parents=True, exist_ok=True)


def image_files(out: PathLike, image: PathLike) -> list[Path]:
    """List the files that an image by itself gets in a folder of results."""
    return [Path(out, folder, f"{Path(image).stem}{suffix}") for folder, suffix in FOLDERS.items()]


def earlier_results(out: PathLike, *, inputs: Iterable[PathLike] = (), new: Iterable[Path] = ()) -> list[Path]:
    """List an earlier prediction's files in a folder, which new ones may replace.

    Raises:
        InputError: the folder holds a run, or inputs, or nothing that a prediction wrote, or a link to another folder;
            or a new file would replace one that no prediction wrote.
    """
    out = Path(out)
    if not out.exists() or (out.is_dir() and not any(out.glob("[!.]*"))):
        return []
    if run := run_files(out):
        raise InputError(f"{out}: holds a run ({run[0].name}); choose another folder")
    if not (out / LINES).is_file():
        raise InputError(f"{out}: neither empty nor an earlier prediction; choose another folder")
    folders = {Path(path).resolve().parent: path for path in inputs if Path(path).exists()}
    if held := [path for place, path in folders.items() if any(map(out.samefile, (place, *place.parents)))]:
        raise InputError(f"{held[0]}: is in the output folder; choose another than {out}")
    if links := [out / folder for folder in FOLDERS if (out / folder).is_symlink()]:
        raise InputError(f"{links[0]}: a link, whose folder keeps its files; remove it, or choose another folder")
    found = dict.fromkeys([out / "coco.json"])
    *lines, torn = read_text(out / LINES).split("\n")  # of a process that was killed, the last has no end
    try:
        for row in map(json.loads, lines):
            frame, image = "frame" in row, row["image"]
            found |= dict.fromkeys([drawn_video(out, image)] if frame else image_files(out, image))
        if not torn.startswith('{"image": '[: len(torn)]):
            raise ValueError(torn[:20])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{out / LINES}: not written by a prediction ({error}); choose another folder") from error
    if others := [file for file in new if file not in found and os.path.lexists(file)]:
        raise InputError(f"{others[0]}: the new results would replace it; choose another folder than {out}")
    return [*found]


def drawn_video(out: PathLike, source: str) -> Path:
    """Return the path of the drawn video of a file, NAME.mp4, or a camera, camera-0.mp4, in a folder of results."""
    return Path(out) / f"{Path(source.replace(':', '-')).stem}.mp4"

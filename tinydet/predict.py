"""Predict: pictures in, what a detector finds in them out."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from glob import glob
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from tinydet.data.example import read_image, read_size
from tinydet.data.loader import Batch
from tinydet.detector import Detector
from tinydet.errors import InputError, attempt
from tinydet.files import replacing
from tinydet.prediction import Prediction

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
FOLDERS = {"kitti": ".txt", "yolo": ".txt", "pictures": ".jpg"}
"""What a picture leaves in each folder of an output."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def collect_pictures(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """Files as they are given, and in place of a folder or a glob the pictures right in it, by name.

    A file that is not there is among them all the same: who reads it will say so.

    Raises:
        InputError: a folder holds no picture, or two pictures share the name that their results would have.
    """
    pictures: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(x for x in path.iterdir() if x.suffix.lower() in PICTURES and x.is_file())
        elif not path.exists():
            found = [*map(Path, sorted(glob(str(path), recursive=True)))] or [path]
        if not found:
            raise InputError(f"{path}: holds no picture ({', '.join(PICTURES)})")
        pictures += found
    stems: dict[str, Path] = {}
    for picture in pictures:
        if (first := stems.setdefault(picture.stem, picture)) is not picture:
            raise InputError(f"{picture}: its results would overwrite those of {first}; predict them separately")
    return pictures


def streamed(stream: IO[bytes], folder: str | PathLike[str]) -> list[str]:
    """The paths that a stream lists, a line each; or a new file in a folder with the picture that it is.

    Raises:
        InputError: it is neither text nor a picture.
    """
    content = stream.read()
    try:
        return [line for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:  # no text, as no picture is
        picture = Path(folder) / "stdin"
        picture.write_bytes(content)
        read_image(picture)
        return [str(picture)]


def readable(pictures: Iterable[Path], unreadable: Callable[[InputError], None]) -> list[Path]:
    """The files that begin as pictures do; `unreadable` is called for each of the others.

    Raises:
        InputError: none of them does.
    """
    errors: list[InputError] = []
    good = [path for path in pictures if attempt(errors.append, read_size, path)]
    if errors and not good:
        raise errors[0]
    for error in errors:
        unreadable(error)
    return good


def newest_weights(runs: str | PathLike[str] = "runs") -> Path | None:
    """The best weights of the run that improved last, or None where there is none."""
    found = sorted(Path(runs).glob("*/best.pt"), key=lambda path: (path.stat().st_mtime_ns, path))
    return found[-1] if found else None


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, depth: int) -> Iterator[Result]:
    """`map(function, items)`, but that threads are at work on what comes next.

    Nothing begins before the first result is asked for. What has begun is finished, even if no more is asked for, and
    then the threads end.

    Args:
        function: what for the most part releases Python's lock, as Pillow does.
        items: drawn by the caller's thread, `depth` of them early; so an error in drawing one comes early too.
        depth: how many results are made, by as many threads, before they are asked for.

    Returns:
        The results in the order of the items; an error of the function comes in place of its result.
    """
    with ThreadPoolExecutor(depth) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def predict(
    pictures: Sequence[str | PathLike[str]],
    detector: Detector,
    *,
    batch_size: int = 1,
    tta: bool = False,
    unreadable: Callable[[InputError], None] | None = None,
    **settings: Any,
) -> Iterator[Prediction]:
    """Detect objects in files, on the device that the detector is on.

    The next batch is read while the network works on this one: at most three batches of pictures are in memory.

    Args:
        pictures: files.
        detector: as from `tinydet.detector.load`.
        batch_size: pictures that go through the network together.
        tta: as for `Detector.detect`.
        unreadable: called for each file that is no picture, which is then left out; without it that is an error.
        settings: as for `Detector.run`.

    Returns:
        An iterator of predictions in the order of the pictures.

    Raises:
        InputError: a setting makes no sense; or, when the iterator gets to it, a picture is missing or none.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be positive, got {batch_size}")
    detector.run([], **settings)  # so that a wrong setting is known before the first picture is read
    paths = [Path(picture) for picture in pictures]
    batches = (paths[first : first + batch_size] for first in range(0, len(paths), batch_size))
    ready = ahead(partial(_read_batch, detector=detector, tta=tta), batches, depth=1)
    return _predictions(ready, detector, unreadable, fill_to=batch_size, **settings)


class _Read(NamedTuple):
    """A batch of pictures, and what it could not be."""

    paths: list[Path]
    images: list[np.ndarray]
    views: list[Batch]
    errors: list[InputError]


def _read_batch(paths: Sequence[Path], *, detector: Detector, tta: bool) -> _Read:
    """Read pictures, whatever their sizes, as they are and as the network's input."""
    tried = [(path, _image_or_error(path)) for path in paths]
    good = [(path, image) for path, image in tried if isinstance(image, np.ndarray)]
    images = [image for _, image in good]
    views = detector.prepare(images, tta=tta) if images else []
    errors = [error for _, error in tried if isinstance(error, InputError)]
    return _Read([path for path, _ in good], images, views, errors)


def _image_or_error(path: Path) -> np.ndarray | InputError:
    """A picture's pixels, or why there are none."""
    try:
        return read_image(path)
    except InputError as error:
        return error


def _predictions(
    ready: Iterable[_Read], detector: Detector, unreadable: Callable[[InputError], None] | None, **settings: Any
) -> Iterator[Prediction]:
    """Predict what has been read."""
    for read in ready:
        found = detector.run(read.views, **settings) if read.views else []
        for path, image, one in zip(read.paths, read.images, found, strict=True):
            yield Prediction(path, image, one, detector.classes)
        for error in read.errors:
            if unreadable is None:
                raise error
            unreadable(error)


def save_predictions(
    predictions: Iterable[Prediction],
    out: str | PathLike[str],
    *,
    classes: Sequence[str],
    image_ids: Mapping[str, int] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Write each prediction as it comes, beside work on the next.

    A picture NAME.png leaves a line in `out/predictions.jsonl`, `out/kitti/NAME.txt`, `out/yolo/NAME.txt` and
    `out/pictures/NAME.jpg`; `out/coco.json` is written at the end.

    Args:
        predictions: from `predict`.
        out: a folder that is new, empty, or holds an earlier prediction, whose files make room.
        classes: names by label.
        image_ids: COCO's id of each picture, by its file's name; when None, 1, 2, ... in their order.
        category_ids: COCO's id of each class, by name; when None, the label + 1.

    Returns:
        How many objects were found of each class, in the order of `classes`.

    Raises:
        InputError: `out` holds something else, two pictures share a name, or one cannot be read or has no id.
    """
    out = Path(out)
    _make_room(out)
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    counts, coco = Counter(dict.fromkeys(classes, 0)), []
    with open(out / "predictions.jsonl", "w", encoding="utf-8") as file:
        listed = _list_predictions(predictions, file)
        for number, one in enumerate(ahead(partial(_save_prediction, out=out), listed, depth=1), start=1):
            counts.update(one.names)
            if image_ids is not None and one.path.name not in image_ids:
                raise InputError(f"{one.path}: the annotations have no picture {one.path.name!r}")
            image_id = number if image_ids is None else image_ids[one.path.name]
            coco += one.to_coco(image_id, category_ids=category_ids)
    with replacing(out / "coco.json") as written:
        written.write(json.dumps(coco).encode())
    return dict(counts)


def _list_predictions(predictions: Iterable[Prediction], file: IO[str]) -> Iterator[Prediction]:
    """Pass predictions on, each when its line is written."""
    seen = set()
    for prediction in predictions:
        name = prediction.path.stem
        if name in seen:
            raise InputError(f"{prediction.path}: its results would overwrite those of another {name!r}")
        seen.add(name)
        # The line first: it is by these lines that the next prediction knows which files are its to replace.
        print(prediction.to_json(), file=file, flush=True)
        yield prediction


def _save_prediction(prediction: Prediction, *, out: Path) -> Prediction:
    """Write a prediction's results and its drawn picture, and return it without its pixels."""
    name = prediction.path.stem
    (out / "kitti" / f"{name}.txt").write_text(prediction.to_kitti(), encoding="utf-8")
    (out / "yolo" / f"{name}.txt").write_text(prediction.to_yolo(), encoding="utf-8")
    prediction.draw().save(out / "pictures" / f"{name}.jpg", quality=92, subsampling=0)  # thin lines keep their colour
    return replace(prediction, image=prediction.image[:0])


def _make_room(out: Path) -> None:
    """Remove an earlier prediction's files from a folder, or raise if what it holds is none."""
    lines = out / "predictions.jsonl"
    if not lines.is_file():
        if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
            raise InputError(f"{out}: neither empty nor an earlier prediction; choose another folder")
        return
    try:
        names = [Path(json.loads(line)["image"]).stem for line in lines.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{lines}: not written by a prediction ({error}); choose another folder") from error
    (out / "coco.json").unlink(missing_ok=True)
    for folder, suffix in FOLDERS.items():
        for name in names:
            (out / folder / f"{name}{suffix}").unlink(missing_ok=True)

"""Predict: image files in, files of detections out."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from tinydet.data.images import IMAGE_SUFFIXES, read_image, read_size
from tinydet.data.loader import Batch
from tinydet.detector import Detector, Prediction
from tinydet.errors import InputError, OnError, raise_error, try_call
from tinydet.files import PathLike, atomic_write

FOLDERS = {"kitti": ".txt", "yolo": ".txt", "images": ".jpg"}  # suffix of an image's file in each folder of an output

Item = TypeVar("Item")
Result = TypeVar("Result")


def collect_images(paths: Iterable[PathLike], *, on_error: OnError = raise_error) -> list[Path]:
    """Collect the image files of files, folders and globs; report those whose header is not that of an image."""
    images: list[Path] = []
    for path in map(Path, paths):
        found = [] if path.exists() else [*map(Path, sorted(glob(str(path), recursive=True)))]
        if path.is_dir():
            found = sorted(x for x in path.iterdir() if x.suffix.lower() in IMAGE_SUFFIXES and x.is_file())
            if not found:
                raise InputError(f"{path}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        images += found or [path]
    stems: dict[str, Path] = {}
    for image in images:
        if (first := stems.setdefault(image.stem, image)) is not image:
            raise InputError(f"{image}: its results would overwrite those of {first}; predict them separately")
    errors: list[InputError] = []
    readable = [image for image in images if try_call(errors.append, read_size, image)]
    for error in errors:
        (on_error if readable else raise_error)(error)
    return readable


def read_stdin(stream: IO[bytes], folder: PathLike) -> list[str]:
    """Read the paths that a stream lists, a line each; or save the image that it is, to a folder."""
    content, image = stream.read(), Path(folder) / "stdin"
    try:
        return [line for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:  # no image is valid UTF-8
        image.write_bytes(content)
        read_image(image)
        return [str(image)]


def newest_weights(runs: PathLike = "runs") -> Path | None:
    """Find the best weights of the run that improved last, or None where there is none."""
    return max(Path(runs).glob("*/best.pt"), key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], *, depth: int) -> Iterator[Result]:
    """Map a function over items lazily, in threads that work `depth` results ahead and finish what they began."""
    with ThreadPoolExecutor(depth) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def predict_images(
    paths: Sequence[PathLike],
    detector: Detector,
    *,
    batch_size: int = 1,
    tta: bool = False,
    on_error: OnError = raise_error,
    **settings: Any,
) -> Iterator[Prediction]:
    """Detect the objects in image files in their order, lazily, while the next batch is read."""
    if batch_size < 1:
        raise InputError(f"batch_size must be positive, got {batch_size}")
    detector.detect([], **settings)  # which checks them at once

    def read(batch: Sequence[Path]) -> tuple[list[tuple[Path, np.ndarray]], list[Batch], list[InputError]]:
        errors: list[InputError] = []
        files = [(path, image) for path in batch if (image := try_call(errors.append, read_image, path)) is not None]
        images = [image for _, image in files]
        if detector.compiled:  # for batches of one size: the last is filled up
            images += images[-1:] * (batch_size - len(images))
        return files, detector.prepare(images, tta=tta), errors

    def detect_batches() -> Iterator[Prediction]:
        batches = ([*map(Path, paths[i : i + batch_size])] for i in range(0, len(paths), batch_size))
        for files, views, errors in prefetch(read, batches, depth=1):
            for (path, image), detections in zip(files, detector.detect(views, **settings), strict=False):
                yield Prediction(path, image, detector.classes, *detections)
            for error in errors:
                on_error(error)

    return detect_batches()


def save_predictions(
    predictions: Iterable[Prediction],
    out: PathLike,
    *,
    classes: Sequence[str],
    image_ids: Mapping[str, int] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Write each prediction as it comes, while the next is computed, and count the objects of each class.

    An image NAME.png leaves a line in predictions.jsonl and kitti/NAME.txt, yolo/NAME.txt and images/NAME.jpg, all of
    them coco.json, with the ids of images by file name and of categories by class name.
    """
    out = Path(out)
    if category_ids is not None:
        known = {name.lower(): id_ for name, id_ in category_ids.items()}
        if missing := [name for name in classes if name.lower() not in known]:
            raise InputError(f"the annotations have no category {missing[0]!r}; they have {', '.join(category_ids)}")
        category_ids = {name: known[name.lower()] for name in classes}
    _remove_earlier(out)
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    counts, coco, names = Counter(dict.fromkeys(classes, 0)), list[dict[str, Any]](), set[str]()
    with open(out / "predictions.jsonl", "w", encoding="utf-8") as lines:

        def write(prediction: Prediction) -> None:
            path, name = prediction.path, prediction.path.stem
            if name in names:
                raise InputError(f"{path}: its results would overwrite those of another {name!r}")
            if image_ids is not None and path.name not in image_ids:
                raise InputError(f"{path}: the annotations have no image {path.name!r}")
            names.add(name)
            print(prediction.to_json(), file=lines, flush=True)  # first: by it the next prediction knows what to remove
            (out / "kitti" / f"{name}.txt").write_text(prediction.to_kitti(), encoding="utf-8")
            (out / "yolo" / f"{name}.txt").write_text(prediction.to_yolo(), encoding="utf-8")
            # Without chroma subsampling thin lines keep their colour.
            prediction.draw().save(out / "images" / f"{name}.jpg", quality=92, subsampling=0)
            counts.update(prediction.names)
            image_id = image_ids[path.name] if image_ids else len(names)
            coco.extend(prediction.to_coco(image_id, category_ids=category_ids))

        deque(prefetch(write, predictions, depth=1), maxlen=0)  # run through it
    with atomic_write(out / "coco.json") as file:
        file.write(json.dumps(coco).encode())
    return dict(counts)


def _remove_earlier(out: Path) -> None:
    """Remove an earlier prediction's files from a folder, or raise if it holds anything else."""
    lines = out / "predictions.jsonl"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not lines.is_file():
        raise InputError(f"{out}: neither empty nor an earlier prediction; choose another folder")
    try:
        names = [Path(json.loads(line)["image"]).stem for line in lines.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{lines}: not written by a prediction ({error}); choose another folder") from error
    files = [out / folder / f"{name}{suffix}" for folder, suffix in FOLDERS.items() for name in names]
    for file in [out / "coco.json", *files]:
        file.unlink(missing_ok=True)

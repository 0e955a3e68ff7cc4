"""Predict: image files in, files of detections out."""

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from os.path import exists, isdir
from pathlib import Path
from typing import IO, NamedTuple

from tinydet.data.coco_file import Id, read_coco
from tinydet.data.images import IMAGE_SUFFIXES, read_image, read_size
from tinydet.errors import InputError, OnError, list_names, raise_error, try_call
from tinydet.files import PathLike, atomic_write, list_files, match_paths
from tinydet.prediction import Prediction
from tinydet.prefetch import prefetch

FOLDERS = {"kitti": ".txt", "yolo": ".txt", "images": ".jpg"}  # suffix of an image's file in each folder of an output


def collect_images(paths: Iterable[PathLike], *, on_error: OnError = raise_error) -> list[Path]:
    """Collect the image files of files, folders and globs; report those whose header is not that of an image."""
    images: list[Path] = []
    for given in map(Path, paths):  # whose own methods raise where it is too long
        matching = [given] if exists(given) else [*map(Path, sorted(glob(str(given), recursive=True)))] or [given]
        found = [image for path in matching for image in (list_files(path, IMAGE_SUFFIXES) if isdir(path) else [path])]
        if not found:
            raise InputError(f"{given}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        images += found
    stems: dict[str, Path] = {}
    for image in images:
        if (first := stems.setdefault(image.stem, image)) is not image:
            raise InputError(f"{image}: its results would overwrite those of {first}; predict them separately")
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
        return [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:  # no image is valid UTF-8
        image.write_bytes(content)
        read_image(image)
        return [str(image)]


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
    out = Path(out)
    clear_folder(out)
    for folder in FOLDERS:
        (out / folder).mkdir(exist_ok=True)
    counts, names = Counter(dict.fromkeys(classes, 0)), set[str]()
    with open(out / "predictions.jsonl", "w", encoding="utf-8") as lines, atomic_write(out / "coco.json") as coco:
        coco.write(b"[")

        def write(prediction: Prediction) -> None:
            path, name = prediction.path, prediction.path.stem
            if name in names:
                raise InputError(f"{path}: its results would overwrite those of another {name!r}")
            names.add(name)
            print(prediction.to_json(), file=lines, flush=True)  # first: by it the next prediction knows what to remove
            (out / "kitti" / f"{name}.txt").write_text(prediction.to_kitti(), encoding="utf-8")
            (out / "yolo" / f"{name}.txt").write_text(prediction.to_yolo(), encoding="utf-8")
            # Without chroma subsampling thin lines keep their colour.
            prediction.draw().save(out / "images" / f"{name}.jpg", quality=92, subsampling=0)
            counts.update(prediction.names)
            image_id, category_ids = (ids.images[path], ids.categories) if ids else (len(names), None)
            for result in prediction.to_coco(image_id, category_ids=category_ids):
                coco.write((", " if coco.tell() > 1 else "").encode() + json.dumps(result).encode())

        deque(prefetch(write, predictions, depth=1), maxlen=0)  # run through it
        coco.write(b"]")
    return dict(counts)


def clear_folder(out: PathLike) -> None:
    """Make a folder for results, without those of an earlier prediction."""
    for file in earlier_results(out):
        file.unlink(missing_ok=True)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}") from error


def earlier_results(out: PathLike, *, inputs: Iterable[PathLike] = ()) -> list[Path]:
    """List an earlier prediction's files in a folder; raise if it holds anything else, or if they are inputs now."""
    out = Path(out)
    lines = out / "predictions.jsonl"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not lines.is_file():
        raise InputError(f"{out}: neither empty nor an earlier prediction; choose another folder")
    found = dict.fromkeys([out / "coco.json"])
    try:
        for line in lines.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = Path(row["image"]).stem
            files = (out / folder / f"{name}{suffix}" for folder, suffix in FOLDERS.items())
            found |= dict.fromkeys([drawn_video(out, row["image"])] if "frame" in row else files)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{lines}: not written by a prediction ({error}); choose another folder") from error
    replaced = {file.resolve() for file in found}
    if lost := [path for path in inputs if Path(path).resolve() in replaced]:
        raise InputError(f"{lost[0]}: the new results would replace it; choose another folder than {out}")
    return [*found]


def drawn_video(out: PathLike, source: str) -> Path:
    """Return the path of the drawn video of a file, NAME.mp4, or a camera, camera-0.mp4, in a folder of results."""
    return Path(out) / f"{Path(source.replace(':', '-')).stem}.mp4"

"""Shards: consecutive parts of a list of images, each predicted by a process of its own, on any machine."""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from pathlib import Path
from typing import Any, NamedTuple

from tinydet.detector import Detector
from tinydet.errors import InputError, OnError, quoted, raise_error
from tinydet.files import PathLike, atomic_write, lock_folder, output_errors, short_path, write_file
from tinydet.predict import append_line
from tinydet.prediction import Prediction
from tinydet.prefetch import prefetch
from tinydet.reading import check_field, read_json
from tinydet.weights.load import Loaded


class Shard(NamedTuple):
    """Part `number` of `parts` of a list of images."""

    number: int  # from 1
    parts: int
    images: list[str]  # of this part
    total: int  # images of all parts
    digest: str  # of the paths of all parts

    @property
    def name(self) -> str:
        """Return the name of its file, without the suffix; the files of all parts sort by number."""
        return f"predictions-{self.number:0{len(str(self.parts))}}-of-{self.parts}"


def take_shard(paths: Sequence[str], number: int, parts: int, *, batch_size: int = 1) -> Shard:
    """Take one of the parts of the paths of images: whole batches, in whose size a network rounds."""
    batches, checksum = -(-len(paths) // batch_size), hashlib.sha256()
    first, end = (part * batches // parts * batch_size for part in (number - 1, number))
    for path in paths:
        checksum.update(os.fsencode(path) + b"\0")
    return Shard(number, parts, [str(Path(path)) for path in paths[first:end]], len(paths), checksum.hexdigest()[:16])


def digest_weights(weights: Sequence[Loaded]) -> str:
    """Compute a digest of several weights."""
    return hashlib.sha256(" ".join(one.digest() for one in weights).encode()).hexdigest()[:16]


def save_shard(
    shard: Shard,
    detector: Detector,
    out: PathLike,
    *,
    made: Mapping[str, Any],
    batch_size: int = 1,
    on_error: OnError = raise_error,
    **settings: Any,
) -> dict[str, int]:
    """Detect objects in a shard's images, and count those of each class; the settings are those of `Detector.predict`.

    predictions-I-of-N.jsonl gets a line an image, in order, as it is predicted: those of all shards together are what a
    single process writes to predictions.jsonl. Started again, it keeps the lines, and tries the other images.

    Args:
        made: what else decides the lines, such as a digest of the weights; it is kept beside them with the settings.

    Raises:
        InputError: a shard in the folder is of another list, of other weights or settings, or in use; or it holds a
            line of another image.
    """
    path, images = Path(out, f"{shard.name}.jsonl"), shard.images
    listed = {"shards": shard.parts, "images": shard.total, "list": shard.digest}
    with lock_folder(Path(out), name=shard.name):
        _check_made(path, {**listed, **made, "batch_size": batch_size, **settings})
        with output_errors(path):
            path.touch()
        done, counts = bytearray(len(images)), Counter(dict.fromkeys(detector.classes, 0))
        for row, names in _read_lines(path, shard):
            done[row] = 1
            counts.update(names)
        end, missed = done.rfind(1) + 1, dict[int, bytes]()

        def rows() -> Iterator[int]:
            """Iterate over the images of batches that lack a line."""
            for start in range(0, len(images), batch_size):
                if not all(done[start : start + batch_size]):
                    yield from range(start, min(start + batch_size, len(images)))

        def write(prediction: Prediction) -> None:
            row, line = next(row for row in left if images[row] == str(prediction.path)), prediction.to_json()
            if done[row]:
                return
            counts.update(prediction.names)
            if row < end:
                missed[row] = f"{line}\n".encode()
                return
            insert()
            append_line(path, line)

        def insert() -> None:
            """Put the lines of images that could be read only this time into their places."""
            if missed:
                with open(path, "rb") as old, atomic_write(path) as new:
                    there = zip((row for row in range(end) if done[row]), old, strict=False)
                    new.writelines(line for _, line in merge(there, missed.items()))
                missed.clear()

        left = rows()
        how: Any = {"batch_size": batch_size, "on_error": on_error, **settings}
        how["workers"] = detector.workers if shard.total > batch_size else 0  # as one process does, whatever the shard
        found = detector.predict((images[row] for row in rows()), **how)
        deque(prefetch(write, found, depth=1), maxlen=0)  # run through it
        insert()
    return dict(counts)


def _check_made(path: Path, made: dict[str, Any]) -> None:
    """Write beside a shard's lines what decides them; raise InputError where a shard in the folder is of another."""
    own, made = path.with_suffix(".json"), json.loads(json.dumps(made))
    if path.exists() and not own.exists():
        raise InputError(f"{path}: without {own.name}, which says what it is of; remove it, or choose another folder")
    for file in [own] if own.exists() else sorted(path.parent.glob("predictions-*-of-*.json"))[:1]:
        there = read_json(file)
        check_field(there, {}, where=str(file))
        for name, value in made.items():
            if there.get(name) != value:
                now = f"{name} {quoted(there.get(name))}, and now it is {quoted(value)}"
                raise InputError(f"{file}: made with {now}; give the same, or choose another folder")
    if not own.exists():
        write_file(own, json.dumps(made))


def _read_lines(path: Path, shard: Shard) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the images, by row, that have a line, and the classes in it; remove a torn last line."""
    rows, whole = iter(range(len(shard.images))), 0
    with open(path, "rb") as file:
        for n, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # of a process that was killed
                os.truncate(path, whole)
                return
            whole += len(line)
            try:
                content = json.loads(line)
                image, names = content["image"], [one["class"] for one in content["detections"]]
                row = next(row for row in rows if shard.images[row] == image)
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{short_path(path)}:{n}: not a line of a prediction; remove the file") from None
            except StopIteration:
                where = f"{short_path(path)}:{n}: image {quoted(image)}"
                raise InputError(f"{where} is not the next of this shard; remove the file") from None
            yield row, names

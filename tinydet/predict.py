"""Predict: pictures in, what a detector finds in them out."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tinydet.data.example import Example, letterbox, read_image, read_size
from tinydet.data.loader import Batch, collate
from tinydet.draw import paint
from tinydet.errors import InputError
from tinydet.model.config import ModelConfig
from tinydet.model.detect import METHODS, Detections, detect, model_anchors
from tinydet.model.efficientdet import Outputs
from tinydet.model.functional import normalize
from tinydet.model.fuse import network
from tinydet.weights.formats import Weights

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# The fields of a KITTI result that only a detector of 3D boxes knows, as the benchmark wants them left out.
UNKNOWN_POSE, UNKNOWN_3D = "-1 -1 -10", "-1 -1 -1 -1000 -1000 -1000 -10"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prediction(NamedTuple):
    """One picture and what was found in it."""

    path: Path
    image: np.ndarray
    """uint8[H W 3], RGB, upright."""
    detections: Detections
    """In pixels of `image`, float32, on the CPU."""


def collect_pictures(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """Files as they are given, and in place of a folder the pictures right in it, by name.

    Raises:
        InputError: a path is missing, a folder holds no picture, or two pictures share the name that their results
            would have.
    """
    pictures: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        found = [path]
        if path.is_dir():
            found = sorted(x for x in path.iterdir() if x.suffix.lower() in PICTURES and x.is_file())
        if not found:
            raise InputError(f"{path}: holds no picture ({', '.join(PICTURES)})")
        pictures += found
    stems: dict[str, Path] = {}
    for picture in pictures:
        if (first := stems.setdefault(picture.stem, picture)) is not picture:
            raise InputError(f"{picture}: its results would overwrite those of {first}; predict them separately")
    return pictures


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
    weights: Weights,
    *,
    batch_size: int = 1,
    score_threshold: float = 0.3,
    max_detections: int = 100,
    method: str = "hard",
    compile: bool = False,
) -> Iterator[Prediction]:
    """Detect objects, on the device that the weights are on.

    The next batch is read while the network works on this one: at most three batches of pictures are in memory.

    Args:
        pictures: files; their headers are all read before this returns.
        weights: of a whole detector, as from `tinydet.weights.load.load_detector`.
        batch_size: pictures that go through the network together.
        score_threshold, max_detections, method: as for `tinydet.model.detect.detect`.
        compile: as for `tinydet.model.fuse.network`.

    Returns:
        An iterator of predictions in the order of the pictures. A picture that breaks off after its header raises its
        InputError when the iterator gets to it.

    Raises:
        InputError: a picture is missing or none, or a setting makes no sense.
    """
    for name, number in (("batch_size", batch_size), ("max_detections", max_detections)):
        if number < 1:
            raise InputError(f"{name} must be positive, got {number}")
    if not 0 <= score_threshold <= 1:
        raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    paths = [Path(picture) for picture in pictures]
    for path in paths:
        read_size(path)
    config = weights.config
    forward = network(weights.params, weights.buffers, config=config, compile=compile)
    if compile:  # for one size of batch: another would be compiled anew
        forward = partial(_filled, forward, batch_size=batch_size)
    anchors = model_anchors(config, device=next(iter(weights.params.values())).device)
    settings = {"score_threshold": score_threshold, "max_detections": max_detections, "method": method}
    batches = (paths[first : first + batch_size] for first in range(0, len(paths), batch_size))
    ready = ahead(partial(_read_batch, config=config), batches, depth=1)
    return (one for read in ready for one in _predict_batch(read, forward, anchors, config=config, **settings))


def _read_batch(paths: Sequence[Path], *, config: ModelConfig) -> tuple[list[np.ndarray], Batch]:
    """Read pictures, whatever their sizes, as they are and as the network's input."""
    images = [read_image(path) for path in paths]
    nothing = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    examples = [
        Example(image, *nothing, str(path), (image.shape[0], image.shape[1]))
        for path, image in zip(paths, images, strict=True)
    ]
    return images, collate([letterbox(one, config.image_size, fill=config.fill) for one in examples])


def _filled(forward: Callable[[Tensor], Outputs], images: Tensor, *, batch_size: int) -> Outputs:
    """What a network says of a last batch that may be short, by way of a full one."""
    full = torch.cat([images, images[:1].expand(batch_size - len(images), -1, -1, -1)])
    return Outputs(*(x[: len(images)] for x in forward(full)))


@torch.no_grad()
def _predict_batch(
    read: tuple[list[np.ndarray], Batch],
    forward: Callable[[Tensor], Outputs],
    anchors: Tensor,
    *,
    config: ModelConfig,
    **settings: Any,
) -> list[Prediction]:
    """Predict one batch that `_read_batch` has read."""
    images, batch = read[0], read[1].to(anchors.device)
    outputs = forward(normalize(batch.images, mean=config.mean, std=config.std))
    found = detect(outputs, anchors, sizes=batch.sizes, scales=batch.scales, **settings)
    on_cpu = [Detections(*(field.cpu() for field in one)) for one in found]
    return [Prediction(*one) for one in zip(map(Path, batch.names), images, on_cpu, strict=True)]


def json_line(prediction: Prediction, classes: Sequence[str]) -> str:
    """A prediction as one line of JSON, without the line's end; boxes are xyxy in pixels of the upright picture."""
    height, width = prediction.image.shape[:2]
    detections = [
        {"class": classes[label], "label": label, "score": score, "box": box}
        for label, score, box in _rows(prediction.detections)
    ]
    return json.dumps({"image": str(prediction.path), "width": width, "height": height, "detections": detections})


def kitti_lines(detections: Detections, classes: Sequence[str]) -> str:
    """Detections as the text of a KITTI result file, best first.

    Blanks in a class name become underscores, as KITTI writes Person_sitting. The numbers read back as the same
    float32: rounded to KITTI's two decimals a box could fall to the other side of a threshold.
    """
    lines = [
        " ".join(map(str, ["_".join(classes[label].split()), UNKNOWN_POSE, *box, UNKNOWN_3D, score]))
        for label, score, box in _rows(detections)
    ]
    return "".join(f"{line}\n" for line in lines)


def save_predictions(
    predictions: Iterable[Prediction], out: str | PathLike[str], *, classes: Sequence[str]
) -> dict[str, int]:
    """Write each prediction as it comes: its line, its KITTI result and its drawn picture, beside work on the next.

    A picture NAME.png leaves a line in `out/predictions.jsonl`, `out/kitti/NAME.txt` and `out/pictures/NAME.jpg`.

    Args:
        predictions: from `predict`.
        out: a folder that is new, empty, or holds an earlier prediction, whose files make room.
        classes: names by label.

    Returns:
        How many objects were found of each class, in the order of `classes`.

    Raises:
        InputError: `out` holds something else, two pictures share a name, or one cannot be read.
    """
    out = Path(out)
    _make_room(out)
    for folder in ("kitti", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    counts = Counter(dict.fromkeys(classes, 0))
    with open(out / "predictions.jsonl", "w", encoding="utf-8") as file:
        listed = _list_predictions(predictions, file, classes=classes)
        for labels in ahead(partial(_save_prediction, out=out, classes=classes), listed, depth=1):
            counts.update(classes[label] for label in labels)
    return dict(counts)


def _list_predictions(
    predictions: Iterable[Prediction], file: IO[str], *, classes: Sequence[str]
) -> Iterator[Prediction]:
    """Pass predictions on, each when its line is written."""
    seen = set()
    for prediction in predictions:
        name = prediction.path.stem
        if name in seen:
            raise InputError(f"{prediction.path}: its results would overwrite those of another {name!r}")
        seen.add(name)
        # The line first: it is by these lines that the next prediction knows which files are its to replace.
        print(json_line(prediction, classes), file=file, flush=True)
        yield prediction


def _save_prediction(prediction: Prediction, *, out: Path, classes: Sequence[str]) -> list[int]:
    """Write a prediction's KITTI result and its drawn picture, and return the labels."""
    name, (boxes, scores, labels) = prediction.path.stem, prediction.detections
    (out / "kitti" / f"{name}.txt").write_text(kitti_lines(prediction.detections, classes), encoding="utf-8")
    drawn = paint(prediction.image, boxes, labels, scores, classes=classes)
    drawn.save(out / "pictures" / f"{name}.jpg", quality=92, subsampling=0)  # thin lines keep their colour
    return labels.tolist()


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
    for name in names:
        (out / "kitti" / f"{name}.txt").unlink(missing_ok=True)
        (out / "pictures" / f"{name}.jpg").unlink(missing_ok=True)


def _rows(detections: Detections) -> Iterator[tuple[int, float, list[float]]]:
    """Label, score and box of each detection, in the shortest decimals that read back as the same float32."""
    boxes, scores, labels = (field.numpy() for field in detections)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        yield int(label), float(str(score)), [float(str(side)) for side in box]

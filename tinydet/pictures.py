"""Pictures of a run as it goes: what it is trained on, what it finds, and its curves, in the run's folder."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tinydet.data.dataset import DetectionDataset
from tinydet.data.example import read_image, resample
from tinydet.draw import draw, paint, save_jpeg, sheet
from tinydet.labels import IGNORE
from tinydet.metrics.coco import STATS
from tinydet.model.detect import Detections
from tinydet.score import pr_curves
from tinydet.training.events import Event, Noted, Started, Stepped, Validated
from tinydet.training.start import Run, training_batches

COUNT = 16  # pictures on a sheet
SHEET = 1800  # pixels, the width of a sheet
WIDE = 2.0  # width by height from which on two pictures fill a row instead of four
SURE = 0.3  # score of what a sheet shows
FEW = 3  # of the best, shown where nothing is sure
NO_CURVES = "the curves of the run are not drawn without matplotlib: pip install 'tinydet[plot]'"


class Frame(NamedTuple):
    """A validation picture as large as a sheet shows it, and its truth."""

    row: int
    """Its place in the data set."""
    name: str
    image: np.ndarray
    """uint8[H W 3]"""
    scale: float
    """Pixels of `image` per original pixel."""
    boxes: np.ndarray
    """float32[N 4], xyxy, pixels of `image`."""
    labels: np.ndarray
    """int64[N], class index or IGNORE."""


def illustrated(events: Iterable[Event]) -> Iterator[Event]:
    """Pass on what a run says, and keep pictures of it in its folder.

    At its start `train-sheet.jpg`; after every epoch `val-sheet.jpg`, `losses.png` and `ap.png`; after the best one so
    far `precision-recall.png`. Each is replaced as a whole. Nothing is drawn from the global random generators.

    Yields:
        The events as they are, and after Started a Noted where curves cannot be drawn.
    """
    plots = _plots()
    for event in events:
        if isinstance(event, Started):
            run, out, history = event.run, event.out, event.history
            frames = val_frames(run.val_set)
            epoch = history[-1]["epoch"] if history else 0
            save_jpeg(train_sheet(run, epoch=epoch), out / "train-sheet.jpg")
        elif isinstance(event, Validated):
            history = [*history, event.row]
            save_jpeg(val_sheet(frames, event.detections, classes=run.config.classes), out / "val-sheet.jpg")
            if plots:
                plots.loss_curves(history, out / "losses.png")
                plots.ap_curves(history, out / "ap.png")
            if plots and event.best:
                plots.precision_recall(pr_curves(run.val_set, event.detections), out / "precision-recall.png")
        yield event
        if isinstance(event, Started) and not plots:
            yield Noted(NO_CURVES)


def tensorboarded(events: Iterable[Event]) -> Iterator[Event]:
    """Pass on what a run says, and write its numbers to `tensorboard` in its folder where tensorboard is installed.

    Everything is over steps. A run that goes on writes another file there, which takes the place of what was written
    after the epoch it goes on from.
    """
    if not find_spec("tensorboard"):
        yield from events
        return
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as open_files:
        for event in events:
            if isinstance(event, Started):
                done = event.history[-1]["step"] if event.history else 0
                writer = open_files.enter_context(SummaryWriter(str(event.out / "tensorboard"), purge_step=done + 1))
            elif isinstance(event, Stepped):
                writer.add_scalar("step/total", event.losses.total, event.step)
            elif isinstance(event, Validated):
                for name, value in scalars(event.row).items():
                    writer.add_scalar(name, value, event.row["step"])
                writer.flush()
            yield event


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch under the names that tensorboard groups them by."""
    losses = {f"{part}/{name}": value for part in ("train", "val") for name, value in row[part].items()}
    ap = {f"AP/{name}": value for name, value in row["ap_by_class"].items()}
    kitti = row.get("R40", {})
    ap |= {f"R40/{name}/{level}": value for name, levels in kitti.items() for level, value in levels.items()}
    ap |= {f"COCO/{name}": value for name, value in zip(STATS, row["stats"], strict=True) if value >= 0}
    return {"lr": row["lr"], **losses, **ap, "AP/mean": row["ap"]}


def train_sheet(run: Run, *, epoch: int) -> np.ndarray:
    """The first pictures of an epoch as the network is given them, with their boxes; ignore regions are hatched.

    Returns:
        uint8[H W 3]
    """
    count = min(COUNT, len(run.train_set))
    batch = next(iter(training_batches(run, range(epoch, epoch + 1), batch_size=count, workers=0)))
    images, captions = [], []
    columns, width = _layout(batch.images.shape[-2:])
    for i, name in enumerate(batch.names):
        image, boxes, labels = batch.images[i].permute(1, 2, 0).numpy(), batch.boxes[i].numpy(), batch.labels[i].numpy()
        shown, scale = _scaled(image, width)
        images.append(draw(shown, boxes * scale, labels, classes=run.config.classes))
        ignored = int((labels == IGNORE).sum())
        captions.append(
            f"{name}, scaled {batch.scales[i]:.2f}: {_counted(int((labels >= 0).sum()), 'object')}"
            + (f", {_counted(ignored, 'ignore region')}" if ignored else "")
        )
    return sheet(images, captions, columns=columns, width=width)


def val_frames(dataset: DetectionDataset) -> list[Frame]:
    """Frames spread evenly over a data set, read once."""
    chosen = np.linspace(0, len(dataset) - 1, min(COUNT, len(dataset))).round().astype(int).tolist()
    _, width = _layout(dataset.sizes[chosen[0]])
    frames = []
    for i in chosen:
        image, scale = _scaled(read_image(dataset.paths[i]), width)
        frames.append(Frame(i, dataset.names[i], image, scale, dataset.boxes[i] * scale, dataset.labels[i]))
    return frames


def val_sheet(frames: Sequence[Frame], detections: Sequence[Detections], *, classes: Sequence[str]) -> np.ndarray:
    """What was found in some frames, over the truth in dashed lines; where nothing is sure, the best few.

    Args:
        frames: from `val_frames`.
        detections: of all frames of the data set, in original pixels, best first.
        classes: their names.

    Returns:
        uint8[H W 3]
    """
    images, captions = [], []
    for frame in frames:
        boxes, scores, labels = (field.numpy() for field in detections[frame.row])
        sure, ignored = int((scores >= SURE).sum()), frame.labels == IGNORE
        shown = slice(sure or FEW)
        picture = paint(
            frame.image,
            np.concatenate([boxes[shown] * frame.scale, frame.boxes[ignored]]),
            np.concatenate([labels[shown], frame.labels[ignored]]),
            np.concatenate([scores[shown], np.zeros(ignored.sum())]),
            classes=classes,
            truth=frame.boxes[~ignored],
        )
        images.append(np.array(picture))
        best = f"no detection scored more than {scores[0]:.2f}" if len(scores) else "no detection"
        found = f"{_counted(sure, 'detection')} scored {SURE:g} or more" if sure else best
        captions.append(f"{frame.name}: {_counted(int((~ignored).sum()), 'object')} (dashed), {found}")
    columns, width = _layout(frames[0].image.shape[:2])
    return sheet(images, captions, columns=columns, width=width)


def _plots() -> ModuleType | None:
    """`tinydet.plots`, where matplotlib is installed."""
    if not find_spec("matplotlib"):
        return None
    from tinydet import plots

    return plots


def _layout(size: Sequence[int]) -> tuple[int, int]:
    """How many pictures of (height, width) fill a row, and how wide each is then, in pixels."""
    columns = 2 if size[1] / size[0] >= WIDE else 4
    return columns, SHEET // columns


def _scaled(image: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """A picture of another width, and its pixels per pixel of the one given."""
    scale = width / image.shape[1]
    return resample(image, (0, 0, image.shape[1], image.shape[0]), scale=scale), scale


def _counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}{'s' * (number != 1)}"

"""Save images of a run in its folder: training data, detections, curves."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinydet.data.dataset import DetectionDataset
from tinydet.data.loader import Batch
from tinydet.draw import count_text, draw, image_grid, save_jpeg, spread_rows
from tinydet.errors import shorten
from tinydet.evaluation import pr_curves
from tinydet.labels import IGNORE
from tinydet.model.postprocess import Detections

GRID_IMAGES = 16
GRID_WIDTH = 1800  # pixels
WIDE = 2.0  # width by height from which on two images fill a row instead of four
CONFIDENT = 0.3  # score of the detections that are shown
FEW = 3  # of the best, shown where none is confident


def matplotlib_problem() -> str | None:
    """Say why no curves are drawn, if matplotlib is not installed or cannot be imported."""
    try:
        import tinydet.plots  # noqa: F401
    except ModuleNotFoundError:
        return "the curves are not drawn without matplotlib: pip install 'tinydet[plot]'"
    except Exception as error:  # of all kinds, of settings such as MPLBACKEND
        return f"the curves are not drawn, because matplotlib cannot be imported ({shorten(str(error), most=100)})"
    return None


def save_train_grid(out: Path, batch: Batch, *, classes: Sequence[str]) -> None:
    """Save the first images of a batch, as the network is given them, with their boxes as train-sheet.jpg."""
    images, captions, columns = [], [], _columns(batch.images.shape[-2:])
    for i, name in enumerate(batch.names[:GRID_IMAGES]):
        image, labels = batch.images[i].permute(1, 2, 0).numpy(), batch.labels[i].numpy()
        images.append(draw(image, batch.boxes[i], labels, classes=classes, width=GRID_WIDTH // columns))
        objects, ignored = int((labels >= 0).sum()), int((labels == IGNORE).sum())
        regions = f", {count_text(ignored, 'ignore region')}" if ignored else ""
        captions.append(f"{name}, scaled {batch.scales[i]:.2f}: {count_text(objects, 'object')}{regions}")
    save_jpeg(image_grid(images, captions, columns=columns), out / "train-sheet.jpg")


def save_epoch_images(
    out: Path, history: Sequence[Any], val_set: DetectionDataset, detections: Sequence[Detections], *, best: bool
) -> None:
    """Save val-sheet.jpg, and with matplotlib losses.png, ap.png, and of the best epoch precision-recall.png."""
    save_jpeg(val_grid(val_set, detections), out / "val-sheet.jpg")
    if matplotlib_problem() is None:
        from tinydet import plots

        plots.save_figure(plots.loss_curves(history), out / "losses.png")
        plots.save_figure(plots.ap_curves(history), out / "ap.png")
        if best:
            plots.save_figure(plots.precision_recall(pr_curves(val_set, detections)), out / "precision-recall.png")


def val_grid(val_set: DetectionDataset, detections: Sequence[Detections]) -> Image.Image:
    """Draw the confident detections, or else the best few, on some images, with the ground truth dashed."""
    images, captions, columns = [], [], _columns(val_set.frame(0).size)
    for row in spread_rows(len(val_set), most=GRID_IMAGES):
        example, (boxes, scores, labels) = val_set[row], (field.numpy() for field in detections[row])
        confident, ignored = int((scores >= CONFIDENT).sum()), example.labels == IGNORE
        regions = example.boxes[ignored], example.labels[ignored], np.zeros(ignored.sum())
        pairs = zip((boxes, labels, scores), regions, strict=True)
        shown = (np.concatenate([found[: confident or FEW], ignore]) for found, ignore in pairs)
        style: Any = {"classes": val_set.classes, "truth": example.boxes[~ignored], "width": GRID_WIDTH // columns}
        images.append(draw(example.image, *shown, **style))
        best = f"no detection scored more than {scores[0]:.2f}" if len(scores) else "no detection"
        found = f"{count_text(confident, 'detection')} scored {CONFIDENT:g} or more" if confident else best
        captions.append(f"{example.name}: {count_text(int((~ignored).sum()), 'object')} (dashed), {found}")
    return image_grid(images, captions, columns=columns)


def open_tensorboard(out: Path, *, step: int) -> Any:
    """Open a TensorBoard writer, where that is installed, which replaces what was written after `step`."""
    if not find_spec("tensorboard"):
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)


def log_epoch(writer: Any, row: Mapping[str, Any]) -> None:
    """Write the defined numbers of a row of metrics.jsonl to TensorBoard, by names such as R40/Car/hard."""
    groups = {"train": row["train"], "val": row["val"], "AP": {**row["ap_by_class"], "mean": row["ap"]}}
    groups["COCO"] = {name: value for name, value in row["COCO"].items() if name != "per_class"}
    groups |= {f"R40/{name}": levels for name, levels in row.get("KITTI", {}).get("R40", {}).items()}
    scalars = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    for name, value in {"lr": row["lr"], **scalars}.items():
        if value is not None:
            writer.add_scalar(name, value, row["step"])
    writer.flush()


def _columns(size: Sequence[int]) -> int:
    """Choose how many images of (height, width) fill a row."""
    return 2 if size[1] / size[0] >= WIDE else 4

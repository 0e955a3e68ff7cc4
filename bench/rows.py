"""The rows of the table: who is measured, at what, how often."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

PEERS = ("effdet", "torchvision", "ONNX Runtime")
"""The columns beside tinydet's; contestants that have none are named below the table."""


class Entry(NamedTuple):
    """One contestant at one case; several of a contestant are its ways, of which the fastest counts."""

    contestant: str
    case: str
    """MODULE:NAME of a function that prepares and returns the function to time."""
    options: Mapping[str, Any] = MappingProxyType({})
    way: str = ""
    worker: str = ""
    """Whose process runs it, where that is not the contestant's own."""
    thorough: bool = False
    """Whether --quick leaves it out."""


class Row(NamedTuple):
    """A measurement of all its entries in turns."""

    name: str
    about: str
    entries: tuple[Entry, ...]
    unit: str = "ms"
    """Of the result: "ms" or "s" of one call, or something "/s", of which one call does `pieces`."""
    pieces: float = 1
    rounds: int = 15
    quick_rounds: int = 9
    """With --quick; 0 leaves the row out, unless it is asked for by name."""
    warmup: int = 3
    threads: int | None = None
    """Where it is not what --threads says."""
    peak: bool = False
    """Whether peak memory is another row; each contestant then has a fresh process."""


STEP = {"batch": 4, "objects": 20}
FRAMES = {"frames": 3769}


def rows(scratch: Path) -> list[Row]:
    """All rows; what their cases write and share lies in the folder `scratch`."""
    # In effdet's process, which has imported what the export needs.
    path = str(scratch / "d0.onnx")
    exported = Entry("ONNX Runtime", "bench.of_onnxruntime:forward", {"path": path}, worker="effdet")
    return [*predictions(exported), *steps(), *evaluations(), *pictures(scratch), imports()]


def imports() -> Row:
    """A new process that imports a package."""
    modules = {"tinydet": "tinydet", "effdet": "effdet", "torchvision": "torchvision", "ONNX Runtime": "onnxruntime"}
    entries = [
        *(
            Entry(name, "bench.imports:fresh", {"module": module}, thorough=name in ("effdet", "torchvision"))
            for name, module in modules.items()
        ),
        Entry("torch", "bench.imports:fresh", {"module": "torch"}, worker="tinydet"),
    ]
    about = "a new Python that imports the package and ends; torch: nothing else, which no detector on it can be below"
    return Row("import", about, tuple(entries), unit="s", rounds=9, quick_rounds=3, warmup=0)


def predictions(exported: Entry) -> list[Row]:
    """From a picture's tensor, or the network's outputs, to detections."""
    bare = "ONNX Runtime: the network alone, as effdet exports it"
    drawn = "logits from N(-4.6, 1), deltas from N(0, .1); the best 5000 of 49,104 x 90 to 100 detections"
    formats = (("channels_last", False), ("contiguous_format", True))
    ours, torchvision = (f"bench.{module}:post_process" for module in ("ours", "of_torchvision"))
    return [
        Row(
            "predict",
            f"a prepared picture to 100 detections, eager; {bare}",
            (
                Entry("tinydet", "bench.ours:predict"),
                *(
                    Entry("effdet", "bench.of_effdet:predict", {"memory_format": x}, way=x, thorough=t)
                    for x, t in formats
                ),
                exported,
            ),
        ),
        Row(
            "compiled predict",
            f"the same with the network compiled; {bare}",
            (
                Entry("tinydet", "bench.ours:predict", {"compiled": True}),
                Entry("effdet", "bench.of_effdet:predict", {"compiled": True}, thorough=True),
                exported,
            ),
            quick_rounds=0,
        ),
        Row(
            "post-processing, hard",
            f"{drawn}; torchvision: topk, BoxCoder, batched_nms",
            (
                Entry("tinydet", ours, {"method": "hard"}),
                Entry("effdet", "bench.of_effdet:post_process", {"method": "hard"}),
                Entry("torchvision", torchvision, {"method": "hard"}),
            ),
        ),
        Row(
            "post-processing, soft",
            f"{drawn}, Gaussian, down to a score of .001; effdet's goes on to the last of the 5000",
            (
                Entry("tinydet", ours, {"method": "soft"}),
                Entry("effdet", "bench.of_effdet:post_process", {"method": "soft"}),
            ),
            warmup=2,
        ),
    ]


def steps() -> list[Row]:
    """A step of training, and the parts of it that are no network."""
    modules = {"tinydet": "ours", "effdet": "of_effdet", "torchvision": "of_torchvision"}
    return [
        Row(
            "training step",
            "batch 4, 20 boxes a picture, AdamW; tinydet's also normalises the pictures and averages the weights",
            (
                Entry("tinydet", "bench.ours:train", STEP),
                Entry("effdet", "bench.of_effdet:train", STEP, way="channels_last"),
            ),
            rounds=9,
            quick_rounds=3,
            warmup=1,
            peak=True,
        ),
        Row(
            "loss",
            "batch 4, value and gradient by logits and deltas; torchvision: one-hot targets, sigmoid_focal_loss, "
            "huber_loss",
            (
                Entry("tinydet", "bench.ours:loss", STEP),
                Entry("effdet", "bench.of_effdet:loss", {**STEP, "jit": False}, way="eager"),
                Entry("effdet", "bench.of_effdet:loss", {**STEP, "jit": True}, way="scripted", thorough=True),
                Entry("torchvision", "bench.of_torchvision:loss", STEP),
            ),
        ),
        *(
            Row(
                f"assignment of {objects}",
                f"batch 4, {objects} boxes a picture to labels and deltas of 49,104 anchors; torchvision: box_iou, "
                "Matcher, BoxCoder",
                tuple(
                    Entry(name, f"bench.{module}:assign", {"batch": 4, "objects": objects})
                    for name, module in modules.items()
                ),
            )
            for objects in (20, 100)
        ),
    ]


def evaluations() -> list[Row]:
    """Average precision of a split's detections, KITTI's and COCO's."""
    about = "AP of 3,769 frames with 7 objects and 50 detections"
    coco = (
        Entry("tinydet", "bench.ours:coco_evaluation", FRAMES),
        Entry("faster-coco-eval", "bench.of_coco:evaluation", FRAMES),
    )
    kitti = (Entry("tinydet", "bench.ours:kitti_evaluation", FRAMES),)
    return [
        Row("KITTI evaluation", about, kitti, unit="s", rounds=9, warmup=1),
        Row("COCO evaluation", about, coco, unit="s", rounds=9, warmup=1),
    ]


def pictures(scratch: Path) -> list[Row]:
    """From files to batches, and from files to files."""
    folder = str(scratch / "scenes")
    loading = {"folder": folder, "size": (256, 896), "pictures": 12}
    verb = {"folder": folder, "out": str(scratch / "out"), "pictures": 24}
    return [
        Row(
            "training input",
            "JPEGs of 1242x375 read and augmented to batches of 256x896 by one worker with one thread; torchvision: "
            "transforms.v2 with like operations; effdet's own do not recolour",
            (
                Entry("tinydet", "bench.ours:training_input", loading),
                Entry("effdet", "bench.of_effdet:training_input", loading),
                Entry("torchvision", "bench.of_torchvision:training_input", loading, thorough=True),
            ),
            unit="pictures/s",
            pieces=12,
            warmup=1,
            threads=1,
        ),
        Row(
            "folder of pictures",
            "the whole verb, JPEGs of 1242x375 to drawn ones, ten boxes each; the network alone beside it",
            (
                Entry("tinydet", "bench.ours:predict_folder", verb),
                Entry("the network alone", "bench.ours:bare_network", {"pictures": 24}, worker="tinydet"),
            ),
            unit="pictures/s",
            pieces=24,
            rounds=9,
            quick_rounds=3,
            warmup=1,
        ),
    ]


def chosen(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names, or whose names begin so; all of them where no name is given.

    Raises:
        ValueError: there is none of some name.
    """
    found: list[Row] = []
    for name in names:
        meant = [row for row in rows if row.name == name] or [row for row in rows if row.name.startswith(name)]
        if not meant:
            raise ValueError(f"no row begins with {name!r}; rows: {', '.join(row.name for row in rows)}")
        found += meant
    return [row for row in rows if row in found] if names else rows


def shortened(rows: Sequence[Row], *, named: bool = False) -> list[Row]:
    """The same for --quick: fewer rounds, and neither rows nor entries that take long; rows that are `named` stay."""
    kept = [row._replace(rounds=row.quick_rounds or row.rounds) for row in rows if row.quick_rounds or named]
    return [row._replace(entries=tuple(entry for entry in row.entries if not entry.thorough)) for row in kept]

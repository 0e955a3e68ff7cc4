"""The rows: which implementations are measured, at what, how often."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.runner import Entry, Row
from tinydet.model.postprocess import BOX_VOTING_IOU

STEP: dict[str, Any] = {"batch": 4, "objects": 20}
GPU = [("d0", "predict", 32), ("d0", "train", 16), ("d4", "predict", 8), ("d4", "train", 4)]  # model, case, batch


def ours(case: str, **options: Any) -> Entry:
    """A case of tinydet."""
    return Entry("tinydet", f"tests.bench.ours:{case}", options)


def effdet(case: str, *, variant: str = "", **options: Any) -> Entry:
    """A case of effdet."""
    return Entry("effdet", f"tests.bench.effdet:{case}", options, variant)


def torchvision(case: str, **options: Any) -> Entry:
    """A case of torchvision."""
    return Entry("torchvision", f"tests.bench.torchvision:{case}", options)


def rows(scratch: Path) -> list[Row]:
    """All rows; the folder `scratch` holds what their cases write and share."""
    onnx = Entry("ONNX Runtime", "tests.bench.onnxruntime:forward", {"path": str(scratch / "d0.onnx")}, worker="effdet")
    coco = Entry("faster-coco-eval", "tests.bench.faster_coco_eval:evaluation", {"frames": 3769})
    bare = Entry("network alone", "tests.bench.ours:bare_network", {"images": 24}, worker="tinydet")
    folder, formats = str(scratch / "scenes"), ("channels_last", "contiguous_format")
    loading: dict[str, Any] = {"folder": folder, "size": (256, 896), "images": 12}
    files = {name: str(scratch / name) for name in ("d0-whole.onnx", "lite0.onnx", "lite0.int8.onnx")}
    exported = "a uint8 image to its boxes in ONNX Runtime, as tinydet export writes it"
    in_float = Entry("in float", "tests.bench.ours:exported", {"path": files["lite0.onnx"]}, worker="tinydet")
    outputs = "logits from N(-4.6, 1), deltas from N(0, .1); the best 5000 of 49,104 x 90 to 100 detections"
    evaluation = "AP of 3,769 frames with 7 objects and 50 detections"
    # fmt: off
    return [
        Row("predict", "prepared image to 100 detections, eager, hard NMS; ONNX Runtime: effdet's network alone",
            [ours("predict"), *(effdet("predict", variant=x, memory_format=x) for x in formats), onnx], pause=0.1),
        Row("compiled predict", "the same with the network compiled",
            [ours("predict", compiled=True), effdet("predict", compiled=True), onnx], pause=0.1,
            slow=True),
        Row("exported", f"{exported}; ONNX Runtime: effdet's network alone",
            [ours("exported", path=files["d0-whole.onnx"]), onnx], pause=0.1, slow=True),
        Row("8 bits", f"{exported} --int8; Lite0, three classes, 320x1088",
            [ours("exported", path=files["lite0.int8.onnx"]), in_float], pause=0.1, slow=True),
        Row("post-processing, hard", f"{outputs}; torchvision: topk, BoxCoder, batched_nms",
            [make("post_process", method="hard") for make in (ours, effdet, torchvision)]),
        Row("post-processing, soft", f"{outputs}, Gaussian, to a score of .001; effdet goes on to the last of the 5000",
            [make("post_process", method="soft") for make in (ours, effdet)], warmup=2),
        Row("post-processing, voting", f"{outputs}, Gaussian, and box voting, as prediction does by default",
            [ours("post_process", method="soft", box_voting_iou=BOX_VOTING_IOU)]),
        Row("training step", "batch 4, 20 boxes an image, AdamW; tinydet's also normalises images and averages weights",
            [ours("train", **STEP), effdet("train", **STEP)], rounds=9, warmup=1, peak=True),
        Row("loss", "batch 4, value and gradient; torchvision: one-hot targets, sigmoid_focal_loss, huber_loss",
            [ours("loss", **STEP), *(effdet("loss", variant=name, jit=jit, **STEP) for name, jit in
                                     (("eager", False), ("scripted", True))), torchvision("loss", **STEP)]),
        *(Row(f"assignment of {n}", f"batch 4, {n} boxes an image; torchvision: box_iou, Matcher, BoxCoder",
              [make("assign", batch=4, objects=n) for make in (ours, effdet, torchvision)]) for n in (20, 100)),
        Row("KITTI evaluation", evaluation, [ours("kitti_evaluation", frames=3769)], unit="s", rounds=9, warmup=1),
        Row("COCO evaluation", evaluation, [ours("coco_evaluation", frames=3769), coco], unit="s", rounds=9, warmup=1),
        Row("training input", "JPEGs of 1242x375 to augmented batches of 256x896, one thread; effdet's do not recolour",
            [make("training_input", **loading) for make in (ours, effdet, torchvision)],
            unit="images/s", pieces=12, warmup=1, threads=1),
        Row("folder of images", "the verb predict: JPEGs of 1242x375 to drawn ones, ten boxes each",
            [ours("predict_folder", folder=folder, out=str(scratch / "out"), images=24), bare],
            unit="images/s", pieces=24, rounds=9, warmup=1),
        Row("import", "a new Python that imports the package and ends; tinydet.detector, for tinydet alone is lazy",
            [Entry(name, "tests.bench.inputs:fresh_import", {"module": module}, worker=worker)
             for name, module, worker in (
                ("tinydet", "tinydet.detector", ""), ("effdet", "effdet", ""), ("torchvision", "torchvision", ""),
                ("ONNX Runtime", "onnxruntime", "effdet"), ("torch", "torch", "tinydet"))],
            unit="s", rounds=9, warmup=0),
        *(gpu_rows() if torch.cuda.is_available() else []),
    ]
    # fmt: on


def gpu_rows() -> Iterator[Row]:
    """The network at work on a GPU; fp32 is TF32."""
    for (model, work, batch), precision, compiled in itertools.product(GPU, ("fp32", "bf16"), (False, True)):
        options: dict[str, Any] = {"model": model, "batch": batch, **({"objects": 20} if work == "train" else {})}
        options |= {"device": "cuda", "precision": precision, "compiled": compiled}
        name = f"GPU {work} {model}, {precision}, {'compiled' if compiled else 'eager'}"
        entries = [make(work, **options) for make in (ours, effdet)]
        yield Row(name, f"batches of {batch}", entries, unit="images/s", pieces=batch, warmup=5, slow=compiled)


def choose(rows: Sequence[Row], names: Sequence[str], *, quick: bool) -> list[Row]:
    """Choose the rows of these names, or whose names begin so; all, or with `quick` those not slow, if none is given.

    Raises:
        ValueError: there is no row of some name.
    """
    found = [row for row in rows if not (quick and row.slow)] if not names else []
    for name in names:
        named = [row for row in rows if row.name == name] or [row for row in rows if row.name.startswith(name)]
        if not named:
            raise ValueError(f"no row begins with {name!r}; rows: {', '.join(row.name for row in rows)}")
        found += named
    return [row for row in rows if row in found]

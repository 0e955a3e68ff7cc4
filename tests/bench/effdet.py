"""effdet's cases, in the Python where it is installed: no tinydet here."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from effdet import create_model
from effdet.anchors import AnchorLabeler, Anchors
from effdet.bench import _batch_detection, _post_process
from effdet.config import get_efficientdet_config
from effdet.data.loader import DetectionFastCollate
from effdet.data.transforms import transforms_coco_train
from effdet.loss import DetectionLoss
from PIL import Image
from torch import Tensor
from torch.autograd import grad

from tests.bench import inputs
from tests.bench.inputs import autocast, synchronized

Call = Callable[[], object]
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32", "compiled": False}


def predict(*, model: str = "d0", batch: int = 1, memory_format: str = "channels_last", **settings: Any) -> Call:
    """Images' tensors to their detections."""
    bench, layout = build(model, "predict", memory_format, **settings)
    bench, images = bench.eval(), inputs.images(batch, bench.config.image_size[0]).to(**layout)
    precision = (CPU | settings)["precision"]

    @torch.inference_mode()
    def call() -> object:
        with autocast(layout["device"], precision):
            return bench(images)

    return synchronized(call, device=layout["device"])


def train(*, model: str = "d0", batch: int, objects: int, **settings: Any) -> Call:
    """One step: forward, assignment, loss, gradients, clipping, AdamW; no averages."""
    bench, layout = build(model, "train", "channels_last", **settings)
    size, precision = bench.config.image_size[0], (CPU | settings)["precision"]
    optimizer = torch.optim.AdamW(bench.train().parameters(), lr=1e-4, fused=True)
    images = inputs.images(batch, size).to(**layout)
    boxes, labels = (x.to(layout["device"]) for x in ground_truth(batch, objects, size))

    def call() -> None:
        with autocast(layout["device"], precision):
            loss = bench(images, {"bbox": boxes, "cls": labels})["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bench.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return synchronized(call, device=layout["device"])


def build(model: str, task: str, memory_format: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A model of random weights for a task, and where and how its images lie."""
    torch.manual_seed(0)
    name, random = f"tf_efficientdet_{model}", {"pretrained": False, "pretrained_backbone": False}
    bench = create_model(name, bench_task=task, bench_labeler=task == "train", **random)
    layout = {"device": (CPU | settings)["device"], "memory_format": getattr(torch, memory_format)}
    if (CPU | settings)["compiled"]:
        bench.model.compile()
    return bench.to(**layout), layout


def post_process(*, method: str) -> Call:
    """The network's outputs to detections."""
    logits, deltas = map(inputs.by_level, inputs.network_outputs(1))
    boxes = Anchors.from_config(config()).boxes

    @torch.inference_mode()
    def call() -> object:
        scores, codes, rows, classes = _post_process(logits, deltas, num_levels=5, num_classes=inputs.CLASSES)
        return _batch_detection(1, scores, codes, boxes, rows, classes, None, None, 100, method == "soft")

    return call


def loss(*, batch: int, objects: int, jit: bool) -> Call:
    """The loss and its gradient by logits and deltas."""
    settings = config()
    settings.jit_loss = jit
    function = DetectionLoss(settings)
    logits, deltas = ([x.requires_grad_() for x in inputs.by_level(y)] for y in inputs.network_outputs(batch))
    targets = labeler().batch_label_anchors(*ground_truth(batch, objects))
    return lambda: grad(function(logits, deltas, *targets)[0], [*logits, *deltas])


def assign(*, batch: int, objects: int) -> Call:
    """Boxes to the targets of every anchor."""
    truth, assigner = ground_truth(batch, objects), labeler()
    return lambda: assigner.batch_label_anchors(*truth)


def training_input(*, folder: str, size: tuple[int, int], images: int) -> Call:
    """Batches of four: read, flipped, scaled and cropped by effdet's own transforms, collated."""
    change, collate = transforms_coco_train(tuple(size), use_prefetcher=True), DetectionFastCollate()
    examples = cycle(inputs.image_files(folder))

    def example() -> Any:
        path, boxes = next(examples)
        annotations = {"bbox": boxes[:, [1, 0, 3, 2]].copy(), "cls": boxes[:, 0] * 0 + 1}
        return change(Image.open(path).convert("RGB"), annotations)

    return lambda: [collate([example() for _ in range(4)]) for _ in range(images // 4)]


def config() -> Any:
    """The model's settings."""
    return get_efficientdet_config("tf_efficientdet_d0")


def labeler() -> AnchorLabeler:
    """The assignment of the model's training."""
    return AnchorLabeler(Anchors.from_config(config()), inputs.CLASSES, match_threshold=0.5)


def ground_truth(batch: int, objects: int, size: int = inputs.SIZE) -> tuple[Tensor, Tensor]:
    """Boxes and labels as effdet has them: yxyx, from 1, in floating point."""
    boxes, labels = inputs.ground_truth(batch, objects, size)
    return boxes[..., [1, 0, 3, 2]], (labels + 1).float()

"""effdet's cases, in the Python where it is installed: no tinydet here."""

from collections.abc import Callable
from typing import Any

import torch
from effdet import create_model
from effdet.anchors import AnchorLabeler, Anchors
from effdet.bench import _batch_detection, _post_process
from effdet.config import get_efficientdet_config
from effdet.loss import DetectionLoss
from torch import Tensor
from torch.autograd import grad

from bench import inputs
from bench.devices import autocast, finished

Call = Callable[[], object]
NAME = "tf_efficientdet_d0"
RANDOM: dict[str, Any] = {"pretrained": False, "pretrained_backbone": False}


def predict(
    *,
    model: str = "d0",
    batch: int = 1,
    device: str = "cpu",
    precision: str = "fp32",
    memory_format: str = "channels_last",
    compiled: bool = False,
) -> Call:
    """Pictures' tensors to their detections."""
    torch.manual_seed(0)
    layout: dict[str, Any] = {"memory_format": getattr(torch, memory_format)}
    bench = create_model(f"tf_efficientdet_{model}", bench_task="predict", **RANDOM).eval().to(device, **layout)
    images = inputs.pictures(batch, bench.config.image_size[0]).to(device, **layout)
    if compiled:
        bench.model.compile()

    @torch.inference_mode()
    def call() -> object:
        with autocast(device, precision):
            return bench(images)

    return finished(call, device=device)


def train(
    *,
    model: str = "d0",
    batch: int,
    objects: int,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
) -> Call:
    """One step: forward, assignment, loss, gradients, clipping, AdamW; no averages."""
    torch.manual_seed(0)
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    bench = create_model(f"tf_efficientdet_{model}", bench_task="train", bench_labeler=True, **RANDOM)
    bench.train().to(device, **layout)
    size = bench.config.image_size[0]
    optimizer = torch.optim.AdamW(bench.parameters(), lr=1e-4, fused=True)
    images = inputs.pictures(batch, size).to(device, **layout)
    boxes, labels = ground_truth(batch, objects, size)
    target = {"bbox": boxes.to(device), "cls": labels.to(device)}
    if compiled:
        bench.model.compile()

    def call() -> None:
        with autocast(device, precision):
            loss = bench(images, target)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bench.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return finished(call, device=device)


def post_process(*, method: str) -> Call:
    """The network's outputs to detections."""
    logits, deltas = map(inputs.by_level, inputs.network_outputs(1))
    boxes = anchors().boxes

    @torch.inference_mode()
    def call() -> object:
        found = _post_process(logits, deltas, num_levels=5, num_classes=inputs.CLASSES)
        scores, codes, indices, classes = found
        return _batch_detection(1, scores, codes, boxes, indices, classes, None, None, 100, method == "soft")

    return call


def loss(*, batch: int, objects: int, jit: bool) -> Call:
    """The loss and its gradient by logits and deltas."""
    config = get_efficientdet_config(NAME)
    config.jit_loss = jit
    function = DetectionLoss(config)
    logits, deltas = ([x.requires_grad_() for x in inputs.by_level(y)] for y in inputs.network_outputs(batch))
    targets = labeler().batch_label_anchors(*ground_truth(batch, objects))
    return lambda: grad(function(logits, deltas, *targets)[0], [*logits, *deltas])


def assign(*, batch: int, objects: int) -> Call:
    """Boxes to the targets of every anchor."""
    truth, labels_of = ground_truth(batch, objects), labeler()
    return lambda: labels_of.batch_label_anchors(*truth)


def ground_truth(batch: int, objects: int, size: int = inputs.SIZE) -> tuple[Tensor, Tensor]:
    """Boxes and labels as effdet has them: yxyx, from 1, in floating point."""
    boxes, labels = inputs.ground_truth(batch, objects, size)
    return boxes[..., [1, 0, 3, 2]], (labels + 1).float()


def anchors() -> Anchors:
    """The model's anchors."""
    return Anchors.from_config(get_efficientdet_config(NAME))


def labeler() -> AnchorLabeler:
    """The assignment of the model's training."""
    return AnchorLabeler(anchors(), inputs.CLASSES, match_threshold=0.5)


def training_input(*, folder: str, size: tuple[int, int], pictures: int) -> Call:
    """Batches of four: read, flipped, scaled and cropped by effdet's own transforms, collated."""
    from itertools import cycle

    from effdet.data.loader import DetectionFastCollate
    from effdet.data.transforms import transforms_coco_train
    from PIL import Image

    change, collate = transforms_coco_train(tuple(size), use_prefetcher=True), DetectionFastCollate()
    examples = cycle(inputs.labelled(folder))

    def one() -> Any:
        path, boxes = next(examples)
        annotations = {"bbox": boxes[:, [1, 0, 3, 2]].copy(), "cls": boxes[:, 0] * 0 + 1}
        return change(Image.open(path).convert("RGB"), annotations)

    return lambda: [collate([one() for _ in range(4)]) for _ in range(pictures // 4)]

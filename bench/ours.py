"""tinydet's cases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad

from bench import inputs
from bench.devices import autocast, finished
from tinydet.data.loader import Batch
from tinydet.model.config import ModelConfig, model_config
from tinydet.model.detect import detect, model_anchors
from tinydet.model.efficientdet import EfficientDet, Outputs
from tinydet.model.functional import state
from tinydet.model.fuse import network
from tinydet.ops.assign import assign_nearby
from tinydet.ops.losses import detection_loss
from tinydet.training.step import State, make_optimizer, train_step
from tinydet.weights.checkpoint import skeleton

Call = Callable[[], object]


def predict(
    *, model: str = "d0", batch: int = 1, device: str = "cpu", precision: str = "fp32", compiled: bool = False
) -> Call:
    """Pictures' tensors to their detections, as the verb does it."""
    config = model_config(model)
    forward = random_network(config, device=device, compiled=compiled)
    anchors = model_anchors(config, device=device)
    images = inputs.pictures(batch, config.image_size[0]).to(device)

    @torch.inference_mode()
    def call() -> object:
        with autocast(device, precision):
            outputs = forward(images)
        return detect(outputs, anchors)

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
    """One step: forward, assignment, loss, gradients, clipping, AdamW, and the averages of weights and statistics."""
    config = model_config(model)
    size = config.image_size[0]
    torch.manual_seed(0)
    params, buffers, ema_params, ema_buffers = (
        {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        for tensors in 2 * state(EfficientDet(config))
    )
    now = State(params, buffers, ema_params, ema_buffers, 0)
    settings: dict[str, Any] = {
        "model": skeleton(config),
        "anchors": model_anchors(config, device=device),
        "optimizer": make_optimizer(params, name="adamw", lr=1e-4, weight_decay=1e-2),
        "clip": 10.0,
        "ema_decay": 0.9998,
    }
    images = inputs.pictures(batch, size).mul_(50).add_(128).clamp_(0, 255).to(torch.uint8)
    sizes = torch.full((batch, 2), size)
    truth = inputs.ground_truth(batch, objects, size)
    given = Batch(images, *truth, torch.ones(batch), sizes, [""] * batch).to(device)
    if compiled:
        settings["model"].compile()

    def call() -> None:
        nonlocal now
        with autocast(device, precision):
            now, _ = train_step(now, given, **settings)

    return finished(call, device=device)


def post_process(*, method: str) -> Call:
    """The network's outputs to detections, down to effdet's lowest score."""
    outputs, anchors = Outputs(*inputs.network_outputs(1)), model_anchors(model_config("d0"))
    return torch.inference_mode()(lambda: detect(outputs, anchors, method=method, score_threshold=0.001))


def loss(*, batch: int, objects: int) -> Call:
    """The loss and its gradient by logits and deltas."""
    logits, deltas = (x.requires_grad_() for x in inputs.network_outputs(batch))
    targets = assign_nearby(*inputs.ground_truth(batch, objects), model_anchors(model_config("d0")))

    def call() -> object:
        losses = detection_loss(logits, deltas, targets.labels, targets.deltas, once=True)
        return grad(losses.total, (logits, deltas))

    return call


def assign(*, batch: int, objects: int) -> Call:
    """Boxes to the targets of every anchor."""
    truth, anchors = inputs.ground_truth(batch, objects), model_anchors(model_config("d0"))
    return lambda: assign_nearby(*truth, anchors)


def kitti_evaluation(*, frames: int) -> Call:
    """Official AP of three classes at three difficulties."""
    from bench.frames import drawn_frames
    from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap

    made = drawn_frames(frames)
    truths = [KittiTruth(f.types, f.truncated, f.occluded, f.boxes) for f in made]
    results = [KittiResult(f.found_types, f.found_boxes, f.scores) for f in made]
    return lambda: kitti_ap(truths, results)


def coco_evaluation(*, frames: int) -> Call:
    """COCO's AP of the same frames, all seven classes: ten thresholds, four sizes."""
    from bench.frames import KINDS, drawn_frames
    from tinydet.metrics.coco import CocoResult, CocoTruth, coco_scores

    made, kinds = drawn_frames(frames), KINDS.tolist()

    def columns(types: list[list[str]], boxes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corners = np.concatenate(boxes)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        images = np.repeat(np.arange(frames), [len(one) for one in types])
        return images, np.array([kinds.index(name) for one in types for name in one]), sides

    objects = columns([f.types for f in made], [f.boxes for f in made])
    truth = CocoTruth(*objects, objects[2][:, 2:].prod(1), np.zeros(len(objects[0]), bool))
    found = columns([f.found_types for f in made], [f.found_boxes for f in made])
    result = CocoResult(*found, np.concatenate([f.scores for f in made]))
    return lambda: coco_scores(truth, result, classes=len(kinds))


def training_input(*, folder: str, size: tuple[int, int], pictures: int) -> Call:
    """Batches of four as `train` gets them: read, augmented, collated, here in one process."""
    import cv2

    from tinydet.data.kitti import KittiDataset
    from tinydet.data.loader import train_batches

    draw(folder)
    cv2.setNumThreads(0)  # as in the loader's workers
    data, fill = KittiDataset(folder, "train"), model_config("d0").fill
    size = size[0], size[1]  # JSON knows lists only
    epochs = range(1_000_000)
    batches = iter(train_batches(data, size, batch_size=4, epochs=epochs, seed=0, workers=0, fill=fill))
    return lambda: [next(batches) for _ in range(pictures // 4)]


def predict_folder(*, folder: str, out: str, pictures: int) -> Call:
    """The whole verb: pictures read, detected on, ten boxes in each drawn, written."""
    from tinydet.detector import Detector
    from tinydet.predict import predict, save_predictions
    from tinydet.weights.formats import Weights

    draw(folder)
    config = model_config("d0")
    torch.manual_seed(0)
    weights = Weights(config, *state(EfficientDet(config)), {}, (), "random")
    paths = sorted(Path(folder).glob("training/image_2/*"))[:pictures]

    def call() -> object:
        found = predict(paths, Detector(weights), score_threshold=0.0, max_detections=10)
        return save_predictions(found, out, classes=config.classes)

    return call


def bare_network(*, pictures: int) -> Call:
    """The network alone, as often."""
    forward, images = random_network(model_config("d0")), inputs.pictures(1)
    return lambda: [forward(images) for _ in range(pictures)]


def random_network(config: ModelConfig, *, device: str = "cpu", compiled: bool = False) -> Callable[[Tensor], Outputs]:
    """A model as predict makes it, of random weights."""
    torch.manual_seed(0)
    weights = ({k: v.to(device) for k, v in tensors.items()} for tensors in state(EfficientDet(config)))
    return network(*weights, config=config, compile=compiled)


def draw(folder: str) -> None:
    """Draw the scenes that pictures are read from, of KITTI's size, unless they are there."""
    from tinydet.data.scenes import draw_scenes

    if not Path(folder).exists():
        draw_scenes(folder, train=24, val=1)

"""tinydet's cases."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.autograd import grad

from tests.bench import inputs
from tests.bench.inputs import autocast, columns, synchronized
from tinydet.data.kitti import KittiDataset
from tinydet.data.loader import Batch, train_batches
from tinydet.detector import Detector, load
from tinydet.export import export_model
from tinydet.metrics.coco import CocoResult, CocoTruth, coco_scores
from tinydet.metrics.kitti import KittiResult, KittiTruth, kitti_ap
from tinydet.model.config import model_config
from tinydet.model.efficientdet import Outputs
from tinydet.model.fold import inference_fn
from tinydet.model.postprocess import detect, model_anchors
from tinydet.ops.kernels import assign_batch, focal_loss_sum
from tinydet.ops.losses import detection_loss
from tinydet.predict import save_predictions
from tinydet.quantize import quantize_onnx
from tinydet.training.state import init
from tinydet.training.step import train_step
from tinydet.weights.formats import Weights

Call = Callable[[], object]


def predict(
    *, model: str = "d0", batch: int = 1, device: str = "cpu", precision: str = "fp32", compiled: bool = False
) -> Call:
    """Images' tensors to their detections, by hard NMS as the others have it."""
    config = model_config(model)
    infer = inference_fn(init(config, weights="none", device=device)[1].ema, config=config, compile=compiled)
    anchors, images = model_anchors(config, device=device), inputs.images(batch, config.image_size[0]).to(device)

    @torch.inference_mode()
    def call() -> object:
        with autocast(device, precision):
            outputs = infer(images)
        return detect(outputs, anchors, method="hard", box_voting_iou=None)

    return synchronized(call, device=device)


def exported(*, path: str) -> Call:
    """An image to its detections by an exported file, whose name says which: D0, or a Lite0 for KITTI, in 8 bits."""
    name, *int8 = Path(path).stem.split(".")
    kitti: dict[str, Any] = {"classes": ("Car", "Pedestrian", "Cyclist"), "image_size": (320, 1088)}
    config = model_config("lite0", **kitti) if name == "lite0" else model_config("d0")
    image = np.random.default_rng(0).integers(0, 256, (*config.image_size, 3), np.uint8)
    if not Path(path).exists():
        plain = Path(path).with_name(f"{name}.onnx")
        if not plain.exists():
            export_model(
                Weights(config, *init(config, weights="none")[1].ema, (), "random weights"), plain, format="onnx"
            )
        if int8:
            quantize_onnx(plain, path, [image])
    detector = load(path)
    return lambda: detector(image, score_threshold=0.01)


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
    network, state = init(config, weights="none", device=device)
    images = inputs.images(batch, size).mul_(50).add_(128).clamp_(0, 255).to(torch.uint8)
    sizes, truth = torch.full((batch, 2), size), inputs.ground_truth(batch, objects, size)
    given = Batch(images, *truth, torch.ones(batch), sizes, [""] * batch).to(device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if compiled:
        network.compile()

    def call() -> None:
        nonlocal state
        state, _ = train_step(state, given, model=network, lr=1e-4, precision=dtype)

    return synchronized(call, device=device)


def post_process(*, method: str, box_voting_iou: float | None = None) -> Call:
    """The network's outputs to detections, down to effdet's lowest score."""
    outputs, anchors = Outputs(*inputs.network_outputs(1)), model_anchors(model_config("d0"))
    settings: dict[str, Any] = {"method": method, "score_threshold": 0.001, "box_voting_iou": box_voting_iou}
    return torch.inference_mode()(lambda: detect(outputs, anchors, **settings))


def loss(*, batch: int, objects: int) -> Call:
    """The loss and its gradient by logits and deltas."""
    logits, deltas = (x.requires_grad_() for x in inputs.network_outputs(batch))
    targets = assign_batch(*inputs.ground_truth(batch, objects), model_anchors(model_config("d0")))

    def call() -> object:
        losses = detection_loss(logits, deltas, targets.labels, targets.deltas, focal_sum=focal_loss_sum)
        return grad(losses.total, (logits, deltas))

    return call


def assign(*, batch: int, objects: int) -> Call:
    """Boxes to the targets of every anchor, by the thresholds of training: each object's own."""
    config, truth = model_config("d0"), inputs.ground_truth(batch, objects)
    anchors = model_anchors(config)
    return lambda: assign_batch(*truth, anchors, image_size=config.image_size)


def kitti_evaluation(*, frames: int) -> Call:
    """Official AP of three classes at three difficulties."""
    rng, truths, results = np.random.default_rng(0), [], []
    for objects, detections in inputs.frames(frames):
        count = len(objects.types)
        truncated = rng.uniform(0, 0.6, count) * (rng.random(count) < 0.4)
        truths.append(KittiTruth(objects.types, truncated, rng.integers(0, 4, count), objects.boxes))
        results.append(KittiResult(*detections))
    return lambda: kitti_ap(truths, results)


def coco_evaluation(*, frames: int) -> Call:
    """COCO's AP of the same frames, all seven classes: ten thresholds, four sizes."""
    objects, detections = (columns(list(each)) for each in zip(*inputs.frames(frames), strict=True))
    area = objects[2][:, 2:].prod(1)
    truth, result = CocoTruth(*objects[:3], area, np.zeros(len(area), bool)), CocoResult(*detections)
    return lambda: coco_scores(truth, result, classes=len(inputs.KINDS))


def training_input(*, folder: str, size: tuple[int, int], images: int) -> Call:
    """Batches of four as `train` gets them: read, augmented, collated, here in one process."""
    draw_scenes(folder)
    cv2.setNumThreads(0)  # as in the loader's workers
    config, dataset = model_config("d0", image_size=tuple(size)), KittiDataset(folder, "train")
    settings: dict[str, Any] = {"crop": tuple(size), "scale_range": (0.7, 1.5), "copy_paste": 0.0}
    batches = iter(train_batches(dataset, config, epochs=range(1_000_000), **settings))
    return lambda: [next(batches) for _ in range(images // 4)]


def predict_folder(*, folder: str, out: str, images: int, model: str = "d0") -> Call:
    """The whole verb: images read, detected on, ten boxes in each drawn, written."""
    draw_scenes(folder)
    config = model_config(model)
    detector = Detector(Weights(config, *init(config, weights="none")[1].ema, (), "random weights"))
    paths = sorted(Path(folder).glob("training/image_2/*"))[:images]

    def call() -> object:
        found = detector.predict(paths, score_threshold=0.0, max_detections=10)
        return save_predictions(found, out, classes=config.classes)

    return call


def bare_network(*, images: int) -> Call:
    """The network alone, as often."""
    config, image = model_config("d0"), inputs.images(1)
    infer = inference_fn(init(config, weights="none")[1].ema, config=config)
    return lambda: [infer(image) for _ in range(images)]


def draw_scenes(folder: str) -> None:
    """Draw the scenes that images are read from, of KITTI's size, unless they are there."""
    if not Path(folder).exists():
        script = Path(__file__).resolve().parents[2] / "bin/scenes"
        subprocess.run([sys.executable, script, folder, "--train", "24", "--val", "1"], check=True, capture_output=True)

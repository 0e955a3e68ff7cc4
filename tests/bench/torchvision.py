"""What torchvision has of the same, put together plainly, in the Python where it is installed: no tinydet here."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.io import decode_image
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss
from torchvision.transforms import v2

from tests.bench import inputs

Call = Callable[[], object]
CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


def post_process(*, method: str) -> Call:
    """The network's outputs to detections: topk, decode, batched_nms."""
    assert method == "hard", "torchvision has no soft suppression"
    (logits,), (deltas,) = inputs.network_outputs(1)
    boxes = anchors()

    @torch.inference_mode()
    def call() -> object:
        scores, places = logits.flatten().topk(5000)
        rows, labels = places // inputs.CLASSES, places % inputs.CLASSES
        found, scores = CODER.decode_single(deltas[rows], boxes[rows]), scores.sigmoid()
        kept = batched_nms(found, scores, labels, 0.5)[:100]
        return found[kept], scores[kept], labels[kept]

    return call


def loss(*, batch: int, objects: int) -> Call:
    """sigmoid_focal_loss of one-hot targets and huber_loss of the positives, and their gradient."""
    logits, deltas = (x.requires_grad_() for x in inputs.network_outputs(batch))
    labels, codes = map(torch.stack, zip(*match(*inputs.ground_truth(batch, objects), anchors()), strict=True))
    positive = labels >= 0

    def call() -> object:
        count = positive.sum() + 1
        target = F.one_hot(labels + 1, inputs.CLASSES + 1)[..., 1:].to(logits.dtype)
        focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=1.5, reduction="sum") / count
        box = F.huber_loss(deltas[positive], codes[positive], delta=0.1, reduction="sum") / (4 * count)
        return grad(focal + 50 * box, (logits, deltas))

    return call


def assign(*, batch: int, objects: int) -> Call:
    """Boxes to the targets of every anchor: box_iou, Matcher, and the positives encoded."""
    truth, boxes = inputs.ground_truth(batch, objects), anchors()
    return lambda: match(*truth, boxes)


def match(boxes: Tensor, labels: Tensor, anchors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Targets of each image, one by one as torchvision's detectors do it: int64[A], -1 for background, float[A 4]."""
    found = []
    for truth, label in zip(boxes, labels, strict=True):
        matches = Matcher(0.5, 0.5, allow_low_quality_matches=True)(box_iou(truth, anchors))
        positive = matches >= 0
        targets, codes = torch.full_like(matches, -1), torch.zeros_like(anchors)
        targets[positive] = label[matches[positive]]
        codes[positive] = CODER.encode_single(truth[matches[positive]], anchors[positive])
        found.append((targets, codes))
    return found


def anchors() -> Tensor:
    """Float32[A 4]: three sizes of three shapes about every cell of every level."""
    aspects = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    shapes = [(4 * 2 ** (octave / 3) * w, 4 * 2 ** (octave / 3) * h) for octave in range(3) for w, h in aspects]
    half = torch.tensor(shapes) / 2  # in strides
    levels = []
    for side in inputs.SIDES:
        stride = inputs.SIZE / side
        y, x = torch.meshgrid(*(2 * [(torch.arange(side) + 0.5) * stride]), indexing="ij")
        center = torch.stack([x, y], -1)[:, :, None]
        levels.append(torch.cat([center - half * stride, center + half * stride], -1).reshape(-1, 4))
    return torch.cat(levels)


def training_input(*, folder: str, size: tuple[int, int], images: int) -> Call:
    """Batches of four: read, scaled, cropped, flipped and recoloured by transforms.v2, stacked."""
    color = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.02)
    scale, crop = v2.ScaleJitter(tuple(size), scale_range=(0.7, 1.5)), v2.RandomCrop(tuple(size), pad_if_needed=True)
    clean = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    change = v2.Compose([scale, crop, v2.RandomHorizontalFlip(), v2.RandomApply([color], p=0.8), *clean])
    examples = cycle(inputs.image_files(folder))

    def example() -> Tensor:
        path, xyxy = next(examples)
        image = tv_tensors.Image(decode_image(str(path)))
        boxes = tv_tensors.BoundingBoxes(xyxy, format="XYXY", canvas_size=image.shape[-2:])
        changed: Tensor = change({"image": image, "boxes": boxes, "labels": torch.ones(len(xyxy))})["image"]
        return changed

    return lambda: [torch.stack([example() for _ in range(4)]) for _ in range(images // 4)]

"""Pre- and post-processing: images to network input, network outputs to boxes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.model.config import ModelConfig
from tinydet.model.efficientdet import Outputs
from tinydet.ops.anchors import anchors
from tinydet.ops.boxes import clip, decode
from tinydet.ops.nms import METHODS, box_voting, fixed_shape_nms, nms, soft_nms

BOX_VOTING_IOU = 0.6  # of .5 to .8; on KITTI it added two to three to the mean Moderate AP of four detectors


class Detections(NamedTuple):
    """The objects of one image, best first; or of a batch, with a leading B."""

    boxes: Tensor  # float[D 4], xyxy pixels
    scores: Tensor  # float[D] in [0, 1]
    labels: Tensor  # int64[D]: indices of the config's classes

    def cpu(self) -> "Detections":
        """Copy them to the CPU, where they are elsewhere."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())


def normalize(images: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise images to network input: (x / 255 - mean) / std. uint8[B 3 H W] -> float32[B 3 H W]."""
    affine = torch.tensor([[[[1 / (255 * s)]], [[-m / s]]] for m, s in zip(mean, std, strict=True)])
    scale, shift = affine.to(images.device, non_blocking=True).unbind(1)
    return torch.addcmul(shift, images.to(torch.float32), scale)


def model_anchors(
    config: ModelConfig, image_size: tuple[int, int] | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """Generate a model's anchors, float32[A 4], xyxy input pixels; kept and returned again: do not write into them."""
    device = torch.get_default_device() if device is None else torch.device(device)
    settings: dict[str, Any] = {"octaves": config.octaves, "aspects": config.aspects, "levels": config.levels}
    return _anchors(image_size or config.image_size, scale=config.anchor_scale, device=device, **settings)


_anchors = lru_cache(maxsize=16)(torch.inference_mode(False)(anchors))


def detect(
    outputs: Outputs, anchors: Tensor, *, names: Sequence[str] | None = None, **settings: Any
) -> list[Detections]:
    """Detect the objects of each image of a batch: `detect_padded`, with its settings, without the padding.

    Raises:
        FloatingPointError: a logit or delta of an image is NaN or infinite; names it by `names` or its number.
    """
    padded = detect_padded(outputs, anchors, **settings)
    # A sum is finite where all are, at a fortieth of the time of looking at each; one transfer from a GPU brings both.
    total = sum(x.sum((1, 2), dtype=torch.promote_types(x.dtype, torch.float32)) for x in outputs)
    counts, finite = torch.stack([(padded.labels >= 0).sum(1), torch.as_tensor(total).isfinite()]).tolist()
    if not all(finite):
        name = finite.index(0) + 1 if names is None else names[finite.index(0)]
        raise FloatingPointError(
            f"image {name}: the network's output is not finite, as after training with too high a learning rate"
        )
    return [Detections(*(field[i, :count] for field in padded)) for i, count in enumerate(counts)]


def detect_padded(
    outputs: Outputs,
    anchors: Tensor,
    *,
    sizes: Tensor | None = None,
    scales: Tensor | None = None,
    score_threshold: float = 0.01,
    cell_anchors: int = 1,
    candidates: int = 5000,
    max_detections: int = 100,
    method: str = "soft",
    iou_threshold: float = 0.5,
    box_voting_iou: float | None = BOX_VOTING_IOU,
    fixed_shape: bool | None = None,
) -> Detections:
    """Detect the objects of each image of a batch, padded to one number.

    The best `candidates` pairs of anchor and class are decoded, scaled, clipped, suppressed class by class, and refined
    by box voting.

    Args:
        anchors: float[A 4], xyxy input pixels.
        sizes: int[B 2] or [1 2], (height, width) of the original images, to which boxes are clipped; none are without.
        scales: float[B] or [1], input pixels per original pixel; 1 without.
        cell_anchors: of so many anchors in a row, those of a cell, only the best of each class is a candidate.
        method: "soft" for the Gaussian NMS of the published AP, "hard" for greedy NMS with `iou_threshold`.
        box_voting_iou: of `tinydet.ops.nms.box_voting`; None leaves the boxes as suppression kept them.
        fixed_shape: use operations only whose shapes do not depend on values, as export must, and a GPU, which would
            wait for the CPU; a CPU is faster without. By default where the outputs are not on the CPU.

    Returns:
        Detections in original pixels: float[B D 4], float[B D], int64[B D], D = `max_detections`. Rows without an
        object come last and have score 0 and label -1.

    Reference: google/automl's post-processing. It clips in input pixels, which is the same.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    logits, deltas = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in outputs)
    logit, row, labels = top_candidates(logits, candidates, cell_anchors=cell_anchors)
    # Of all: the last bit of a sigmoid depends on how many there are, which the threshold must not decide.
    scores = logit.sigmoid()
    scores = scores.where(scores >= score_threshold, 0)
    boxes = decode(deltas.gather(1, row[..., None].expand(-1, -1, 4)), anchors[row])
    if scales is not None:
        boxes = boxes / scales.to(boxes)[:, None, None]
    if sizes is not None:
        sizes = sizes.to(boxes)
        boxes = clip(boxes, sizes)

    def refine(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
        if box_voting_iou is None:
            return boxes.gather(-2, keep[..., None].expand(*keep.shape, 4))
        return box_voting(boxes, scores, labels, keep, iou_threshold=box_voting_iou)

    limits: dict[str, Any] = {"max_detections": max_detections}
    if logits.device.type != "cpu" if fixed_shape is None else fixed_shape:
        keep, kept = fixed_shape_nms(boxes, scores, labels, method=method, iou_threshold=iou_threshold, **limits)
        found = kept > (score_threshold if method == "soft" else 0)
        refined = refine(boxes, scores, labels, keep).where(found[..., None], 0)
        result = Detections(refined, kept.where(found, 0), labels.gather(1, keep).where(found, -1))
    else:
        shape = len(boxes), max_detections
        result = Detections(boxes.new_zeros(*shape, 4), boxes.new_zeros(shape), labels.new_full(shape, -1))
        for i, count in enumerate((scores > 0).sum(1).tolist()):  # best first: the others are none
            image = boxes[i, :count], scores[i, :count], labels[i, :count]
            if method == "hard":
                keep = nms(*image, iou_threshold=iou_threshold, **limits)
                kept = image[1][keep]
            else:
                keep, kept = soft_nms(*image, score_threshold=score_threshold, **limits)
            for field, value in zip(result, (refine(*image, keep), kept, image[2][keep]), strict=True):
                field[i, : len(keep)] = value
    if sizes is not None:  # a mean may lie a rounding outside
        result = result._replace(boxes=clip(result.boxes, sizes))
    return result


def top_candidates(logits: Tensor, count: int, *, cell_anchors: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best pairs of anchor and class: float[B A K] -> logit, anchor, class of each, [B P], best first.

    Of each `cell_anchors` anchors in a row only the best of a class is in a pair.

    The same as `logits.flatten(1).topk(count)` without sorting them all. A pair can only be among the best in one of
    the `count` best anchors, by their best classes: there are `count` better pairs otherwise. So it is with groups of
    classes at these anchors. Of those few all pairs are sorted.
    """
    classes = logits.shape[2]
    if cell_anchors > 1:
        logits, best = logits.unflatten(1, (-1, cell_anchors)).max(2)  # [B C K]
        logit, cell, label = top_candidates(logits, count)
        return logit, cell * cell_anchors + best.flatten(1).gather(1, cell * classes + label), label
    width = max((n for n in range(4, 11) if classes % n == 0), default=min(classes, 8))  # without a rest, if it can be
    anchor, logits = _best_rows(logits, count)
    groups = F.pad(logits, (0, -classes % width), value=-torch.inf).unflatten(2, (-1, width))  # [B R G width]
    group, logits = _best_rows(groups.flatten(1, 2), count)
    logit, pair = logits.flatten(1).topk(min(count, anchor.shape[1] * classes))
    group = group.gather(1, pair // width)
    row, group = group // groups.shape[2], group % groups.shape[2]
    return logit, anchor.gather(1, row), group * width + pair % width


def _best_rows(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` rows with the largest maxima, in any order. float[B N C] -> int64[B R], float[B R C]."""
    rows = x.amax(2).topk(min(count, x.shape[1]), sorted=False).indices
    offset = x.shape[1] * torch.arange(x.shape[0], device=x.device)[:, None]
    return rows, F.embedding(rows + offset, x.flatten(0, 1))  # several times as fast as gather

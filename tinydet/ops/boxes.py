"""Boxes: converters, area, overlap, clipping, and the encoding relative to anchors.

A box is xyxy in absolute pixels: left, top, right, bottom, without the "+ 1" of integer pixel boxes, so that
width = x2 - x1. All functions take any leading shape, any float dtype and any device, and return new tensors.

float16 ends at 65504, the area of a box of 256 pixels, and bfloat16 has 8 bits: areas and overlaps are float32 at
least, and what is computed of boxes of half precision is rounded once, at the end.

Finite boxes give finite results and gradients, to coordinates of 1e15 and deltas of 1e4, in half precision as far as it
can hold the result.
"""

import math

import torch
from torch import Tensor

SMALLEST_SIDE = 1e-8  # pixels, of a box or anchor in `encode`
SMALLEST_UNION = 1e-16  # square pixels, in `iou`
LARGEST_SCALE = math.log(1000 / 16)  # of a side of a box to its anchor's, in `decode`


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; other tensors are returned as they are."""
    return x.float() if x.dtype.is_floating_point and x.dtype.itemsize < 4 else x


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert corners to left, top, width, height. float[... 4] -> same."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert left, top, width, height to corners. float[... 4] -> same."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners to centre and size. float[... 4] -> same."""
    # Halved first: the sum of two corners may be more than half precision holds.
    return torch.cat([boxes[..., :2] / 2 + boxes[..., 2:] / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centre and size to corners. float[... 4] -> same."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def area(boxes: Tensor) -> Tensor:
    """Compute areas; an inverted box has none. float[... 4] -> float[...], float32 at least."""
    boxes = at_least_float32(boxes)
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection area of every pair of boxes.

    float[... N 4], float[... M 4], xyxy pixels of one frame -> float[... N M], square pixels, float32 at least.
    """
    # Separate planes move half the memory of the [... N M 2] form, which decides the cost of assignment; read in the
    # order in which they lie, they take half the time again.
    ax1, ay1, ax2, ay2 = at_least_float32(a).movedim(-1, 0).unsqueeze(-1)  # [... N 1]
    bx1, by1, bx2, by2 = at_least_float32(b).movedim(-1, 0).contiguous().unsqueeze(-2)  # [... 1 M]
    width = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)
    height = torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    return width.relu() * height.relu()  # whose gradient is 0 where they are 0; clamp's is 1


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection over union of every pair of boxes.

    float[... N 4], float[... M 4], xyxy pixels of one frame -> float[... N M] in [0, 1], of the dtype of both; 0 where
    both boxes are empty. A union counts as 1e-16 square pixels at least.
    """
    shared = intersection(a, b)
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - shared
    return (shared / union.clamp(min=SMALLEST_UNION)).to(torch.promote_types(a.dtype, b.dtype))


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Clip boxes to an image: x to [0, width], y to [0, height].

    Args:
        boxes: float[... 4], xyxy pixels.
        size: (height, width) in pixels; or int[B 2] of them, for boxes float[B N 4].
    """
    height, width = size[..., None].unbind(-2) if isinstance(size, Tensor) else size
    x1, y1, x2, y2 = boxes.clamp(min=0).unbind(-1)
    return torch.stack([x1.clamp(max=width), y1.clamp(max=height), x2.clamp(max=width), y2.clamp(max=height)], -1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes relative to anchors.

    (x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha), of centres and sizes.

    float[... 4], anchors float[... 4], xyxy pixels of one frame -> (tx, ty, tw, th) float[... 4], without variance
    factors, of the dtype of both. A side counts as 1e-8 pixels at least.

    Reference: Ren et al., Faster R-CNN, section 3.1.2. google/automl orders them ty, tx, th, tw.
    """
    box, anchor = xyxy_to_cxcywh(at_least_float32(boxes)), xyxy_to_cxcywh(at_least_float32(anchors))
    size, anchor_size = box[..., 2:].clamp(min=SMALLEST_SIDE), anchor[..., 2:].clamp(min=SMALLEST_SIDE)
    deltas = torch.cat([(box[..., :2] - anchor[..., :2]) / anchor_size, torch.log(size / anchor_size)], -1)
    return deltas.to(torch.promote_types(boxes.dtype, anchors.dtype))


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode deltas relative to anchors: the inverse of `encode`, up to boxes 62.5 times as wide or high as the anchor.

    (tx, ty, tw, th) float[... 4], anchors float[... 4], xyxy pixels -> float[... 4], xyxy pixels, not clipped, of the
    dtype of both. tw and th above log(1000 / 16) count as that, with gradient 0, as in torchvision and Detectron2.
    """
    dtype = torch.promote_types(deltas.dtype, anchors.dtype)
    deltas, anchor = at_least_float32(deltas), xyxy_to_cxcywh(at_least_float32(anchors))
    centre = deltas[..., :2] * anchor[..., 2:] + anchor[..., :2]
    size = deltas[..., 2:].clamp(max=LARGEST_SCALE).exp() * anchor[..., 2:]
    return cxcywh_to_xyxy(torch.cat([centre, size], -1)).to(dtype)


def delta_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute IoU and generalized IoU of boxes encoded relative to one anchor, pair by pair, of any anchor.

    float[... 4], float[... 4], deltas of `encode` -> float[...] in [0, 1], float[...] in [-1, 1], float32 at least.

    Reference: Rezatofighi et al., Generalized Intersection over Union, algorithm 1.
    """
    a, b = (decode(x, x.new_tensor([-0.5, -0.5, 0.5, 0.5])) for x in (at_least_float32(a), at_least_float32(b)))
    (low, high), (other_low, other_high) = a.split(2, -1), b.split(2, -1)
    shared = area(torch.cat([torch.maximum(low, other_low), torch.minimum(high, other_high)], -1))
    hull = area(torch.cat([torch.minimum(low, other_low), torch.maximum(high, other_high)], -1))
    union = area(a) + area(b) - shared
    overlap = shared / union.clamp(min=SMALLEST_UNION)
    return overlap, overlap + union / hull.clamp(min=SMALLEST_UNION) - 1

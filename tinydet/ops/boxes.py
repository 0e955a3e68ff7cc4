"""Boxes: converters, area, overlap, clipping, and the encoding relative to anchors.

A box is xyxy in absolute pixels: left, top, right, bottom, without the "+ 1" of integer pixel boxes, so that
width = x2 - x1. All functions take any leading shape, any float dtype and any device, and return new tensors.
"""

import torch
from torch import Tensor


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert corners to left, top, width, height. float[... 4] -> same."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert left, top, width, height to corners. float[... 4] -> same."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners to centre and size. float[... 4] -> same."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centre and size to corners. float[... 4] -> same."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def area(boxes: Tensor) -> Tensor:
    """Compute areas; an inverted box has none. float[... 4] -> float[...]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection area of every pair of boxes.

    Args:
        a, b: float[... N 4] and float[... M 4], xyxy pixels of one frame.

    Returns:
        float[... N M], square pixels.
    """
    # Separate planes move half the memory of the [... N M 2] form, which decides the cost of assignment; read in the
    # order in which they lie, they take half the time again.
    ax1, ay1, ax2, ay2 = a.movedim(-1, 0).unsqueeze(-1)  # [... N 1]
    bx1, by1, bx2, by2 = b.movedim(-1, 0).contiguous().unsqueeze(-2)  # [... 1 M]
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection over union of every pair of boxes.

    Args:
        a, b: float[... N 4] and float[... M 4], xyxy pixels of one frame.

    Returns:
        float[... N M] in [0, 1]; 0 where both boxes are empty.
    """
    shared = intersection(a, b)
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - shared
    return shared / union.where(union > 0, 1)


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

    Args:
        boxes, anchors: float[... 4], xyxy pixels of one frame; a side of a box counts as 1e-8 px at least.

    Returns:
        deltas: float[... 4] as (tx, ty, tw, th), without variance factors.

    Reference: Ren et al., Faster R-CNN, section 3.1.2. google/automl orders them ty, tx, th, tw.
    """
    box, anchor = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    offset, size = box[..., :2] - anchor[..., :2], box[..., 2:].clamp(min=1e-8)
    return torch.cat([offset / anchor[..., 2:], torch.log(size / anchor[..., 2:])], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode deltas relative to anchors: the inverse of `encode`.

    (tx, ty, tw, th) float[... 4], anchors float[... 4], xyxy pixels -> float[... 4], xyxy pixels, not clipped.
    """
    anchor = xyxy_to_cxcywh(anchors)
    centre = deltas[..., :2] * anchor[..., 2:] + anchor[..., :2]
    size = deltas[..., 2:].exp() * anchor[..., 2:]
    return cxcywh_to_xyxy(torch.cat([centre, size], -1))

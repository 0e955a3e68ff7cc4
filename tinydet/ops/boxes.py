"""Boxes: converters, areas, overlaps, and the code in which a network states them.

A box is xyxy in absolute pixels: left, top, right, bottom, without the "+ 1" of integer pixel boxes, so that
width = x2 - x1. All functions take any leading shape, any float dtype and any device, and return new tensors.
"""

import torch
from torch import Tensor


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Corners to left, top, width, height. float[... 4] -> float[... 4]."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Left, top, width, height to corners. float[... 4] -> float[... 4]."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners to centre and size. float[... 4] -> float[... 4]."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners. float[... 4] -> float[... 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def swap_xy(boxes: Tensor) -> Tensor:
    """xyxy to the yxyx of TensorFlow models, and back. float[... 4] -> float[... 4]."""
    return boxes[..., [1, 0, 3, 2]]


def area(boxes: Tensor) -> Tensor:
    """Area in square pixels; an inverted box has none. float[... 4] -> float[...]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Shared area of every pair, one coordinate plane at a time.

    Args:
        a: float[... N 4], xyxy pixels.
        b: float[... M 4], xyxy pixels of the same frame.

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
    """Intersection over union of every pair.

    Args:
        a: float[... N 4], xyxy pixels.
        b: float[... M 4], xyxy pixels of the same frame.

    Returns:
        float[... N M] in [0, 1]; 0 where both boxes are empty.
    """
    shared = intersection(a, b)
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - shared
    return shared / union.where(union > 0, 1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut to the picture: x in [0, width], y in [0, height].

    Args:
        boxes: float[... 4], xyxy pixels.
        size: (height, width) in pixels.

    Returns:
        float[... 4].
    """
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What a network must say at an anchor to mean a box: (x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha).

    Args:
        boxes: float[... 4], xyxy pixels.
        anchors: float[... 4], xyxy pixels of the same frame, each with an area.

    Returns:
        deltas: float[... 4] as (tx, ty, tw, th), without variance factors. A box's side counts as 1e-8 px at least, so
        that an empty box gives a large number and not -inf.

    Reference: Ren et al., Faster R-CNN, section 3.1.2. google/automl orders them ty, tx, th, tw.
    """
    box, anchor = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    offset, size = box[..., :2] - anchor[..., :2], box[..., 2:].clamp(min=1e-8)
    return torch.cat([offset / anchor[..., 2:], torch.log(size / anchor[..., 2:])], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The boxes that a network means; the inverse of `encode`.

    Args:
        deltas: float[... 4] as (tx, ty, tw, th).
        anchors: float[... 4], xyxy pixels.

    Returns:
        float[... 4], xyxy pixels of the anchors' frame, not clipped to the picture.
    """
    anchor = xyxy_to_cxcywh(anchors)
    centre = deltas[..., :2] * anchor[..., 2:] + anchor[..., :2]
    size = deltas[..., 2:].exp() * anchor[..., 2:]
    return cxcywh_to_xyxy(torch.cat([centre, size], -1))

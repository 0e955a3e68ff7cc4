"""Anchors: the boxes that the network's outputs are relative to, and how well they reach a set of objects."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinydet.ops.boxes import iou

LEVELS = (3, 4, 5, 6, 7)
# (width, height) as multiples of an anchor's size. The published weights were trained with these roundings of
# sqrt(2) and sqrt(1 / 2); exact aspect ratios move an anchor's edge by 1%.
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


def feature_sizes(image_size: tuple[int, int], *, levels: Sequence[int] = LEVELS) -> list[tuple[int, int]]:
    """Height and width of the feature map of each level: the picture's, halved and rounded up once a level."""
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    return [(-(-height >> level), -(-width >> level)) for level in levels]


def anchors(
    image_size: tuple[int, int],
    *,
    scale: float = 4.0,
    octaves: int = 3,
    aspects: Sequence[tuple[float, float]] = ASPECTS,
    levels: Sequence[int] = LEVELS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Every anchor of a picture: size = scale * stride * 2^(octave / octaves) * aspect, centred on a cell.

    Args:
        image_size: (height, width) of the network's input in pixels; any positive size.
        scale: anchor size as a multiple of the stride.
        octaves: sizes a level, evenly spaced within a factor of two.
        aspects: (width, height) multipliers.
        levels: pyramid levels; a level's stride is picture size / feature size, per axis, fractional where the picture
            does not divide.
        dtype: of the result; the arithmetic is float64.
        device: of the result.

    Returns:
        float[A 4], xyxy pixels, not clipped. Order: level, row, column, octave, aspect.

    Raises:
        ValueError: the size is not positive.

    Reference: EfficientDet section 5.1, with the scales of RetinaNet.
    """
    height, width = image_size
    shapes = torch.tensor(
        [(w * 2 ** (o / octaves), h * 2 ** (o / octaves)) for o in range(octaves) for w, h in aspects],
        dtype=torch.float64,
    )
    boxes = []
    for rows, columns in feature_sizes(image_size, levels=levels):
        stride = torch.tensor([width / columns, height / rows], dtype=torch.float64)
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centres = torch.stack([x, y], -1)[:, :, None] * stride  # [H W 1 2]
        half = shapes * stride * scale / 2  # [S 2]
        boxes.append(torch.cat([centres - half, centres + half], -1).reshape(-1, 4))
    return torch.cat(boxes).to(dtype=dtype, device=device)


def coverage(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The best overlap that any anchor has with each box: a box below the matching threshold is hard to learn.

    Args:
        boxes: float[N 4], xyxy pixels of the network's input.
        anchors: float[A 4], same frame.

    Returns:
        float[N], the largest IoU; 0 where there are no anchors.
    """
    if not len(anchors) or not len(boxes):
        return boxes.new_zeros(len(boxes))
    return torch.cat([iou(chunk, anchors).amax(1) for chunk in boxes.split(8)])  # keeps [8 A] in the cache


def coverage_nearby(
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    scale: float = 4.0,
    octaves: int = 3,
    aspects: Sequence[tuple[float, float]] = ASPECTS,
    levels: Sequence[int] = LEVELS,
) -> Tensor:
    """The same as `coverage` by `anchors(image_size, ...)`, looking at one anchor of each shape and level.

    Of anchors of one shape none overlaps a box more than the one whose centre is nearest.

    Args:
        boxes: float[N 4], xyxy pixels of the network's input.
        image_size, scale, octaves, aspects, levels: as for `anchors`.

    Returns:
        float[N], the largest IoU.
    """
    height, width = image_size
    shapes = [(w * 2 ** (o / octaves), h * 2 ** (o / octaves)) for o in range(octaves) for w, h in aspects]
    shape = boxes.new_tensor(shapes)  # [S 2]
    centres, best = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes.new_zeros(len(boxes))
    for rows, columns in feature_sizes(image_size, levels=levels):
        stride, cells = boxes.new_tensor([width / columns, height / rows]), boxes.new_tensor([columns, rows])
        nearest = torch.minimum((centres / stride).floor().clamp(min=0), cells - 1)
        middle, half = (nearest + 0.5)[:, None] * stride, shape * stride * scale / 2
        corners = torch.maximum(boxes[:, None, :2], middle - half), torch.minimum(boxes[:, None, 2:], middle + half)
        shared = (corners[1] - corners[0]).clamp(min=0).prod(2)  # [N S]
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + (2 * half).prod(1) - shared
        best = torch.maximum(best, (shared / union).amax(1))
    return best

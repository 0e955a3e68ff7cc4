"""Anchors: the boxes that the network's outputs are relative to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinydet.ops.boxes import at_least_float32, iou

LEVELS = (3, 4, 5, 6, 7)
# (width, height) as multiples of an anchor's size. The published weights were trained with these roundings of
# sqrt(2) and sqrt(1 / 2); exact aspect ratios move an anchor's edge by 1%.
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


def feature_sizes(image_size: tuple[int, int], *, levels: Sequence[int] = LEVELS) -> list[tuple[int, int]]:
    """Compute the (height, width) of each level: the image's, halved and rounded up `level` times."""
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
    """Generate the anchors of an image, centred on each cell of the feature maps.

    Sizes are scale * stride * 2^(octave / octaves) * aspect, computed in float64.

    Args:
        image_size: (height, width) of the network's input in pixels; any positive size.
        scale: anchor size as a multiple of the stride.
        octaves: sizes a level, evenly spaced within a factor of two.
        aspects: (width, height) multipliers.
        levels: of the pyramid; a stride is image size / feature size, per axis, fractional where that does not divide.

    Returns:
        float[A 4], xyxy pixels, not clipped. Order: level, row, column, octave, aspect.

    Reference: EfficientDet section 5.1, with the scales of RetinaNet.
    """
    height, width = image_size
    shapes = [(w * 2 ** (o / octaves), h * 2 ** (o / octaves)) for o in range(octaves) for w, h in aspects]
    boxes = []
    for rows, columns in feature_sizes(image_size, levels=levels):
        stride = torch.tensor([width / columns, height / rows], dtype=torch.float64)
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centres = torch.stack([x, y], -1)[:, :, None] * stride  # [H W 1 2]
        half = torch.tensor(shapes, dtype=torch.float64) * stride * scale / 2  # [S 2]
        boxes.append(torch.cat([centres - half, centres + half], -1).reshape(-1, 4))
    return torch.cat(boxes).to(dtype=dtype, device=device)


def max_anchor_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Compute the largest IoU of each box with any anchor; below the matching threshold a box is hard to learn.

    float[N 4], float[A 4], xyxy pixels of one frame -> float[N], float32 at least; 0 where there are no anchors.
    """
    boxes = at_least_float32(boxes)
    if not len(anchors) or not len(boxes):
        return boxes.new_zeros(len(boxes))
    return torch.cat([iou(chunk, anchors).amax(1) for chunk in boxes.split(8)])  # keeps [8 A] in the cache

"""Views of an image, from test-time augmentation, tiles and several networks, and the fusion of their detections."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

from tinydet.model.postprocess import Detections
from tinydet.ops.nms import nms, weighted_boxes_fusion

TTA_SCALES = (1.0, 1.25)  # of the network's input, in test-time augmentation
# A box nearer to an inner border of its tile than this share of its own side is of an object that the border cuts. On
# mosaics of KITTI frames, in tiles of two sizes, AP was 20.4 and 20.1 so; 18.5 and 19.8 with a limit of two pixels.
CUT = 0.1

Crop = tuple[int, int, int, int]  # xyxy, pixels of an image


class View(NamedTuple):
    """What a network is given of an image."""

    network: int  # index of the detector's
    image: int  # index
    size: tuple[int, int]  # (height, width) of the image
    crop: Crop
    scale: float  # of the network's input size
    mirrored: bool


def plan_views(
    sizes: Sequence[tuple[int, int]],
    *,
    networks: int,
    tta: bool,
    tile: tuple[int, int] | None,
    overlap: float,
    batch_size: int,
) -> list[list[View]]:
    """Plan the views of images of (height, width), in batches that are of one network and one input size each."""
    crops = ((image, size, tile_crops(size, tile or size, overlap=overlap)) for image, size in enumerate(sizes))
    parts = [(image, size, crop) for image, size, each in crops for crop in each]
    scales, mirrors = (TTA_SCALES, (False, True)) if tta else (TTA_SCALES[:1], (False,))
    batches = []
    for network, scale in product(range(networks), scales):
        views = [View(network, *part, scale, mirrored) for part in parts for mirrored in mirrors]
        batches += [views[i : i + batch_size] for i in range(0, len(views), batch_size)]
    return batches


def tile_crops(size: tuple[int, int], tile: tuple[int, int], *, overlap: float) -> list[Crop]:
    """Cut an image of (height, width) into tiles of one size that overlap by at least this share; first the whole.

    >>> tile_crops((100, 180), (120, 100), overlap=0.2)
    [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]
    """
    (height, width), (h, w) = size, (min(tile[0], size[0]), min(tile[1], size[1]))
    tops, lefts = _starts(height, h, overlap=overlap), _starts(width, w, overlap=overlap)
    return [*dict.fromkeys([(0, 0, width, height), *((x, y, x + w, y + h) for y, x in product(tops, lefts))])]


def _starts(length: int, tile: int, *, overlap: float) -> list[int]:
    """Space the starts of tiles evenly along a side."""
    steps = math.ceil((length - tile) / max(1, tile * (1 - overlap)))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def restore(found: Detections, view: View) -> Detections:
    """Map detections from a view to its image, without those of objects that a tile's inner border cuts."""
    x1, y1, x2, y2 = found.boxes.unbind(1)
    left, top, width = view.crop[0], view.crop[1], view.crop[2] - view.crop[0]
    if view.mirrored:
        x1, x2 = width - x2, width - x1
    boxes = torch.stack([x1 + left, y1 + top, x2 + left, y2 + top], dim=1)
    border, outer = boxes.new_tensor(view.crop), boxes.new_tensor([0, 0, *view.size[::-1]])
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    whole = ((border == outer) | ((boxes - border).abs() > CUT * sides)).all(1)
    return Detections(boxes[whole], found.scores[whole], found.labels[whole])


def fuse(views: Sequence[tuple[View, Detections]], *, score_threshold: float, max_detections: int) -> Detections:
    """Fuse the detections in the views of one image: of one crop by weighted boxes fusion, of all crops by NMS.

    So a score is the mean over the networks and the test-time augmentation, whether each of them finds the object or
    not, but the best over the whole image and the tiles, which do not all show it.
    """
    crops: dict[Crop, list[Detections]] = {}
    for view, found in views:
        crops.setdefault(view.crop, []).append(found)
    boxes, scores, labels = map(torch.cat, zip(*map(_fuse_crop, crops.values()), strict=True))
    keep = scores >= score_threshold
    found = Detections(boxes[keep], scores[keep], labels[keep])
    keep = nms(*found, max_detections=max_detections) if len(crops) > 1 else torch.arange(len(found.scores))
    return Detections(*(field[keep][:max_detections] for field in found))


def _fuse_crop(views: Sequence[Detections]) -> Detections:
    """Fuse the detections in views of one crop."""
    if len(views) == 1:
        return views[0]
    boxes, scores, labels = map(torch.cat, zip(*views, strict=True))
    sources = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(view.scores) for view in views]))
    return Detections(*weighted_boxes_fusion(boxes, scores, labels, sources, count=len(views)))

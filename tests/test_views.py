"""Views cover their image, and what is detected in them is counted once."""

import doctest
from itertools import pairwise
from typing import Any

import pytest
import torch

import tinydet.views
from tinydet.model.postprocess import Detections
from tinydet.views import View, fuse, plan_views, restore, tile_crops

SIZE = (100, 300)
WHOLE = (0, 0, 300, 100)
LIMITS: dict[str, Any] = {"score_threshold": 0.1, "max_detections": 10}


def view(crop: tuple[int, int, int, int] = WHOLE, *, mirrored: bool = False) -> View:
    return View(0, 0, SIZE, crop, 1.0, mirrored)


def found(*rows: tuple[float, ...], scores: list[float] | None = None, labels: list[int] | None = None) -> Detections:
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores or [0.5] * len(rows)), torch.tensor(labels or [0] * len(rows)))


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(tinydet.views).failed == 0


@pytest.mark.parametrize("size", [(1128, 2484), (320, 1088), (321, 1088), (3000, 400)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.75])
def test_tiles_are_of_one_size_cover_the_image_and_overlap(size: tuple[int, int], overlap: float) -> None:
    whole, *tiles = tile_crops(size, (320, 1088), overlap=overlap)
    assert whole == (0, 0, size[1], size[0])
    assert bool(tiles) == (size[0] > 320 or size[1] > 1088)
    assert {(y2 - y1, x2 - x1) for x1, y1, x2, y2 in tiles} <= {(min(320, size[0]), min(1088, size[1]))}
    for low, high, tile, length in ((1, 3, 320, size[0]), (0, 2, 1088, size[1])):
        spans = sorted({(crop[low], crop[high]) for crop in tiles})
        for (_, end), (start, _) in pairwise(spans):
            assert overlap * tile - 1 <= end - start < tile
        assert not spans or (spans[0][0], spans[-1][1]) == (0, length)
    assert whole not in tiles


def test_views_are_every_network_scale_crop_and_mirror() -> None:
    how: dict[str, Any] = {"tile": (100, 200), "overlap": 0.0, "batch_size": 5}
    batches = plan_views([SIZE, (50, 60)], networks=2, tta=True, **how)
    assert [len(views) for views in batches] == [5, 3] * 4  # 3 crops and 1, mirrored too
    assert [{one[:1] + one[4:5] for one in views} for views in batches[::2]] == [
        {(0, 1.0)},
        {(0, 1.25)},
        {(1, 1.0)},
        {(1, 1.25)},
    ]
    assert len({one for views in batches for one in views}) == 32
    ((one, other),) = plan_views([SIZE, (50, 60)], networks=1, tta=False, **{**how, "tile": None})
    assert (one, other) == (view(), View(0, 1, (50, 60), (0, 0, 60, 50), 1.0, False))


def test_boxes_return_to_the_image() -> None:
    inside = found((10, 20, 40, 60))
    assert restore(inside, view()).boxes.tolist() == [[10, 20, 40, 60]]
    assert restore(inside, view(mirrored=True)).boxes.tolist() == [[260, 20, 290, 60]]
    assert restore(inside, view((100, 0, 200, 100))).boxes.tolist() == [[110, 20, 140, 60]]
    assert restore(inside, view((100, 0, 200, 100), mirrored=True)).boxes.tolist() == [[160, 20, 190, 60]]


def test_objects_that_an_inner_border_cuts_are_left_to_other_views() -> None:
    tile = view((100, 0, 200, 100))
    cut = found(
        (0, 20, 40, 60), (3, 20, 40, 60), (5, 20, 40, 60), (60, 20, 97, 60), (20, 0, 40, 100), labels=[*range(5)]
    )
    assert restore(cut, tile).labels.tolist() == [2, 4]  # nearer than a tenth of the box; the image's border cuts none
    assert restore(cut, view()).labels.tolist() == [*range(5)]
    assert restore(cut, view((0, 0, 100, 100))).labels.tolist() == [0, 1, 2, 4]


def test_views_of_one_crop_are_averaged_and_crops_are_not() -> None:
    here, there = found((10, 20, 40, 60)), found((200, 20, 240, 60), scores=[0.9])
    tile, other = (0, 0, 200, 100), (100, 0, 300, 100)
    nothing = found()
    assert fuse([(view(), here), (view(mirrored=True), nothing)], **LIMITS).scores.tolist() == [0.25]
    one = fuse([(view(), nothing), (view(tile), here), (view(other), there)], **LIMITS)
    torch.testing.assert_close(one.scores, torch.tensor([0.9, 0.5]))
    assert one.boxes.tolist() == [*there.boxes.tolist(), *here.boxes.tolist()]
    both = fuse([(view(), found((11, 20, 41, 60), scores=[0.6])), (view(tile), here)], **LIMITS)
    assert both.boxes.tolist() == [[11, 20, 41, 60]]
    torch.testing.assert_close(both.scores, torch.tensor([0.6]))
    classes = fuse([(view(), here), (view(tile), here._replace(labels=torch.tensor([1])))], **LIMITS)
    assert classes.labels.tolist() == [0, 1]


def test_fused_detections_keep_to_the_limits() -> None:
    many = found(*((20 * i, 0, 20 * i + 15, 20) for i in range(12)), scores=[0.9 - 0.05 * i for i in range(12)])
    for crop, threshold, count in ((WHOLE, 0.4, 3), (WHOLE, 0.1, 5), ((0, 0, 290, 100), 0.1, 5)):
        one = fuse([(view(), many), (view(crop), found())], score_threshold=threshold, max_detections=5)
        assert len(one.scores) == count
        assert (one.scores >= threshold).all()

"""Assignment: rules worked by hand, a plain transcription of them, the reference, and batches against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference_models import swap_xy
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops.anchors import anchors, feature_sizes
from tinydet.ops.assign import assign, assign_batch
from tinydet.ops.boxes import decode, encode

# Four anchors for the rules: a square, its upper half, the square and as much below, and one apart.
FOUR = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 20], [20, 0, 30, 10]])


def labels_of(rows, *, on=FOUR, **settings):
    """Labels of the anchors, given (x1, y1, x2, y2, label) rows."""
    table = torch.tensor(rows, dtype=torch.float32)
    return assign(table[:, :4], table[:, 4].long(), on, **settings).labels.tolist()


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def shared(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def iou(box, anchor):
    union = area(box) + area(anchor) - shared(box, anchor)
    return shared(box, anchor) / union if union else 0


def plain_candidates(box, anchors, image_size, shapes):
    """The anchors that may take an object, those looked at, and how near to the threshold any of them comes."""

    def centre(box):
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    looked_at, first = [], 0
    for rows, columns in feature_sizes(image_size):
        level = range(first, first + rows * columns * shapes)
        far = {a: math.dist(centre(anchors[a]), centre(box)) for a in level}
        ninth = sorted(far[a] for a in level[::shapes])[:9][-1]
        looked_at += [a for a in level if far[a] <= ninth + 1e-9]
        first = level.stop
    overlaps = [iou(box, anchors[a]) for a in looked_at]
    threshold = np.mean(overlaps) + np.std(overlaps)
    inside = [a for a in looked_at if all(box[i] < centre(anchors[a])[i] < box[i + 2] for i in (0, 1))]
    taking = {a for a in inside if iou(box, anchors[a]) >= threshold}
    return taking, looked_at, min(abs(x - threshold) for x in overlaps)


def plain_assign(boxes, labels, anchors, candidates, looked_at):
    """One pair after another, in the words of the docstring; of each object, who may take it, and who must."""
    objects = [row for row, label in enumerate(labels) if label >= 0]
    matches = [-1] * len(anchors)
    for a, anchor in enumerate(anchors):
        possible = [row for row in objects if a in candidates[row]]
        matches[a] = max(possible, key=lambda row: iou(boxes[row], anchor), default=-1)
    for row in reversed(objects):
        favourite = max(looked_at[row], key=lambda a: iou(boxes[row], anchors[a]))
        if iou(boxes[row], anchors[favourite]) > 0:
            matches[favourite] = row

    targets, deltas = [], []
    for anchor, match in zip(anchors, matches, strict=True):
        regions = [boxes[row] for row, label in enumerate(labels) if label == IGNORE]
        if match >= 0:
            targets.append(labels[match])
        else:
            ignored = any(shared(region, anchor) > 0.5 * area(anchor) for region in regions)
            targets.append(IGNORE if ignored else BACKGROUND)
        if match < 0:
            deltas.append([0.0] * 4)
            continue
        (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) = boxes[match], anchor
        w, h = ax2 - ax1, ay2 - ay1
        offset = [(x1 + x2 - ax1 - ax2) / 2 / w, (y1 + y2 - ay1 - ay2) / 2 / h]
        deltas.append([*offset, math.log((x2 - x1) / w), math.log((y2 - y1) / h)])
    return targets, deltas, matches


# The rules


def test_an_anchor_from_the_threshold_on_is_positive():
    assert labels_of([(0, 0, 10, 10, 3)]) == [3, 3, 3, BACKGROUND]  # 1, .5, .5, 0
    assert labels_of([(0, 0, 10, 10, 3)], iou_threshold=0.51) == [3, BACKGROUND, BACKGROUND, BACKGROUND]


def test_an_anchor_takes_the_object_it_overlaps_most():
    rows = [(0, 0, 10, 12, 0), (0, 0, 10, 6, 1), (0, 0, 10, 19, 2)]  # of the square: .83, .6, .53
    assert labels_of(rows) == [0, 1, 2, BACKGROUND]
    assert labels_of(rows[::-1]) == [0, 1, 2, BACKGROUND]


def test_an_object_smaller_than_any_anchor_takes_its_best():
    assert labels_of([(2, 2, 4, 4, 7)]) == [BACKGROUND, 7, BACKGROUND, BACKGROUND]
    assert labels_of([(29, 9, 29.5, 9.5, 7)]) == [BACKGROUND, BACKGROUND, BACKGROUND, 7]


def test_of_objects_that_force_one_anchor_the_first_wins():
    assert labels_of([(2, 2, 4, 4, 5), (6, 2, 8, 4, 6)]) == [BACKGROUND, 5, BACKGROUND, BACKGROUND]
    # even over one that fits the anchor exactly, which is left with its other overlaps
    assert labels_of([(2, 2, 4, 4, 5), (0, 0, 10, 5, 6)]) == [6, 5, BACKGROUND, BACKGROUND]
    assert labels_of([(0, 0, 10, 5, 6), (2, 2, 4, 4, 5)]) == [6, 6, BACKGROUND, BACKGROUND]


def test_a_forced_match_overrides_a_better_overlap():
    # The square prefers row 0 (.9 to .625), but it is the best that row 1 has, and row 0 has the lower half.
    lower = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert labels_of([(0, 0, 10, 9, 0), (0, 3.75, 10, 10, 1)], on=lower) == [1, 0]


def test_of_duplicates_the_first_takes_all():
    result = assign(torch.tensor([[0.0, 0, 10, 10]] * 2), torch.tensor([4, 5]), FOUR)
    assert result.labels.tolist() == [4, 4, 4, BACKGROUND]
    assert result.matches.tolist() == [0, 0, 0, -1]


def test_of_equal_anchors_an_object_forces_the_first():
    on = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 10], [8, 0, 18, 10]])
    assert labels_of([(22, 2, 24, 4, 1)], on=on) == [BACKGROUND, 1, BACKGROUND, BACKGROUND]
    assert labels_of([(8, 1, 10, 3, 1)], on=on) == [1, BACKGROUND, BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("box", [(40, 40, 50, 50), (5, 5, 5, 5), (5, 1, 5, 9), (9, 9, 1, 1), (10, 0, 20, 10)])
def test_an_object_that_shares_nothing_gets_nothing(box):
    result = assign(torch.tensor([box], dtype=torch.float32), torch.tensor([0]), FOUR)
    assert result.labels.tolist() == [BACKGROUND] * 4
    assert result.matches.tolist() == [-1] * 4
    assert not result.deltas.any()


def test_a_box_over_the_border_is_matched_whole():
    set_of_anchors = anchors((64, 64))
    box = torch.tensor([[-30.0, -20, 24, 30]])
    result = assign(box, torch.tensor([2]), set_of_anchors)
    positive = result.labels >= 0
    assert positive.sum() > 1
    torch.testing.assert_close(decode(result.deltas, set_of_anchors)[positive], box.expand(int(positive.sum()), 4))


@pytest.mark.parametrize("empty", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_an_image_without_objects_is_background(rows, empty):
    result = assign(torch.full((rows, 4), empty), torch.full((rows,), BACKGROUND), FOUR)
    assert result.labels.tolist() == [BACKGROUND] * 4
    assert result.matches.tolist() == [-1] * 4
    assert torch.equal(result.deltas, torch.zeros(4, 4))
    assert result.labels.dtype == result.matches.dtype == torch.int64


def test_padding_is_never_matched_and_rows_keep_their_numbers():
    boxes = torch.tensor([[0.0, 0, 10, 10], [float("nan")] * 4, [20, 0, 30, 10], [0, 0, 10, 10]])
    result = assign(boxes, torch.tensor([BACKGROUND, BACKGROUND, 1, BACKGROUND]), FOUR)
    assert result.matches.tolist() == [-1, -1, -1, 2]
    assert result.labels.tolist() == [BACKGROUND, BACKGROUND, BACKGROUND, 1]
    assert not result.deltas.any()  # the match is exact, and nothing else speaks


# Ignore regions


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((20, 0, 30, 5), BACKGROUND),  # half exactly
        ((20, 0, 30, 5.001), IGNORE),
        ((25, -100, 400, 100), BACKGROUND),  # half, of a region that is much larger
        ((24.9, -100, 400, 100), IGNORE),
        ((20, 0, 30, 10), IGNORE),
        ((0, 0, 0, 0), BACKGROUND),
        ((30, 10, 20, 0), BACKGROUND),  # inverted
    ],
)
def test_an_anchor_more_than_half_within_a_region_is_ignored(region, expected):
    assert labels_of([(*region, IGNORE)])[3] == expected


def test_regions_do_not_add_up():
    upper, lower = (20, 0, 30, 4.9, IGNORE), (20, 5.1, 30, 10, IGNORE)
    assert labels_of([upper, lower])[3] == BACKGROUND


def test_a_matched_anchor_is_never_ignored():
    everywhere = (-100, -100, 100, 100, IGNORE)
    assert labels_of([everywhere, (0, 0, 10, 10, 3)]) == [3, 3, 3, IGNORE]
    assert labels_of([everywhere, (2, 2, 4, 4, 3)]) == [IGNORE, 3, IGNORE, IGNORE]  # forced


def test_a_region_is_never_matched():
    result = assign(FOUR[[0, 3]], torch.tensor([IGNORE, 1]), FOUR)
    assert result.matches.tolist() == [-1, -1, -1, 1]
    assert result.labels.tolist() == [IGNORE, IGNORE, BACKGROUND, 1]  # the long one is half in it, exactly
    assert not result.deltas.any()


# The same in plain words


@st.composite
def ground_truth(draw):
    """Whole-number boxes, so that there are ties; some empty, inverted, duplicate, over the border, far away."""
    coordinate = st.integers(-12, 60)
    row = st.tuples(coordinate, coordinate, coordinate, coordinate)
    sorted_row = row.map(lambda r: (min(r[0], r[2]), min(r[1], r[3]), max(r[0], r[2]), max(r[1], r[3])))
    rows = draw(st.lists(sorted_row | row, max_size=6))
    if rows:
        rows += draw(st.lists(st.sampled_from(rows), max_size=2))
    labels = draw(st.lists(st.integers(IGNORE, 3), min_size=len(rows), max_size=len(rows)))
    return rows, labels


@settings(deadline=None, max_examples=60)
@given(ground_truth(), st.sampled_from([0.3, 0.5, 0.75]))
def test_assign_is_its_plain_transcription(truth, iou_threshold):
    rows, labels = truth
    set_of_anchors = anchors((32, 48), octaves=2, dtype=torch.float64)
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    result = assign(boxes, torch.tensor(labels, dtype=torch.int64), set_of_anchors, iou_threshold=iou_threshold)
    table = set_of_anchors.tolist()
    candidates = [{a for a, anchor in enumerate(table) if iou(row, anchor) >= iou_threshold} for row in rows]
    check(result, *plain_assign(rows, labels, table, candidates, [range(len(table))] * len(rows)))


@settings(deadline=None, max_examples=60)
@given(ground_truth())
def test_adaptive_assignment_is_its_plain_transcription(truth):
    rows, labels = truth
    aspects = (1.0, 1.0), (2.0, 0.5), (0.5, 2.0)  # of which IoUs that are equal are so to the last bit
    set_of_anchors = anchors((32, 48), octaves=1, aspects=aspects, dtype=torch.float64)
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    result = assign(boxes, torch.tensor(labels, dtype=torch.int64), set_of_anchors, image_size=(32, 48))
    plain = [plain_candidates(row, set_of_anchors.tolist(), (32, 48), 3) for row in rows]
    candidates, looked_at, margins = zip(*plain, strict=True) if plain else ((), (), ())
    assume(all(margin > 1e-9 for margin, label in zip(margins, labels, strict=True) if label >= 0))
    check(result, *plain_assign(rows, labels, set_of_anchors.tolist(), candidates, looked_at))


def check(result, targets, deltas, matches):
    assert result.matches.tolist() == matches
    assert result.labels.tolist() == targets
    assert result.deltas.dtype == torch.float64
    np.testing.assert_allclose(result.deltas, deltas, rtol=0, atol=1e-12)


# Batches


def batch(seed=0, images=4, rows=5, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-10, 60, (images, rows, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (images, rows, 2))], -1)
    return torch.tensor(boxes, dtype=dtype), torch.tensor(rng.integers(IGNORE, 4, (images, rows)))


@pytest.mark.parametrize("how", [{"iou_threshold": 0.4}, {"image_size": (64, 80)}])
@pytest.mark.parametrize(("images", "rows"), [(4, 5), (1, 1), (3, 0)])
def test_a_batch_is_its_images(images, rows, how):
    boxes, labels = batch(1, images, rows)
    set_of_anchors = anchors((64, 80))

    def one(boxes, labels):
        return assign(boxes, labels, set_of_anchors, **how)

    each = [one(b, t) for b, t in zip(boxes, labels, strict=True)]
    for result in (
        assign_batch(boxes, labels, set_of_anchors, **how),
        torch.func.vmap(one)(boxes, labels),
        torch.func.vmap(one, chunk_size=2)(boxes, labels),
    ):
        for got, expected in zip(result, zip(*each, strict=True), strict=True):
            assert torch.equal(got, torch.stack(expected))


def test_a_batch_may_have_no_image():
    labels, deltas, matches = assign_batch(torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.int64), FOUR)
    assert (labels.shape, deltas.shape, matches.shape) == ((0, 4), (0, 4, 4), (0, 4))


def test_vmap_over_anchors_is_the_loop():
    boxes, labels = batch(2, 1)
    sets = torch.stack([anchors((64, 64), scale=scale) for scale in (2, 3, 4)])
    result = torch.func.vmap(assign, in_dims=(None, None, 0))(boxes[0], labels[0], sets)
    for got, expected in zip(result, zip(*(assign(boxes[0], labels[0], s) for s in sets), strict=True), strict=True):
        assert torch.equal(got, torch.stack(expected))


def test_deltas_follow_the_boxes_of_matched_rows_alone():
    boxes, labels = batch(3, 1, 6, dtype=torch.float64)
    boxes, labels = boxes[0], torch.tensor([0, BACKGROUND, 1, IGNORE, 2, 2])
    boxes[0, 2:] = boxes[0, :2]  # an empty object, in the row that unmatched anchors read and discard
    set_of_anchors = anchors((64, 64), dtype=torch.float64)
    matches = assign(boxes, labels, set_of_anchors).matches
    matched = matches >= 0
    gradient = torch.func.grad(lambda b: assign(b, labels, set_of_anchors).deltas.sum())(boxes)
    expected = torch.func.grad(lambda b: encode(b[matches[matched]], set_of_anchors[matched]).sum())(boxes)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert not gradient[[0, 1, 3]].any()
    assert gradient[2].all()


# The reference


@pytest.mark.parametrize("image", range(4))  # image 2 has no objects
def test_reference(shared, image):
    data = np.load(shared / "reference" / "assign.npz")
    boxes, classes = swap_xy(torch.from_numpy(data[f"bbox_{image}"])), torch.from_numpy(data[f"cls_{image}"])
    real, labels = classes > -1, classes.long() - 1  # its classes count from 1
    result = assign(boxes[real], labels[real], anchors((512, 512)))
    np.testing.assert_array_equal(result.matches, data[f"match_{image}"])
    assert (result.labels >= 0).sum() == data["num_positives"][image]
    levels = range(3, 8)
    expected = np.concatenate([data[f"cls_targets_p{level}"][image].reshape(-1) for level in levels])
    deltas = np.concatenate([data[f"box_targets_p{level}"][image].reshape(-1, 4) for level in levels])
    np.testing.assert_array_equal(result.labels, expected)
    np.testing.assert_allclose(swap_xy(result.deltas), deltas, rtol=1e-5, atol=1e-5)

    padded = assign(boxes, torch.where(real, labels, BACKGROUND), anchors((512, 512)))
    assert torch.equal(padded.labels, result.labels)
    assert torch.equal(padded.deltas, result.deltas)

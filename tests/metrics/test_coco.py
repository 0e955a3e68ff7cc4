"""COCO AP against pycocotools' numbers, against its protocol in plain loops, and against hand counts."""

import json
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco_oracle import oracle
from tinydet.metrics.coco import STATS, CocoResult, CocoTruth, coco_scores


def truth_of(*objects):
    """From (image, label, box, area, crowd) each."""
    images, labels, boxes, areas, crowd = zip(*objects, strict=True) if objects else [()] * 5
    return CocoTruth(
        np.array(images, np.int64),
        np.array(labels, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array(crowd, bool),
    )


def result_of(*detections):
    """From (image, label, box, score) each."""
    images, labels, boxes, scores = zip(*detections, strict=True) if detections else [()] * 4
    return CocoResult(
        np.array(images, np.int64),
        np.array(labels, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )


def stats(truth, result, *, classes=1):
    """The twelve numbers by name."""
    return dict(zip(STATS, coco_scores(truth, result, classes=classes).stats.tolist(), strict=True))


@pytest.mark.parametrize("case", ["1_basic", "2_crowd_dups_maxdets"])
def test_pycocotools(shared, case):
    folder = shared / "reference" / "coco_eval" / case
    gt, det, expected = (json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "det", "expected"))
    ids = [category["id"] for category in gt["categories"]]
    truth = truth_of(
        *((a["image_id"], ids.index(a["category_id"]), a["bbox"], a["area"], a["iscrowd"]) for a in gt["annotations"])
    )
    result = result_of(*((d["image_id"], ids.index(d["category_id"]), d["bbox"], d["score"]) for d in det))
    scores = coco_scores(truth, result, classes=len(ids))
    np.testing.assert_allclose(scores.stats, expected["stats"], rtol=0, atol=1e-12)
    for row, name in enumerate(map(str, ids)):
        assert scores.per_class_ap[row] == pytest.approx(expected["per_class_AP"][name], rel=0, abs=1e-12)
        ap50 = scores.precision[0, :, row, 0].mean()
        assert ap50 == pytest.approx(expected["per_class_AP50"][name], rel=0, abs=1e-12)


# few places, sizes and scores: boxes coincide, tie, and are both small and medium
box = st.tuples(
    st.sampled_from([0.1, 8.1, 16.1]), st.sampled_from([0.0, 4.3]), *[st.sampled_from([16.0, 30.4, 32.0, 96.0])] * 2
)
an_object = st.tuples(
    st.integers(0, 2), st.integers(0, 1), box, st.sampled_from([100.0, 1024.0, 5000.0, 9216.0, 2e4]), st.booleans()
)
a_detection = st.tuples(st.integers(0, 2), st.integers(0, 1), box, st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]))


@settings(max_examples=150, deadline=None)
@given(st.lists(an_object, max_size=8), st.lists(a_detection, max_size=14))
def test_oracle(objects, detections):
    truth, result = truth_of(*objects), result_of(*detections)
    precision, recall = oracle(truth, result, classes=2)
    scores = coco_scores(truth, result, classes=2)
    np.testing.assert_allclose(scores.precision, precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.recall, recall, rtol=0, atol=1e-12)


def test_more_pairs_than_are_held_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    places = [(float(x), 0.0, 20.0, 20.0) for x in rng.integers(0, 60, 40)]
    truth = truth_of(*((i % 3, 0, one, 400.0, False) for i, one in enumerate(places)))
    result = result_of(*((i % 3, 0, one, float(rng.random())) for i, one in enumerate(places[::-1])))
    whole = coco_scores(truth, result, classes=1)
    monkeypatch.setattr("tinydet.metrics.coco.BLOCK", 7)
    for got, want in zip(coco_scores(truth, result, classes=1), whole, strict=True):
        np.testing.assert_array_equal(got, want)


SQUARE = (10.1, 10.1, 32.0, 32.0)


def test_the_truth_itself_is_perfect():
    """An object of 32 x 32 counts as small and as medium; what nobody could find is -1."""
    found = stats(truth_of((0, 0, SQUARE, 1024.0, False)), result_of((0, 0, SQUARE, 0.5)))
    assert {name for name, value in found.items() if value == -1} == {"AP large", "AR large"}
    assert [value for name, value in found.items() if "large" not in name] == [pytest.approx(1.0)] * 10


def test_nothing_found_is_zero():
    found = stats(truth_of((0, 0, SQUARE, 1024.0, False)), result_of())
    assert found["AP"] == found["AR@100"] == 0.0


def test_nothing_to_find_is_undefined():
    assert set(stats(truth_of(), result_of((0, 0, SQUARE, 0.5))).values()) == {-1.0}


def test_a_class_without_objects_has_no_share_in_the_mean():
    scores = coco_scores(truth_of((0, 1, SQUARE, 1024.0, False)), result_of((0, 1, SQUARE, 0.5)), classes=3)
    assert scores.per_class_ap.tolist() == [-1.0, pytest.approx(1.0), -1.0]
    assert scores.stats[0] == pytest.approx(1.0)
    assert scores.n_gt[:, 0].tolist() == [0, 1, 0]


def test_false_detections_in_images_without_objects_count():
    truth = truth_of((0, 0, SQUARE, 1024.0, False))
    assert stats(truth, result_of((5, 0, SQUARE, 0.9), (0, 0, SQUARE, 0.5)))["AP"] == pytest.approx(0.5)


def test_a_crowd_takes_any_number_and_is_not_asked_for():
    crowd = (0, 0, (0.0, 0.0, 200.0, 200.0), 4e4, True)
    inside = [(0, 0, (20.0 * i, 20.0, 15.0, 15.0), 0.9) for i in range(6)]
    found = result_of(*inside, (0, 0, SQUARE, 0.1))
    assert stats(truth_of(crowd, (0, 0, SQUARE, 1024.0, False)), found)["AP"] == pytest.approx(1.0)
    assert stats(truth_of(crowd), result_of(*inside))["AP"] == -1.0


def test_the_hundred_and_first_detection_of_a_class_does_not_count():
    far = [(0, 0, (500.0, 5.0 * i, 4.0, 4.0), 0.9) for i in range(100)]
    truth = truth_of((0, 0, SQUARE, 1024.0, False))
    assert stats(truth, result_of(*far, (0, 0, SQUARE, 0.1)))["AR@100"] == 0.0
    found = stats(truth, result_of(*far[1:], (0, 0, SQUARE, 0.1)))
    assert (found["AR@100"], found["AR@10"]) == (1.0, 0.0)


def test_arguments_are_left_alone():
    truth, result = truth_of((1, 0, SQUARE, 9.0, False), (0, 0, SQUARE, 9.0, True)), result_of((1, 0, SQUARE, 0.5))
    before = deepcopy((truth, result))
    coco_scores(truth, result, classes=1)
    for one, other in zip((truth, result), before, strict=True):
        for got, want in zip(one, other, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("truth", "result", "message"),
    [
        (truth_of((0, 2, SQUARE, 1.0, False)), result_of(), r"truth\.labels must be 0 \.\. 1, got \[2\]"),
        (truth_of(), result_of((0, -1, SQUARE, 1.0)), r"result\.labels must be 0 \.\. 1, got \[-1\]"),
        (truth_of(), result_of((0, 0, SQUARE, np.nan)), r"result\.scores must be finite, got nan"),
        (
            truth_of()._replace(areas=np.zeros(2)),
            result_of(),
            r"truth\.areas must have shape \(0,\), got \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(truth, result, message):
    with pytest.raises(ValueError, match=message):
        coco_scores(truth, result, classes=2)

"""KITTI AP against the official program, against a plain transcription of its protocol, and against hand counts."""

import copy
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kitti_oracle import oracle
from tinydet.metrics.kitti import DIFFICULTIES, KittiResult, KittiTruth, kitti_ap, kitti_curves

CASES = ["01_near_perfect", "02_noisy", "03_many_fp", "05_duplicates"]
CASES += ["08_dontcare", "09_small_boxes", "12_few_objects", "14_logit_scores"]


def truth_of(*objects):
    """One frame from (type, truncated, occluded, box) each."""
    return KittiTruth(
        [o[0] for o in objects],
        np.array([o[1] for o in objects], dtype=np.float64),
        np.array([o[2] for o in objects], dtype=np.int64),
        np.array([o[3] for o in objects], dtype=np.float64).reshape(-1, 4),
    )


def result_of(*detections):
    """One frame from (type, box, score) each."""
    return KittiResult(
        [d[0] for d in detections],
        np.array([d[1] for d in detections], dtype=np.float64).reshape(-1, 4),
        np.array([d[2] for d in detections], dtype=np.float64),
    )


# The official program


def read_case(folder: Path):
    truths, results = [], []
    for path in sorted((folder / "label_2").glob("*.txt")):
        rows = [line.split() for line in path.read_text().splitlines()]
        truths.append(truth_of(*((r[0], float(r[1]), int(r[2]), [float(v) for v in r[4:8]]) for r in rows)))
        rows = [line.split() for line in (folder / "pred" / path.name).read_text().splitlines()]
        results.append(result_of(*((r[0], [float(v) for v in r[4:8]], float(r[15])) for r in rows)))
    return truths, results


@pytest.mark.parametrize("case", CASES)
def test_official_program(shared, case):
    folder = shared / "reference" / "kitti_eval" / case
    expected = json.loads((folder / "expected.json").read_text())
    truths, results = read_case(folder)
    assert len(truths) == expected["frames"]
    ap, curves = kitti_ap(truths, results), kitti_curves(truths, results)
    for name, levels in expected["detail"].items():
        for level, detail in levels.items():
            curve = curves[name][level]
            assert ap["n_gt"][name][level] == curve.n_gt == detail["n_gt"]
            for field in ("thresholds", "tp", "fp", "fn", "precision"):
                np.testing.assert_array_equal(getattr(curve, field), detail[field], err_msg=f"{name} {level} {field}")
            assert ap["R40"][name][level] == pytest.approx(expected["R40"][name][level], rel=0, abs=1e-9)
            assert ap["R11"][name][level] == pytest.approx(expected["R11"][name][level], rel=0, abs=1e-9)


# The protocol in plain loops


def assert_same_as_oracle(truths, results, classes=("Car", "Pedestrian", "Cyclist")):
    for name, levels in kitti_curves(truths, results, classes=classes).items():
        for level, curve in levels.items():
            expected = oracle(truths, results, name, DIFFICULTIES[level])
            for field, got, want in zip(curve._fields, curve, expected, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=f"{name} {level} {field}")


TYPES = ["Car", "car", "Van", "Cyclist", "Pedestrian", "Person_sitting", "DontCare", "DONTCARE", "Truck"]
# few places, sizes and scores: boxes coincide, tie and fall on the limits of 25 and 40 pixels
box = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    st.sampled_from([0.0, 4.0, 8.0, 12.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([30.0, 30.0, 40.0, 0.0]),
    st.sampled_from([24.9, 25.0, 25.5, 39.99, 40.0, 40.5, 44.0]),
)
an_object = st.tuples(st.sampled_from(TYPES), st.sampled_from([0.0, 0.15, 0.16, 0.3, 0.5, 0.6]), st.integers(0, 3), box)
a_detection = st.tuples(st.sampled_from(TYPES[:5]), box, st.sampled_from([-3.0, 0.0, 0.25, 0.5, 0.75, 9.0]))
frames = st.lists(
    st.tuples(
        st.lists(an_object, max_size=6).map(lambda objects: truth_of(*objects)),
        st.lists(a_detection, max_size=8).map(lambda detections: result_of(*detections)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(frames)
def test_oracle(frames):
    truths, results = zip(*frames, strict=True)
    assert_same_as_oracle(truths, results)


def crowd(rng, *, n_frames, n_objects, n_detections):
    """Frames like a detector's: half of the detections jitter about objects, the others lie anywhere."""
    types = np.array(["Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "DontCare", "Truck"])

    def boxes(n):
        height = rng.uniform(15, 120, n)
        width = height * rng.uniform(0.4, 1.8, n)
        x, y = rng.uniform(0, 1240 - width), rng.uniform(100, 375 - height)
        return np.stack([x, y, x + width, y + height], 1)

    truths, results = [], []
    for n in rng.poisson(n_objects, n_frames):
        kinds = rng.choice(types, n, p=[0.5, 0.15, 0.1, 0.05, 0.03, 0.12, 0.05])
        truncated = rng.uniform(0, 0.6, n).round(2) * (rng.random(n) < 0.4)
        truth = KittiTruth(kinds.tolist(), truncated, rng.integers(0, 4, n), boxes(n))
        near = rng.integers(0, n, n_detections // 2 if n else 0)
        wobble = rng.normal(0, 0.04, (len(near), 4)) * (truth.boxes[near, 2:] - truth.boxes[near, :2])[:, [0, 1, 0, 1]]
        far = n_detections - len(near)
        order = rng.permutation(n_detections)
        names = np.concatenate([np.where(rng.random(len(near)) < 0.9, kinds[near], "Car"), rng.choice(types[:3], far)])
        scores = np.concatenate([rng.normal(1, 1, len(near)), rng.normal(-1, 1, far)]).round(2)
        places = np.concatenate([truth.boxes[near] + wobble, boxes(far)])
        truths.append(truth)
        results.append(KittiResult(names[order], places[order], scores[order]))
    return truths, results


@pytest.mark.parametrize("seed", range(3))
def test_oracle_on_many_objects(seed):
    """Enough objects for nearly all of the 41 thresholds, and classes beyond the official three."""
    truths, results = crowd(np.random.default_rng(seed), n_frames=60, n_objects=7, n_detections=50)
    assert len(kitti_curves(truths, results)["Car"]["hard"].thresholds) > 35
    assert_same_as_oracle(truths, results, classes=("CAR", "pedestrian", "Cyclist", "Truck"))


# Counts made by hand

UNIT = np.array([0.0, 0.0, 100.0, 50.0])  # an easy object


def at(x, *, height=50.0, width=100.0):
    return [x, 0.0, x + width, height]


def count(truths, results, name="Car", level="moderate"):
    curve = kitti_curves(truths, results, classes=[name])[name][level]
    return curve.n_gt, curve.tp.tolist(), curve.fp.tolist(), curve.fn.tolist()


def test_golden():
    """Three frames, five cars to find; every number follows from the protocol by hand."""
    truths = [
        truth_of(("Car", 0, 0, at(0)), ("Van", 0, 0, at(200)), ("DontCare", -1, -1, at(400))),
        truth_of(("Car", 0.3, 1, at(0)), ("Car", 0, 0, at(200)), ("Car", 0, 3, at(400)), ("Car", 0, 0, at(600))),
        truth_of(("Car", 0, 0, at(0)), ("Pedestrian", 0, 0, at(200))),
    ]
    results = [
        result_of(("Car", at(10), 0.9), ("Car", at(200), 0.8), ("Car", at(400), 0.7), ("Car", at(800), 0.6)),
        result_of(("Car", at(0), 0.5), ("car", at(400), 0.4), ("Car", at(200), 0.3), ("Car", at(202), 0.95)),
        result_of(("Car", at(200), 0.85), ("Pedestrian", at(200), 0.2)),
    ]
    curve = kitti_curves(truths, results)["Car"]["moderate"]
    # Pass 1 finds cars at .9 (frame 0), .5 and .95 (frame 1): near x = 200 the higher score gives the threshold, though
    # the lower one fits better. Van, occluded car and DontCare are silent. False are a car in the pedestrian's place
    # (.85) and one at x = 800 (.6); at .5 the detection of .3 is not there yet.
    assert curve.n_gt == 5
    assert curve.thresholds.tolist() == [0.95, 0.9, 0.5]
    assert (curve.tp.tolist(), curve.fp.tolist(), curve.fn.tolist()) == ([1, 2, 3], [0, 0, 2], [4, 3, 2])
    assert curve.precision.tolist() == [1.0, 1.0, 0.6] + [0.0] * 38
    ap = kitti_ap(truths, results)
    assert ap["R40"]["Car"]["moderate"] == pytest.approx(100 * 1.6 / 40)
    assert ap["R11"]["Car"]["moderate"] == pytest.approx(100 / 11)
    assert ap["n_gt"]["Car"] == {"easy": 4, "moderate": 5, "hard": 5}
    assert ap["R40"]["Pedestrian"]["easy"] == 0  # one object, found: (1 - 1) / 40
    assert ap["R11"]["Pedestrian"]["easy"] == pytest.approx(100 / 11)


@pytest.mark.parametrize("n_gt", [1, 2, 10, 40, 41, 100])
def test_perfect_detector(n_gt):
    truths = [truth_of(("Cyclist", 0, 0, UNIT))] * n_gt
    results = [result_of(("Cyclist", UNIT, i)) for i in range(n_gt)]
    expected = 100 * min(n_gt - 1, 40) / 40
    assert kitti_ap(truths, results)["R40"]["Cyclist"]["easy"] == pytest.approx(expected)


def test_match_needs_more_than_the_threshold():
    """Pedestrian: IoU 50 / 100 is no match, and one pixel more is."""
    truth = truth_of(("Pedestrian", 0, 0, at(0)))
    assert count([truth], [result_of(("Pedestrian", at(0, width=50), 1))], "Pedestrian") == (1, [], [], [])
    assert count([truth], [result_of(("Pedestrian", at(0, width=51), 1))], "Pedestrian") == (1, [1], [0], [0])


@pytest.mark.parametrize(("height", "n_gt"), [(25.0, 0), (25.01, 1)])
def test_height_at_the_limit(height, n_gt):
    """As truth a box of exactly 25 px is not asked for; as a detection it counts."""
    truths = [truth_of(("Car", 0, 0, at(0, height=height)), ("Car", 0, 0, at(500)))]
    results = [result_of(("Car", at(500), 0.1), ("Car", at(800, height=25.0), 0.9), ("Car", at(900, height=24.9), 0.9))]
    assert count(truths, results) == (n_gt + 1, [1], [1], [n_gt])


def test_low_detection_of_another_class_takes_the_object():
    """Height comes before class: the object is neither found nor missed."""
    truths = [truth_of(("Car", 0, 0, at(0, height=26))), truth_of(("Car", 0, 0, UNIT))]
    results = [result_of(("Cyclist", at(0, height=24), 0.9)), result_of(("Car", UNIT, 0.5))]
    assert count(truths, results) == (2, [1], [0], [0])


def test_truncation_limit_survives_float64_only():
    truth = truth_of(("Car", 0.15, 0, UNIT))
    assert count([truth], [result_of(("Car", UNIT, 1))], level="easy") == (1, [1], [0], [0])
    with pytest.raises(ValueError, match=r"truths\[1\].truncated must be float64, got float32"):
        kitti_ap([truth, truth._replace(truncated=truth.truncated.astype(np.float32))], [result_of()] * 2)


def test_nothing_counts_at_a_threshold():
    """Pass 2 gives the van the detection that pass 1 gave the car, and DontCare excuses the other: 0 / 0 is 0."""
    truths = [truth_of(("Van", 0, 0, at(10)), ("Car", 0, 0, at(25)), ("DontCare", -1, -1, at(0)))]
    results = [result_of(("Car", at(0), 0.9), ("Car", at(15), 0.8))]
    curve = kitti_curves(truths, results)["Car"]["easy"]
    assert curve.thresholds.tolist() == [0.8]
    assert (curve.tp.tolist(), curve.fp.tolist(), curve.fn.tolist()) == ([0], [0], [1])
    assert curve.precision.tolist() == [0.0] * 41


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("height", [50, 24])
def test_first_in_the_file_wins_a_tie(order, height):
    """Two detections suit the first object alike and only one of them the second, which may be left with nothing."""
    truth = truth_of(*(("Car", 0, 0, at(x, height=height + 2)) for x in (10, 30)), ("Car", 0, 0, at(500)))
    both, one = ("Car", at(20, height=height), 0.9), ("Car", at(0, height=height), 0.9)
    results = [result_of(*[both, one][::order], ("Car", at(500), 0.1))]
    _, tp, fp, fn = count([truth], results)
    missed = int(order == 1)
    expected = (1, 0, missed) if height == 24 else (3 - missed, missed, missed)  # 24: too low, silent when matched
    assert (tp[-1], fp[-1], fn[-1]) == expected


def test_frames_without_detections_are_misses():
    truths, results = [truth_of(("Car", 0, 0, UNIT))] * 2, [result_of(("Car", UNIT, 1)), result_of()]
    assert count(truths, results) == (2, [1], [0], [1])
    assert count(truths[:1], results[:1]) == (1, [1], [0], [0])


def test_class_without_detections_has_ap_0():
    ap = kitti_ap([truth_of(("Cyclist", 0, 0, UNIT)), truth_of()], [result_of(), result_of()])
    assert ap["R40"]["Cyclist"] == ap["R11"]["Cyclist"] == {"easy": 0.0, "moderate": 0.0, "hard": 0.0}
    assert ap["n_gt"]["Cyclist"]["easy"] == 1


def test_only_the_order_of_scores_matters():
    truths, results = crowd(np.random.default_rng(7), n_frames=40, n_objects=6, n_detections=20)
    squashed = [r._replace(scores=1 / (1 + np.exp(-r.scores))) for r in results]
    assert kitti_ap(truths, squashed) == kitti_ap(truths, results)


def test_inputs_unchanged():
    truths, results = crowd(np.random.default_rng(8), n_frames=10, n_objects=6, n_detections=20)
    before = copy.deepcopy((truths, results))
    kitti_ap(truths, results)
    for old, new in zip([*before[0], *before[1]], [*truths, *results], strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("truths", "results", "message"),
    [
        ([], [], "at least one frame"),
        ([truth_of()], [], "got 1 truths, 0 results"),
        ([truth_of()], [result_of()._replace(boxes=np.zeros((1, 4)))], r"results\[0\].boxes must have shape \(0, 4\)"),
        ([truth_of()], [result_of(("Car", UNIT, np.nan))], r"results\[0\].scores must be finite, got \[nan\]"),
    ],
)
def test_errors_name_the_frame(truths, results, message):
    with pytest.raises(ValueError, match=message):
        kitti_ap(truths, results)


def test_speed():
    """A split of 3769 frames, which takes the official program about a second; the bound allows for a slow machine."""
    truths, results = crowd(np.random.default_rng(9), n_frames=3769, n_objects=7, n_detections=50)
    start = time.process_time()
    kitti_ap(truths, results)
    assert time.process_time() - start < 3

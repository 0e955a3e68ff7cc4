"""Losses: worked by hand, against the formulas as they are written, against torch's and the reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.reference_models import swap_xy
from tinydet.labels import BACKGROUND, IGNORE
from tinydet.ops import kernels
from tinydet.ops.losses import detection_loss, focal_loss, focal_loss_sum, huber_loss, quality_focal_loss


def naive_focal(logits, labels, alpha, gamma):
    """As the paper writes it, element by element, in Python floats."""
    result = torch.zeros_like(logits)
    for row, label in enumerate(labels.tolist()):
        for k in range(logits.shape[1]):
            x, y = logits[row, k].item(), float(label == k)
            p = 1 / (1 + math.exp(-x))
            p_t, alpha_t = (p, alpha) if y else (1 - p, 1 - alpha)
            result[row, k] = 0 if label == IGNORE else -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return result


def heads(seed, *, batch=2, count=7, classes=3, dtype=torch.float64):
    """Logits, deltas, labels and target deltas, of which about a third each are positive, background and ignored."""
    rng = np.random.default_rng(seed)
    parts = (rng.normal(0, s, (batch, count, c)) for s, c in ((3, classes), (1, 4), (1, 4)))
    labels = rng.permutation(np.arange(batch * count) % (classes + 2)).reshape(batch, count) + IGNORE
    logits, deltas, targets = (torch.tensor(x, dtype=dtype) for x in parts)
    return logits, deltas, torch.tensor(labels), targets


# Focal loss


def test_focal_loss_by_hand():
    # At logit 0 every p_t is 1/2; at logit log 3 the p of a positive is 3/4.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, 0.0]])
    loss = focal_loss(logits, torch.tensor([0, BACKGROUND, IGNORE]), gamma=2.0)
    half = 0.25 * math.log(2)
    expected = [[0.25 * half, 0.75 * half], [0.75 * 0.5625 * math.log(4), 0.75 * half], [0, 0]]
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert focal_loss(logits, torch.tensor([1, 1, 1]))[0, 1].item() == pytest.approx(0.0612661, abs=1e-7)  # gamma 1.5


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-15, 15), st.floats(-15, 15), st.integers(IGNORE, 1)), min_size=1, max_size=5),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.5, 2.0]),
)
def test_focal_loss_is_the_formula(rows, alpha, gamma):
    logits = torch.tensor([row[:2] for row in rows], dtype=torch.float64)
    labels = torch.tensor([row[2] for row in rows])
    loss = focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert loss.dtype == torch.float64
    expected = naive_focal(logits, labels, alpha, gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)  # 1 - p of the formula loses digits
    torch.testing.assert_close(focal_loss_sum(logits, labels, alpha=alpha, gamma=gamma), loss.sum())


@settings(deadline=None, max_examples=50)
@given(st.floats(-15, 15), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1.0, 1.5, 2.0]))
def test_the_quality_focal_loss_is_the_formula(x, y, alpha, gamma):
    p = 1 / (1 + math.exp(-x))
    expected = alpha * abs(y - p) ** gamma * -(y * math.log(p) + (1 - y) * math.log(1 - p))
    logit = torch.tensor(x, dtype=torch.float64)
    loss = quality_focal_loss(logit, torch.tensor(y, dtype=torch.float64), alpha=alpha, gamma=gamma)
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    hard = focal_loss(logit[None], torch.tensor(0), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(quality_focal_loss(logit, 1.0, alpha=alpha, gamma=gamma), hard[0], rtol=1e-7, atol=1e-12)


def test_a_score_learns_the_overlap_of_its_box():
    """There is no gradient where the score is the overlap, and one towards it elsewhere; none goes to the box."""
    deltas, targets = torch.tensor([[[0.0, 0, math.log(0.7), 0]]]).double(), torch.zeros(1, 1, 4).double()
    scores = torch.tensor([0.1, 0.69, 0.7, 0.71, 0.99]).double()

    def classification(logit, deltas):
        return detection_loss(logit.view(1, 1, 1), deltas, torch.zeros(1, 1).long(), targets, quality=True)[1]

    slopes, of_boxes = zip(*(torch.func.grad(classification, (0, 1))(s.logit(), deltas) for s in scores), strict=True)
    assert torch.stack(slopes).sign()[[0, 1, 3, 4]].tolist() == [-1, -1, 1, 1]
    assert abs(slopes[2].item()) < 1e-4 * abs(slopes[1].item()) + 1e-5
    assert not torch.stack(of_boxes).any()


def test_without_focus_it_is_half_the_cross_entropy():
    logits, _, labels, _ = heads(0)
    labels = labels.clamp(min=0)
    loss = focal_loss(logits, labels, alpha=0.5, gamma=0)
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).double(), reduction="none") / 2
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_focal_loss_is_stable(dtype, gamma):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [100, -100]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, BACKGROUND, IGNORE])
    loss = focal_loss(logits, labels, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert not loss[0].any()  # right, and sure
    expected = torch.tensor([[0.25 * 1e4, 0.75 * 1e4], [0.75 * 1e4, 0]], dtype=dtype)  # wrong, and sure
    torch.testing.assert_close(loss[1:3], expected)
    torch.testing.assert_close(gradient[1:3], torch.tensor([[-1, 1], [1, 0]]) * expected / 1e4)


def test_ignored_anchors_have_exactly_no_loss_and_no_gradient():
    logits, _, labels, _ = heads(1)
    ignored = labels == IGNORE
    loss = focal_loss(logits, labels)
    gradient = torch.func.grad(lambda x: focal_loss(x, labels).sum())(logits)
    for values in (loss, gradient):
        assert not values[ignored].any()
        assert values[~ignored].all()


# Huber loss


def test_huber_loss_by_hand():
    errors = torch.tensor([0.0, 0.05, -0.05, 0.1, 0.3, -2.0])
    expected = torch.tensor([0, 0.00125, 0.00125, 0.005, 0.025, 0.195])
    torch.testing.assert_close(huber_loss(1 + errors, torch.ones(6)), expected, rtol=1e-5, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 0.1, 1.0, 5.0]))
def test_huber_loss_is_torchs(seed, delta):
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    predictions[:2] = targets[:2] + torch.tensor([0, delta])

    result = huber_loss(predictions, targets, delta=delta)
    assert result.dtype == torch.float64
    expected = F.huber_loss(predictions, targets, delta=delta, reduction="none")
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)
    gradient = torch.func.grad(lambda p: huber_loss(p, targets, delta=delta).sum())(predictions)
    expected = torch.func.grad(lambda p: F.huber_loss(p, targets, delta=delta, reduction="sum"))(predictions)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


# The reduction


def test_detection_loss_by_hand():
    logits = torch.zeros(1, 3, 1)
    deltas = torch.tensor([[[0, 0.05, 0.3, -1], [9, 9, 9, 9], [9, 9, 9, 9]]])
    labels = torch.tensor([[0, BACKGROUND, IGNORE]])
    losses = detection_loss(logits, deltas, labels, torch.zeros(1, 3, 4))
    element = 0.5**1.5 * math.log(2)
    assert losses.classification.item() == pytest.approx((0.25 + 0.75) * element / 2)  # one positive + 1
    assert losses.box.item() == pytest.approx((0.00125 + 0.025 + 0.095) / 8)
    assert losses.total.item() == pytest.approx(element / 2 + 50 * 0.12125 / 8)


def test_the_loss_of_boxes_is_their_giou_where_scores_learn_their_overlap():
    """A box beside its target, of half the hull; two that are no positives, of which one has no finite deltas."""
    logits = torch.zeros(1, 3, 1)
    deltas = torch.tensor([[[1.0, 0, 0, 0], [9, 9, 9, 9], [math.nan] * 4]])
    labels = torch.tensor([[0, BACKGROUND, IGNORE]])
    losses = detection_loss(logits, deltas, labels, torch.zeros(1, 3, 4), quality=True)
    element = 0.5**1.5 * math.log(2)
    assert losses.classification.item() == pytest.approx((0.25 + 0.75) * element / 2)
    assert losses.box.item() == pytest.approx(1 / 2)  # they touch: GIoU is 0; one positive + 1
    assert losses.total.item() == pytest.approx(element / 2 + 2 / 2)
    far = detection_loss(logits, 2 * deltas, labels, torch.zeros(1, 3, 4), quality=True)
    assert far.box.item() == pytest.approx((1 + 1 / 3) / 2)  # a third of the hull is between them
    slope = torch.func.grad(lambda d: detection_loss(logits, d, labels, torch.zeros(1, 3, 4), quality=True).box)
    assert slope(2 * deltas)[0, 0, 0] > 0  # towards it, though nothing is shared
    assert not slope(2 * deltas)[0, 1:].any()


def test_detection_loss_is_the_sum_of_its_terms():
    logits, deltas, labels, targets = heads(2)
    losses = detection_loss(logits, deltas, labels, targets, alpha=0.3, gamma=2, delta=0.2, box_weight=7)
    positive = labels >= 0
    count = positive.sum() + 1
    classification = focal_loss(logits, labels, alpha=0.3, gamma=2).sum() / count
    box = F.huber_loss(deltas[positive], targets[positive], delta=0.2, reduction="sum") / (4 * count)
    torch.testing.assert_close(losses, (classification + 7 * box, classification, box), rtol=1e-12, atol=0)
    assert {x.dtype for x in losses} == {torch.float64}
    assert {x.shape for x in losses} == {()}


def test_a_batch_without_objects_has_a_loss_of_background_alone():
    logits, deltas, labels, targets = heads(3)
    losses = detection_loss(logits, deltas, torch.full_like(labels, BACKGROUND), targets)
    assert losses.box == 0
    assert losses.total == losses.classification > 0
    losses = detection_loss(logits, deltas, torch.full_like(labels, IGNORE), targets)
    assert losses == (0, 0, 0)


def test_gradients_of_boxes_at_positives_and_of_classes_at_all_but_ignored():
    logits, deltas, labels, targets = heads(4)
    gradients = torch.func.grad(lambda x, d: detection_loss(x, d, labels, targets).total, argnums=(0, 1))(
        logits, deltas
    )
    assert torch.equal(gradients[0].any(-1), labels != IGNORE)
    assert torch.equal(gradients[1].any(-1), labels >= 0)


def test_the_normaliser_is_of_the_whole_batch():
    logits, deltas, labels, targets = heads(5, batch=3)
    counts = (labels >= 0).sum(1) + 1
    each = torch.func.vmap(detection_loss)(logits, deltas, labels, targets)
    whole = detection_loss(logits, deltas, labels, targets)
    torch.testing.assert_close(whole.total, (each.total * counts).sum() / (counts.sum() - 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, deltas, labels, targets = heads(6, count=500, dtype=torch.float32)
    halves = logits.to(dtype), deltas.to(dtype)
    losses = detection_loss(*halves, labels, targets)
    assert {x.dtype for x in losses} == {torch.float32}
    assert losses == detection_loss(halves[0].float(), halves[1].float(), labels, targets)


def test_the_focal_sum_is_the_callers():
    arguments = heads(7)
    losses = detection_loss(*arguments, focal_sum=lambda logits, labels, *, alpha, gamma: logits.sum() * alpha * gamma)
    count = (arguments[2] >= 0).sum() + 1
    torch.testing.assert_close(losses.classification, arguments[0].sum() * 0.25 * 1.5 / count)


def test_autocast_changes_nothing():
    arguments = heads(7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detection_loss(*arguments)
    assert losses == detection_loss(*arguments)


@pytest.mark.parametrize("loss", [focal_loss, focal_loss_sum, kernels.focal_loss_sum])
@pytest.mark.parametrize(("labels", "wrong"), [([1, 2, 3], 3), ([0, -3, 1], -3)])
def test_a_label_that_is_none_is_an_error(loss, labels, wrong):
    """Labels that count from 1, most likely: the last class would be background, silently."""
    logits, said = torch.zeros(3, 3), rf"^label {wrong}: there are 3 classes, whose labels are 0 to 2$"
    with pytest.raises(ValueError, match=said):
        loss(logits, torch.tensor(labels))
    if loss is not kernels.focal_loss_sum:
        wrong_labels = torch.tensor(labels)
        with pytest.raises(ValueError, match=said):
            torch.func.grad(lambda x: loss(x, wrong_labels).sum())(logits)
    assert loss(logits, torch.tensor([BACKGROUND, IGNORE, 2])).sum() > 0


def test_the_loss_is_compiled_as_a_whole():
    logits, deltas, labels, targets = heads(8, dtype=torch.float32)
    compiled = torch.compile(detection_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(logits, deltas, labels, targets), detection_loss(logits, deltas, labels, targets)
    )


# The reference


@pytest.fixture(scope="module")
def data(shared):
    return {name: torch.from_numpy(value) for name, value in np.load(shared / "reference" / "losses.npz").items()}


@pytest.mark.parametrize(("name", "settings"), [("default", {}), ("gamma2", {"gamma": 2.0})])
def test_reference(data, name, settings):
    deltas, targets = swap_xy(data["deltas_ty_tx_th_tw"]), swap_xy(data["box_targets_ty_tx_th_tw"])
    losses = detection_loss(data["logits"], deltas, data["class_targets"].long(), targets, **settings)
    for got, part in zip(losses, ("total", "class", "box"), strict=True):
        assert got.item() == pytest.approx(data[f"{name}_{part}"].item(), rel=1e-5)


def test_reference_gradients(data):
    labels, targets = data["class_targets"].long(), swap_xy(data["box_targets_ty_tx_th_tw"])

    def total(logits, deltas):
        return detection_loss(logits, deltas, labels, targets).total

    gradients = torch.func.grad(total, argnums=(0, 1))(data["logits"], swap_xy(data["deltas_ty_tx_th_tw"]))
    torch.testing.assert_close(gradients[0], data["grad_logits"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(swap_xy(gradients[1]), data["grad_deltas"], rtol=1e-5, atol=1e-7)


def test_reference_curves(data):
    logits = data["focal_logits"][:, None]
    for label, name in ((0, "focal_target1"), (BACKGROUND, "focal_target0")):
        loss = focal_loss(logits, torch.full((len(logits),), label))[:, 0]
        torch.testing.assert_close(loss, data[name], rtol=1e-5, atol=1e-5)
    error = data["huber_error"]
    torch.testing.assert_close(huber_loss(error, torch.zeros_like(error)), data["huber_value"], rtol=1e-5, atol=1e-6)

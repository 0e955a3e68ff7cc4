"""A run's length and learning rate follow from steps done, seconds gone and losses seen, and from nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydet.training.schedule import (
    Budget,
    Spent,
    best_row,
    constant,
    cosine,
    finished,
    plateau,
    rank_key,
    share_done,
    should_validate,
    warmup_share,
)

# The learning rate


@pytest.mark.parametrize(
    ("at", "warmup", "share"),
    [
        *[(0.0, 0.0, 1.0), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0), (1.0, 0.1, 0.0), (0.0, 0.1, 0.1), (0.05, 0.1, 0.55)],
        *[(0.1, 0.1, 1.0), (0.55, 0.1, 0.5), (1.01, 0.1, 0.0)],
    ],
)
def test_cosine_at_its_corners(at: float, warmup: float, share: float) -> None:
    assert cosine(at, warmup=warmup) == pytest.approx(share, abs=1e-12)


def test_a_constant_rate_warms_up_too() -> None:
    assert [constant(at, warmup=0.1) for at in (0.0, 0.05, 0.1, 0.7)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert constant(0.0) == 1.0


@given(st.integers(2, 300), st.integers(1, 20), st.floats(0, 3))
def test_the_learning_rate_goes_up_then_down(steps: int, epochs: int, warmup_epochs: float) -> None:
    budget = Budget(steps, epochs, warmup_epochs=warmup_epochs)
    warmup = warmup_share(budget, Spent(0))
    rates = [cosine(share_done(budget, Spent(step)), warmup=warmup) for step in range(steps * epochs)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= 0.1 * len(rates) + 1
    assert sum(rates) == pytest.approx(len(rates) / 2, rel=0.1, abs=1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.1, 10) | st.sampled_from([1.0, 0.99995, 0.9999, 0.5]), max_size=40),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.5]),
)
def test_the_plateau_is_that_of_torch(losses: list[float], patience: int, factor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, eps=0)
    assert plateau([], factor=factor, patience=patience) == 1
    for n, loss in enumerate(losses, start=1):
        oracle.step(loss)
        assert plateau(losses[:n], factor=factor, patience=patience) == pytest.approx(optimizer.param_groups[0]["lr"])


# By epochs


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_run_of_so_many_epochs(steps: int, epochs: int) -> None:
    budget = Budget(steps, epochs)
    ends = [step for step in range(1, steps * epochs + 1) if should_validate(budget, Spent(step, 1e9, 1.0, 1e9))]
    assert ends == [steps * (i + 1) for i in range(epochs)]
    last = steps * epochs
    assert [finished(budget, Spent(step)) for step in (0, last - 1, last)] == [False, False, True]


# By the clock


def simulate(budget: Budget, *, step: float, validation: float) -> tuple[list[float], list[Spent]]:
    """Return the learning rates, and what is spent after each validation, of a run with such times."""
    spent, rates, validated = Spent(0, reserve=validation), [], []
    while not finished(budget, spent):
        while spent.step == spent.validated or not should_validate(budget, spent):
            rates.append(cosine(share_done(budget, spent), warmup=warmup_share(budget, spent)))
            spent = spent._replace(step=spent.step + 1, elapsed=spent.elapsed + step, step_seconds=step)
        spent = spent._replace(elapsed=spent.elapsed + validation, validated=spent.step)
        validated.append(spent)
    return rates, validated


@settings(deadline=None, max_examples=30)
@given(st.floats(60, 4000), st.floats(0.2, 3), st.floats(0.5, 20), st.integers(5, 300))
def test_a_run_by_the_clock_ends_on_time(seconds: float, step: float, validation: float, steps: int) -> None:
    rates, validated = simulate(Budget(steps, 0, seconds, warmup_epochs=1.0), step=step, validation=validation)
    assert seconds - step - 1e-6 <= validated[-1].elapsed <= seconds + 1e-6
    ends = [spent.step for spent in validated]
    assert all(end % steps == 0 for end in ends[:-1])
    assert ends[-1] == len(rates)
    assert len(validated) * validation <= 0.1 * seconds + 2 * validation
    apart = [after - before for before, after in zip([0, *ends], ends, strict=False)]
    assert all(more * step <= 9 * validation + steps * step for more in apart[:-1])  # and not needlessly rare
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) > 0.9
    assert top <= 0.15 * len(rates) + 1
    assert rates[-1] < 0.05 + 5 / len(rates)


def test_there_is_always_one_step() -> None:
    budget = Budget(10, 0, 1.0)
    assert not finished(budget, Spent(0, 5.0, 0.0, 3.0))
    assert finished(budget, Spent(1, 5.0, 2.0, 3.0))


def test_the_time_of_a_validation_is_kept_back() -> None:
    budget = Budget(10, 0, 100.0)
    assert share_done(budget, Spent(5, 45.0, 2.0, 10.0)) == 0.5
    assert share_done(budget, Spent(50, 95.0, 2.0, 10.0)) == 1.0
    assert finished(budget, Spent(8, 89.0, 1.5, 10.0))
    assert not finished(budget, Spent(8, 88.0, 1.5, 10.0))


def test_validation_takes_a_tenth_of_the_time() -> None:
    budget = Budget(10, 0, 1000.0)
    each = [Spent(step, float(step), 1.0, 5.0) for step in range(1, 60)]
    assert [spent.step for spent in each if should_validate(budget, spent)] == [50]  # the first epoch after 45 seconds
    assert should_validate(budget, Spent(100, 100.0, 1.0, 5.0, validated=50))
    assert not should_validate(budget, Spent(90, 90.0, 1.0, 5.0, validated=50))
    assert not should_validate(budget, Spent(980, 980.0, 1.0, 5.0, validated=900))  # with what is left
    assert should_validate(budget, Spent(990, 994.5, 1.0, 5.0, validated=900))  # the end


def test_warm_up_takes_the_time_of_its_epochs() -> None:
    spent = Spent(3, 3.0, step_seconds=1.0)
    assert warmup_share(Budget(10, 0, 1000.0, warmup_epochs=2.0), spent) == pytest.approx(0.02)
    assert warmup_share(Budget(10, 0, 100.0, warmup_epochs=2.0), spent) == 0.1
    assert warmup_share(Budget(10, 50, warmup_epochs=2.0), spent) == 0.04
    assert warmup_share(Budget(10, 0, 100.0, warmup_epochs=2.0), Spent(0, reserve=3.0)) == 0.1  # not known yet
    assert not math.isnan(warmup_share(Budget(10, 0, 100.0), Spent(0)))


# The best epoch


def test_epochs_are_ranked_by_ap_then_by_loss() -> None:
    rows = [{"epoch": i, "ap": ap, "val": {"total": loss}} for i, (ap, loss) in enumerate([(1, 2), (3, 2), (3, 1)])]
    assert best_row(rows) is rows[2]
    assert rank_key(rows[0]) < rank_key(rows[1]) < rank_key(rows[2])

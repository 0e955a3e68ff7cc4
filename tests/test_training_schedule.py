"""A run's length and learning rate follow from steps done and seconds gone, and from nothing else."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydet.training.schedule import Pace, Plan, ends_epoch, is_over, lr_factor, progress, warmup_share

# The learning rate


@pytest.mark.parametrize(
    ("at", "warmup", "schedule", "factor"),
    [
        *[(0.0, 0.0, "cosine", 1.0), (0.5, 0.0, "cosine", 0.5), (1.0, 0.0, "cosine", 0.0), (1.0, 0.1, "cosine", 0.0)],
        *[(0.05, 0.1, "cosine", 0.5), (0.1, 0.1, "cosine", 1.0), (0.55, 0.1, "cosine", 0.5)],
        *[(0.05, 0.1, "constant", 0.5), (0.1, 0.1, "constant", 1.0), (1.0, 0.1, "constant", 1.0)],
        *[(0.05, 0.1, "plateau", 0.5), (0.9, 0.1, "plateau", 1.0)],
    ],
)
def test_the_learning_rate_at_its_corners(at: float, warmup: float, schedule: str, factor: float) -> None:
    assert lr_factor(at, warmup=warmup, schedule=schedule) == pytest.approx(factor, abs=1e-12)


@given(st.integers(1, 300), st.integers(1, 20), st.floats(0, 3))
def test_the_learning_rate_goes_up_then_down(steps: int, epochs: int, warmup_epochs: float) -> None:
    plan = Plan(steps, epochs, warmup_epochs=warmup_epochs)
    paces = [Pace(step, 0.0, 0.0, 0.0) for step in range(steps * epochs)]
    factors = [lr_factor(progress(plan, pace), warmup=warmup_share(plan, pace), schedule="cosine") for pace in paces]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top <= 0.1 * len(factors) + 1
    assert min(factors) > 0
    assert sum(factors) == pytest.approx(
        len(factors) * ((1 - warmup_share(plan, paces[0])) / 2 + warmup_share(plan, paces[0]) / 2), rel=0.1, abs=1
    )


# By epochs


@given(st.integers(1, 50), st.integers(1, 20))
def test_so_many_epochs(steps: int, epochs: int) -> None:
    plan = Plan(steps, epochs)
    ends = [step for step in range(1, steps * epochs + 1) if ends_epoch(plan, Pace(step, 1e9, 1.0, 1e9))]
    assert ends == [steps * (i + 1) for i in range(epochs)]
    assert [is_over(plan, Pace(step, 0.0, 0.0, 0.0)) for step in (0, steps * epochs - 1, steps * epochs)] == [
        False,
        False,
        True,
    ]


# By the clock


def simulated(plan: Plan, *, step: float, validation: float) -> tuple[list[float], list[Pace]]:
    """The learning rates, and the paces after each validation, of a run whose steps and validations take so long."""
    pace, rates, validated = Pace(0, 0.0, 0.0, reserve=validation), [], []
    while not is_over(plan, pace):
        while pace.step == pace.validated or not ends_epoch(plan, pace):
            rates.append(lr_factor(progress(plan, pace), warmup=warmup_share(plan, pace), schedule="cosine"))
            pace = pace._replace(step=pace.step + 1, elapsed=pace.elapsed + step, per_step=step)
        pace = pace._replace(elapsed=pace.elapsed + validation, validated=pace.step)
        validated.append(pace)
    return rates, validated


@settings(deadline=None, max_examples=30)
@given(st.floats(60, 4000), st.floats(0.2, 3), st.floats(0.5, 20), st.integers(5, 300))
def test_a_run_by_the_clock_ends_on_time(seconds: float, step: float, validation: float, steps: int) -> None:
    rates, validated = simulated(Plan(steps, 0, seconds, warmup_epochs=1.0), step=step, validation=validation)
    assert seconds - step - 1e-6 <= validated[-1].elapsed <= seconds + 1e-6
    ends = [pace.step for pace in validated]
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
    plan = Plan(10, 0, 1.0)
    assert not is_over(plan, Pace(0, 5.0, 0.0, 3.0))
    assert is_over(plan, Pace(1, 5.0, 2.0, 3.0))


def test_what_a_validation_costs_is_kept_back() -> None:
    plan = Plan(10, 0, 100.0)
    assert progress(plan, Pace(5, 45.0, 0.0, 10.0)) == 0.5
    assert progress(plan, Pace(5, 44.0, 2.0, 10.0)) == 0.5  # at the middle of the next step
    assert progress(plan, Pace(50, 95.0, 2.0, 10.0)) == 1.0
    assert is_over(plan, Pace(8, 89.0, 1.5, 10.0))
    assert not is_over(plan, Pace(8, 88.0, 1.5, 10.0))


def test_validation_takes_a_tenth_of_the_time() -> None:
    plan = Plan(10, 0, 1000.0)
    paces = [Pace(step, float(step), 1.0, 5.0) for step in range(1, 60)]
    assert [pace.step for pace in paces if ends_epoch(plan, pace)] == [50]  # the first epoch after 45 seconds
    assert ends_epoch(plan, Pace(100, 100.0, 1.0, 5.0, validated=50))
    assert not ends_epoch(plan, Pace(90, 90.0, 1.0, 5.0, validated=50))
    assert not ends_epoch(plan, Pace(980, 980.0, 1.0, 5.0, validated=900))  # with what is left
    assert ends_epoch(plan, Pace(990, 994.5, 1.0, 5.0, validated=900))  # the end


def test_warm_up_is_of_the_time_that_its_epochs_take() -> None:
    pace = Pace(3, 3.0, per_step=1.0, reserve=0.0)
    assert warmup_share(Plan(10, 0, 1000.0, warmup_epochs=2.0), pace) == pytest.approx(0.02)
    assert warmup_share(Plan(10, 0, 100.0, warmup_epochs=2.0), pace) == 0.1
    assert warmup_share(Plan(10, 50, warmup_epochs=2.0), pace) == 0.04
    assert not math.isnan(warmup_share(Plan(10, 0, 100.0, warmup_epochs=2.0), Pace(0, 0.0, 0.0, 3.0)))

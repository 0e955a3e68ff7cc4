"""A step's loss is read while the next one is computed, and what was made of a step that failed is thrown away."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tinydet.distributed import ALONE
from tinydet.errors import InputError
from tinydet.model.functional import Variables
from tinydet.ops.losses import Losses
from tinydet.training import pipeline
from tinydet.training.events import Message
from tinydet.training.pipeline import Done, run_steps
from tinydet.training.state import State
from tinydet.training.step import StepMetrics

FIRST = State({}, {}, {"trail": []}, Variables({}, {}), 0, 8.0)


class Batch(SimpleNamespace):
    def to(self, device: torch.device) -> "Batch":
        return self


def run_of(log: list[str], *, loss: dict[int, float], norm: dict[int, float], most: int = 4) -> Any:
    """Make a run whose steps note what they see, with losses and norms of some batches that are not 1."""

    def step(state: State, batch: Batch, *, check: bool, lr: float, micro_batches: int) -> Any:
        assert not check
        if 4 // micro_batches > most:
            raise RuntimeError("out of memory")
        log.append(f"issued {batch.number}")
        value = loss.pop(batch.number, 1.0)
        losses = Losses(*[torch.tensor(value)] * 3)
        metrics = StepMetrics(losses, torch.tensor(norm.pop(batch.number, 1.0)), torch.ones(2), torch.tensor(0))
        after = {"trail": [*state.moments["trail"], (batch.number, lr, state.loss_scale)]}
        return state._replace(moments=after, step=state.step + 1), metrics

    return SimpleNamespace(
        step=step, device=torch.device("cpu"), world=ALONE, share=4, micro_batches=lambda size: -(-4 // size)
    )


def steps(
    run: Any, log: list[str], *, count: int = 3, stop: int = 9, error: Any = RuntimeError, late: bool = True
) -> Iterator[Done | Message]:
    def batches() -> Iterator[Any]:
        for number in range(count):
            if number == stop:
                raise error("stopped")
            yield Batch(number=number, names=[f"image {number}"])

    def next_lr(step: int) -> float | None:
        return 0.5**step if step < count else None

    how: dict[str, Any] = {"late": late, "micro_size": 4, "next_lr": next_lr, "clock": lambda: 0.0}
    for one in run_steps(run, FIRST, batches(), Path(), **how):
        log.append("said" if isinstance(one, Message) else f"done {one.state.step}")
        yield one


def test_a_step_is_done_once_the_next_is_issued() -> None:
    log = list[str]()
    *_, last = steps(run_of(log, loss={}, norm={}), log)
    assert log == ["issued 0", "issued 1", "done 1", "issued 2", "done 2", "done 3"]
    assert isinstance(last, Done)
    assert last.state.moments["trail"] == [(0, 1.0, 8.0), (1, 0.5, 8.0), (2, 0.25, 8.0)]


def test_a_step_that_failed_is_named_after_the_next_is_issued(monkeypatch: pytest.MonkeyPatch) -> None:
    log, saved = list[str](), list[Any]()

    def save(*args: Any, **how: Any) -> str:
        saved.append((args, how))
        return "failed-step.pt"

    monkeypatch.setattr(pipeline, "save_step", save)
    said = r"^step 2: the loss is not finite \(total nan, .*\) on image 1; tinydet train --replay failed-step\.pt runs"
    with pytest.raises(FloatingPointError, match=said):
        list(steps(run_of(log, loss={1: torch.nan}, norm={}), log))
    assert log == ["issued 0", "issued 1", "done 1", "issued 2"]
    (((_, _, before, batch), how),) = saved
    assert (before.step, batch.number, how) == (1, 1, {"lr": 0.5, "micro_batches": 1})


@pytest.mark.parametrize(("late", "order"), [(True, "i0 i1 d1 i2 d2 i2 d3"), (False, "i0 d1 i1 d2 i2 d3")])
def test_an_overflow_makes_the_next_step_anew(late: bool, order: str) -> None:
    log = list[str]()
    *_, last = steps(run_of(log, loss={}, norm={1: torch.inf}), log, late=late)
    assert [f"{line[0]}{line[-1]}" for line in log] == order.split()
    assert isinstance(last, Done)
    assert last.state.moments["trail"] == [(0, 1.0, 8.0), (2, 0.25, 4.0)]


@pytest.mark.parametrize("error", [RuntimeError, InputError])
def test_a_run_that_is_stopped_keeps_the_last_step(error: type[Exception]) -> None:
    log = list[str]()
    with pytest.raises(error, match="stopped"):
        list(steps(run_of(log, loss={}, norm={}), log, stop=2, error=error))
    assert log == ["issued 0", "issued 1", "done 1", "done 2"]


def test_memory_that_runs_out_makes_smaller_steps() -> None:
    log = list[str]()
    found = [one.micro_size for one in steps(run_of(log, loss={}, norm={}, most=1), log) if isinstance(one, Done)]
    assert (found, log[:4]) == ([1, 1, 1], ["said", "said", "issued 0", "issued 1"])


def test_memory_may_run_out_where_a_step_is_made_anew() -> None:
    log = list[str]()
    run = run_of(log, loss={}, norm={1: torch.inf})
    step, calls = run.step, iter([False, False, False, True])  # out of memory in the fourth

    def short(*args: Any, **how: Any) -> Any:
        if next(calls, False):
            raise RuntimeError("out of memory")
        return step(*args, **how)

    run.step = short
    done = [one for one in steps(run, log) if isinstance(one, Done)]
    assert [one.state.step for one in done] == [1, 2, 3]
    assert [one.micro_size for one in done] == [4, 4, 2]
    assert done[-1].state.moments["trail"] == [(0, 1.0, 8.0), (2, 0.25, 4.0)]

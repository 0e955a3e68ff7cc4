"""The rows of a run's epochs, as in metrics.jsonl: which of them is the best."""

from collections.abc import Mapping, Sequence
from typing import Any


def standing(row: Mapping[str, Any]) -> tuple[float, float]:
    """What epochs are compared by: AP, as of `tinydet.score.headline`, and then the lower validation loss."""
    return row["ap"], -row["val"]["total"]


def best_row(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of the epoch that `best.pt` holds; the history has at least one."""
    return max(history, key=standing)

"""A field takes what its type, choices and bounds say, and nothing else."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from tinydet.errors import InputError
from tinydet.fields import check_fields, check_name, setting


@dataclasses.dataclass(frozen=True)
class Record:
    name: str = "a"
    count: int = setting(1, low=1, high=9)
    share: float = setting(0.5, low=0, above=True, high=1)
    pair: tuple[int, int] | str | None = setting(None, low=2)
    pairs: tuple[tuple[float, float], ...] = setting((), high=5, most=3)
    kind: str = setting("cat", choices=("cat", "dog"))
    on: bool = True
    any: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 5}, "name must be of type str, got 5"),
        ({"name": None}, "name must be of type str, got None"),
        ({"count": True}, "count must be of type int, got True"),
        ({"count": 2.0}, r"count must be of type int, got 2\.0"),
        ({"count": "2"}, "count must be of type int, got '2'"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 10}, "count must be at most 9, got 10"),
        ({"count": 10**400}, "count must be at most 9, got 1000"),
        ({"share": math.nan}, "share must be above 0, got nan"),
        ({"share": math.inf}, "share must be at most 1, got inf"),
        ({"share": False}, "share must be of type float, got False"),
        ({"pair": (2, 3, 4)}, r"pair must be of type tuple\[int, int\] \| str \| None, got \(2, 3, 4\)"),
        ({"pair": (2, 1)}, r"pair must be at least 2, got \(2, 1\)"),
        ({"pair": {2: 3}}, "pair must be of type"),
        ({"pairs": [[1, 2], [3, 6]]}, r"pairs must be at most 5, got \(\(1, 2\), \(3, 6\)\)"),
        ({"pairs": [[1, 2]] * 4}, "pairs must hold at most 3, got 4"),
        ({"pairs": [[1, math.nan]]}, "pairs must be at least"),
        ({"pairs": [1, 2]}, "pairs must be of type"),
        ({"kind": "cot"}, "kind must be one of cat, dog; got 'cot'; did you mean cat"),
        ({"kind": ["cat"]}, "kind must be of type str"),
        ({"on": 1}, "on must be of type bool, got 1"),
        ({"name": ["a" * 10**6]}, "name must be of type str, got"),
    ],
)
def test_what_a_field_does_not_take(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}") as error:
        Record(**changes)
    assert len(str(error.value)) < 200


def test_lists_become_tuples_and_the_rest_stays() -> None:
    record = Record(pair=[2, 3], pairs=[[1, 2.5]], share=np.float64(0.5), count=np.int64(2))  # type: ignore[arg-type]
    assert (record.pair, record.pairs) == ((2, 3), ((1, 2.5),))
    assert (record.share, record.count, Record(pair="auto").pair) == (0.5, 2, "auto")


@pytest.mark.parametrize("name", ["", "a" * 201, "a\x1b[31m", "a\nb", "a\x9b", "\ud800"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="a class must be 1 to 200 characters, none of them a control character, got"):
        check_name(name, kind="a class")


@pytest.mark.parametrize("name", ["Car", "Fußgänger", "汽车", "a\u3000b", "🚗", "क्‍ष", "a" * 200])
def test_names_of_any_language(name: str) -> None:
    check_name(name, kind="a class")

"""Work ahead is a map, does no more than it is asked to, and loses nothing."""

import threading
from collections.abc import Iterator

import pytest

from tinydet.errors import InputError
from tinydet.prefetch import prefetch


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_is_map(depth: int) -> None:
    for count in (0, 1, depth, depth + 1, 20):
        assert list(prefetch(str, range(count), depth=depth)) == list(map(str, range(count)))


def test_what_comes_next_is_made_while_the_caller_is_busy_but_no_more() -> None:
    drawn: list[int] = []
    made = [threading.Event() for _ in range(9)]

    def items() -> Iterator[int]:
        for i in range(9):
            drawn.append(i)
            yield i

    results = prefetch(lambda i: made[i].set(), items(), depth=2)
    threads = threading.active_count()
    assert drawn == []
    for i in range(9):
        next(results)
        assert drawn == list(range(min(i + 3, 9)))
        assert all(event.wait(10) for event in made[: len(drawn)])
        assert not any(event.is_set() for event in made[len(drawn) :])
        assert threading.active_count() <= threads + 2
    assert next(results, None) is None
    assert threading.active_count() == threads


def test_an_error_comes_where_its_result_would() -> None:
    results = prefetch(lambda i: 6 // (3 - i), range(9), depth=2)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results, None) is None


@pytest.mark.parametrize("end", ["let go", "raise"])
def test_what_has_begun_is_finished_and_its_threads_end(end: str) -> None:
    made: list[int] = []
    go = threading.Event()

    def make(i: int) -> None:
        if i:
            go.wait(10)
        made.append(i)

    def items() -> Iterator[int]:
        yield from range(2)
        go.set()
        raise InputError("no more")

    threads = threading.active_count()
    results = prefetch(make, items(), depth=1)
    next(results)
    assert made == [0]
    if end == "let go":
        threading.Timer(0.1, go.set).start()
        del results
    else:
        assert next(results) is None  # what came before the error
        with pytest.raises(InputError, match="no more"):
            next(results)
    assert made == [0, 1]
    assert threading.active_count() <= threads + (end == "let go")  # the timer may take its time to end

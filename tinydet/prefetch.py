"""Work ahead: a lazy map whose results are ready before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, depth: int, start: Callable[[], None] | None = None
) -> Iterator[Result]:
    """Map a function over items lazily, in threads that work `depth` results ahead and finish what they began.

    Each calls `start` first. An error of the items themselves comes after the results of those before it.
    """
    errors: list[Exception] = []

    def drawn() -> Iterator[Item]:
        try:
            yield from items
        except Exception as error:
            errors.append(error)

    with ThreadPoolExecutor(depth, initializer=start) as pool:
        pending: deque[Future[Result]] = deque()
        for item in drawn():
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    for error in errors:
        raise error

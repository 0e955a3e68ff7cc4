"""Work ahead: a lazy map whose results are ready before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], *, depth: int) -> Iterator[Result]:
    """Map a function over items lazily, in threads that work `depth` results ahead and finish what they began."""
    items = iter(items)
    if len(first := [*islice(items, 2)]) < 2:  # nothing to work ahead on; a thread costs 4 ms of its own
        yield from map(function, first)
        return
    with ThreadPoolExecutor(depth) as pool:
        pending: deque[Future[Result]] = deque()
        for item in chain(first, items):
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

"""Greedy matching, as the benchmarks define it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Columns = Sequence[NDArray[np.generic]]


def greedy_match(
    queries: Ints, targets: Ints, *, ranks: Ints, preference: Columns, allowed: Bools, shared: Bools | None = None
) -> Bools:
    """Match each query, in the order of ranks, to its preferred free target.

    Queries of one rank must not want the same target, such as objects of different images: they are matched at once.

    Args:
        queries, targets: int64[P], of P pairs that may match; targets are numbered from 0.
        ranks: int64[P], the same for all pairs of a query; the lowest is matched first.
        preference: arrays of P, as in `numpy.lexsort`, the primary key last; a query prefers the least.
        allowed: bool[P T], whether a pair may match; every column is a matching of its own.
        shared: bool[P], pairs whose target may be matched any number of times.

    -> bool[P T], the pairs that matched: at most one for each query and column.
    """
    matched = np.zeros_like(allowed)
    used = np.zeros((int(targets.max(initial=-1)) + 1, allowed.shape[1]), bool)
    order = np.lexsort((*preference, queries, ranks))
    starts = np.flatnonzero(np.diff(ranks[order], prepend=-1))
    for rows in np.split(order, starts)[1:]:
        first = np.flatnonzero(np.diff(queries[rows], prepend=-1))  # where in rows each query begins
        free = ~used[targets[rows]]
        if shared is not None:
            free |= shared[rows, None]
        place = np.where(free & allowed[rows], np.arange(len(rows))[:, None], len(rows))
        best = np.minimum.reduceat(place, first, axis=0)  # int64[queries T]
        found = best < len(rows)
        pair, column = rows[best[found]], np.nonzero(found)[1]
        matched[pair, column] = True
        used[targets[pair], column] = True
    return matched

"""Greedy matching, as the benchmarks define it: one after the other takes what it likes best of what is left."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def match_in_turns(
    takers: Ints,
    wares: Ints,
    *,
    turns: Ints,
    preference: Sequence[NDArray[np.generic]],
    allowed: Bools,
    shared: Bools | None = None,
) -> Bools:
    """Let each taker, in turn, take one of the wares that are still free; what one has taken no later one gets.

    Takers of one turn must not want the same ware: objects of different pictures, say. They take at once, so that there
    are as many rounds as turns, however many takers. Every column of `allowed` is a matching of its own.

    Args:
        takers: int64[P], of P pairs that may match.
        wares: int64[P], numbered from 0.
        turns: int64[P], the same for all pairs of a taker.
        preference: arrays of P, the last is the first to matter, as in `numpy.lexsort`: a taker likes the least best.
        allowed: bool[P T], whether a pair may match.
        shared: bool[P], pairs whose ware may be taken any number of times; none when None.

    Returns:
        bool[P T], the pairs that matched: at most one for each taker and column.
    """
    matched = np.zeros_like(allowed)
    taken = np.zeros((int(wares.max(initial=-1)) + 1, allowed.shape[1]), bool)
    order = np.lexsort((*preference, takers, turns))
    starts = np.flatnonzero(np.diff(turns[order], prepend=-1))
    for ranked in np.split(order, starts)[1:]:
        first = np.flatnonzero(np.diff(takers[ranked], prepend=-1))  # where in ranked each taker begins
        free = ~taken[wares[ranked]]
        if shared is not None:
            free |= shared[ranked, None]
        rank = np.where(free & allowed[ranked], np.arange(len(ranked))[:, None], len(ranked))
        best = np.minimum.reduceat(rank, first, axis=0)  # int64[takers T]
        found = best < len(ranked)
        pair, column = ranked[best[found]], np.nonzero(found)[1]
        matched[pair, column] = True
        taken[wares[pair], column] = True
    return matched

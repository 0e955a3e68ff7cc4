"""Greedy matching against loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinydet.metrics.matching import match_in_turns


@given(st.integers(0, 10**6), st.integers(0, 30), st.booleans())
def test_loops(seed, count, some_shared):
    """Takers of several pictures; a taker's turn is its place in its picture, and wares belong to one picture."""
    rng = np.random.default_rng(seed)
    picture, turn, ware = rng.integers(0, 3, count), rng.integers(0, 4, count), rng.integers(0, 4, count)
    takers, wares = picture * 4 + turn, picture * 4 + ware
    cost, second = rng.integers(0, 3, count), rng.permutation(count)
    allowed = rng.random((count, 5)) < 0.7
    shared = (wares % 3 == 0) if some_shared else None
    matched = match_in_turns(takers, wares, turns=turn, preference=(second, cost), allowed=allowed, shared=shared)

    expected = np.zeros_like(allowed)
    for column in range(5):
        taken = set()
        for taker in sorted(set(takers.tolist()), key=lambda one: (one % 4, one)):
            mine = [p for p in range(count) if takers[p] == taker and allowed[p, column]]
            free = [p for p in mine if wares[p] not in taken or (shared is not None and shared[p])]
            if free:
                best = min(free, key=lambda p: (cost[p], second[p]))
                expected[best, column] = True
                taken.add(wares[best])
    np.testing.assert_array_equal(matched, expected)

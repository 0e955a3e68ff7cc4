"""Greedy matching against loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinydet.metrics.matching import greedy_match


@given(st.integers(0, 10**6), st.integers(0, 30), st.booleans())
def test_loops(seed, count, some_shared):
    """Queries of several images; the rank of a query is its place in its image, and targets belong to one image."""
    rng = np.random.default_rng(seed)
    image, rank, place = rng.integers(0, 3, count), rng.integers(0, 4, count), rng.integers(0, 4, count)
    queries, targets = image * 4 + rank, image * 4 + place
    cost, second = rng.integers(0, 3, count), rng.permutation(count)
    allowed = rng.random((count, 5)) < 0.7
    shared = (targets % 3 == 0) if some_shared else None
    matched = greedy_match(queries, targets, ranks=rank, preference=(second, cost), allowed=allowed, shared=shared)

    expected = np.zeros_like(allowed)
    for column in range(5):
        used = set()
        for query in sorted(set(queries.tolist()), key=lambda one: (one % 4, one)):
            mine = [p for p in range(count) if queries[p] == query and allowed[p, column]]
            free = [p for p in mine if targets[p] not in used or (shared is not None and shared[p])]
            if free:
                best = min(free, key=lambda p: (cost[p], second[p]))
                expected[best, column] = True
                used.add(targets[best])
    np.testing.assert_array_equal(matched, expected)

"""Fronts against the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.sweeping.pareto import front
from planner.sweeping.table import Table, numbers, texts

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.sampled_from("ab")), max_size=25)


def beats(a, b) -> bool:
    """As large in x and y, as small in z, of the same group, and better somewhere."""
    return a[3] == b[3] and a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[:3] != b[:3]


@given(ROWS)
def test_a_front_is_what_nobody_beats(rows):
    """The rows that are kept are those that no other row beats, in their order."""
    x, y, z = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    group = texts(np.array(["ab".index(row[3]) for row in rows], np.int64), "ab")
    table = Table({"x": numbers(x), "y": numbers(y), "z": numbers(z), "group": group})
    expected = [row for row in rows if not any(beats(other, row) for other in rows)]

    assert [tuple(row.values()) for row in front(table, ["x", "y"], ["z"], ["group"]).rows()] == expected

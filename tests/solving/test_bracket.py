"""The last value within a limit: against a look at every value."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solving.bracket import last_within


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(-5, 1500))
def test_it_is_what_a_look_at_every_value_finds(steps, limit):
    """Of any measures that never fall, flat stretches and jumps among them."""
    measures = list(accumulate(steps))

    expected = max((i for i, measure in enumerate(measures) if measure <= limit), default=-1)

    assert last_within(measures.__getitem__, len(measures), limit) == expected


@pytest.mark.parametrize(
    ("measure", "most"),
    [(lambda i: 7 * i + 10**10, 6), (lambda i: 3 * i * i + 5 * i, 6), (lambda i: 5 * i + 10**9 * (i > 4000), 8), (lambda i: 4, 5)],
    ids=["a line", "a parabola", "lines with a jump between", "the same for all"],
)
def test_it_takes_a_handful_of_measurements(measure, most):
    """Of a million values of what memory does: it grows by a line or a parabola."""
    asked = []

    def counted(index: int) -> int:
        asked.append(index)
        return measure(index)

    found = last_within(counted, 1 << 20, measure(123_456))

    assert found == (123_456 if measure(0) != measure(1 << 19) else (1 << 20) - 1)
    assert len(asked) <= most

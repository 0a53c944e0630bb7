"""Values of a step's moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engines.moments import Moments, NotExactError, divided, substituted, values_at
from planner.polynomials import Question, Quotient

MOMENTS = Moments(
    rows=[{("batch_size", "seq_len"): 3, (): 7}, {("q0",): 512, ("batch_size",): 5}],
    phases=[1, 2],
    quotients=[Quotient("q0", {("batch_size", "seq_len"): 3}, {(): 128}, up=True)],
    questions=[Question(">", {("batch_size",): 1, (): -4}, answer=False)],
)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5000)), min_size=1, max_size=20))
def test_values_are_pythons_own(points):
    """Where the question has its answer, the largest sum and the first phase that reaches it; the other points are left."""
    batch, length = (np.array(values, np.int64) for values in zip(*points, strict=True))
    holds, sums, codes = values_at(MOMENTS, batch, length)
    expected = []
    for b, s in points:
        forward, backward = 3 * b * s + 7, 512 * -(-3 * b * s // 128) + 5 * b
        if b <= 4:
            expected.append((max(forward, backward), 1 if forward >= backward else 2))

    assert holds.tolist() == [b <= 4 for b, _ in points]
    assert list(zip(sums.tolist(), codes.tolist(), strict=True)) == expected


def test_what_is_not_exact_is_refused():
    """Sums that float64 may round are never computed in it."""
    with pytest.raises(NotExactError):
        values_at(MOMENTS, np.array([4]), np.array([1 << 51]))


@given(st.integers(0, 1 << 40), st.sampled_from((1, 3, 128, 500)), st.booleans())
def test_quotients_are_rounded_as_integers(a, b, up):
    """By shifts where the divisor is a power of two, by division elsewhere: the same for numbers and arrays."""
    expected = -(-a // b) if up else a // b

    assert divided(a, b, up=up) == expected
    assert divided(np.array([a]), b, up=up).tolist() == [expected]


def test_numbers_take_the_place_of_variables():
    """Several at once, with their powers."""
    assert substituted({("a", "a", "b"): 2, ("c",): 1}, {"a": 3, "c": 4}) == {("b",): 18, (): 4}

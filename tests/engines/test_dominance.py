"""Rows that are left out are never the largest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.engines.dominance import Bounds, undominated
from planner.polynomials import Quotient, evaluate

QUOTIENTS = [
    Quotient("q0", {("b", "s"): 3}, {(): 128}, up=True),
    Quotient("q1", {("s",): 1, (): 5}, {(): 64}, up=False),
    Quotient("q2", {("b",): 1}, {(): 3}, up=True),
]
MONOMIALS = [(), ("b",), ("s",), ("b", "s"), ("b", "s", "s"), ("q0",), ("q1",), ("b", "q1"), ("q2",)]
ROW = st.dictionaries(st.sampled_from(MONOMIALS), st.integers(-6, 40).filter(bool), min_size=1)


@given(st.lists(st.tuples(ROW, st.integers(1, 3)), min_size=1, max_size=12), st.integers(1, 90), st.integers(1, 5000))
def test_the_largest_row_and_its_phase_are_kept(rows, b, s):
    """At any inputs, the highest of the kept rows is the highest of all, and falls in the first phase that reaches it."""
    values = {"b": b, "s": s}
    for q in QUOTIENTS:
        numerator, divisor = evaluate(q.numerator, values), q.divisor[()]
        values[q.name] = -(-numerator // divisor) if q.up else numerator // divisor
    polynomials, phases = [row for row, _ in rows], [phase for _, phase in rows]
    kept = undominated(Bounds({"b": 1, "s": 1}, QUOTIENTS), polynomials, phases)
    heights = [evaluate(row, values) for row in polynomials]
    top = max(heights)

    assert max(heights[i] for i in kept) == top
    assert min(phases[i] for i in kept if heights[i] == top) == min(p for p, h in zip(phases, heights, strict=True) if h == top)


def test_a_row_below_another_is_left_out():
    """With the same phase and everywhere less, a row cannot be the peak; in an earlier phase an equal one can."""
    bounds = Bounds({"b": 1, "s": 1}, QUOTIENTS)
    low, high = {("b", "s"): 2}, {("b", "s"): 3, (): 5}

    assert undominated(bounds, [low, high], [1, 1]) == [1]
    assert undominated(bounds, [low, low], [1, 2]) == [0]
    assert undominated(bounds, [low, low], [2, 1]) == [1]
    assert undominated(bounds, [{("q0",): 512}, {("b", "s"): 12, (): 512}], [1, 1]) == [1]  # 512 * ceil(3 b s / 128) < 12 b s + 512

"""The sweep over lifetimes against brute force on random ledgers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.ledger import Allocation, Category, Ledger, Phase, Rows, Span

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

STEPS = 12
hypothesis.settings.register_profile("unhurried", deadline=None)  # the machine that runs the tests may be busy
hypothesis.settings.load_profile("unhurried")


@st.composite
def allocations(draw) -> list[Allocation]:
    """A few rows on a clock of twelve steps."""
    rows = []
    for i in range(draw(st.integers(0, 8))):
        begin = draw(st.integers(0, STEPS))
        end = draw(st.integers(begin, STEPS))
        rows.append(Allocation(f"row {i}", draw(st.sampled_from(Category)), draw(st.integers(0, 1 << 40)), begin, end))
    return rows


@st.composite
def timelines(draw) -> list[Span]:
    """Phases that share out the twelve steps; the same phase may come twice."""
    cuts = sorted(draw(st.sets(st.integers(1, STEPS - 1), max_size=4)))
    edges = [0, *cuts, STEPS]
    return [Span(draw(st.sampled_from(Phase)), begin, end) for begin, end in pairwise(edges)]


def live(rows: list[Allocation], step: int) -> int:
    """Brute force."""
    total = 0
    for row in rows:
        if row.begin <= step < row.end:
            total += row.nbytes
    return total


@hypothesis.given(allocations(), timelines())
def test_the_curve_is_what_lives_at_each_step(rows, timeline):
    """Prefix sums of changes agree with looking at every row at every step."""
    ledger = Ledger("test", rows, timeline)
    expected = [live(rows, step) for step in range(STEPS)]

    assert expected == ledger.curve
    assert expected == [ledger.live_bytes(step) for step in range(STEPS)]


@hypothesis.given(allocations(), timelines())
def test_peaks_are_the_largest_of_their_phases(rows, timeline):
    """Each phase's peak, its first step, and the largest of all."""
    ledger = Ledger("test", rows, timeline)
    for phase in {span.phase for span in timeline}:
        steps = [step for span in timeline if span.phase is phase for step in range(span.begin, span.end)]
        most = max(live(rows, step) for step in steps)
        peak = ledger.peak(phase)
        assert (most, min(step for step in steps if live(rows, step) == most)) == (peak.nbytes, peak.step)

    assert max(live(rows, step) for step in range(STEPS)) == ledger.peak().nbytes


@hypothesis.given(allocations(), timelines())
def test_the_books_balance(rows, timeline):
    """Rows and categories alive at a step add up to the curve; a peak's parts add up to it."""
    ledger = Ledger("test", rows, timeline)
    for step in range(STEPS):
        assert ledger.curve[step] == sum(row.nbytes for row in ledger.live_at(step))
        assert ledger.curve[step] == sum(ledger.by_category(step).values())
    for peak in ledger.peaks.values():
        assert peak.nbytes == sum(peak.by_category.values())
        assert 0 not in peak.by_category.values()


def test_ends_are_half_open():
    """A row is not alive at its end: one that begins there does not meet it."""
    rows = [Allocation("a", Category.INPUT, 3, 0, 1), Allocation("b", Category.INPUT, 5, 1, 2)]
    ledger = Ledger("test", rows, [Span(Phase.FORWARD, 0, 2)])

    assert ledger.curve == [3, 5]
    assert [row.name for row in ledger.live_at(1)] == ["b"]


def test_what_lives_is_shown_largest_first():
    """live_at sorts by size, by_category in the order of the categories."""
    sizes = {Category.LOGITS: 7, Category.PARAMETER: 5, Category.ADAPTER: 9}
    rows = [Allocation(str(category), category, size, 0, 1) for category, size in sizes.items()]
    ledger = Ledger("test", rows, [Span(Phase.FORWARD, 0, 1)])

    assert [row.nbytes for row in ledger.live_at(0)] == [9, 7, 5]
    assert list(ledger.by_category(0)) == [Category.PARAMETER, Category.ADAPTER, Category.LOGITS]


@hypothesis.given(allocations())
def test_columns_give_back_their_rows(rows):
    """Rows by column and allocations one by one are the same book."""
    assert tuple(rows) == Ledger("test", Rows(rows), []).allocations


def test_an_empty_ledger_has_no_curve():
    """No timeline, no steps, no peaks."""
    ledger = Ledger("test", [], [])

    assert (ledger.curve, ledger.peaks) == ([], {})

"""Two engines' ledgers of one run, side by side: by phase and category, and in words why they differ."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from planner.display import Displayed
from planner.ledger import Category, Ledger, Peak, Phase
from planner.units import human
from planner.value import NamedTuple

_TOLD_APART = (
    "the closed form declares what a tensor is for, the trace tells it by a rule: where parts differ and their sum does not, the same "
    "bytes have another name"
)


class Row(NamedTuple):
    """
    One category at the peaks of one phase.

    Attributes:
        phase: The phase.
        category: The category; None for the sum.
        analytic_bytes, traced_bytes: What each engine has alive at its own peak of the phase.
    """

    phase: Phase
    category: Category | None
    analytic_bytes: int
    traced_bytes: int

    @property
    def difference_bytes(self) -> int:
        """How much more the closed form has."""
        return self.analytic_bytes - self.traced_bytes


class Agreement(Displayed):
    """
    The closed form beside the trace.

    Args:
        analytic: The closed form's ledger.
        traced: The trace's.
    """

    def __init__(self, analytic: Ledger, traced: Ledger) -> None:
        self.analytic, self.traced = analytic, traced

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every category of every phase that both engines have, each phase led by its sum."""
        found = []
        for phase in Phase:
            if phase in self.analytic.peaks and phase in self.traced.peaks and phase is not Phase.PREPARE:
                a, b = self.analytic.peaks[phase], self.traced.peaks[phase]
                found.append(Row(phase, None, a.nbytes, b.nbytes))
                found += [
                    Row(phase, category, a.by_category.get(category, 0), b.by_category.get(category, 0))
                    for category in Category
                    if category in a.by_category or category in b.by_category
                ]
        return tuple(found)

    @cached_property
    def explanations(self) -> tuple[str, ...]:
        """Why the engines differ, one sentence a cause, where a phase differs by a thousandth or a category by a hundredth of its peak."""
        found: dict[str, None] = {}
        for row in self.rows:
            if row.category is None and row.difference_bytes and abs(row.difference_bytes) * 1000 >= row.traced_bytes:
                found[self._why(row)] = None
        if self._told_apart:
            found[_TOLD_APART] = None
        return tuple(found)

    @property
    def _told_apart(self) -> bool:
        sums = {row.phase: row for row in self.rows if row.category is None}
        return any(
            row.category is not None
            and abs(row.difference_bytes) * 100 >= sums[row.phase].traced_bytes
            and abs(sums[row.phase].difference_bytes) * 2 < abs(row.difference_bytes)
            for row in self.rows
        )

    def _why(self, row: Row) -> str:
        """The category that makes up for most of it (others may be the same bytes under two names), and the trace's largest in it."""
        parts = [part for part in self.rows if part.phase is row.phase and part.category is not None]
        most = min(parts, key=lambda part: abs(row.difference_bytes - part.difference_bytes))
        assert most.category is not None
        which = "more" if most.difference_bytes > 0 else "less"
        largest = _largest(self.traced, self.traced.peaks[row.phase], most.category)
        return (
            f"{row.phase.value.replace('_', ' ')}: the closed form has {human(abs(most.difference_bytes))} {which} "
            f"{most.category.value.replace('_', ' ')} than the trace{largest}"
        )

    def model_dump(self) -> list[dict[str, Any]]:
        """The rows, as JSON has them; the category of a phase's sum is null."""
        return [
            {
                "phase": row.phase.value,
                "category": None if row.category is None else row.category.value,
                "analytic_bytes": row.analytic_bytes,
                "traced_bytes": row.traced_bytes,
                "difference_bytes": row.difference_bytes,
            }
            for row in self.rows
        ]


def _largest(ledger: Ledger, peak: Peak, category: Category) -> str:
    """What is largest in a category at a peak, in words."""
    alive = [a for a in ledger.live_at(peak.step) if a.category is category]
    if not alive:
        return ", which has none"
    where = f" of {alive[0].scope}" if alive[0].scope else ""
    return f", whose largest is {alive[0].name}{where} ({human(alive[0].nbytes)})"

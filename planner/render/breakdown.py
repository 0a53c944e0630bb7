"""What peaks are made of, as bars side by side: one bar a run, stacked by category."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from planner.errors import InvalidRecipeError
from planner.ledger import Category
from planner.render.chart import Chart, finish, style
from planner.render.palette import COLOURS, RESERVE, label
from planner.report import Report
from planner.value import NamedTuple

_SEEN_PARTS = 400
"""A part of a bar is seen where it is more than one of so many of the longest."""


class Bar(NamedTuple):
    """
    One bar.

    Attributes:
        name: What stands beside it.
        parts: Name, bytes and colour of each part, in the order of stacking; none is zero.
        capacity_bytes: What its card has; None where none is named.
        card: The card's name.
    """

    name: str
    parts: tuple[tuple[str, int, str], ...]
    capacity_bytes: int | None = None
    card: str | None = None

    @property
    def total_bytes(self) -> int:
        """The length of the bar."""
        return sum(nbytes for _, nbytes, _ in self.parts)


def bars(
    reports: Report | Sequence[Report] | Mapping[str, Report],
    path: str | os.PathLike[str] | None = None,
    *,
    interactive: bool = False,
) -> Chart:
    """
    What the peaks of estimates are made of, one bar each; where a card is named, with the allocator's reserve, the context, and its size.

    Args:
        reports: One, some, or some by the names to show; without names each is called by its model.
        path: Where to write it too: .png or .svg (matplotlib), .html (plotly).
        interactive: Whether plotly draws it.

    Raises:
        InvalidRecipeError: There is nothing to draw.
        InvalidOutputError: The file cannot be written.
        MissingExtraError: What draws is not installed: `pip install "qplan[plot]"`.
    """
    interactive = style(path, interactive=interactive)
    if isinstance(reports, Report):
        reports = [reports]
    named = list(reports.items()) if isinstance(reports, Mapping) else [(report.model.id, report) for report in reports]
    if not named:
        raise InvalidRecipeError("there is no report to draw", hint='bars([estimate("meta-llama/Llama-2-7b-hf")])')
    return draw([bar(name, report) for name, report in named], path, interactive=interactive)


def draw(rows: Sequence[Bar], path: str | os.PathLike[str] | None, *, interactive: bool) -> Chart:
    """Bars as a chart, by whichever library was chosen; at least one of them."""
    if interactive:
        from planner.render import breakdown_plotly

        return finish(breakdown_plotly.figure(rows), path, interactive=True)
    from planner.render import breakdown_png

    return finish(breakdown_png.figure(rows), path, interactive=False)


def bar(name: str, report: Report) -> Bar:
    """The bar of one estimate; it is as long as what the process holds where a card is named, else as what is allocated."""
    peak, device = report.peak, report.device
    parts = parts_of({Category(category): nbytes for category, nbytes in peak.by_category.items()})
    if device is None:
        return Bar(name, parts)
    beyond = ("reserve and context", peak.process_bytes - peak.allocated_bytes, RESERVE)
    return Bar(name, (*parts, beyond), device.total_bytes, device.name)


def parts_of(by_category: Mapping[Category, int]) -> tuple[tuple[str, int, str], ...]:
    """Categories as parts of a bar, in the order of stacking."""
    found = ((label(category), by_category.get(category, 0), colour) for category, colour in COLOURS.items())
    return tuple(part for part in found if part[1])


def legend(rows: Sequence[Bar]) -> dict[str, str]:
    """The colour of each part that can be seen in one of the bars, in the order of stacking."""
    order = [*(label(category) for category in COLOURS), "reserve and context"]
    least = max(row.total_bytes for row in rows) // _SEEN_PARTS
    colours = {name: colour for row in rows for name, nbytes, colour in row.parts if nbytes > least}
    return {name: colours[name] for name in sorted(colours, key=lambda name: order.index(name) if name in order else len(order))}


def capacities(rows: Sequence[Bar]) -> dict[str, int]:
    """The cards that bars are for, by name, and their sizes."""
    return {row.card: row.capacity_bytes for row in rows if row.card is not None and row.capacity_bytes is not None}

"""Bars of peaks."""

from __future__ import annotations

import pytest

from planner import bars, estimate
from planner.errors import InvalidRecipeError
from planner.ledger import Category
from planner.render import breakdown
from planner.render.breakdown import Bar, bar, capacities, legend
from planner.render.palette import COLOURS, RESERVE

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
SMALL = "meta-llama/Llama-3.2-1B"


@pytest.fixture(scope="module")
def report():
    """A small run on a T4."""
    return estimate(SMALL, gpu="t4", stack="latest")


def test_a_bar_is_what_the_process_holds(report):
    """With a card its parts add up to the process: the categories to what is allocated, and the reserve and context on top."""
    found = bar("run", report)
    by_name = {name: nbytes for name, nbytes, _ in found.parts}
    beyond = by_name.pop("reserve and context")

    assert found.total_bytes == report.peak.process_bytes
    assert sum(by_name.values()) == report.peak.allocated_bytes
    assert beyond == report.peak.process_bytes - report.peak.allocated_bytes
    assert found.capacity_bytes == report.device.total_bytes


def test_without_a_card_it_is_what_is_allocated():
    """No reserve is guessed where nothing was simulated."""
    found = estimate(SMALL, stack="latest")
    if found.device is not None:
        pytest.skip("there is a card here")

    assert bar("run", found).total_bytes == found.peak.allocated_bytes


def test_parts_are_stacked_in_the_order_of_the_palette():
    """What rests lies at the beginning; parts of no bytes are left out."""
    found = breakdown.parts_of({Category.ACTIVATION: 5, Category.PARAMETER: 7, Category.LOGITS: 0})

    assert found == (("parameter", 7, COLOURS[Category.PARAMETER]), ("activation", 5, COLOURS[Category.ACTIVATION]))


def test_the_legend_names_what_can_be_seen():
    """Each part once, in the order of stacking; what is thinner than a hair is left out."""
    rows = [
        Bar("a", (("activation", 1000, "#1"), ("input", 1, "#2"), ("reserve and context", 50, RESERVE))),
        Bar("b", (("parameter", 500, "#3"), ("activation", 700, "#1"))),
    ]

    assert list(legend(rows)) == ["parameter", "activation", "reserve and context"]


def test_each_card_has_one_line():
    """Bars of one card share it."""
    rows = [Bar("a", (), 10, "T4"), Bar("b", (), 10, "T4"), Bar("c", (), 20, "L4"), Bar("d", ())]

    assert capacities(rows) == {"T4": 10, "L4": 20}


def test_nothing_to_draw_is_refused():
    """An empty list is no chart."""
    with pytest.raises(InvalidRecipeError, match="no report to draw"):
        bars([])


@pytest.mark.parametrize("name", ["out.png", "out.html"])
def test_one_some_or_named_reports(tmp_path, report, name):
    """One report, a list and names are drawn alike, to the file that is named."""
    for given in (report, [report], {"mine": report}):
        bars(given, tmp_path / name)

        assert (tmp_path / name).stat().st_size > 1000

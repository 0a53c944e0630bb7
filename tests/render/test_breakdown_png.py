"""Bars through matplotlib: what is drawn is what was given."""

from __future__ import annotations

import pytest

from planner.render.breakdown import Bar
from planner.units import GIB

pytest.importorskip("matplotlib")

ROWS = [
    Bar("$a_1$", (("parameter", 6 * GIB, "#4a6fa5"), ("activation", 2 * GIB, "#6aa84f")), 15 * GIB, "Tesla T4"),
    Bar("b", (("parameter", 12 * GIB, "#4a6fa5"),), 100 * GIB, "far away"),
]


def drawn():
    """The axes of the figure."""
    from planner.render import breakdown_png

    return breakdown_png.figure(ROWS).axes[0]


def test_bars_are_as_long_as_their_parts():
    """Each part begins where the one before ends, in GiB."""
    found = sorted((patch.get_y(), patch.get_x(), patch.get_width()) for patch in drawn().patches)

    assert [(x, width) for _, x, width in found] == [(0, 6), (6, 2), (0, 12)]


def test_names_and_sums_are_written():
    """Every bar has its name, as it is, and its sum; the first one is on top."""
    axes = drawn()
    texts = [text.get_text() for text in axes.texts]

    assert [label.get_text() for label in axes.get_yticklabels()] == ["$a_1$", "b"]
    assert {"8.00", "12.00"} <= set(texts)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_a_card_that_is_near_has_a_line():
    """The T4 is drawn where it ends; a card far beyond all bars would squeeze them, and is left out."""
    axes = drawn()

    assert [line.get_xdata()[0] for line in axes.lines] == [15]
    assert "Tesla T4: 15.0" in [text.get_text() for text in axes.texts]

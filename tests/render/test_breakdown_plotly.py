"""Bars through plotly: what is drawn is what was given."""

from __future__ import annotations

import pytest

from tests.render.test_breakdown_png import ROWS

pytest.importorskip("plotly")


def test_each_part_is_a_trace():
    """A trace for every part, with its GiB for every bar, and the exact bytes under the pointer."""
    from planner.render import breakdown_plotly

    figure = breakdown_plotly.figure(ROWS)
    sizes = {trace.name: list(trace.x) for trace in figure.data}

    assert sizes == {"parameter": [6, 12], "activation": [2, 0]}
    assert figure.data[0].customdata[0][1] == f"{6 << 30:,}"
    assert figure.layout.barmode == "stack"
    assert [line.x0 for line in figure.layout.shapes] == [15, 100]

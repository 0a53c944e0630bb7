"""Heat maps through plotly: what is drawn is what the grid says."""

from __future__ import annotations

import numpy as np
import pytest

from planner.render.heatmap import frontier, grid
from tests.render import grids

pytest.importorskip("plotly")


def drawn(columns, color):
    """The grid and the figure."""
    from planner.render import heatmap_plotly

    shown = grid(columns, "batch_size", "seq_len", color, {})
    return shown, heatmap_plotly.figure(shown, columns)


@pytest.mark.parametrize("color", ["headroom_bytes", "outcome", "allocated_bytes"])
def test_each_panel_is_a_map_and_a_line(color):
    """Values as they are; the line has both ends of every edge and a gap after each."""
    shown, figure = drawn(grids.columns(), color)
    maps, lines = figure.data[::2], figure.data[1::2]

    for panel, heat, line in zip(shown.panels, maps, lines, strict=True):
        np.testing.assert_array_equal(heat.z, panel.values)
        assert len(line.x) == 3 * len(list(frontier(panel.outcomes)))


def test_a_cell_says_what_it_holds():
    """Knobs, verdict and sizes; of a refused point the reason, as text; of one that was not simulated no reserve."""
    columns = grids.columns(cards=("Tesla T4",))
    columns["error"][0], columns["outcome"][0] = "<b>refused</b>", None
    columns["headroom_bytes"] = np.ma.array(columns["headroom_bytes"], mask=np.arange(len(columns["outcome"])) == 1)
    shown, figure = drawn(columns, "outcome")
    texts = dict(zip(shown.panels[0].rows.ravel().tolist(), np.array(figure.data[0].text).ravel().tolist(), strict=True))

    assert texts[0].endswith("refused: &lt;b&gt;refused&lt;/b&gt;")
    assert "to spare" not in texts[1]
    assert "to spare" in texts[2]
    assert f"batch size {columns['batch_size'][2]}<br>" in texts[2]


def test_verdicts_have_three_steps_of_colour():
    """Each verdict has one colour over its whole third of the scale, and its name."""
    _, figure = drawn(grids.columns(), "outcome")
    axis = figure.layout.coloraxis

    assert [round(place, 4) for place, _ in axis.colorscale] == [0, 0.3333, 0.3333, 0.6667, 0.6667, 1]
    assert [colour for _, colour in axis.colorscale[::2]] == [colour for _, colour in axis.colorscale[1::2]]
    assert list(axis.colorbar.ticktext) == ["does not fit", "tight", "fits"]

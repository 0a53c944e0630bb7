"""Sweeps as heat maps: the numbers behind the pictures, against the rule that the columns were made by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InvalidRecipeError
from planner.render.heatmap import OUTCOMES, frontier, grid, heatmap
from planner.units import GIB
from tests.render import grids

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")


def test_every_row_is_in_its_cell():
    """Values, verdicts and row numbers stand where the knobs say, whatever the order of the rows."""
    columns = grids.columns()
    found = grid(columns, "batch_size", "seq_len", "headroom_bytes", {})

    assert [panel.title for panel in sorted(found.panels, key=lambda p: p.title)] == ["NVIDIA L40S", "Tesla T4"]
    for panel in found.panels:
        for i, length in enumerate(found.y_values):
            for j, batch in enumerate(found.x_values):
                spare = grids.CARDS[panel.title] * GIB - grids.needs(batch, length)
                row = panel.rows[i, j]
                assert panel.values[i, j] == spare / GIB
                assert OUTCOMES[panel.outcomes[i, j]] == grids.outcome(spare)
                assert (columns["batch_size"][row], columns["seq_len"][row], columns["gpu"][row]) == (batch, length, panel.title)


def test_axes_rise():
    """Values of both axes are sorted, however the sweep named them."""
    found = grid(grids.columns(batches=(8, 1, 4), lengths=(4096, 512)), "batch_size", "seq_len", "outcome", {"gpu": "Tesla T4"})

    assert (found.x_values, found.y_values) == ((1, 4, 8), (512, 4096))
    assert len(found.panels) == 1
    assert found.panels[0].title == ""


def test_missing_points_are_no_numbers():
    """A point that the sweep has not, and one that was refused, have neither a value nor a verdict."""
    columns = {name: column[:-1] for name, column in grids.columns(cards=("Tesla T4",)).items()}
    columns["error"][0], columns["outcome"][0] = "refused", None
    panel = grid(columns, "batch_size", "seq_len", "allocated_bytes", {}).panels[0]

    assert np.isnan(panel.values).sum() == 2
    assert (panel.outcomes == -1).sum() == 2
    assert (panel.rows == -1).sum() == 1


def test_rows_that_were_not_simulated_have_no_number():
    """Masked sizes stay unknown: no reserve is guessed, and without a wish the colours are then the verdicts."""
    columns = grids.columns(cards=("Tesla T4",))
    mask = np.zeros(len(columns["outcome"]), dtype=bool)
    mask[3] = True
    columns["headroom_bytes"] = np.ma.array(columns["headroom_bytes"], mask=mask)

    assert np.isnan(grid(columns, "batch_size", "seq_len", "headroom_bytes", {}).panels[0].values).sum() == 1
    assert grid(columns, "batch_size", "seq_len", None, {}).color == "outcome"
    assert grid(grids.columns(), "batch_size", "seq_len", None, {}).color == "headroom_bytes"


def test_without_a_card_what_is_allocated_is_drawn():
    """No outcome, no headroom: the colours are sizes."""
    columns = {name: column for name, column in grids.columns().items() if name not in ("gpu", "outcome", "headroom_bytes")}
    found = grid(columns, "batch_size", "seq_len", None, {})

    assert found.color == "allocated_bytes"
    assert (found.panels[0].outcomes == -1).all()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_frontier_is_every_edge_between_what_runs_and_what_does_not(rows, width, seed):
    """Edges, counted by brute force over all pairs of neighbours; cells without a verdict have none."""
    outcomes = np.random.default_rng(seed).integers(-1, 3, (rows, width)).astype(np.int8)
    expected = set()
    for i in range(rows):
        for j in range(width):
            for k, l in ((i, j + 1), (i + 1, j)):  # noqa: E741 - row and column of the neighbour
                if k < rows and l < width and {bool(outcomes[i, j] > 0), bool(outcomes[k, l] > 0)} == {True, False}:
                    if min(outcomes[i, j], outcomes[k, l]) == 0:
                        expected.add(((i + k) / 2, (j + l) / 2))
    found = list(frontier(outcomes))

    assert {((a[1] + b[1]) / 2, (a[0] + b[0]) / 2) for a, b in found} == expected
    assert len(found) == len(expected)
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in found)


REFUSED = {
    "no such knob": ({"x": "batch"}, "`batch` is no knob of this sweep; it has model, gpu, batch_size"),
    "one knob twice": ({"x": "rank", "y": "rank"}, "both axes are `rank`"),
    "no such colour": ({"color": "rank"}, "color is 'rank'; it must be one of headroom_bytes"),
    "no such value": ({"where": {"rank": 7}}, "no rows with rank 7"),
    "too many knobs": ({}, "2 knobs vary beside the axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_told(name):
    """Which knobs and values there are, and what to pass."""
    knobs, message = REFUSED[name]

    with pytest.raises(InvalidRecipeError, match=message) as caught:
        heatmap(grids.columns(ranks=(8, 16)), **knobs)

    assert caught.value.hint


def test_too_many_panels_are_refused():
    """A knob of forty values is an axis, not forty panels."""
    with pytest.raises(InvalidRecipeError, match="40 values; there is room for 12 panels"):
        heatmap(grids.columns(cards=("Tesla T4",), ranks=range(1, 41)))


def test_other_knobs_take_the_place_of_the_usual_ones():
    """Where batch or length does not vary, the next knob that does is the axis; one knob alone is no map."""
    heatmap(grids.columns(cards=("Tesla T4",), lengths=(512,), ranks=(8, 16)))
    with pytest.raises(InvalidRecipeError, match="needs two knobs that vary; there are batch_size"):
        heatmap(grids.columns(cards=("Tesla T4",), lengths=(512,)))


@pytest.mark.parametrize("name", ["out.png", "out.svg", "out.html"])
@pytest.mark.parametrize("color", ["headroom_bytes", "outcome", "process_bytes"])
def test_it_is_written(tmp_path, name, color):
    """Each colour to each kind of file."""
    heatmap(grids.columns(), color=color, path=tmp_path / name)

    assert (tmp_path / name).stat().st_size > 1000


def test_a_scale_around_zero_ends_at_the_most_that_is_to_spare():
    """A corner that lacks hundreds of GiB does not wash out the rest; where nothing fits, the lack is the scale."""
    columns = grids.columns()

    assert grid(columns, "batch_size", "seq_len", "headroom_bytes", {}).limit == 44 - 6 - 1 - 16 / 64
    nowhere = grids.columns(cards=("Tesla T4",), batches=(16, 32), lengths=(2048, 4096))
    assert grid(nowhere, "batch_size", "seq_len", "headroom_bytes", {}).limit == 6 + 128 + 16 / 64 - 15

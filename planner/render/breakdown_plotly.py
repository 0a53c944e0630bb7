"""Bars of peaks through plotly: point to read, click a category away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.render.breakdown import Bar, capacities, legend
from planner.units import GIB, gib

_RED = "#b3402e"


def figure(rows: Sequence[Bar]) -> Any:
    """
    A plotly figure.

    Args:
        rows: At least one bar.
    """
    from plotly import graph_objects

    names = [row.name for row in rows]
    found = graph_objects.Figure()
    seen = legend(rows)
    for part, colour in {name: colour for row in rows for name, _, colour in row.parts}.items():
        sizes = [sum(nbytes for name, nbytes, _ in row.parts if name == part) for row in rows]
        found.add_bar(
            name=part, showlegend=part in seen, orientation="h", y=names, x=[size / GIB for size in sizes], marker_color=colour,
            customdata=[[gib(size, 3), f"{size:,}"] for size in sizes],
            hovertemplate="%{y}<br>" + part + ": %{customdata[0]} (%{customdata[1]} bytes)<extra></extra>",
        )  # fmt: skip
    for card, nbytes in capacities(rows).items():
        found.add_vline(x=nbytes / GIB, line={"color": _RED, "dash": "dash", "width": 1.5}, annotation_text=f"{card}: {gib(nbytes, 1)}")
    found.update_layout(barmode="stack", template="plotly_white", height=180 + 34 * len(rows), margin={"t": 50, "r": 20})
    found.update_xaxes(title="GiB at the peak")
    found.update_yaxes(autorange="reversed")
    return found

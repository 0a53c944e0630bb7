"""Heat maps of a sweep through plotly: point to read what a point holds, drag to zoom."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from planner.render.heatmap import OUTCOMES, Columns, Grid, Panel, frontier
from planner.render.palette import COLUMN_TITLES, GROUND, axis_title
from planner.render.palette import OUTCOMES as OUTCOME_COLOURS
from planner.units import ceil_div, gib

_MOST_ACROSS = 3
_SIZES = ("allocated_bytes", "reserved_bytes", "process_bytes", "headroom_bytes")


def figure(shown: Grid, columns: Columns) -> Any:
    """
    A plotly figure.

    Args:
        shown: At least one panel.
        columns: The sweep's, for what is read when a cell is pointed at.
    """
    from plotly.subplots import make_subplots

    across = min(len(shown.panels), _MOST_ACROSS)
    down = ceil_div(len(shown.panels), across)
    found = make_subplots(
        rows=down, cols=across, shared_xaxes="all", shared_yaxes="all", subplot_titles=[panel.title for panel in shown.panels],
        x_title=axis_title(shown.x), y_title=axis_title(shown.y), horizontal_spacing=0.03, vertical_spacing=0.1,
    )  # fmt: skip
    for number, panel in enumerate(shown.panels):
        _panel(found, shown, panel, columns, number // across + 1, number % across + 1)
    found.update_layout(
        template="plotly_white", coloraxis=_scale(shown), showlegend=False, width=280 + 330 * across, height=140 + 300 * down,
    )  # fmt: skip
    for axes, values in ((found.update_xaxes, shown.x_values), (found.update_yaxes, shown.y_values)):
        step = max(1, ceil_div(len(values), 10))
        places = list(range(0, len(values), step))
        axes(tickvals=places, ticktext=[str(values[place]) for place in places], showgrid=False, zeroline=False)
    return found


def _panel(found: Any, shown: Grid, panel: Panel, columns: Columns, row: int, column: int) -> None:
    from plotly import graph_objects

    texts = [[_text(shown, columns, int(place)) for place in line] for line in panel.rows]
    found.add_trace(
        graph_objects.Heatmap(z=panel.values, text=texts, hovertemplate="%{text}<extra></extra>", coloraxis="coloraxis", xgap=1, ygap=1),
        row=row,
        col=column,
    )
    x: list[float | None] = []
    y: list[float | None] = []
    for begin, end in frontier(panel.outcomes):
        x += [begin[0], end[0], None]
        y += [begin[1], end[1], None]
    line = graph_objects.Scatter(x=x, y=y, mode="lines", line={"color": "#222222", "width": 3}, hoverinfo="skip")
    found.add_trace(line, row=row, col=column)


def _scale(shown: Grid) -> dict[str, Any]:
    if shown.color == "outcome":
        steps = [(place / 3, OUTCOME_COLOURS[OUTCOMES[min(int(place + offset), 2)]]) for place in range(4) for offset in (-0.5, 0.5)][1:-1]
        ticks = {"tickvals": [0, 1, 2], "ticktext": [name.replace("_", " ") for name in OUTCOMES]}
        return {"colorscale": steps, "cmin": -0.5, "cmax": 2.5, "colorbar": ticks}
    bar = {"title": {"text": COLUMN_TITLES[shown.color]}}
    if shown.color == "headroom_bytes":
        ends = [(0.0, OUTCOME_COLOURS["does_not_fit"]), (0.5, GROUND), (1.0, OUTCOME_COLOURS["fits"])]
        return {"colorscale": ends, "cmin": -shown.limit, "cmax": shown.limit, "colorbar": bar}
    return {"colorscale": "Cividis", "colorbar": bar}


def _text(shown: Grid, columns: Columns, place: int) -> str:
    """What a cell says when it is pointed at; nothing where the sweep has no such point."""
    if place < 0:
        return ""
    lines = [f"{axis_title(name)} {columns[name][place]}" for name in (shown.x, shown.y)]
    outcome = columns["outcome"][place] if "outcome" in columns else None
    refused = columns["error"][place] if "error" in columns else None
    if refused is not None:
        return "<br>".join([*lines, "refused: " + escape(str(refused))])
    if outcome is not None:
        lines.append(f"<b>{str(outcome).replace('_', ' ')}</b>")
    known = [(name, columns[name][place]) for name in _SIZES if name in columns]
    lines += [f"{COLUMN_TITLES[name].partition(',')[0]} {gib(int(size))}" for name, size in known if size is not np.ma.masked]
    return "<br>".join(lines)

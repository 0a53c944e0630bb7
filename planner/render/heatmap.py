"""Two knobs of a sweep against each other, a panel for each value of a third: what is to spare, or the verdict, and the frontier."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InvalidRecipeError
from planner.render.chart import Chart, finish, style
from planner.units import GIB
from planner.value import NamedTuple

Columns = Mapping[str, NDArray[Any]]
OUTCOMES = ("does_not_fit", "tight", "fits")
"""In the order of their numbers in a panel."""
_NUMBERS = {name: number for number, name in enumerate(OUTCOMES)}
RESULTS = ("allocated_bytes", "reserved_bytes", "process_bytes", "headroom_bytes", "phase", "outcome", "simulated", "error")
"""Columns that are answers; the others are knobs."""
_COLOURED_BY = ("headroom_bytes", "outcome", "process_bytes", "reserved_bytes", "allocated_bytes")
_MOST_PANELS = 12


class Panel(NamedTuple):
    """
    One heat map; rows are values of y, columns values of x.

    Attributes:
        title: The value of the knob that panels stand for; empty where there is one panel.
        values: What colours say: GiB, or the number of a verdict in `OUTCOMES`; not a number where the sweep has no such point.
        outcomes: The number of the verdict in `OUTCOMES`; -1 where there is none.
        rows: Positions of the sweep's rows; -1 where there is none.
    """

    title: str
    values: NDArray[np.float64]
    outcomes: NDArray[np.int8]
    rows: NDArray[np.intp]


class Grid(NamedTuple):
    """
    Panels that share their axes.

    Attributes:
        x, y: The knobs along the axes.
        x_values, y_values: Their values, rising.
        color: The column that gives the colours.
        panels: At least one.
    """

    x: str
    y: str
    x_values: tuple[Any, ...]
    y_values: tuple[Any, ...]
    color: str
    panels: tuple[Panel, ...]

    @property
    def limit(self) -> float:
        """The end of a scale around zero: the most that is to spare anywhere, else the most that is lacking."""
        values = np.concatenate([panel.values.ravel() for panel in self.panels])
        values = values[np.isfinite(values)]
        most = float(values.max(initial=0.0))
        return most if most > 0 else max(float(-values.min(initial=0.0)), 1.0)


def heatmap(
    columns: Columns,
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    interactive: bool = False,
) -> Chart:
    """
    A sweep as heat maps, with the line between what runs and what does not.

    Args:
        columns: A sweep's, by name: its knobs, `outcome` and what colours say; masked, or None, where there is no value.
        x: The knob along the horizontal axis. None: `batch_size` where it varies, else the first knob that does.
        y: The knob along the vertical axis. None: `seq_len` where it varies, else the next knob that does.
        color: `headroom_bytes`, `outcome`, `process_bytes`, `reserved_bytes` or `allocated_bytes`. None: what is to spare where every
            row was simulated, else the verdict; without a card, what is allocated.
        where: The values of knobs to keep. Of those that are left one may vary: each of its values is a panel.
        path: Where to write it too: .png or .svg (matplotlib), .html (plotly).
        interactive: Whether plotly draws it.

    Raises:
        InvalidRecipeError: No such columns or values, or more knobs vary than can be drawn.
        InvalidOutputError: The file cannot be written.
        MissingExtraError: What draws is not installed: `pip install "qplan[plot]"`.
    """
    interactive = style(path, interactive=interactive)
    shown = grid(columns, *_axes(columns, x, y, where or {}), color, where or {})
    if interactive:
        from planner.render import heatmap_plotly

        return finish(heatmap_plotly.figure(shown, columns), path, interactive=True)
    from planner.render import heatmap_png

    return finish(heatmap_png.figure(shown), path, interactive=False)


def _axes(columns: Columns, x: str | None, y: str | None, where: Mapping[str, Any]) -> tuple[str, str]:
    """The axes that were asked for, else the usual ones, else the first knobs that vary, numbers before words."""
    chosen = choose(columns, {name: value for name, value in where.items() if name in columns})
    free = [name for name in columns if name not in RESULTS and len(_levels(columns[name][chosen])) > 1]
    free.sort(key=lambda name: (columns[name].dtype.kind not in "iuf", name in ("model", "gpu")))
    found: list[str] = []
    for given, usual in ((x, "batch_size"), (y, "seq_len")):
        others = [name for name in free if name not in (x, y, *found)]
        if given is None and not others:
            raise InvalidRecipeError(
                f"a heat map needs two knobs that vary; there are {', '.join(free) or 'none'}",
                hint="vary another, or draw bars: sweep.bars()",
            )
        found.append(given if given is not None else usual if usual in others else others[0])
    return found[0], found[1]


def grid(columns: Columns, x: str, y: str, color: str | None, where: Mapping[str, Any]) -> Grid:
    """
    The rows of a sweep as panels.

    Raises:
        InvalidRecipeError: As for `heatmap`.
    """
    knobs = [name for name in columns if name not in RESULTS]
    for name in (x, y, *where):
        if name not in knobs:
            raise InvalidRecipeError(f"`{name}` is no knob of this sweep; it has {', '.join(knobs)}", hint="vary it, or name another")
    if x == y:
        raise InvalidRecipeError(f"both axes are `{x}`; they must be two knobs", hint='x="batch_size", y="seq_len"')
    chosen = choose(columns, where)
    if color is None:
        color = next((name for name in ("headroom_bytes", "outcome") if _is_whole(columns, name, chosen)), "allocated_bytes")
    if color not in _COLOURED_BY or color not in columns:
        raise InvalidRecipeError(f"color is {color!r}; it must be one of {', '.join(_COLOURED_BY)}", hint='color="headroom_bytes"')
    panel_by = _panel_by(columns, [name for name in knobs if name not in (x, y)], chosen)
    xs, ys = (_levels(columns[name][chosen]) for name in (x, y))
    panels = []
    for value, rows in _groups(columns, panel_by, chosen):
        places = np.full((len(ys), len(xs)), -1, dtype=np.intp)
        places[_position(columns[y][rows], ys), _position(columns[x][rows], xs)] = rows
        panels.append(_panel(columns, color, places, "" if panel_by is None else f"{panel_by.replace('_', ' ')} {value}"))
    if panel_by == "gpu":
        panels = [panel._replace(title=panel.title.removeprefix("gpu ")) for panel in panels]
    return Grid(x, y, xs, ys, color, tuple(panels))


def choose(columns: Columns, where: Mapping[str, Any]) -> NDArray[np.intp]:
    """
    The rows in which knobs have these values.

    Raises:
        InvalidRecipeError: There are none.
    """
    length = len(next(iter(columns.values()))) if columns else 0
    kept = np.ones(length, dtype=bool)
    for name, value in where.items():
        kept &= np.array([item == value for item in columns[name]], dtype=bool)
    if not kept.any():
        asked = " with " + ", ".join(f"{name} {value!r}" for name, value in where.items()) if where else ""
        raise InvalidRecipeError(f"the sweep has no rows{asked}", hint="look at the values that it has: sweep.axes")
    return np.flatnonzero(kept)


def frontier(outcomes: NDArray[np.int8]) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """
    The edges between cells that run (a tight fit counts) and cells that do not.

    Args:
        outcomes: Of a panel; cell (row, column) has its middle at x = column, y = row.

    Yields:
        Both ends (x, y) of each edge.
    """
    rows, width = outcomes.shape
    for i in range(rows):
        for j in range(width):
            here = outcomes[i, j]
            if j + 1 < width and _differ(here, outcomes[i, j + 1]):
                yield (j + 0.5, i - 0.5), (j + 0.5, i + 0.5)
            if i + 1 < rows and _differ(here, outcomes[i + 1, j]):
                yield (j - 0.5, i + 0.5), (j + 0.5, i + 0.5)


def _differ(a: int, b: int) -> bool:
    return min(a, b) == 0 and max(a, b) > 0


def _panel_by(columns: Columns, others: Sequence[str], chosen: NDArray[np.intp]) -> str | None:
    """The knob that panels stand for; None where no other varies."""
    varied = {name: _levels(columns[name][chosen]) for name in others}
    varied = {name: values for name, values in varied.items() if len(values) > 1}
    if len(varied) > 1:
        texts = "; ".join(f"{name}: {', '.join(map(str, values[:6]))}" for name, values in varied.items())
        name, values = next(iter(varied.items()))
        raise InvalidRecipeError(
            f"{len(varied)} knobs vary beside the axes ({texts}); a heat map has room for one", hint=f"where={{{name!r}: {values[0]!r}}}"
        )
    for name, values in varied.items():
        if len(values) > _MOST_PANELS:
            raise InvalidRecipeError(
                f"`{name}` has {len(values)} values; there is room for {_MOST_PANELS} panels", hint=f"where={{{name!r}: {values[0]!r}}}"
            )
        return name
    return None


def _groups(columns: Columns, name: str | None, chosen: NDArray[np.intp]) -> Iterator[tuple[Any, NDArray[np.intp]]]:
    if name is None:
        yield None, chosen
        return
    column = columns[name][chosen]
    order = list(dict.fromkeys(column.tolist())) if column.dtype.kind in "OUS" else _levels(column)  # names as they were given
    for value in order:
        yield value, chosen[np.array([item == value for item in column], dtype=bool)]


def _panel(columns: Columns, color: str, places: NDArray[np.intp], title: str) -> Panel:
    is_there = places >= 0
    outcomes = np.full(places.shape, -1, dtype=np.int8)
    if "outcome" in columns:
        outcomes[is_there] = [_NUMBERS.get(word, -1) for word in columns["outcome"][places[is_there]]]
    values = np.full(places.shape, np.nan)
    if color == "outcome":
        values[outcomes >= 0] = outcomes[outcomes >= 0]
    else:
        values[is_there] = np.ma.filled(np.ma.asarray(columns[color][places[is_there]]).astype(np.float64), np.nan) / GIB
        if color != "headroom_bytes" and "error" in columns:  # refused: no size at all
            values[is_there] = np.where([text is None for text in columns["error"][places[is_there]]], values[is_there], np.nan)
    return Panel(title, values, outcomes, places)


def _is_whole(columns: Columns, name: str, chosen: NDArray[np.intp]) -> bool:
    """Whether a column has a value in each of these rows that was not refused."""
    if name not in columns:
        return False
    found = columns[name][chosen]
    missing = np.array([value is None for value in found.tolist()], dtype=bool)
    refused = np.array([text is not None for text in columns["error"][chosen]], dtype=bool) if "error" in columns else False
    return not (missing & ~np.asarray(refused)).any()


def _levels(column: NDArray[Any]) -> tuple[Any, ...]:
    """The values of a knob, rising; those that cannot be compared, in the order in which they come."""
    values = list(dict.fromkeys(column.tolist()))
    try:
        return tuple(sorted(values))
    except TypeError:
        return tuple(values)


def _position(column: NDArray[Any], levels: Sequence[Any]) -> NDArray[np.intp]:
    places = {value: place for place, value in enumerate(levels)}
    return np.array([places[value] for value in column.tolist()], dtype=np.intp)

"""Heat maps of a sweep through matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.render.heatmap import OUTCOMES, Grid, Panel, frontier
from planner.render.palette import COLUMN_TITLES, GROUND, axis_title
from planner.render.palette import OUTCOMES as OUTCOME_COLOURS
from planner.units import ceil_div

_INK, _GREY = "#222222", "#6b7280"
_WIDE, _HIGH, _MOST_ACROSS = 3.5, 3.1, 3
_MIDDLE = 0.21
"""The luminance of a ground on which dark and white text can be read equally well (WCAG 2.1)."""
_MOST_TICKS, _MOST_NUMBERS = 9, 12


def figure(shown: Grid) -> Any:
    """
    A matplotlib figure: panels side by side, three in a row at most.

    Args:
        shown: At least one panel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    across = min(len(shown.panels), _MOST_ACROSS)
    down = ceil_div(len(shown.panels), across)
    wide = 6.2 if len(shown.panels) == 1 else _WIDE * across + 0.9
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False, "text.color": _INK}):
        found = Figure(figsize=(wide, (4.2 if across == 1 else _HIGH) * down + 0.7), facecolor="white", layout="constrained")
        every = found.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        colours, norm = _scale(shown)
        image = None
        for axes, panel in zip(every, shown.panels, strict=False):
            image = axes.imshow(panel.values, origin="lower", aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
            _panel(axes, shown, panel, image, has_numbers=across < _MOST_ACROSS)
        for axes in every[len(shown.panels) :]:
            axes.set_visible(False)
        _legend(found, shown, image, every[: len(shown.panels)].tolist())
    return found


def _scale(shown: Grid) -> tuple[Any, Any]:
    """Colours and what they stand for: verdicts; more or less than zero; or from little to much."""
    from matplotlib import colormaps, colors

    if shown.color == "outcome":
        chosen = colors.ListedColormap([OUTCOME_COLOURS[name] for name in OUTCOMES])
        return chosen, colors.BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)
    if shown.color == "headroom_bytes":
        ends = [OUTCOME_COLOURS["does_not_fit"], GROUND, OUTCOME_COLOURS["fits"]]
        return colors.LinearSegmentedColormap.from_list("headroom", ends), colors.Normalize(-shown.limit, shown.limit)
    return colormaps["cividis"], colors.Normalize()


def _panel(axes: Any, shown: Grid, panel: Panel, image: Any, *, has_numbers: bool) -> None:
    from matplotlib.collections import LineCollection

    axes.set_facecolor("#eeeeee")  # no such point
    axes.add_collection(LineCollection(list(frontier(panel.outcomes)), colors=_INK, linewidths=2.0, capstyle="round"))
    down, across = panel.values.shape
    has_numbers = has_numbers and max(down, across) <= _MOST_NUMBERS and shown.color != "outcome"
    for i in range(down):
        for j in range(across):
            if has_numbers and panel.values[i, j] == panel.values[i, j]:  # a number
                _number(axes, j, i, panel.values[i, j], image, is_tight=panel.outcomes[i, j] == OUTCOMES.index("tight"))
            elif panel.outcomes[i, j] == OUTCOMES.index("tight") and shown.color != "outcome" and max(down, across) <= 3 * _MOST_NUMBERS:
                axes.plot(j, i, ".", color=_INK, markersize=3)
    axes.set_title(panel.title, loc="left", fontsize=10)
    _ticks(axes.xaxis, shown.x_values)
    _ticks(axes.yaxis, shown.y_values)
    axes.set_xlabel(axis_title(shown.x))
    axes.set_ylabel(axis_title(shown.y))
    axes.label_outer()
    axes.tick_params(length=0, colors=_GREY, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def _number(axes: Any, x: int, y: int, value: float, image: Any, *, is_tight: bool) -> None:
    """The value in its cell, dark on light colours and light on dark ones; in italics and marked where it is a tight fit."""
    red, green, blue = (part**2.2 for part in image.cmap(image.norm(value))[:3])
    ink = _INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _MIDDLE else "white"
    text = (f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}") + ("·" if is_tight else "")
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, style="italic" if is_tight else "normal")


def _ticks(axis: Any, values: Sequence[Any]) -> None:
    """The values at some of the cells, the first and the last among them."""
    step = max(1, ceil_div(len(values) - 1, _MOST_TICKS - 1))
    places = list(range(0, len(values), step))
    if len(values) - 1 - places[-1] > step / 2:
        places.append(len(values) - 1)
    axis.set_ticks(places, [str(values[place]) for place in places])


def _legend(found: Any, shown: Grid, image: Any, panels: list[Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    if shown.color == "outcome":
        there = {number for panel in shown.panels for number in panel.outcomes.ravel().tolist()}
        named = [name for number, name in enumerate(OUTCOMES) if number in there]
        handles += [Patch(color=OUTCOME_COLOURS[name], label=name.replace("_", " ")) for name in reversed(named)]
    else:
        extend = {"headroom_bytes": "min"}.get(shown.color, "neither")
        bar = found.colorbar(image, ax=panels, extend=extend, fraction=0.05, pad=0.02, aspect=28)
        bar.set_label(COLUMN_TITLES[shown.color])
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=_GREY, labelsize=9)
    if any(next(frontier(panel.outcomes), None) for panel in shown.panels):
        handles.append(Line2D([], [], color=_INK, linewidth=2, label="the frontier: beyond it does not run"))
    if shown.color != "outcome" and any((panel.outcomes == OUTCOMES.index("tight")).any() for panel in shown.panels):
        handles.append(Line2D([], [], color=_INK, marker=".", markersize=5, linewidth=0, label="tight"))
    if handles:
        found.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, handlelength=1.3)

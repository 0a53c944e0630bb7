"""Bars of peaks through matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.render.breakdown import Bar, capacities, legend
from planner.units import GIB

_INK, _GREY, _RED = "#222222", "#6b7280", "#b3402e"
_WIDTH, _ROW, _REST = 9.0, 0.42, 1.7


def figure(rows: Sequence[Bar]) -> Any:
    """
    A matplotlib figure, as high as it has bars.

    Args:
        rows: At least one bar.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False, "text.color": _INK}):
        found = Figure(figsize=(_WIDTH, _REST + _ROW * len(rows)), facecolor="white", layout="constrained")
        axes = found.add_subplot()
        for position, row in enumerate(rows):
            _bar(axes, position, row)
        _axes(axes, rows)
        _cards(axes, rows)
        handles = [mpl.patches.Patch(color=colour, label=name) for name, colour in legend(rows).items()]
        found.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9, handlelength=1.1)
    return found


def _bar(axes: Any, position: int, row: Bar) -> None:
    left = 0.0
    for _, nbytes, colour in row.parts:
        axes.barh(position, nbytes / GIB, left=left, color=colour, height=0.68, linewidth=0)
        left += nbytes / GIB
    axes.annotate(f"{left:,.2f}", (left, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)


def _axes(axes: Any, rows: Sequence[Bar]) -> None:
    longest = max(row.total_bytes for row in rows) / GIB
    drawn = [size / GIB for size in capacities(rows).values() if size / GIB < 1.6 * longest]
    axes.set_xlim(0, max([longest, *drawn]) * 1.1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlabel("GiB at the peak", color=_GREY)
    axes.tick_params(axis="x", colors=_GREY)
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.grid(axis="x", color="#000000", alpha=0.08)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _cards(axes: Any, rows: Sequence[Bar]) -> None:
    """A line for each card that is near enough to be seen."""
    right = axes.get_xlim()[1]
    for name, nbytes in capacities(rows).items():
        at = nbytes / GIB
        if at <= right:
            axes.axvline(at, color=_RED, linestyle=(0, (5, 3)), linewidth=1.4)
            axes.annotate(
                f"{name}: {at:,.1f}", (at, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
                ha="right" if at > right / 2 else "left", color=_RED, fontsize=9,
            )  # fmt: skip

"""A timeline as a picture, through matplotlib."""

from __future__ import annotations

import io
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from planner.errors import MissingExtraError
from planner.ledger import Category, Phase
from planner.render.palette import COLOURS, label
from planner.units import GIB, gib, human

if TYPE_CHECKING:
    from planner.render.timeline import Picture
    from planner.timeline import Timeline

_COLUMNS = 1344
"""Stretches along the time axis: one a pixel."""
_INK, _GREY, _RED = "#222222", "#6b7280", "#c0392b"
_SHADED = (Phase.LOAD, Phase.BACKWARD, Phase.EVALUATION)
_PLATE = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85}
_WORDS = {"optimizer_step": "optimizer"}


def require() -> None:
    """
    See that matplotlib is there.

    Raises:
        MissingExtraError: It is not.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "a timeline as .png needs matplotlib, which is not installed",
            hint='pip install "qplan[plot]", or name a .html file, which needs nothing',
        )


def image(picture: Picture) -> bytes:
    """
    The picture as PNG, 1920 x 1080.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.parse_math": False, "text.color": _INK}):
        figure = Figure(figsize=(12, 6.75), facecolor="white")
        axes = figure.add_axes((0.065, 0.085, 0.7, 0.765))
        _stack(axes, picture.timeline)
        top = _scale(axes, picture)
        _phases(axes, picture.timeline, top)
        _notes(axes, picture, top)
        _legend(axes, picture.timeline)
        figure.text(0.065, 0.945, _cut(picture.title, 60), fontsize=17, fontweight="bold")
        figure.text(0.065, 0.905, _cut(picture.subtitle, 110), fontsize=11, color=_GREY)
        figure.text(0.065, 0.872, _alarm(picture.timeline), fontsize=11, color=_RED)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=160, metadata={"Software": "qplan"})
    return out.getvalue()


def edges(timeline: Timeline, count: int) -> list[int]:
    """Where stretches of events begin, at most `count` of them, and where the last ends."""
    total = len(timeline.allocated)
    count = min(count, total)
    return [total * i // count for i in range(count + 1)]


def columns(timeline: Timeline, count: int) -> list[int]:
    """
    What to draw for each of those stretches: the event at which most is allocated, so that no peak is lost.

    Args:
        timeline: The numbers.
        count: How many stretches at most.
    """
    return [max(range(begin, end), key=timeline.allocated.__getitem__) for begin, end in pairwise(edges(timeline, count))]


def _stack(axes: Any, timeline: Timeline) -> None:
    """Allocated bytes by category, and a line for what is reserved."""
    at, x = columns(timeline, _COLUMNS), edges(timeline, _COLUMNS)
    floor = [0.0] * len(x)
    for category, colour in COLOURS.items():
        if category in timeline.by_category:
            column = timeline.by_category[category]
            heights = [column[i] / GIB for i in at]
            roof = [below + height for below, height in zip(floor, [*heights, heights[-1]], strict=True)]
            axes.fill_between(x, floor, roof, step="post", color=colour, linewidth=0, antialiased=False)
            floor = roof
    reserved = [max(timeline.reserved[begin:end]) / GIB for begin, end in pairwise(x)]
    axes.step(x, [*reserved, reserved[-1]], where="post", color=_INK, linewidth=1.6)


def _scale(axes: Any, picture: Picture) -> float:
    """Axes in GiB; returns the top of what is drawn."""
    timeline = picture.timeline
    top = max(timeline.peak_reserved, timeline.peak.allocated_bytes) / GIB
    usable = None if timeline.usable_bytes is None else timeline.usable_bytes / GIB
    if usable is not None and usable < 2 * top:
        top = max(top, usable)
    top = top or 1.0
    axes.set_xlim(0, len(timeline.allocated))
    axes.set_ylim(0, top * 1.16)
    axes.set_ylabel("GiB")
    axes.set_xlabel(f"allocations and frees of {'the whole run' if timeline.is_whole_run else 'one training step'}", color=_GREY)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(colors=_GREY, labelsize=10)
    axes.grid(axis="y", color="#000000", alpha=0.08, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return top


def _phases(axes: Any, timeline: Timeline, top: float) -> None:
    """Shaded every second one; named where there is room."""
    total = len(timeline.allocated)
    for span in timeline.phases:
        if span.phase in _SHADED:
            axes.axvspan(span.begin, span.end, color="#000000", alpha=0.045, linewidth=0, zorder=-1)
        if span.begin:
            axes.axvline(span.begin, color=_GREY, linewidth=0.8, alpha=0.6)
        word = _WORDS.get(span.phase.value, span.phase.value)
        width = (span.end - span.begin) / total
        if width > 0.011 * len(word) + 0.01:
            axes.text((span.begin + span.end) / 2, top * 1.135, word, ha="center", va="center", color=_GREY, fontsize=11)
        elif width > 0.02:
            axes.text((span.begin + span.end) / 2, top * 1.15, word, ha="center", va="top", color=_GREY, fontsize=9, rotation=90)


def _notes(axes: Any, picture: Picture, top: float) -> None:
    """The peak, the card's line, and where it is full."""
    timeline, peak = picture.timeline, picture.timeline.peak
    x, y, total = max(peak.event, 0), peak.allocated_bytes / GIB, len(timeline.allocated)
    phase = _WORDS.get(peak.phase.value, peak.phase.value)
    text = f"peak {gib(peak.allocated_bytes)} allocated\n{gib(peak.reserved_bytes)} reserved · {phase}"
    is_right = x > total / 2
    axes.plot([x], [y], "o", color="white", markeredgecolor=_INK, markersize=7, markeredgewidth=1.5, zorder=6)
    axes.annotate(
        text, (x, y), (x + (-0.04 if is_right else 0.04) * total, max(y - 0.3 * top, 0.08 * top)), fontsize=11, zorder=7,
        ha="right" if is_right else "left", va="center", bbox={"boxstyle": "round,pad=0.45", "fc": "white", "ec": _INK, "lw": 0.9},
        arrowprops={"arrowstyle": "-", "color": _INK, "lw": 0.9, "shrinkB": 4},
    )  # fmt: skip
    if timeline.usable_bytes is not None:
        usable = timeline.usable_bytes / GIB
        words = f"{picture.card or 'the card'}: {gib(timeline.usable_bytes)} usable"
        if usable <= top:
            axes.axhline(usable, color=_RED, linestyle=(0, (5, 3)), linewidth=1.5)
            axes.text(0.006 * total, usable + 0.016 * top, words, color=_RED, va="bottom", fontsize=10, bbox=_PLATE, zorder=5)
        else:
            above = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
            axes.text(1.0, 1.012, f"{words}, far above", color=_RED, fontsize=10, **above)
    at = -1 if timeline.failure is None else timeline.failure.event - timeline.begin
    if 0 <= at < total:
        axes.axvline(at, color=_RED, linewidth=1.5)


def _alarm(timeline: Timeline) -> str:
    """Where the card is full, in a line; nothing where it is not."""
    failure = timeline.failure
    if failure is None:
        return ""
    held = f"{gib(failure.reserved_bytes)} reserved"
    return f"out of memory in {failure.phase.value}: {human(failure.requested_bytes)} more with {held}; drawn as on an endless card"


def _legend(axes: Any, timeline: Timeline) -> None:
    """Beside the picture: each category with its bytes at the peak, in the order in which they are stacked."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    at_peak = timeline.peak.by_category
    shown: list[Category] = [category for category in reversed(COLOURS) if category in timeline.by_category]
    handles: list[Any] = [Line2D([], [], color=_INK, linewidth=1.6, label=f"reserved, at most\n{human(timeline.peak_reserved)}")]
    handles += [Patch(color=COLOURS[category], label=f"{label(category)}\n{human(at_peak.get(category, 0))}") for category in shown]
    legend = axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.015, 1.0), frameon=False, fontsize=10, handlelength=1.2, handleheight=1.6,
        labelspacing=0.6, title="at the peak", alignment="left",
    )  # fmt: skip
    legend.get_title().set_color(_GREY)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

"""The table of `qplan compare`."""

from __future__ import annotations

from planner.advice import short_name
from planner.comparison import Comparison, Row
from planner.render.estimate import OUTCOMES, count
from planner.render.terminal import Terminal, printable, wrap
from planner.units import human

_HEAD = ("method", "weights", "trained", "peak", "process*", "smallest common card")


def lines(comparison: Comparison, terminal: Terminal) -> list[str]:
    """
    The comparison as lines of text.

    Args:
        comparison: What to show.
        terminal: What can be shown.
    """
    found: list[str] = []
    for model in dict.fromkeys(row.model for row in comparison.rows):
        rows = [row for row in comparison.rows if row.model == model]
        found += [terminal.paint(terminal.fit(printable(model), terminal.width), "bold")]
        found += [terminal.paint(_cells(_HEAD), "dim")]
        for row in rows:
            found += _row(row, terminal)
        found.append("")
    note = "* with what the simulated allocator reserves, and a usual CUDA context. peak: what torch allocates; weights at that moment."
    return found + [terminal.paint(line, "dim") for line in wrap(note, terminal.width)]


def _row(row: Row, terminal: Terminal) -> list[str]:
    if row.error is not None:
        text = wrap(row.error, terminal.width - 9)
        return [f"{row.method:<9}{text[0]}", *(" " * 9 + line for line in text[1:])]
    weights, allocated, process = (human(size or 0) for size in (row.weights_bytes, row.allocated_bytes, row.process_bytes))
    card = terminal.cut(short_name(row.smallest_card or "none"), terminal.width - 57 - 8)
    hue = OUTCOMES[row.outcome][1] if row.outcome else "red"
    tight = " (tight)" if row.outcome == "tight" else ""
    trained = count(row.num_trainable_parameters or 0)
    return [_cells((row.method, weights, trained, allocated, process, "")) + terminal.paint(card + tight, hue)]


def _cells(cells: tuple[str, ...]) -> str:
    method, weights, trained, peak, process, card = cells
    return f"{method:<8}{weights:>12}{trained:>11}{peak:>12}{process:>12}  {card}"

"""The table of `qplan max` with two knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.advice import short_name
from planner.render.estimate import OUTCOMES, gib
from planner.render.solution import needs
from planner.render.terminal import Terminal, wrap

if TYPE_CHECKING:
    from planner.solving.solution import Frontier


def lines(found: Frontier, terminal: Terminal) -> list[str]:
    """
    The frontier as lines of text: for each value of the first knob the largest of the second.

    Args:
        found: What to show.
        terminal: What can be shown.
    """
    first, second = (knob.replace("_", "-") for knob in found.knobs)
    card = short_name(found.device.name)
    if not found.solutions:
        least = found.least
        return wrap(f"NOTHING FITS on {card}: {first} {least.value:,}{needs(least.verdict)}", terminal.width)
    rows = [terminal.paint(f"The most on {card}", "bold")]
    rows += [terminal.paint(f"{first:>12}{second:>12}{'product':>14}{'to spare GiB':>14}  verdict", "dim")]
    for value, solution in found.solutions.items():
        if solution.point is not None:
            verdict = solution.point.verdict
            word, hue = OUTCOMES[verdict.outcome]
            most, spare = solution.point.value, gib(verdict.headroom_bytes)
            rows.append(f"{value:>12,}{most:>12,}{value * most:>14,}{spare:>14}  {terminal.paint(word.lower(), hue)}")
    return rows

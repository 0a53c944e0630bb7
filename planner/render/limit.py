"""The screen of `qplan verify --max`: every try, and the limit that was found beside the one that was predicted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from planner.render.terminal import Terminal
from planner.units import human

if TYPE_CHECKING:
    from planner.simulation import Failure


def lines(found: Any, terminal: Terminal) -> list[str]:
    """
    The limit as lines of text.

    Args:
        found: A `planner.limits.Limit`.
        terminal: What can be shown.
    """
    option = found.knob.replace("_", "-")
    where = f"the CPU under {human(found.ceiling_bytes)}" if found.ceiling_bytes is not None else found.device
    said = "as predicted" if found.agrees else f"predicted was {found.predicted}"
    head = f"LIMIT on {where}: {option} {found.measured}, {said}"
    rows = [f"{option:<12}{'result':<34}{'allocated':>14}{'seconds':>10}"]
    for t in found.tries:
        result = "ran" if t.runs else f"out of memory in {t.failure.phase.replace('_', ' ')}"
        rows.append(f"{t.value:<12}{result:<34}{_size(t.allocated_bytes, t.failure):>14}{t.seconds:>10.0f}")
    steps = [f"in steps of {found.step}"] if found.step > 1 else []
    paint = "green" if found.agrees else "yellow"
    return [terminal.paint(head, "bold", paint), found.model, "", terminal.paint(rows[0], "dim"), *rows[1:], *steps]


def as_json(found: Any) -> str:
    """The contract of `--max --json`."""
    return json.dumps(found.model_dump(), indent=2, ensure_ascii=False)


def _size(allocated: int | None, failure: Failure | None) -> str:
    """A peak; of a run that failed what it had and what it asked for."""
    if allocated is not None:
        return human(allocated)
    return "" if failure is None else f"> {human(failure.allocated_bytes + failure.requested_bytes)}"

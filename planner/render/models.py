"""The list of `qplan models`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.render.estimate import count
from planner.render.terminal import Terminal, wrap

if TYPE_CHECKING:
    from planner.catalog import CheckpointSummary


def lines(models: Sequence[CheckpointSummary], terminal: Terminal) -> list[str]:
    """
    The checkpoints as lines of text.

    Args:
        models: What to list.
        terminal: What can be shown.
    """
    room = terminal.width - 30
    found = [terminal.paint(f"{'model':<{room}}{'parameters':>11}  family", "dim")]
    for model in models:
        size = count(model.published_parameters) if model.published_parameters else ""
        found.append(f"{terminal.fit(model.id, room - 1):<{room}}{size:>11}  {terminal.fit(model.model_type, 17)}")
    note = f"{len(models)} bundled: no network, no token. A Hub id, a folder or a config.json can be planned as well."
    return [*found, "", *(terminal.paint(line, "dim") for line in wrap(note, terminal.width))]


def as_json(models: Sequence[CheckpointSummary]) -> str:
    """The contract of `qplan models --json`."""
    return json.dumps({"schema_version": 1, "models": [model._asdict() for model in models]}, indent=2)

"""A history as JSON and back."""

from __future__ import annotations

import json

from planner.history import History, Stretch
from planner.ledger import Category, Phase


def test_a_history_survives_json() -> None:
    """Every column and every field, also those that are empty."""
    history = History(repeat=5, layers=2, warm_up=0, flushes=[1])
    first = history.add(12, "weight", Category.PARAMETER, "layer", 1)
    history.add(7, "x", Category.ACTIVATION)
    history.drop(first)
    history.stretches = [Stretch(Phase.LOAD, 0, 1, 1), Stretch(Phase.FORWARD, 1, 3)]
    found = History.parse(json.loads(json.dumps(history.model_dump())))

    assert vars(history) == vars(found)

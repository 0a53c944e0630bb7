"""The list of `qplan which`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from planner import advice
from planner.render.estimate import gib, pasteable
from planner.render.gpus import verdict_rows
from planner.render.terminal import Terminal, labelled, printable, wrap
from planner.report import CardVerdict


def lines(
    model: str,
    found: Sequence[CardVerdict],
    judged: Sequence[CardVerdict],
    knobs: dict[str, Any],
    options: dict[str, Any],
    terminal: Terminal,
) -> list[str]:
    """
    The cards as lines of text, and the command for the smallest that leaves room to spare.

    Args:
        model: The model's id, as it was typed.
        found: The cards that take the run, the smallest first.
        judged: All that were asked.
        knobs: What was typed of the recipe.
        options: What else was typed.
        terminal: What can be shown.
    """
    if not found:
        largest = judged[-1]
        text = (
            f"NO CARD takes it: the largest, {advice.short_name(largest.device.name)}, has {gib(largest.verdict.budget_bytes)} GiB for the "
            f"{gib(largest.verdict.required_bytes)} that it needs"
        )
        changed = advice.command("fit", printable(model), knobs, {**options, "gpu": advice.typed_name(largest.device.name)})
        return [*wrap(text, terminal.width), "", *labelled("next", pasteable(changed, terminal.width - 7), 7)]
    best = next((card for card in found if card.verdict.outcome == "fits"), found[0])
    command = advice.command("estimate", printable(model), knobs, {**options, "gpu": advice.typed_name(best.device.name)})
    note = f"{len(found)} of {len(judged)} cards take it, one card alone. qplan gpus MODEL shows the others."
    next_ = labelled("next", pasteable(command, terminal.width - 7), 7)
    return [*verdict_rows(found, terminal), "", *wrap(note, terminal.width), "", *next_]


def as_json(model: str, found: Sequence[CardVerdict], num_judged: int) -> str:
    """The contract of `qplan which --json`: as `qplan gpus MODEL --json`, of the cards that take the run; `num_cards` is 1 for each."""
    cards = []
    for card in found:
        verdict = card.verdict._asdict()
        cards.append({"device": card.device._asdict(), "num_cards": 1, "verdict": verdict})
    return json.dumps({"schema_version": 1, "model": model, "num_judged": num_judged, "gpus": cards}, indent=2)

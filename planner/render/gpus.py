"""The list of `qplan gpus`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from planner.device import Device
from planner.render.estimate import OUTCOMES, gib
from planner.render.terminal import Terminal, wrap
from planner.report import CardVerdict
from planner.value import plain


def lines(cards: Sequence[Device], verdicts: Sequence[CardVerdict] | None, terminal: Terminal) -> list[str]:
    """
    The cards as lines of text: with verdicts, what each says to the run, the smallest first.

    Args:
        cards: The catalogue.
        verdicts: The verdict of every card, or None where no model was named.
        terminal: What can be shown.
    """
    return _catalogue(cards, terminal) if verdicts is None else verdict_rows(verdicts, terminal)


def as_json(cards: Sequence[Device], verdicts: Sequence[CardVerdict] | None) -> str:
    """The contract of `qplan gpus --json`: sizes in bytes; a verdict beside each card where a model was named."""
    if verdicts is None:
        found = [plain(card) for card in cards]
    else:
        found = [{"device": card.device._asdict(), "verdict": card.verdict._asdict()} for card in verdicts]
    return json.dumps({"schema_version": 1, "gpus": found}, indent=2)


def _catalogue(cards: Sequence[Device], terminal: Terminal) -> list[str]:
    room = terminal.width - 35
    found = [terminal.paint(f"{'card':<{room}}{'GiB':>9}{'compute':>10}{'bf16':>8}", "dim")]
    for card in cards:
        major, minor = card.compute_capability
        bf16 = "yes" if card.bf16 else "emulated"
        found.append(f"{terminal.fit(card.name, room - 1):<{room}}{gib(card.total_bytes):>9}{f'{major}.{minor}':>10}{bf16:>10}")
    note = "Sizes are what CUDA reports, or the nearest that is known. A card can be named loosely: a6000, A100-80GB, rtx 4090."
    return [*found, "", *(terminal.paint(line, "dim") for line in wrap(note, terminal.width))]


def verdict_rows(verdicts: Sequence[CardVerdict], terminal: Terminal) -> list[str]:
    """A table of cards with what each has, what is needed, and the verdict."""
    room = terminal.width - 46
    found = [terminal.paint(f"{'card':<{room}}{'GiB':>9}{'needed*':>10}{'to spare':>10}   verdict", "dim")]
    for card in verdicts:
        word, hue = OUTCOMES[card.verdict.outcome]
        sizes = f"{gib(card.verdict.budget_bytes):>9}{gib(card.verdict.required_bytes):>10}{gib(card.verdict.headroom_bytes):>10}"
        found.append(f"{terminal.fit(card.device.name, room - 1):<{room}}{sizes}   {terminal.paint(word.lower(), hue)}")
    return [*found, "", *_note(terminal)]


def _note(terminal: Terminal) -> list[str]:
    note = (
        "* simulated: the allocator's reserve on that card, and a usual CUDA context. tight: fits by less than the stated error, or only "
        "once cached memory is given back."
    )
    return [terminal.paint(line, "dim") for line in wrap(note, terminal.width)]

"""The screen of `qplan max`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.advice import short_name
from planner.render.estimate import OUTCOMES, gib, pasteable, why
from planner.render.terminal import Terminal, labelled, printable, wrap
from planner.report import Verdict

if TYPE_CHECKING:
    from planner.solving.solution import Solution

_LABEL = 12


def lines(found: Solution, terminal: Terminal) -> list[str]:
    """
    The answer as lines of text.

    Args:
        found: What to show.
        terminal: What can be shown.
    """
    card, knob = short_name(found.device.name), found.knob.replace("_", "-")
    if found.point is None:
        return _nothing(found, f"NOTHING FITS on {card}: {knob} {found.low:,}{needs(found.least.verdict)}", terminal)
    head = f"{knob} {found.point.value:,} is the most on {card}: {_outcome(found.point.verdict)}"
    rows = [terminal.paint(row, "bold") if i == 0 else row for i, row in enumerate(wrap(head, terminal.width))]
    binds = f"{found.point.verdict.binding_phase}, {gib(found.point.allocated_bytes)} GiB allocated".replace("_", " ")
    rows += ["", *_row("binds", binds, terminal), *_row("comfortable", _comfortable(found), terminal), *_beyond(found, terminal)]
    for warning in found.warnings:
        rows += _row("warn", warning, terminal)
    return [*rows, "", *_next(found.command, terminal), *_small_print(found, terminal)]


def _nothing(found: Solution, head: str, terminal: Terminal) -> list[str]:
    rows = wrap(head, terminal.width)
    rows[0] = terminal.paint("NOTHING FITS", "bold", "red") + rows[0][len("NOTHING FITS") :]
    rows += [row for sentence in why(found.least.verdict) for row in wrap(sentence, terminal.width)]
    return [*rows, "", *_next(found.elsewhere, terminal)]


def _comfortable(found: Solution) -> str:
    if found.comfortable is None:
        return "no value leaves more room than the error of the estimate"
    if found.comfortable.value == found.value:
        return "the same: it leaves more room than the error of the estimate"
    return f"{found.comfortable.value:,}, {_outcome(found.comfortable.verdict)}"


def _beyond(found: Solution, terminal: Terminal) -> list[str]:
    if found.beyond is None:
        ends = "the model has no more positions" if found.is_positions else "the range ends there"
        return _row("beyond", f"{ends}: {found.high:,} fits", terminal)
    sentences = why(found.beyond.verdict)
    return _row("beyond", f"{found.beyond.value:,}{needs(found.beyond.verdict)}; " + "; ".join(sentences), terminal)


def needs(verdict: Verdict) -> str:
    """What is needed of a card, as the end of a sentence."""
    return f" needs {gib(verdict.required_bytes)} of {gib(verdict.budget_bytes)} GiB"


def _outcome(verdict: Verdict) -> str:
    word = OUTCOMES[verdict.outcome][0].lower()
    return f"{word}, {gib(verdict.headroom_bytes)} of {gib(verdict.budget_bytes)} GiB to spare (error {gib(verdict.error_bytes)})"


def _row(label: str, text: str, terminal: Terminal) -> list[str]:
    return labelled(label, wrap(printable(text), terminal.width - _LABEL), _LABEL)


def _next(command: str, terminal: Terminal) -> list[str]:
    return labelled("next", pasteable(printable(command), terminal.width - _LABEL), _LABEL)


def _small_print(found: Solution, terminal: Terminal) -> list[str]:
    every = "every value" if found.multiple_of == 1 else f"multiples of {found.multiple_of}"
    note = f"Looked at: {every} from {found.low:,} to {found.high:,}. tight: by less than the error, or after cached memory was given back."
    return [terminal.paint(row, "dim") for row in wrap(note, terminal.width)]

"""The screen of `qplan max`."""

from __future__ import annotations

import json

from planner.advice import short_name
from planner.render.estimate import OUTCOMES, gib, why
from planner.render.terminal import Terminal, labelled, printable, wrap
from planner.report import Verdict
from planner.solving import Frontier, Solution

_LABEL = 12


def lines(found: Solution | Frontier, terminal: Terminal) -> list[str]:
    """
    The answer as lines of text.

    Args:
        found: What to show.
        terminal: What can be shown.
    """
    return _solution(found, terminal) if isinstance(found, Solution) else _frontier(found, terminal)


def as_json(found: Solution | Frontier) -> str:
    """The contract of `qplan max --json`."""
    return json.dumps(found.model_dump(), indent=2)


def is_found(found: Solution | Frontier) -> bool:
    """Whether there is a value that fits."""
    return bool(found.values) if isinstance(found, Frontier) else found.value is not None


def _solution(found: Solution, terminal: Terminal) -> list[str]:
    card, knob = short_name(found.device.name), found.knob.replace("_", "-")
    rows = []
    if found.point is None:
        head = f"NOTHING FITS on {card}: {knob} {found.low:,}{_needs(found.least.verdict)}"
        rows += wrap(head, terminal.width)
        rows[0] = terminal.paint("NOTHING FITS", "bold", "red") + rows[0][len("NOTHING FITS") :]
        rows += [row for sentence in why(found.least.verdict) for row in wrap(sentence, terminal.width)]
        return [*rows, "", *_next(f"qplan which {printable(found.model)}", terminal)]
    head = f"{knob} {found.point.value:,} is the most on {card}: {_outcome(found.point.verdict)}"
    rows += [terminal.paint(row, "bold") if i == 0 else row for i, row in enumerate(wrap(head, terminal.width))]
    rows += [""]
    rows += _row("binds", f"{found.point.verdict.binding_phase}, {gib(found.point.allocated_bytes)} GiB allocated".replace("_", " "), terminal)
    if found.comfortable is None:
        rows += _row("comfortable", "no value leaves more room than the error of the estimate", terminal)
    elif found.comfortable.value == found.point.value:
        rows += _row("comfortable", "the same: it leaves more room than the error of the estimate", terminal)
    else:
        rows += _row("comfortable", f"{found.comfortable.value:,}, {_outcome(found.comfortable.verdict)}", terminal)
    rows += _beyond(found, terminal)
    for warning in found.warnings:
        rows += _row("warn", warning, terminal)
    return [*rows, "", *_next(found.command, terminal), *_small_print(found, terminal)]


def _beyond(found: Solution, terminal: Terminal) -> list[str]:
    if found.beyond is None:
        ends = "the model has no more positions" if found.is_positions else "the range ends there"
        return _row("beyond", f"{ends}: {found.high:,} fits", terminal)
    sentences = why(found.beyond.verdict)
    return _row("beyond", f"{found.beyond.value:,}{_needs(found.beyond.verdict)}; " + "; ".join(sentences), terminal)


def _needs(verdict: Verdict) -> str:
    return f" needs {gib(verdict.required_bytes)} of {gib(verdict.budget_bytes)} GiB"


def _outcome(verdict: Verdict) -> str:
    word = OUTCOMES[verdict.outcome][0].lower()
    return f"{word}, {gib(verdict.headroom_bytes)} of {gib(verdict.budget_bytes)} GiB to spare (error {gib(verdict.error_bytes)})"


def _row(label: str, text: str, terminal: Terminal) -> list[str]:
    return labelled(label, wrap(printable(text), terminal.width - _LABEL), _LABEL)


def _next(command: str, terminal: Terminal) -> list[str]:
    return labelled("next", wrap(printable(command), terminal.width - _LABEL), _LABEL)


def _small_print(found: Solution, terminal: Terminal) -> list[str]:
    every = "every value" if found.multiple_of == 1 else f"multiples of {found.multiple_of}"
    note = f"Looked at: {every} from {found.low:,} to {found.high:,}. tight: by less than the error, or after cached memory was given back."
    return [terminal.paint(row, "dim") for row in wrap(note, terminal.width)]


def _frontier(found: Frontier, terminal: Terminal) -> list[str]:
    first, second = (knob.replace("_", "-") for knob in found.knobs)
    card = short_name(found.device.name)
    if not found.solutions:
        least = found.least
        return wrap(f"NOTHING FITS on {card}: {first} {least.value:,}{_needs(least.verdict)}", terminal.width)
    rows = [terminal.paint(f"The most on {card}", "bold")]
    rows += [terminal.paint(f"{first:>12}{second:>12}{'product':>14}{'to spare GiB':>14}  verdict", "dim")]
    for value, solution in found.solutions.items():
        if solution.point is not None:
            verdict = solution.point.verdict
            word, hue = OUTCOMES[verdict.outcome]
            most, spare = solution.point.value, gib(verdict.headroom_bytes)
            rows.append(f"{value:>12,}{most:>12,}{value * most:>14,}{spare:>14}  {terminal.paint(word.lower(), hue)}")
    return rows

"""What the callback of the trainers prints: the plan at the start, predicted beside measured at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from planner.render.estimate import OUTCOMES, recipe_text
from planner.render.terminal import Terminal, printable, wrap
from planner.units import human

if TYPE_CHECKING:
    from planner.records.record import Level
    from planner.report import Report

_NAME, _NUMBER = 22, 14


def plan_lines(report: Report, terminal: Terminal, *, notes: Iterable[str] = ()) -> list[str]:
    """
    The plan in a few lines.

    Args:
        report: The plan.
        terminal: What can be shown.
        notes: What had to be assumed.
    """
    verdict, peak = report.verdict, report.peak
    found = wrap(f"qplan: {printable(report.model.id)}, {recipe_text(report)}", terminal.width)
    said = f"{human(peak.allocated_bytes)} allocated at the peak, in {peak.phase.replace('_', ' ')}"
    if verdict is None or report.device is None:
        found += wrap(f"predicted: {said}", terminal.width)
    else:
        word, hue = OUTCOMES[verdict.outcome]
        needs = f"needs {human(verdict.required_bytes)} of {human(verdict.budget_bytes)}; {said}"
        rows = wrap(f"{word} on {report.device.name}: {needs}", terminal.width)
        found += [terminal.paint(word, "bold", hue) + rows[0][len(word) :], *rows[1:]]
    return found + [row for note in (*notes, *report.warnings) for row in wrap(f"note: {note}", terminal.width)]


def lines(
    predicted: Mapping[str, int],
    measured: Mapping[str, int],
    terminal: Terminal,
    *,
    notes: Iterable[str] = (),
    levels: Mapping[str, Level] | None = None,
) -> list[str]:
    """
    Predicted beside measured, a row a phase; below them the peak at every level that was measured.

    Args:
        predicted: What was planned for every phase, in bytes; nothing where the run could not be planned.
        measured: The allocated peak of every phase, in bytes.
        terminal: What can be shown.
        notes: What is to be known about the numbers.
        levels: The peak at each level.
    """
    head = f"{'qplan: the peak of':<{_NAME}}{'predicted':>{_NUMBER}}{'measured':>{_NUMBER}}{'difference':>{_NUMBER}}"
    found = [terminal.paint(head, "bold")]
    found += [_row(name.replace("_", " "), predicted.get(name), nbytes) for name, nbytes in measured.items()]
    for name, level in (levels or {}).items():
        found.append(terminal.paint(_row(f"all: {name}", level.predicted_bytes, level.measured_bytes), "bold"))
    return found + [row for note in notes for row in wrap(f"note: {note}", terminal.width)]


def _row(name: str, predicted: int | None, measured: int) -> str:
    told = "" if predicted is None else human(predicted)
    share = f"{100 * (predicted - measured) / measured:+.2f} %" if predicted is not None and measured else ""
    return f"{name:<{_NAME}}{told:>{_NUMBER}}{human(measured):>{_NUMBER}}{share:>{_NUMBER}}"

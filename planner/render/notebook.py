"""What notebooks show of a report, a ledger, a comparison and two engines side by side: a small page, and text where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.agreement import Agreement
from planner.comparison import Comparison
from planner.ledger import Category, Ledger
from planner.render import agreement, compare, estimate, markup, verify
from planner.render.palette import COLOURS, OUTCOMES, RESERVE, label
from planner.render.terminal import Terminal
from planner.report import CardVerdict, Report, Verdict
from planner.units import GIB, MIB, gib, human
from planner.verification import Verification

_ROWS = 12
"""Allocations of a ledger that are listed by name; the rest is one row."""


def html(value: Any) -> str:
    """
    A value as a fragment of HTML that needs nothing else.

    Args:
        value: Of a class that `planner.display.Displayed` makes.
    """
    return markup.box(*_PAGES[type(value).__name__](value))


def text(value: Any) -> str:
    """
    The same value as a screen prints it, 80 columns wide and without colours.

    Args:
        value: As for `html`.
    """
    return "\n".join(line.rstrip() for line in _SCREENS[type(value).__name__](value, Terminal())).rstrip("\n")


def _report(report: Report) -> list[str]:
    model = report.model
    counts = f"{model.id}: {estimate.count(model.num_parameters)} parameters, {estimate.count(model.num_trainable_parameters)} trained"
    parts = [*_answer(report), markup.line(counts, strong=True)]
    if report.recipe:
        parts.append(markup.line(estimate.recipe_text(report), faint=True))
    parts += _peak(report)
    phases = ", ".join(f"{_words(phase.phase)} {human(phase.allocated_peak_bytes)}" for phase in report.phases)
    parts.append(markup.line(f"allocated peaks: {phases}; between steps {human(report.steady_bytes)}", faint=True))
    if report.details is not None:
        parts += _findings(report)
    parts += [markup.line(f"warning: {warning}") for warning in report.warnings]
    return [*parts, markup.line(f"{report.engine} engine, stack: {report.stack['source']}", faint=True)]


def _answer(report: Report) -> list[str]:
    """The verdict of the card; where none is named, those of the common ones."""
    if report.device is not None and report.verdict is not None:
        return [_card(CardVerdict(report.device, report.verdict))]
    return [] if report.details is None else [_card(card) for card in report.verdicts]


def _card(card: CardVerdict) -> str:
    verdict = card.verdict
    needs = f" on {card.device.name}: needs {human(verdict.required_bytes)} of {human(verdict.budget_bytes)}, {_margin(verdict)}"
    return markup.verdict(_words(verdict.outcome), OUTCOMES[verdict.outcome], needs)


def _margin(verdict: Verdict) -> str:
    spare = verdict.headroom_bytes
    return f"{human(spare)} to spare" if spare >= 0 else f"{human(-spare)} too much"


def _peak(report: Report) -> list[str]:
    """The peak as a bar and a table: categories, and what the process holds beyond them."""
    peak = report.peak
    sizes = [(label(category), peak.by_category.get(category.value, 0), colour) for category, colour in COLOURS.items()]
    levels = [f"{gib(peak.allocated_bytes)} allocated", f"{gib(peak.reserved_bytes)} reserved", f"{gib(peak.process_bytes)} process"]
    sizes.append(("reserve and context", peak.process_bytes - peak.allocated_bytes, RESERVE))
    mark = None if report.device is None else report.device.total_bytes
    sizes = [part for part in sizes if part[1]]
    total = sum(size for _, size, _ in sizes)
    shown = sorted(sizes, key=lambda part: -part[1])
    rows = [(name, human(size), f"{100 * size / total:.1f} %") for name, size, _ in shown]
    title = markup.line(f"peak in {_words(peak.phase)}: {', '.join(levels)}" + (" (line: the card)" if mark else ""))
    whole = max(total, mark or 0)
    return [title, markup.bar(sizes, whole, mark), markup.table(("at the peak", "size", "part"), rows, [c for _, _, c in shown])]


def _findings(report: Report) -> list[str]:
    """Traps and suggestions."""
    traps = [(trap.name, human(trap.nbytes) if trap.nbytes else "") for trap in report.traps]
    saves = [(s.option, s.price, human(s.saved_bytes)) for s in report.suggestions]
    found = [markup.table(("hidden cost", "size"), traps)] if traps else []
    return found + ([markup.table(("to save memory", "price", "saves"), saves, words=2)] if saves else [])


def _ledger(ledger: Ledger) -> list[str]:
    peak = ledger.peak()
    columns = [category for category in COLOURS if any(category in p.by_category for p in ledger.peaks.values())]
    head = ("peak of phase", "GiB", *(label(category) for category in columns))
    rows = [
        (_words(phase.value), _gib(found.nbytes), *(_gib(found.by_category.get(category, 0)) for category in columns))
        for phase, found in ledger.peaks.items()
    ]
    live = ledger.live_at(peak.step)
    named = [(f"{a.scope} {a.name}".strip(), label(a.category), human(a.nbytes)) for a in live[:_ROWS]]
    colours: list[str | None] = [COLOURS[a.category] for a in live[:_ROWS]]
    if len(live) > _ROWS:
        named.append((f"{len(live) - _ROWS} more", "", human(sum(a.nbytes for a in live[_ROWS:]))))
    return [
        markup.line(_ledger_line(ledger), strong=True),
        markup.table(head, rows),
        markup.line(f"alive at the peak, in {_words(peak.phase.value)}:"),
        markup.table(("what", "category", "size"), named, colours, words=2),
    ]


def _ledger_line(ledger: Ledger) -> str:
    peak = ledger.peak()
    count = f"{len(ledger.rows.names):,} allocations"
    return f"ledger of the {ledger.engine} engine: {count}, peak {human(peak.nbytes)} in {_words(peak.phase.value)}"


def _comparison(comparison: Comparison) -> list[str]:
    head = ("model", "method", "smallest common card", "weights", "trained", "peak", "process")
    rows: list[tuple[str, ...]] = []
    colours: list[str | None] = []
    for row in comparison.rows:
        if row.error is not None:
            rows.append((row.model, row.method, row.error, "", "", "", ""))
            colours.append(None)
            continue
        sizes = [human(size or 0) for size in (row.weights_bytes, row.allocated_bytes, row.process_bytes)]
        card = f"{row.smallest_card} ({_words(row.outcome)})" if row.smallest_card and row.outcome else "none"
        trained = estimate.count(row.num_trainable_parameters or 0)
        rows.append((row.model, row.method, card, sizes[0], trained, *sizes[1:]))
        colours.append(OUTCOMES[row.outcome or "does_not_fit"])
    return [markup.table(head, rows, colours, words=3)]


def _agreement(found: Agreement) -> list[str]:
    rows: list[tuple[str, ...]] = []
    colours: list[str | None] = []
    for row in found.rows:
        name = _words(row.phase.value) if row.category is None else label(row.category)
        part = f"{100 * row.difference_bytes / row.traced_bytes:+.2f} %" if row.traced_bytes else ""
        rows.append((name, _gib(row.analytic_bytes), _gib(row.traced_bytes), f"{row.difference_bytes / 2**30:+.3f}", part))
        colours.append(None if row.category is None else COLOURS[Category(row.category)])
    head = ("GiB at the peak of", "closed form", "traced", "difference", "")
    return [markup.table(head, rows, colours), *(markup.line(sentence, faint=True) for sentence in found.explanations)]


def _verification(found: Verification) -> list[str]:
    head, *rest = verify.lines(found, Terminal())
    colour = OUTCOMES["fits" if found.failure is None else "does_not_fit"]
    parts = [markup.verdict(head, colour, ""), markup.line(rest[0], strong=True)]
    unit, name = (GIB, "GiB") if max((row.measured_bytes for row in found.rows), default=0) >= GIB else (MIB, "MiB")
    rows: list[tuple[str, ...]] = []
    colours: list[str | None] = []
    for row in found.rows:
        words = _words(row.phase) if row.category is None else label(Category(row.category))
        share = f"{100 * row.difference_bytes / row.measured_bytes:+.2f} %" if row.measured_bytes else ""
        sizes = (row.measured_bytes, row.predicted_bytes)
        rows.append((words, *(f"{size / unit:.3f}" for size in sizes), f"{row.difference_bytes / unit:+.3f}", share))
        colours.append(None if row.category is None else COLOURS[Category(row.category)])
    for level, (measured, predicted) in found.levels.items():
        share = f"{100 * (predicted - measured) / measured:+.2f} %"
        rows.append((level, f"{measured / unit:.3f}", f"{predicted / unit:.3f}", f"{(predicted - measured) / unit:+.3f}", share))
    if rows:
        parts.append(markup.table((f"{name} at the peak of", "measured", "predicted", "difference", ""), rows, colours))
    if found.failure is not None:
        parts += [markup.line(line) for line in rest[2:]]
    return [*parts, *(markup.line(text, faint=True) for text in (*found.explanations, *found.notes))]


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _report_screen(report: Report, terminal: Terminal) -> list[str]:
    """The screen of `qplan estimate`; of a report without one, its first numbers."""
    if report.details is not None and report.recipe:
        return estimate.lines(report, terminal)
    peak = report.peak
    return [f"{report.model.id}: peak {human(peak.allocated_bytes)} allocated, in {_words(peak.phase)} ({report.engine} engine)"]


_PAGES: dict[str, Callable[[Any], list[str]]] = {
    "Report": _report,
    "Ledger": _ledger,
    "Comparison": _comparison,
    "Agreement": _agreement,
    "Verification": _verification,
}
_SCREENS: dict[str, Callable[[Any, Terminal], list[str]]] = {
    "Report": _report_screen,
    "Ledger": lambda ledger, _: [_ledger_line(ledger)],
    "Comparison": compare.lines,
    "Agreement": agreement.lines,
    "Verification": verify.lines,
}

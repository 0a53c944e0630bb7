"""`--explain`: the rows behind the peak, what rests in memory, what the stack does, and where each number comes from."""

from __future__ import annotations

import re

from planner import stack as stacks
from planner.ledger import Allocation, Category, Ledger, Phase
from planner.render.terminal import Terminal, labelled, printable, wrap
from planner.report import Details, Report
from planner.units import GIB, human

_SIZE = 11
# A row smaller than one part in so many of its list is folded into the last line.
_SMALL_PARTS = 5000


def lines(report: Report, terminal: Terminal) -> list[str]:
    """
    The long part of the report as lines of text.

    Args:
        report: A report with its details.
        terminal: What can be shown.
    """
    known = report.details
    if known is None:
        return []
    ledger = known.ledger
    peak = ledger.peak()
    parts = [
        _heading(f"Alive at the peak, in {peak.phase.value.replace('_', ' ')}: {human(peak.nbytes)} allocated", terminal),
        _rows(ledger.live_at(peak.step), terminal),
        _heading(f"At rest between steps: {human(report.steady_bytes)}", terminal),
        _rows(resting(ledger), terminal, formulas=False),
        _heading("Memory that the recipe costs without saying so", terminal) if report.traps else [],
        *(_trap(trap.name, trap.nbytes, trap.sentence, terminal) for trap in report.traps),
        _heading("What the stack does", terminal),
        _stack(report, known, terminal),
        _heading("Every knob, as planned", terminal),
        _recipe(report, known, terminal),
        _heading("Where the numbers come from", terminal),
        *_provenance(report, terminal),
    ]
    return [line for part in parts for line in part][1:]


def resting(ledger: Ledger) -> list[Allocation]:
    """The rows that live from before the forward pass to the end of the ledger's clock, but for the batch; the largest first."""
    begin = min((span.begin for span in ledger.timeline if span.phase is Phase.FORWARD), default=0)
    end = max((span.end for span in ledger.timeline), default=0)
    stay = (a for a in ledger.allocations if a.begin <= begin and a.end >= end and a.category is not Category.INPUT)
    return sorted(stay, key=lambda a: -a.nbytes)


def _heading(text: str, terminal: Terminal) -> list[str]:
    return ["", terminal.paint(text, "bold")]


def _rows(rows: list[Allocation], terminal: Terminal, *, formulas: bool = True) -> list[str]:
    """Allocations of one name as one row, the largest first; those too small to matter as one row at the end."""
    grouped: dict[tuple[str, str], list[Allocation]] = {}
    for row in rows:
        grouped.setdefault((row.name, row.category.value), []).append(row)
    total = sum(row.nbytes for row in rows)
    by_size = sorted(((sum(row.nbytes for row in group), group) for group in grouped.values()), key=lambda item: -item[0])
    small = [nbytes for nbytes, _ in by_size if nbytes * _SMALL_PARTS < total]
    found = [line for nbytes, group in by_size[: len(by_size) - len(small)] for line in _row(nbytes, group, terminal, formulas)]
    if small:
        found.append(f"{human(sum(small)):>{_SIZE - 1}} in {len(small)} smaller rows")
    return found


def _row(nbytes: int, group: list[Allocation], terminal: Terminal, formulas: bool) -> list[str]:
    """One name: how much, how often, what for, and the formula beside it or below."""
    row, kind = group[0], group[0].category.value.replace("_", " ")
    what = printable(row.name) + (f" ({len(group)} x)" if len(group) > 1 else "")
    formula = row.formula if formulas else ""
    room = terminal.width - _SIZE - len(kind) - 2
    beside = f"{what}  {formula}" if formula and len(what) + 2 + len(formula) <= room else what
    found = [f"{human(nbytes):>{_SIZE - 1}} {terminal.fit(beside, room):<{room}}  {terminal.paint(kind, 'cyan')}"]
    if formula and beside == what:
        found += [terminal.paint(line, "dim") for line in wrap(formula, terminal.width, _SIZE + 2)]
    return found


def _trap(name: str, nbytes: int, sentence: str, terminal: Terminal) -> list[str]:
    title = f"{human(nbytes) if nbytes else '':>{_SIZE - 1}} {name}"
    return [terminal.fit(title, terminal.width), *wrap(sentence, terminal.width, _SIZE + 2)]


def _stack(report: Report, known: Details, terminal: Terminal) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.stack.items() if name != "source")
    found = wrap(f"{versions} ({report.stack['source']})", terminal.width, 2)
    sources = documented(stacks.Behaviours.__doc__ or "")
    behaviours = stacks.behaviours(known.stack, known.recipe)
    for name in sources:
        value = getattr(behaviours, name)
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        found.append(f"  {name}: {terminal.paint(text, 'bold')}")
        found += [terminal.paint(line, "dim") for line in wrap(sources[name], terminal.width, 6)]
    return found


def documented(docstring: str) -> dict[str, str]:
    """The attributes of a Google-style docstring and what it says of each."""
    _, _, attributes = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in attributes.splitlines():
        started = re.match(r" {8}(\w+): (.*)", line)
        if started:
            name = started[1]
            found[name] = started[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _recipe(report: Report, known: Details, terminal: Terminal) -> list[str]:
    given = ", ".join(_knob(name, report.recipe[name]) for name in report.recipe if name in known.asked)
    taken = ", ".join(_knob(name, report.recipe[name]) for name in report.recipe if name not in known.asked)
    width = terminal.width - 10
    rows = labelled("given", wrap(given or "nothing", width), 8) + labelled("default", wrap(taken, width), 8)
    return ["  " + row for row in rows]


def _knob(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name.replace("_", "-") if value else f"no-{name.replace('_', '-')}"
    if isinstance(value, list):
        value = ",".join(value) or "none"
    return f"{name.replace('_', '-')} {value if value not in (None, {}) else 'none'}"


def _published(counted: int, published: int | None) -> str:
    if published is None:
        return "no published count is known"
    return "as published" if published == counted else f"published: {published:,}, which may count other modules too"


def _provenance(report: Report, terminal: Terminal) -> list[list[str]]:
    """Each published number with its origin."""
    from planner.accuracy import accuracy_of
    from planner.verdict import context_of

    peak, known = report.peak, report.details
    assert known is not None
    card = known.device
    context = context_of(card)
    accuracy = accuracy_of(report.engine)
    counted = f"{report.model.num_parameters:,}, counted from the module table ({printable(report.model.source)})"
    facts = [
        ("parameters", f"{counted}; {_published(report.model.num_parameters, known.published_parameters)}"),
        ("allocated", f"{peak.allocated_bytes:,} bytes: the rows above, rounded to blocks; error {accuracy.allocated / 100:g} %"),
        ("reserved", f"{peak.reserved_bytes:,} bytes: the run, event by event, in PyTorch's caching allocator (torch 2.13's), simulated"),
        (
            "process",
            f"{peak.process_bytes:,} bytes: reserved and a context of {human(context.nbytes)}; {context.source}",
        ),
    ]
    if card is not None and report.verdict is not None:
        held = f", less {human(card.used_bytes)} that others hold now" if card.used_bytes else ""
        facts.append(("card", f"{card.total_bytes:,} bytes ({card.total_bytes / GIB:.2f} GiB){held}; {card.note or 'as given'}"))
        error = f"{accuracy.reserved / 100:g} % of reserved, and how far the context may be off; {accuracy.evidence}"
        facts.append(("error", f"{report.verdict.error_bytes:,} bytes: {error}"))
    return [["  " + row for row in labelled(name, wrap(text, terminal.width - 14), 12)] for name, text in facts]

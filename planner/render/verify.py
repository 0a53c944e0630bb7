"""The screen of `qplan verify`: measured beside predicted, by phase and category, and why they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator

from planner.records.record import Row
from planner.render.terminal import Terminal, listing, wrap
from planner.units import GIB, MIB, human
from planner.verification import Verification

_SHARE = 100
"""Categories below a hundredth of their phase on both sides are left out of the table; they are in the sums, and in `--json`."""


def lines(found: Verification, terminal: Terminal) -> list[str]:
    """
    The verification as lines of text.

    Args:
        found: What to show.
        terminal: What can be shown.
    """
    middle = _table(found, terminal) if found.failure is None else _failure(found, terminal)
    return [*_head(found, terminal), "", *middle, *_foot(found, terminal)]


def as_json(found: Verification) -> str:
    """The contract of `--json`."""
    return json.dumps(found.model_dump(), indent=2, ensure_ascii=False)


def _head(found: Verification, terminal: Terminal) -> Iterator[str]:
    recipe, where = found.recipe, "the CPU" if found.device == "cpu" else found.device
    if found.measured is not None:
        peak, planned = found.measured.peak.allocated_peak_bytes, found.predicted.peak.allocated_peak_bytes
        share = 100 * (planned - peak) / peak
        what = f"MEASURED on {where}: {human(peak)} allocated, in {found.measured.peak.phase.replace('_', ' ')}; predicted {share:+.2f} %"
        yield terminal.paint(what, "bold", "green" if abs(share) < 1 else "yellow")
    elif found.failure is not None:
        yield terminal.paint(f"OUT OF MEMORY on {where}, in {found.failure.phase.replace('_', ' ')}", "bold", "red")
    shape = f"{recipe['batch_size']} x {recipe['seq_len']} tokens"
    yield f"{found.model.id}  {recipe['method']}, {recipe['optim']}, {shape}, {found.weights} weights, {found.seconds:.0f} s"


def _table(found: Verification, terminal: Terminal) -> Iterator[str]:
    rows = found.rows
    unit, name = (GIB, "GiB") if max((row.measured_bytes for row in rows), default=0) >= GIB else (MIB, "MiB")
    yield terminal.paint(f"{f'{name} at the peak of':<28}{'measured':>12}{'predicted':>12}{'difference':>12}", "dim")
    whole = 1
    for row in rows:
        if row.category is None:
            whole = max(row.measured_bytes, 1)
            yield terminal.paint(_line(row.phase.replace("_", " "), row, unit), "bold")
        elif max(row.measured_bytes, row.predicted_bytes) * _SHARE >= whole:
            yield _line("  " + row.category.replace("_", " "), row, unit)
    for level, (measured, predicted) in ((n, v) for n, v in found.levels.items() if n != "allocated"):
        yield terminal.paint(_line(level, Row(level, None, measured, predicted), unit), "bold")
    if found.measured is not None and found.measured.steady_bytes is not None and found.predicted.steady_bytes is not None:
        yield _line("between steps", Row("", None, found.measured.steady_bytes, found.predicted.steady_bytes), unit)


def _line(name: str, row: Row, unit: int) -> str:
    share = f"{100 * row.difference_bytes / row.measured_bytes:+.2f} %" if row.measured_bytes else ""
    sizes = f"{row.measured_bytes / unit:>12.3f}{row.predicted_bytes / unit:>12.3f}{row.difference_bytes / unit:>+12.3f}"
    return f"{name:<28}{sizes}  {share:>9}"


def _failure(found: Verification, terminal: Terminal) -> Iterator[str]:
    failure = found.failure
    assert failure is not None
    at = f" in {failure.scope}" if failure.scope else ""
    asked = f"{human(failure.requested_bytes)} more was asked for{at}, with {human(failure.allocated_bytes)} allocated."
    yield from wrap(asked, terminal.width)
    alive = (f"{name.replace('_', ' ')} {human(size)}" for name, size in sorted(failure.by_category.items(), key=lambda item: -item[1]))
    yield from ("alive then:", *listing(alive, terminal.width))
    peak = found.predicted.peak
    plan = f"The plan has {human(peak.allocated_peak_bytes)} allocated at its peak, in {peak.phase.replace('_', ' ')}."
    yield from wrap(plan, terminal.width)


def _foot(found: Verification, terminal: Terminal) -> Iterator[str]:
    apart = {
        "CUDA context": found.apart.context_bytes,
        "cuBLAS workspaces": found.apart.workspace_bytes,
        "reserve": found.apart.reserve_bytes,
    }
    measured = [f"{name} {human(size)}" for name, size in apart.items() if size is not None]
    if measured:
        yield from ("", *wrap("measured apart: " + ", ".join(measured), terminal.width))
    for sentence in found.explanations:
        yield from ("", *wrap(sentence, terminal.width))
    if found.losses:
        first, last = found.losses[0], found.losses[-1]
        real = f"a real step: loss {first:.4g}, then {last:.4g}; gradients are there, and the weights changed"
        yield from ("", *wrap(real, terminal.width))
    for note in found.notes:
        yield from (terminal.paint(line, "dim") for line in wrap(f"* {note}", terminal.width))

"""The closed form beside the trace: a table by phase and category, and why they differ."""

from __future__ import annotations

from planner.agreement import Agreement, Row
from planner.render.terminal import Terminal, wrap
from planner.units import GIB

_SMALLEST = 1 << 20
"""Categories below a mebibyte in both engines are left out of the table; they are in the sums, and in `--json`."""


def lines(agreement: Agreement, terminal: Terminal) -> list[str]:
    """
    The table as lines of text.

    Args:
        agreement: What to show.
        terminal: What can be shown.
    """
    found = [terminal.paint(f"{'GiB at the peak of':<30}{'closed form':>13}{'traced':>11}{'difference':>13}", "bold")]
    for row in agreement.rows:
        if row.category is None:
            found.append(terminal.paint(_line(row.phase.value.replace("_", " "), row), "bold"))
        elif max(row.analytic_bytes, row.traced_bytes) >= _SMALLEST:
            found.append(_line("  " + row.category.value.replace("_", " "), row))
    for sentence in agreement.explanations:
        found += ["", *wrap(sentence, terminal.width)]
    return found


def _line(name: str, row: Row) -> str:
    share = f"{100 * row.difference_bytes / row.traced_bytes:+.2f} %" if row.traced_bytes else ""
    return f"{name:<30}{row.analytic_bytes / GIB:>13.3f}{row.traced_bytes / GIB:>11.3f}{row.difference_bytes / GIB:>+13.3f}  {share:>9}"

"""A sweep on the screen: one row a point, what does not vary above them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from planner.render.terminal import Terminal, printable
from planner.units import GIB

if TYPE_CHECKING:
    from planner.sweeping.frame import Frame
    from planner.sweeping.sweeps import Sweep

_COMPUTED = (
    "allocated_bytes", "reserved_bytes", "process_bytes", "phase", "outcome", "headroom_bytes", "simulated", "error",
)  # fmt: skip
_GROWING = ("batch_size", "seq_len", "rank", "grad_accum")
"""Knobs of which more is more: a frontier is about them."""

_COLOURS = {"fits": "green", "tight": "yellow", "does_not_fit": "red"}
_INTERVAL = 0.2


def front(found: Sweep) -> Frame:
    """The frontier: what is largest in the numbers that vary, for each model, card and choice; without such numbers, what needs least."""
    numbers = [name for name in found.axes if name in _GROWING]
    others = [name for name in found.axes if name not in _GROWING]
    if numbers:
        return found.pareto(maximize=numbers, within=others)
    return found.pareto(minimize=["allocated_bytes"], within=[name for name in others if name in ("model", "gpu")])


def lines(rows: Frame, terminal: Terminal, most: int) -> Iterator[str]:
    """
    The rows as lines.

    Args:
        rows: They.
        terminal: What can be shown.
        most: How many at most.
    """
    shown = list(islice(rows.rows(), most + 1))
    if not shown:
        yield "no row runs"
        return
    for name in ("model", "gpu"):
        if len({row.get(name) for row in shown}) == 1 and shown[0].get(name) is not None:
            yield printable(str(shown[0][name]))
            shown = [{key: value for key, value in row.items() if key != name} for row in shown]
    names = [name for name in shown[0] if name not in _COMPUTED]
    cells = [_cells(row, names) for row in shown[:most]]
    head = [*(name.replace("_", " ") for name in names), "peak GiB", "phase", "headroom", "verdict"]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    for number, line in enumerate((head, *cells)):
        is_left = [isinstance(shown[0].get(name), str) for name in names] + [False, True, False, True]
        text = "  ".join(f"{c:<{w}}" if left else f"{c:>{w}}" for c, w, left in zip(line, widths, is_left, strict=True)).rstrip()
        colour = _COLOURS.get(str(shown[number - 1]["outcome"])) if number else None
        yield terminal.paint(text, colour) if colour else text
    yield from _notes(shown, most)


def _cells(row: dict[str, Any], names: list[str]) -> list[str]:
    if row["error"] is not None:
        return [*(_told(row[name]) for name in names), "", "", "", f"refused: {printable(row['error'])}"]
    verdict = (row["outcome"] or "").replace("_", " ")
    headroom = "" if row["headroom_bytes"] is None else f"{row['headroom_bytes'] / GIB:.2f}"
    return [*(_told(row[name]) for name in names), f"{row['allocated_bytes'] / GIB:.2f}", row["phase"].replace("_", " "), headroom, verdict]


def _told(value: Any) -> str:
    return {True: "yes", False: "no", None: "-"}.get(value, printable(str(value))) if isinstance(value, (bool, type(None))) else str(value)


def _notes(shown: list[dict[str, Any]], most: int) -> Iterator[str]:
    if len(shown) > most:
        yield "... and more rows; -o FILE.csv writes them all, --pareto shows the frontier"
    if any(row["headroom_bytes"] is None and row["outcome"] is not None for row in shown[:most]):
        yield "no headroom: far from the limit, so the allocator was not run; --simulate all"


def as_json(rows: Frame) -> str:
    """The rows as one JSON document."""
    return json.dumps({"schema_version": 1, "rows": list(rows.rows())}, indent=2)


def progress(show: Callable[[str], None] | None) -> Callable[[int, int], None] | None:
    """What tells of rows that are done, a few times a second; None where nobody watches."""
    if show is None:
        return None
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL or done == total:
            last = now
            show(f"{done:,} of {total:,} rows")

    return tell

"""
Memory over one training step, or a whole run, as a page, a picture or numbers.

The numbers (`.json`, and the page's own data in a shorter form) are versioned; a field, once published, keeps its meaning:

    {"schema_version": 1, "title", "subtitle",
     "is_whole_run": false,                        # one training step, the last
     "first_event": 60123, "num_events": 48210,    # where the columns begin in the whole run, and how long they are
     "card": {"name", "usable_bytes"} | null,
     "phases": [{"phase", "begin", "end"}],        # half-open positions in the columns
     "start": {"allocated_bytes", "reserved_bytes", "by_category": {...}},    # before the first event
     "peak": {"event", "phase", "allocated_bytes", "reserved_bytes", "by_category": {...},
              "alive": {"name": [], "scope": [], "category": [], "count": [], "allocated_bytes": []}},
     "peak_reserved_bytes",
     "flushes": [],                                # events that found the card full until cached memory was given back
     "failure": {"event", "phase", "name", "scope", "requested_bytes", "allocated_bytes", "reserved_bytes"} | null,
     "operations": {"name": [], "scope": [], "category": []},
     "events": {"operation": [],                   # position in `operations`
                "change_bytes": [],                # what the event adds to the allocated bytes; negative for a death
                "allocated_bytes": [], "reserved_bytes": [], "by_category": {"parameter": [], ...}}}

An event is the birth or the death of one storage, and each column has what holds after it. Sizes are integers of bytes, as the
allocator counts them: whole blocks. `by_category` adds up to `allocated_bytes` at every event. `peak.event` is -1 where nothing
exceeds the start; `failure.event` is a position in the columns and may lie before or after them. Where there is a failure, the
columns are those of an endless card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from planner.files import output_path, write_whole
from planner.ledger import Phase
from planner.report import Report
from planner.timeline import Timeline, record
from planner.value import Value

SCHEMA_VERSION = 1


class Picture(Value, eq=False):
    """
    A timeline with what is written over it; a notebook shows it as it is.

    Attributes:
        timeline: The numbers.
        title, subtitle: What was planned, and how.
        card: The card's name; None where there is none.
    """

    timeline: Timeline
    title: str
    subtitle: str
    card: str | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write it to a file.

        Args:
            path: It ends in .html, .png or .json.

        Returns:
            The file.

        Raises:
            InvalidOutputError: The file cannot be written.
            MissingExtraError: A .png without matplotlib.
        """
        target = check(path)
        content = _WRITERS[Path(path).suffix.lower()](self)
        write_whole(target, lambda file: file.write(content))
        return target

    def model_dump(self) -> dict[str, Any]:
        """The numbers, as the module's docstring has them."""
        shown = self.timeline
        columns = {"allocated_bytes": shown.allocated, "reserved_bytes": shown.reserved}
        by_category = {category.value: column for category, column in shown.by_category.items()}
        found = self.summary()
        found["events"] = {**found["events"], **columns, "by_category": by_category}
        return found

    def summary(self) -> dict[str, Any]:
        """The same without the columns that follow from others by addition."""
        shown, history = self.timeline, self.timeline.history
        keys = [(history.names[i], history.scopes[i], history.categories[i].value) for i in shown.storages]
        operations = {key: position for position, key in enumerate(dict.fromkeys(keys))}
        return {
            "schema_version": SCHEMA_VERSION,
            "title": self.title,
            "subtitle": self.subtitle,
            "is_whole_run": shown.is_whole_run,
            "first_event": shown.begin,
            "num_events": shown.end - shown.begin,
            "card": None if shown.usable_bytes is None else {"name": self.card, "usable_bytes": shown.usable_bytes},
            "phases": [{"phase": span.phase.value, "begin": span.begin, "end": span.end} for span in shown.phases],
            "start": {
                "allocated_bytes": sum(shown.start.values()),
                "reserved_bytes": shown.start_reserved,
                "by_category": _by_name(shown.start),
            },
            "peak": _peak(shown),
            "peak_reserved_bytes": shown.peak_reserved,
            "flushes": shown.flushes,
            "failure": _failure(shown),
            "operations": _columns(("name", "scope", "category"), operations),
            "events": {"operation": [operations[key] for key in keys], "change_bytes": shown.changes},
        }

    def _repr_html_(self) -> str:
        from planner.render import timeline_html

        page = escape(timeline_html.page(self), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 720px; border: 0" title="{escape(self.title)}"></iframe>'


def picture(report: Report, *, whole_run: bool = False) -> Picture:
    """
    The timeline of an estimate.

    Args:
        report: Of any engine that keeps a history.
        whole_run: Everything from the loading on, rather than the last training step.

    Raises:
        AttributeError: The report was built from its published fields alone.
    """
    history, device = report.history, report.device
    assert report.details is not None, "its history came from there"
    usable, total = (None, None) if device is None else (device.usable_bytes, device.total_bytes)
    shown = record(history, usable, report.details.settings, total_bytes=total, whole_run=whole_run)
    knobs = report.recipe
    tokens = f"batch {knobs['batch_size']} × {knobs['seq_len']} tokens" if {"batch_size", "seq_len"} <= knobs.keys() else None
    words = (knobs.get("method"), tokens, _micro_batches(shown, knobs.get("grad_accum", 1)), knobs.get("optim"), f"{report.engine} engine")
    return Picture(shown, report.model.id, " · ".join(str(word) for word in words if word), None if device is None else device.name)


def _micro_batches(shown: Timeline, accumulated: int) -> str | None:
    """How many micro-batches the step is drawn with, where that is fewer than it has: all but the first are alike."""
    drawn = sum(span.phase is Phase.FORWARD for span in shown.phases)
    return f"{drawn} of {accumulated} micro-batches" if 0 < drawn < accumulated and not shown.is_whole_run else None


def check(path: str | os.PathLike[str]) -> Path:
    """
    The file that a timeline would be written to, before any work is done.

    Raises:
        InvalidOutputError: The file cannot be written, or ends in neither .html, .png nor .json.
        MissingExtraError: A .png without matplotlib.
    """
    target = output_path(path, tuple(_WRITERS))
    if Path(path).suffix.lower() == ".png":
        from planner.render import timeline_png

        timeline_png.require()
    return target


def _json(shown: Picture) -> bytes:
    return json.dumps(shown.model_dump(), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _html(shown: Picture) -> bytes:
    from planner.render import timeline_html

    return timeline_html.page(shown).encode()


def _png(shown: Picture) -> bytes:
    from planner.render import timeline_png

    return timeline_png.image(shown)


_WRITERS: dict[str, Callable[[Picture], bytes]] = {".html": _html, ".png": _png, ".json": _json}


def _peak(shown: Timeline) -> dict[str, Any]:
    peak = shown.peak
    alive = ((item.name, item.scope, item.category.value, item.instances, item.nbytes) for item in peak.alive)
    return {
        "event": peak.event,
        "phase": peak.phase.value,
        "allocated_bytes": peak.allocated_bytes,
        "reserved_bytes": peak.reserved_bytes,
        "by_category": _by_name(peak.by_category),
        "alive": _columns(("name", "scope", "category", "count", "allocated_bytes"), alive),
    }


def _failure(shown: Timeline) -> dict[str, Any] | None:
    failure = shown.failure
    if failure is None:
        return None
    return {
        "event": failure.event - shown.begin,
        "phase": failure.phase.value,
        "name": shown.history.names[failure.storage],
        "scope": shown.history.scopes[failure.storage],
        "requested_bytes": failure.requested_bytes,
        "allocated_bytes": failure.allocated_bytes,
        "reserved_bytes": failure.reserved_bytes,
    }


def _by_name(sums: dict[Any, int]) -> dict[str, int]:
    return {category.value: nbytes for category, nbytes in sums.items()}


def _columns(names: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Rows as columns."""
    names = tuple(names)
    turned = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: list(column) for name, column in zip(names, turned, strict=True)}

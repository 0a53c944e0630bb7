"""The screens of `qplan records`, and the line of an estimate about the nearest one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from planner import advice
from planner.render.terminal import Terminal, printable, wrap
from planner.units import human

if TYPE_CHECKING:
    from planner.records import Listing, Near, Record

SCHEMA_VERSION = 1
_CARD, _RUN = 16, 17


def lines(found: Listing, terminal: Terminal) -> list[str]:
    """
    A row a record, oldest first: when, on which card, what ran, its measured allocated peak, and how far the prediction was off.

    Args:
        found: What there is.
        terminal: What can be shown.
    """
    if not found.records:
        return ["There are no records yet: qplan verify MODEL makes one, and qplan records import FILE takes over others'."]
    room = terminal.width - 10 - 1 - _CARD - _RUN - 2 - 10 - 10
    head = f"{'day':<11}{'card':<{_CARD}}{'model':<{room}}  {'run':<{_RUN}}{'measured':>10}{'predicted':>10}"
    return [terminal.paint(head, "bold"), *(_row(record, terminal, room) for record in found.records)]


def _row(record: Record, terminal: Terminal, room: int) -> str:
    level = record.peak["allocated"]
    card = "CPU" if record.card is None else advice.short_name(record.card["name"])
    run = f"{record.recipe['method']} {record.recipe['batch_size']} x {record.recipe['seq_len']}"
    named = f"{record.time[:10]:<11}{terminal.fit(card, _CARD - 1):<{_CARD}}{terminal.fit(_model(record, room), room):<{room}}  "
    sizes = f"{human(level.measured_bytes):>10}{_share(level.predicted_bytes, level.measured_bytes):>10}"
    return f"{named}{terminal.fit(run, _RUN - 1):<{_RUN}}{sizes}"


def as_json(found: Listing) -> str:
    """The contract of `qplan records --json`: the records with their ids, and the files that are none; sizes end in `_bytes`."""
    rows = [{"id": record.id, **record.model_dump()} for record in found.records]
    damaged = [{"name": bad.name, "reason": bad.reason, "moved_to": bad.moved_to} for bad in found.damaged]
    return json.dumps({"schema_version": SCHEMA_VERSION, "records": rows, "damaged": damaged}, indent=2, ensure_ascii=False)


def near_lines(near: Near, terminal: Terminal, indent: int) -> list[str]:
    """How good the prediction was where it was verified, to stand beside a label."""
    record = near.record
    levels = [
        f"{name} {human(level.measured_bytes)} measured, predicted {_share(level.predicted_bytes, level.measured_bytes)}"
        for name, level in record.peak.items()
    ]
    of = f"the nearest of {near.num_records}" if near.num_records > 1 else "the only one near"
    knobs = record.recipe
    run = f"{_model(record)}, {knobs['batch_size']} x {knobs['seq_len']} tokens, {record.time[:10]} ({of})"
    return wrap(f"verified on such a card: {printable(run)}: {'; '.join(levels)}", terminal.width - indent)


def _model(record: Record, room: int = 100) -> str:
    """Its id, without the organisation where there is no room; its family and size where it is no published one."""
    name = str(record.model["id"] or f"{record.model['model_type']} of {_count(record.model['num_parameters'])}")
    return name if len(name) <= room else name.rpartition("/")[2]


def _count(number: int) -> str:
    from planner.render.estimate import count

    return count(number)


def _share(predicted: int, measured: int) -> str:
    """How much more was predicted, in percent."""
    return f"{100 * (predicted - measured) / measured:+.2f} %" if measured else human(predicted)

"""
From a tape that ran the first and the last of the layers that are alike to the rows of the whole model.

What the first instance leaves behind, each one between leaves behind too: those enter as sums, between the first and the last. That
loses nothing: from layer to layer live bytes grow or shrink by the same amount, so no peak lies between the ends.
"""

from __future__ import annotations

from planner.ledger import Allocation, Category, Phase, Rows, Span
from planner.schedule import Tape
from planner.tensors import Segment

BLOCK = 512
"""Bytes that an allocation is rounded up to (kMinBlockSize, c10/core/CachingDeviceAllocator.h)."""


def unroll(tape: Tape, begin: int, rows: Rows) -> list[Span]:
    """
    Put the tape's allocations on a clock that starts at `begin`.

    What is still alive at the end of the tape ends with it.

    Args:
        tape: A tape whose phases are over.
        begin: First step of the tape on the ledger's clock.
        rows: Where the allocations go.

    Returns:
        The spans of its phases.
    """
    birth, death = _lifetimes(tape)
    start = len(rows.sizes)
    nbytes, scopes, names, categories = zip(*tape.storages, strict=True)
    rows.names += names
    rows.scopes += scopes
    rows.categories += categories
    rows.sizes += [-(-n // BLOCK) * BLOCK for n in nbytes]
    rows.begins += [begin + step for step in birth]
    rows.ends += [begin + step for step in death]
    rows.formulas += [""] * len(nbytes)
    for storage in tape.gradients:
        rows.categories[start + storage] = Category.GRADIENT
    for storage, times, since, until in _instances_between(tape, birth, death):
        i = start + storage
        size = times * rows.sizes[i]
        rows.add(Allocation(rows.names[i], rows.categories[i], size, begin + since, begin + until, rows.scopes[i]))
    return [Span(s.phase, begin + s.begin, begin + s.end) for s in tape.segments if s.end > s.begin]


def _lifetimes(tape: Tape) -> tuple[list[int], list[int]]:
    """The event at which each storage is born, and the one at which it dies."""
    end = tape.segments[-1].end
    birth, death = [0] * len(tape.storages), [end] * len(tape.storages)
    for step, event in enumerate(tape.events[:end]):
        if event >= 0:
            birth[event] = step
        else:
            death[~event] = step
    return birth, death


def _instances_between(tape: Tape, birth: list[int], death: list[int]) -> list[tuple[int, int, int, int]]:
    """(storage, how many more of it there are, from which event, to which) for the instances that were not run."""
    found = []
    for (_, repeat), (first, last, last_back, first_back) in _regions(tape).items():
        more = repeat - 2
        for storage in _born(tape, first):
            if death[storage] > last.end:
                in_backward = last_back.begin <= death[storage] < first_back.end
                found.append((storage, more, last.begin, last_back.end if in_backward else death[storage]))
        found += [
            (storage, more, last_back.end, death[storage])
            for storage in _born(tape, last_back)
            if death[storage] > first_back.end and storage in tape.gradients
        ]
    return found


def _regions(tape: Tape) -> dict[tuple[int, int], list[Segment]]:
    """Of each region with more than two instances: first and last in forward, last and first in backward."""
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in tape.segments:
        if segment.region is not None and segment.repeat > 2 and segment.phase in (Phase.FORWARD, Phase.BACKWARD):
            found.setdefault((segment.region, segment.repeat), []).append(segment)
    return found


def _born(tape: Tape, segment: Segment) -> list[int]:
    return [event for event in tape.events[segment.begin : segment.end] if event >= 0]

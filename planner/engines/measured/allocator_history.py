"""
What CUDA's caching allocator says that it did, as a history: nothing that was allocated is missing, and a tracker says what it was for.

Source:
    torch@2.13.0, torch/cuda/memory.py, _snapshot (TraceEntry); c10/cuda/CUDACachingAllocator.cpp: an `alloc` entry has the size that was
    asked for, one for each that `allocation.all.allocated` counts; `allocated_bytes` falls at `free_requested`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.value import NamedTuple

UNSEEN = "taken inside a kernel"
"""What no dispatcher saw: scratch of a kernel, a workspace of a library."""


class Stage(NamedTuple):
    """
    The allocator's entries of one stage of a run, in order.

    Attributes:
        phase: Where the run was.
        entries: As `torch.cuda.memory._snapshot()["device_traces"]` has them.
    """

    phase: Phase
    entries: Sequence[Mapping[str, Any]]


class Mark(NamedTuple):
    """
    A storage that a tracker saw.

    Attributes:
        number: How many allocations the allocator had counted since the first stage began, when it was seen.
        address: Of its memory.
        name, scope, category, owner: What it turned out to be.
    """

    number: int
    address: int
    name: str
    scope: str
    category: Category
    owner: int | None = None


def history_of(stages: Iterable[Stage], marks: Iterable[Mark]) -> History:
    """
    The history of a run that was recorded from its first allocation on.

    A storage is the last allocation at its address when the tracker saw it. What no tracker saw is a workspace; what is freed and was not
    allocated in these stages is left out.

    Args:
        stages: The stages, in order.
        marks: What a tracker saw meanwhile.
    """
    history = History()
    alive: dict[int, int] = {}
    births: dict[int, tuple[list[int], list[int]]] = {}
    number = 0
    for stage in stages:
        begin = len(history.events)
        for entry in stage.entries:
            address = int(entry.get("addr", 0))
            if entry["action"] == "alloc":
                number += 1
                index = history.add(int(entry["size"]), UNSEEN, Category.WORKSPACE)
                alive[address] = index
                numbers, indices = births.setdefault(address, ([], []))
                numbers.append(number)
                indices.append(index)
            elif entry["action"] == "free_requested" and address in alive:
                history.drop(alive.pop(address))
            elif entry["action"] == "segment_free" and (not history.flushes or history.flushes[-1] != len(history.events)):
                history.flushes.append(len(history.events))
        if len(history.events) > begin:
            history.stretches.append(Stretch(stage.phase, begin, len(history.events)))
    for mark in marks:
        numbers, indices = births.get(mark.address, ([], []))
        place = bisect_right(numbers, mark.number) - 1
        if place >= 0:
            index = indices[place]
            history.names[index], history.scopes[index] = mark.name, mark.scope
            history.categories[index], history.owners[index] = mark.category, mark.owner
    return history


def requested_peaks(history: History) -> dict[Phase, int]:
    """The most bytes that were asked for and alive in each phase: what `requested_bytes.all.peak` counts."""
    now, found = 0, dict[Phase, int]()
    for stretch in history.stretches:
        high = now
        for event in history.events[stretch.begin : stretch.end]:
            now += history.sizes[event] if event >= 0 else -history.sizes[~event]
            high = max(high, now)
        found[stretch.phase] = max(found.get(stretch.phase, 0), high)
    return found


__all__ = ["UNSEEN", "Mark", "Stage", "history_of", "requested_peaks"]

"""The allocator's entries as a history: against the writer of the same format, and a trace that was written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from planner import snapshot
from planner.bookkeeping import keep_books
from planner.history import History, Stretch
from planner.ledger import Category, Phase

pytest.importorskip("torch")

from planner.engines.measured.allocator_history import UNSEEN, Mark, Stage, history_of, requested_peaks

MIB = 1 << 20


def entry(action: str, address: int, size: int = 0) -> dict[str, Any]:
    """As torch writes one."""
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 0}


def run() -> History:
    """Weights, an activation that dies, another of its size, a gradient."""
    history = History()
    weight = history.add(3 * MIB, "weight", Category.PARAMETER, "layer")
    first = history.add(MIB // 2, "x", Category.ACTIVATION)
    history.drop(first)
    second = history.add(MIB // 2, "y", Category.ACTIVATION)
    gradient = history.add(700, "gradient", Category.GRADIENT)
    history.drop(second)
    history.stretches = [Stretch(Phase.LOAD, 0, 1), Stretch(Phase.FORWARD, 1, 4), Stretch(Phase.BACKWARD, 4, len(history.events))]
    assert weight == 0
    assert gradient == 3
    return history


def stages(history: History) -> list[Stage]:
    """The run as the snapshot's writer spells it for PyTorch's viewer, cut at its phases."""
    trace = [e for e in snapshot.snapshot(history)["device_traces"][0] if e["action"] in ("alloc", "free_requested", "free_completed")]
    found: list[list[dict[str, Any]]] = [[] for _ in history.stretches]
    position = -1
    for e in trace:
        position += e["action"] in ("alloc", "free_requested")
        place = next(i for i, s in enumerate(history.stretches) if s.begin <= position < s.end)
        found[place].append(e)
    return [Stage(s.phase, entries) for s, entries in zip(history.stretches, found, strict=True)]


def test_a_recorded_run_is_the_run() -> None:
    """Sizes, order and phases come back, and so do the blocks of the allocator."""
    original = run()
    found = history_of(stages(original), [])

    assert original.sizes == found.sizes
    assert original.events == found.events
    assert original.stretches == found.stretches
    assert keep_books("x", original).curve == keep_books("x", found).curve
    assert {Category.WORKSPACE} == set(found.categories)
    assert {UNSEEN} == set(found.names)


def test_marks_name_the_last_allocation_at_their_address() -> None:
    """Of two storages at one address each gets its own name; what has none was taken inside a kernel."""
    forward = [entry("alloc", 16, 100), entry("free_requested", 16, 100), entry("free_completed", 16, 100), entry("alloc", 16, 100)]
    marks = [
        Mark(1, 16, "first", "a", Category.ACTIVATION),
        Mark(2, 16, "second", "b", Category.LOGITS, 3),
        Mark(9, 48, "never allocated", "", Category.INPUT),
    ]
    found = history_of([Stage(Phase.FORWARD, [*forward, entry("alloc", 32, 7)])], marks)

    assert found.names == ["first", "second", UNSEEN]
    assert found.categories == [Category.ACTIVATION, Category.LOGITS, Category.WORKSPACE]
    assert found.owners == [None, 3, None]
    assert found.events == [0, -1, 1, 2]


def test_what_came_before_the_recording_is_left_out() -> None:
    """A free of something unknown is no event; giving segments back is a flush, once."""
    entries = [entry("free_requested", 99, 5), entry("segment_free", 1, 2 * MIB), entry("segment_free", 2, 2 * MIB), entry("alloc", 16, 8)]
    found = history_of([Stage(Phase.PREPARE, entries), Stage(Phase.FORWARD, [])], [])

    assert found.events == [0]
    assert found.flushes == [0]
    assert [s.phase for s in found.stretches] == [Phase.PREPARE]


def test_peaks_of_what_was_asked_for() -> None:
    """By brute force over the run of three phases: a phase begins with what the one before left."""
    half = MIB // 2

    assert {Phase.LOAD: 3 * MIB, Phase.FORWARD: 3 * MIB + half, Phase.BACKWARD: 3 * MIB + half + 700} == requested_peaks(run())

"""Histories as ledgers, against sums done by hand and by brute force."""

from __future__ import annotations

import random

import pytest

from planner.allocator import AllocatorSettings, CachingAllocator
from planner.bookkeeping import keep_books, keep_exact_books, resting_bytes, steady_bytes
from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.units import KIB, MIB
from tests.histories import small, training

C = Category


def scattered(seed: int, count: int = 200) -> History:
    """A history of births and deaths in any order."""
    draw = random.Random(seed)  # noqa: S311  # a test's numbers
    history, live = History(), []
    for _ in range(count):
        if live and draw.random() < 0.45:
            history.drop(live.pop(draw.randrange(len(live))))
        else:
            live.append(history.add(draw.choice((1, 512, 700 * KIB, 3 * MIB + 5, 11 * MIB)), "x", draw.choice(list(Category))))
    end = len(history.events)
    history.stretches = [Stretch(Phase.LOAD, 0, 50), Stretch(Phase.FORWARD, 50, 120), Stretch(Phase.OPTIMIZER_STEP, 120, end)]
    return history


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_the_allocators(seed: int) -> None:
    """At every event live bytes are what a caching allocator says that was driven with the same calls."""
    history, allocator, blocks, curve = scattered(seed), CachingAllocator(), {}, []
    for event in history.events:
        if event >= 0:
            blocks[event] = allocator.allocate(history.sizes[event])
        else:
            allocator.free(blocks.pop(~event))
        curve.append(allocator.allocated_bytes)
    ledger = keep_books("test", history)

    assert curve == ledger.curve


@pytest.mark.parametrize("seed", range(5))
def test_rows_live_from_their_birth_to_their_death(seed: int) -> None:
    """Half-open, one step an event; categories add up to the curve."""
    history = scattered(seed)
    ledger = keep_books("test", history)
    for i, row in enumerate(ledger.allocations):
        death = history.events.index(~i) if ~i in history.events else len(history.events)
        assert (history.events.index(i), death) == (row.begin, row.end)
        assert row.nbytes >= history.sizes[i]
    for step in range(0, len(history.events), 17):
        assert ledger.curve[step] == sum(ledger.by_category(step).values())


def test_a_small_history_by_hand() -> None:
    """Blocks of 512 bytes, two steps, and what is left behind the last update."""
    history = small()
    ledger = keep_books("hand", history)
    weight = 30 * MIB + 512

    assert ledger.engine == "hand"
    assert [s.phase for s in ledger.timeline][:4] == [Phase.LOAD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP]
    assert ledger.peaks[Phase.LOAD].nbytes == 64 * MIB
    assert steady_bytes(ledger) == ledger.curve[18]
    assert ledger.peaks[Phase.EVALUATION].nbytes == ledger.curve[18] + 40 * MIB
    assert weight <= steady_bytes(ledger)


def test_what_rests_is_steady_without_workspaces() -> None:
    """A workspace stays, but it is the card's: another card has another."""
    history = History()
    for size, category in ((3 * MIB, C.PARAMETER), (2 * MIB, C.WORKSPACE), (5 * MIB, C.OPTIMIZER_STATE), (1 * MIB, C.GRADIENT)):
        history.add(size, "x", category)
    history.drop(3)
    history.stretches = [Stretch(Phase.FORWARD, 0, 2), Stretch(Phase.OPTIMIZER_STEP, 2, 5)]
    ledger = keep_exact_books("hand", history)

    assert (steady_bytes(ledger), resting_bytes(ledger)) == (10 * MIB, 8 * MIB)


def test_the_last_update_counts() -> None:
    """Steady is read behind the second step, where states of the first are there."""
    history = training(layers=2)
    ledger = keep_books("test", history)
    ends = [s.end for s in ledger.timeline if s.phase is Phase.OPTIMIZER_STEP]

    assert len(ends) == 2
    assert steady_bytes(ledger) == ledger.curve[ends[1] - 1]


def test_a_flush_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is emptied before the events that the history says, two flushes before one event as well."""
    history, seen = small(), []
    history.flushes = [0, 2, 2, 9]
    empty = CachingAllocator.empty_cache

    def flush(allocator: CachingAllocator) -> None:
        before = allocator.reserved_bytes
        empty(allocator)
        seen.append((before, allocator.reserved_bytes))

    monkeypatch.setattr(CachingAllocator, "empty_cache", flush)
    keep_books("test", history)

    assert seen[:3] == [(0, 0), (64 * MIB, 0), (0, 0)]
    assert len(seen) == 4


def test_settings_reach_the_allocator() -> None:
    """With expandable segments no remainder is left in a block."""
    history = History()
    history.add(20 * MIB, "x", C.PARAMETER)
    history.drop(0)
    history.add(19 * MIB + 512 * KIB, "x", C.PARAMETER)
    history.stretches = [Stretch(Phase.LOAD, 0, 3)]

    assert keep_books("test", history, AllocatorSettings(expandable_segments=True)).curve[-1] == 19 * MIB + 512 * KIB


def test_exact_books_round_nothing() -> None:
    """On the CPU a storage is its bytes: curve and lives by hand."""
    history = History()
    first = history.add(3, "a", Category.PARAMETER)
    second = history.add(700, "b", Category.ACTIVATION)
    history.drop(second)
    history.drop(first)
    history.stretches = [Stretch(Phase.LOAD, 0, 1), Stretch(Phase.FORWARD, 1, 4)]
    ledger = keep_exact_books("measured", history)

    assert ledger.curve == [3, 703, 3, 0]
    assert [(a.nbytes, a.begin, a.end) for a in ledger.allocations] == [(3, 0, 3), (700, 1, 2)]
    assert ledger.highs == {Phase.LOAD: (3, 0), Phase.FORWARD: (703, 1)}

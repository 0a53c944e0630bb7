"""A history in the allocator: against a plain replay of it, on cards that are just large enough and just too small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.allocator import AllocatorSettings, CachingAllocator, native, program, replay
from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.simulation import Simulation, Trial
from planner.units import MIB

PLAIN = AllocatorSettings()


def history(*words: tuple[str, int], flush_at: int | None = None) -> History:
    """Births by name and MiB; a name that comes again dies."""
    found, named = History(), dict[str, int]()
    for name, size in words:
        if len(found.events) == flush_at:
            found.flushes.append(flush_at)
        if name in named:
            found.drop(named.pop(name))
        else:
            named[name] = found.add(size * MIB, name, Category.ACTIVATION, f"module of {name}")
    found.stretches.append(Stretch(Phase.LOAD, 0, 1))
    found.stretches.append(Stretch(Phase.FORWARD, 1, len(found.events)))
    return found


def simulation(found: History, settings: AllocatorSettings = PLAIN) -> Simulation:
    """Of a history."""
    return Simulation(lambda: found, settings)


# two holes of 20 MiB with something between: 40 MiB fit into neither
HOLES = (("a", 20), ("b", 20), ("c", 20), ("a", 0), ("c", 0), ("d", 40))


def test_an_endless_card_reserves_for_all():
    """Every segment is kept."""
    assert simulation(history(*HOLES)).endless == Trial(100 * MIB, 60 * MIB)


@pytest.mark.parametrize(
    ("capacity", "reserved", "flushes", "runs"), [(100, 100, 0, True), (99, 60, 1, True), (60, 60, 1, True), (59, 40, 1, False)]
)
def test_a_card_that_is_full_gives_back_what_it_caches(capacity, reserved, flushes, runs):
    """With room for all it does as on an endless card; with less it flushes once; with less than is alive at once the third fails."""
    trial = simulation(history(*HOLES)).on(capacity * MIB, capacity * MIB)

    assert (trial.reserved_bytes, trial.num_flushes, trial.runs) == (reserved * MIB, flushes, runs)


def test_a_failure_says_what_asked_and_what_was_alive():
    """The operation, its module and phase, the sizes, and the live bytes by category."""
    failure = simulation(history(*HOLES)).on(50 * MIB, 50 * MIB).failure

    assert failure is not None
    assert (failure.operation, failure.scope, failure.phase) == ("c", "module of c", "forward")
    assert (failure.requested_bytes, failure.allocated_bytes, failure.reserved_bytes) == (20 * MIB, 40 * MIB, 40 * MIB)
    assert failure.by_category == {"activation": 40 * MIB}


def test_expandable_segments_close_holes():
    """Three live blocks with holes between them, which only pages can fill."""
    found = simulation(history(("a", 20), ("b", 40), ("c", 20), ("b", 0), ("d", 20), ("e", 40)))

    assert not found.on(100 * MIB, 100 * MIB).runs
    assert found.on(100 * MIB, 100 * MIB, expandable=True).runs


def test_an_emptied_cache_is_asked_for_again():
    """After `empty_cache` the same request needs a new segment; the peak is the one before it."""
    kept, emptied = (simulation(history(("a", 20), ("a", 0), ("b", 16), flush_at=at)) for at in (None, 2))

    assert kept.endless.reserved_bytes == 20 * MIB
    assert emptied.endless.reserved_bytes == 20 * MIB
    assert kept.on(18 * MIB, 18 * MIB).failure is not None


@pytest.mark.parametrize(("total", "runs"), [(3000, True), (1100, False)])
def test_a_warm_up_leaves_a_margin_of_the_card(total, runs):
    """transformers asks for the card less 1.2 GiB at most; what is then loaded has to fit by itself."""
    found = history(("warm-up", 2500), ("warm-up", 0), ("weights", 1500))
    found.warm_up = 0

    assert simulation(found).endless.reserved_bytes == 2500 * MIB
    assert simulation(found).on(total * MIB, total * MIB).runs is runs


def test_nothing_is_replayed_where_more_is_allocated_than_the_card_has():
    """That verdict needs no second replay."""
    found = simulation(history(*HOLES))

    assert not found.fits(59 * MIB, 59 * MIB)
    assert found.fits(60 * MIB, 60 * MIB)
    assert found._trials.keys() == {(60 * MIB, 60 * MIB, False)}


def test_a_share_of_the_card_is_no_more_than_that():
    """Under a memory fraction a run is replayed even where the whole card had room."""
    settings = AllocatorSettings.parse("per_process_memory_fraction:0.5")

    assert simulation(history(*HOLES), settings).on(150 * MIB, 150 * MIB).num_flushes == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), max_size=40), st.integers(20, 200))
def test_shortcuts_change_nothing(pairs, capacity):
    """On any card the answer is that of a plain replay there."""
    found = history(*((str(name), size) for name, size in pairs)) if pairs else history(("a", 1))
    trial = simulation(found).on(capacity * MIB, capacity * MIB)
    plain = replay(found.events, found.sizes, CachingAllocator(capacity * MIB))

    assert (trial.reserved_bytes, trial.num_flushes, trial.runs) == (plain.peak_reserved_bytes, plain.num_flushes, plain.failed_at is None)


def many(count: int) -> History:
    """A history long enough for compiled code."""
    return history(*((str(i % 7), 1 + i % 5) for i in range(count)))


def test_a_run_that_was_begun_ends_as_one_that_was_not():
    """Beside the caller or in its turn: the same trial, wherever the replay is compiled."""
    ahead, plain = simulation(many(6000)), simulation(many(6000))
    ahead.begin()
    ahead.begin()  # once more begins nothing

    assert ahead.endless == plain.endless
    ahead.begin()  # nor does it once the run is known
    assert ahead.on(1000 * MIB, 1000 * MIB) == plain.endless


def test_a_fault_of_a_run_that_was_begun_meets_who_asks(monkeypatch):
    """What goes wrong beside the caller goes wrong again, and is heard, where the result is wanted."""

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(native, "library", lambda _: object())
    monkeypatch.setattr("planner.simulation.run", fail)
    found = simulation(many(10))
    found.begin()

    with pytest.raises(MemoryError, match="no room"):
        _ = found.endless


def test_without_compiled_code_nothing_runs_beside(monkeypatch):
    """Python would only take turns with the caller: the run waits until somebody asks."""
    monkeypatch.setattr(native, "library", lambda _: None)
    ran = []
    monkeypatch.setattr("planner.simulation.run", lambda *args, **more: ran.append(args) or program.run(*args, **more))
    found = simulation(many(10))
    found.begin()

    assert ran == []
    assert found.endless.runs
    assert len(ran) == 1

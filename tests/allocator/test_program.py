"""A whole run, with emptied caches between its events, against the allocator called event by event."""

from __future__ import annotations

import pytest

from planner.allocator import AllocatorSettings, CachingAllocator, OutOfMemory, native
from planner.allocator.program import Ending, Part, Program, extend, pack, run

MIB = 1 << 20
EVENTS = [0, 1, ~0, 2, ~1, 3, ~2, ~3, 4]
SIZES = [40 * MIB, 600, 30 * MIB, 70 * MIB + 1, 9 * MIB]
FLUSHES = [3, 8]
SETTINGS = (
    "",
    "expandable_segments:True",
    "expandable_segments:True,per_process_memory_fraction:0.4",
    "max_split_size_mb:21",
    "roundup_power2_divisions:4",
    "per_process_memory_fraction:0.5",
)


def by_hand(settings: AllocatorSettings, capacity: int | None) -> Ending:
    """Call after call."""
    allocator = CachingAllocator(capacity, settings)
    live = {}
    for position, event in enumerate(EVENTS):
        if position in FLUSHES:
            allocator.empty_cache()
        if event < 0:
            allocator.free(live.pop(~event))
            continue
        try:
            live[event] = allocator.allocate(SIZES[event])
        except OutOfMemory as error:
            held = tuple((storage, block.size) for storage, block in sorted(live.items()))
            peaks = allocator.peak_reserved_bytes, allocator.peak_allocated_bytes
            return Ending(*peaks, allocator.num_flushes, position, held, error.allocated, error.reserved)
    return Ending(allocator.peak_reserved_bytes, allocator.peak_allocated_bytes, allocator.num_flushes)


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("capacity", [None, 200 * MIB, 103 * MIB, 80 * MIB, 20 * MIB])
@pytest.mark.parametrize("text", SETTINGS)
def test_a_run_is_its_events(text: str, capacity: int | None, compiles: bool, monkeypatch: pytest.MonkeyPatch):
    """Whatever the settings and the card, compiled or not: the peaks, the flushes, where it failed and what was held."""
    monkeypatch.setattr(native, "WORTH", 0 if compiles else 10**9)
    monkeypatch.setattr(native, "PATIENCE", 0)
    if not compiles:
        monkeypatch.setattr(native._State, "library", None)
    settings = AllocatorSettings.parse(text)

    assert run(Program([Part(EVENTS)], FLUSHES), pack(SIZES), settings, capacity) == by_hand(settings, capacity)


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("", True),
        ("roundup_power2_divisions:4", True),
        ("expandable_segments:True", True),
        ("max_split_size_mb:30", False),
        ("expandable_segments:True,max_split_size_mb:30", False),
    ],
)
def test_settings_that_keep_blocks_whole_are_not_plain(text: str, is_plain: bool):
    """Whatever the rounding and the segments: that is what compiled code does not know."""
    assert CachingAllocator(settings=AllocatorSettings.parse(text)).is_plain is is_plain


def test_garbage_is_collected_in_python():
    """Under a memory fraction a threshold releases old segments, which is no plain choice."""
    settings = AllocatorSettings.parse("garbage_collection_threshold:0.5,per_process_memory_fraction:0.5")

    assert not CachingAllocator(100 * MIB, settings).is_plain


PARTS = (Part([0, 1]), Part([2, ~0, 4, ~2], 3, 10), Part([~1, 40]), Part([61, ~40], 3, -10))


def test_parts_are_written_out():
    """Each time its storages lie further on; deaths too."""
    program = Program(PARTS)
    expected = [0, 1, 2, ~0, 4, ~2, 12, ~10, 14, ~12, 22, ~20, 24, ~22, ~1, 40, 61, ~40, 51, ~30, 41, ~20]

    assert program.events == expected
    assert program.num_events == len(expected)
    assert [program.event(i) for i in range(len(expected))] == expected
    with pytest.raises(IndexError, match="22 events"):
        program.event(len(expected))


def test_absurd_sizes_are_left_to_python():
    """Sums of them may not fit 64 bits; Python's integers do."""
    sizes = pack([1, 1 << 70])

    assert sizes == [1, 1 << 70]
    assert extend(sizes, [5], 2) == [1, 1 << 70, 5, 5]
    assert run(Program([Part([0, 1])]), sizes, AllocatorSettings()).allocated_bytes == 512 + (1 << 70)


def test_more_sizes_stay_packed():
    """The copies' sizes behind those that are there."""
    assert extend(pack([1, 2]), [3, 4], 2) == pack([1, 2, 3, 4, 3, 4])

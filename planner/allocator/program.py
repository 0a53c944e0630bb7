"""A whole run through an allocator: births, deaths, and the places where the cache is emptied."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property

from planner.allocator import native
from planner.allocator.blocks import Block
from planner.allocator.caching import CachingAllocator
from planner.allocator.replay import replay
from planner.allocator.settings import AllocatorSettings
from planner.value import NamedTuple

MOST = 1 << 42
"""Bytes of a storage from which on sums of them may not fit 64 bits; no card has that much."""


class Part(NamedTuple):
    """Events that come `count` times, each time to storages that lie `shift` further on."""

    events: list[int]
    count: int = 1  # type: ignore[assignment]  # a tuple's own method of that name is of no use here
    shift: int = 0


class Program:
    """
    The events of a run, whatever the sizes.

    Args:
        parts: Births (an index) and deaths (its complement), in order.
        flushes: Events before which the cache is emptied (`torch.cuda.empty_cache()`), in order.
    """

    def __init__(self, parts: Sequence[Part], flushes: Sequence[int] = ()) -> None:
        self.parts, self.flushes = parts, flushes
        self.num_events = sum(len(part.events) * part.count for part in parts)

    @cached_property
    def events(self) -> Sequence[int]:
        """Every event."""
        if len(self.parts) == 1 and self.parts[0].count == 1:
            return self.parts[0].events
        found: list[int] = []
        for events, count, shift in self.parts:
            found += events
            for far in range(shift, count * shift, shift) if shift else ():
                found += [e + far if e >= 0 else e - far for e in events]
        return found

    @cached_property
    def packed(self) -> native.Packed:
        """The same as compiled code reads it."""
        events, shape = array("i"), array("q")
        for part in self.parts:
            events.extend(part.events)
            shape.extend((len(part.events), part.count, part.shift))
        return native.Packed(events, shape)

    def event(self, position: int) -> int:
        """The event at a position."""
        for events, count, shift in self.parts:
            if position < len(events) * count:
                number, at = divmod(position, len(events))
                return events[at] + number * shift if events[at] >= 0 else events[at] - number * shift
            position -= len(events) * count
        raise IndexError(f"a program of {self.num_events} events has none there")


def pack(sizes: list[int]) -> Sequence[int]:
    """Bytes by storage, as 64-bit integers; unchanged where one is absurdly large."""
    return array("q", sizes) if max(sizes, default=0) < MOST else sizes


def extend(sizes: Sequence[int], more: list[int], times: int) -> Sequence[int]:
    """So many times more of them behind."""
    if isinstance(sizes, array):
        return sizes + array("q", more) * times
    return [*sizes, *more * times]


class Ending(NamedTuple):
    """
    What a run did to an allocator.

    Attributes:
        reserved_bytes, allocated_bytes: The most that was held.
        num_flushes: Requests that found the card full.
        failed_at: Position of the event that could not be served; None if all were.
        held: At a failure: the live storages and the sizes of their blocks.
        allocated_then, reserved_then: At a failure: what was held then.
    """

    reserved_bytes: int
    allocated_bytes: int
    num_flushes: int
    failed_at: int | None = None
    held: tuple[tuple[int, int], ...] = ()
    allocated_then: int = 0
    reserved_then: int = 0


def run(
    program: Program,
    sizes: Sequence[int],
    settings: AllocatorSettings,
    capacity: int | None = None,
    device_bytes: int | None = None,
    *,
    explains: bool = True,
) -> Ending:
    """
    Run every event.

    Args:
        program: The events.
        sizes: Bytes by storage; only what is packed can be run by compiled code.
        settings: What the allocator is told.
        capacity: Bytes that cudaMalloc can give; None for an endless card.
        device_bytes: The card's whole memory, which memory fractions are shares of; None takes `capacity`.
        explains: Whether a failure is to say what was held; telling takes several times as long as the run.
    """
    allocator = CachingAllocator(capacity, settings, device_bytes=device_bytes)
    library = native.library(program.num_events) if allocator.is_plain else None
    if library is not None and isinstance(sizes, array):
        rounded = sizes if allocator.rounds_to_blocks else array("q", map(settings.round_size, sizes))
        found = library.replay(program.packed, program.flushes, rounded, allocator.limits, settings.large_segment_size)
        if found is not None:
            return _ending(found, explains=explains)
    return _run(program, sizes, allocator)


def _ending(found: native.Outcome, *, explains: bool = True) -> Ending:
    if found.failed_at < 0:
        return Ending(found.reserved_peak, found.allocated_peak, found.num_flushes)
    held = tuple((storage, size) for storage, size in enumerate(found.held) if size >= 0) if explains else ()
    return Ending(*found[:4], held, found.allocated, found.reserved)


def _run(program: Program, sizes: Sequence[int], allocator: CachingAllocator) -> Ending:
    """The same in Python, for any settings."""
    live: dict[int, Block] = {}
    reserved = allocated = flushes = begin = 0
    for end in (*program.flushes, len(program.events)):
        found = replay(program.events[begin:end], sizes, allocator, live)
        reserved, allocated = max(reserved, found.peak_reserved_bytes), max(allocated, found.peak_allocated_bytes)
        flushes, live = flushes + found.num_flushes, found.live
        if found.failure is not None and found.failed_at is not None:
            held = tuple((storage, block.size) for storage, block in sorted(live.items()))
            error = found.failure
            return Ending(reserved, allocated, flushes, begin + found.failed_at, held, error.allocated, error.reserved)
        if end < len(program.events):
            allocator.empty_cache()
        begin = end
    return Ending(reserved, allocated, flushes)

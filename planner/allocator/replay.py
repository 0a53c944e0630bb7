"""A recorded or computed sequence of births and deaths, run through an allocator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from planner.allocator.blocks import Block
from planner.allocator.caching import CachingAllocator, OutOfMemory
from planner.value import NamedTuple


class Replay(NamedTuple):
    """
    What a sequence did to an allocator.

    Attributes:
        peak_reserved_bytes, peak_allocated_bytes: The most that was held during the sequence.
        num_flushes: Requests in it that found the card full.
        failed_at: Position of the event that could not be served; None if all were.
        failure: What the allocator said then.
        live: What is alive at the end, or at the failure, by index.
    """

    peak_reserved_bytes: int
    peak_allocated_bytes: int
    num_flushes: int
    failed_at: int | None
    failure: OutOfMemory | None
    live: dict[int, Block]


def replay(
    events: Iterable[int],
    sizes: Sequence[int] | Mapping[int, int],
    allocator: CachingAllocator,
    live: dict[int, Block] | None = None,
) -> Replay:
    """
    Run births and deaths through an allocator, until they end or one cannot be served.

    Args:
        events: An index for a birth, its complement (`~index`) for a death, in order, as `planner.schedule.Tape.events`.
        sizes: Bytes by index.
        allocator: Where; what it holds already stays, and its peaks begin anew.
        live: Blocks that are alive before the first event, by index.
    """
    live = dict(live or {})
    allocate, free = allocator.allocate, allocator.free
    flushes = allocator.num_flushes
    allocator.reset_peaks()
    failed_at = failure = None
    for position, event in enumerate(events):
        if event < 0:
            free(live.pop(~event))
            continue
        try:
            live[event] = allocate(sizes[event])
        except OutOfMemory as error:
            failed_at, failure = position, error
            break
    return Replay(allocator.peak_reserved_bytes, allocator.peak_allocated_bytes, allocator.num_flushes - flushes, failed_at, failure, live)

"""The caching allocator itself: best fit, splitting, merging, and what happens when the card is full."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from planner.allocator.blocks import FREE, LIVE, NOTHING, Block, Memory, Pool, Segment
from planner.allocator.fixed import FixedSegments
from planner.allocator.settings import BLOCK, INTERVALS, SMALL_SEGMENT, SMALL_SIZE, AllocatorSettings
from planner.units import gib, human

if TYPE_CHECKING:
    from planner.allocator.expandable import ExpandableSegments
    from planner.allocator.native import Limits


class OutOfMemory(Exception):
    """
    The card is full, and giving back what was cached did not help.

    Attributes:
        requested: Bytes that were asked for.
        allocated: Bytes of the blocks that were live.
        reserved: Bytes that the allocator held.
        capacity: Bytes that it could have held.
    """

    def __init__(self, requested: int, allocated: int, reserved: int, capacity: int) -> None:
        super().__init__(
            f"tried to allocate {human(requested)} with {gib(allocated)} allocated, {gib(reserved)} reserved and a capacity of "
            f"{gib(capacity)}"
        )
        self.requested = requested
        self.allocated = allocated
        self.reserved = reserved
        self.capacity = capacity


class CachingAllocator:
    """
    One CUDA device's caching allocator, on one stream.

    Args:
        capacity: Bytes that cudaMalloc can give; None for an endless card.
        settings: What PYTORCH_ALLOC_CONF says.
        device_bytes: The card's whole memory, which memory fractions are shares of; None takes `capacity`.

    Attributes:
        settings: As given.
        allocated_bytes: Bytes of live blocks: `torch.cuda.memory_allocated()`.
        requested_bytes: Bytes that were asked for, of the live blocks.
        peak_allocated_bytes, peak_requested_bytes: The most that they have been.
        rounds_to_blocks: Whether sizes are rounded to nothing coarser than 512 bytes.
        num_flushes: Requests that found the card full and made the allocator give cached memory back, whether or not that helped.

    Source:
        torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, DeviceCachingAllocator.
    """

    def __init__(self, capacity: int | None = None, settings: AllocatorSettings | None = None, *, device_bytes: int | None = None) -> None:
        self.settings = settings = settings or AllocatorSettings()
        device_bytes = capacity if device_bytes is None else device_bytes
        self._allowed: int | None = None
        if settings.per_process_memory_fraction < 1 and device_bytes is not None:
            self._allowed = int(settings.per_process_memory_fraction * device_bytes)
        self._memory = Memory(capacity)
        self._fixed: FixedSegments | None = None
        self._expandable: ExpandableSegments | None = None
        if settings.expandable_segments:
            from planner.allocator.expandable import ExpandableSegments

            self._source: FixedSegments | ExpandableSegments = ExpandableSegments(self._memory, device_bytes)
            self._expandable = self._source
        else:
            self._source = self._fixed = FixedSegments(self._memory, settings)
        # should_split: in the large pool more than 1 MiB must remain, unless segments can expand
        large_rest = BLOCK if settings.expandable_segments else SMALL_SIZE + BLOCK
        self._small = Pool(is_large=False, least_rest=BLOCK, page=SMALL_SEGMENT)
        self._large = Pool(is_large=True, least_rest=large_rest, page=settings.large_segment_size)
        self._collects = self._allowed is not None and settings.garbage_collection_threshold > 0
        self.rounds_to_blocks = settings.roundup_power2_divisions == (0,) * INTERVALS
        self._takes_best_fit = settings.max_split_size is None and not settings.expandable_segments
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.requested_bytes = self.peak_requested_bytes = 0
        self.num_flushes = 0

    @property
    def capacity(self) -> int | None:
        """Bytes that can be reserved: what cudaMalloc has, or less under a memory fraction; None on an endless card."""
        limits = [limit for limit in (self._memory.capacity, self._allowed) if limit is not None]
        return min(limits, default=None)

    @property
    def is_plain(self) -> bool:
        """Whether it splits every block and keeps what it caches until the card is full: then compiled code knows what it does."""
        return self.settings.max_split_size is None and not self._collects

    @property
    def limits(self) -> Limits:
        """What compiled code must know of the card."""
        from planner.allocator.native import Limits

        return Limits(self._memory.capacity, self._allowed, None if self._expandable is None else self._expandable.range)

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from cudaMalloc and not given back: `torch.cuda.memory_reserved()`."""
        return self._memory.reserved

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that has been reserved."""
        return self._memory.peak

    def reset_peaks(self) -> None:
        """Let the peaks begin anew at what is held now."""
        self._memory.peak = self._memory.reserved
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes

    def allocate(self, nbytes: int) -> Block:
        """
        Give a block away.

        Args:
            nbytes: Bytes asked for. Zero takes nothing and gives a block of size 0.

        Raises:
            OutOfMemory: The card is full, even after cached memory was given back.
            ValueError: A negative size.

        Source:
            malloc, alloc_found_block, get_free_block, should_split.
        """
        if nbytes <= 0:
            if nbytes:
                raise ValueError(f"nbytes is {nbytes}; it must not be negative")
            return Block(0, 0, LIVE, None, None)
        size = -(-nbytes // BLOCK) * BLOCK if self.rounds_to_blocks else self.settings.round_size(nbytes)
        pool = self._small if size <= SMALL_SIZE else self._large
        free = pool.free
        i = bisect_left(free, (size, -1, NOTHING))
        if not self._takes_best_fit:
            i = self._choose(pool, i, size)
        if self._collects:
            pool.searches += 1
        block = free.pop(i)[2] if i < len(free) else self._grow(pool, size, nbytes)
        rest = block.size - size
        if rest >= pool.least_rest and (self._takes_best_fit or self._may_split(pool, size)):
            following = block.next
            tail = Block(block.address + size, rest, FREE, block, following)
            if following is not None:
                following.previous = tail
            block.next = tail
            block.size = size
            insort(free, (rest, tail.address, tail))
        block.state = LIVE
        block.requested = nbytes
        self.allocated_bytes = allocated = self.allocated_bytes + block.size
        self.requested_bytes = requested = self.requested_bytes + nbytes
        if allocated > self.peak_allocated_bytes:  # noqa: PLR1730 - calling max() would take longer than the search
            self.peak_allocated_bytes = allocated
        if requested > self.peak_requested_bytes:  # noqa: PLR1730 - the same
            self.peak_requested_bytes = requested
        return block

    def free(self, block: Block) -> None:
        """
        Take a block back, and join it with cached neighbours.

        Args:
            block: What `allocate` gave; it must not be used afterwards.

        Raises:
            ValueError: It is free already.

        Source:
            free, free_block, try_merge_blocks.
        """
        size = block.size
        if block.state != LIVE:
            raise ValueError(f"{block!r} is not live; each block is freed once")
        if not size:
            return
        block.state = FREE
        self.allocated_bytes -= size
        self.requested_bytes -= block.requested
        # a live block is above 1 MiB exactly if its pool is the large one
        pool = self._small if size <= SMALL_SIZE else self._large
        free = pool.free
        other = block.next
        if other is not None and other.state == FREE:
            del free[bisect_left(free, (other.size, other.address, other))]
            block.size += other.size
            block.next = following = other.next
            if following is not None:
                following.previous = block
        other = block.previous
        if other is not None and other.state == FREE:
            del free[bisect_left(free, (other.size, other.address, other))]
            other.size += block.size
            other.next = following = block.next
            if following is not None:
                following.previous = other
            block = other
        insort(free, (block.size, block.address, block))
        if self._collects:
            block.freed_at = pool.searches

    def empty_cache(self) -> None:
        """
        Give back what is cached and not part of a segment in use: `torch.cuda.empty_cache()`.

        Source:
            emptyCache, release_cached_blocks.
        """
        self._source.release_all(self._large)
        self._source.release_all(self._small)

    def segments(self) -> tuple[Segment, ...]:
        """Every segment with its blocks: small pool first, each by address."""
        return (*self._small.segments(), *self._large.segments())

    def _choose(self, pool: Pool, i: int, size: int) -> int:
        """The entry to take, if not simply the best fit; one past the last entry for none."""
        free, limit = pool.free, self.settings.max_split_size
        if i == len(free):
            return i
        if self._expandable is not None:
            i = self._expandable.best_fit(pool, i)
        if limit is None:
            return i
        found = free[i][0]
        slack = self.settings.max_non_split_rounding or self.settings.large_segment_size
        too_large = found >= limit if size < limit else found >= size + slack
        return len(free) if too_large else i

    def _may_split(self, pool: Pool, size: int) -> bool:
        limit = self.settings.max_split_size
        return self._expandable is not None or not pool.is_large or limit is None or size < limit

    def _grow(self, pool: Pool, size: int, nbytes: int) -> Block:
        """
        New memory; if there is none, after giving back cached memory: oversize blocks first, then everything.

        Source:
            malloc; alloc_block's check against allowed_memory_maximum.
        """
        fixed, limit = self._fixed, self.settings.max_split_size
        if self._collects and fixed is not None and self._allowed is not None:
            fixed.collect(self._large, self._allowed)
        block = self._obtain(pool, size)
        if block is None:
            self.num_flushes += 1
            if fixed is not None and limit is not None and fixed.release_oversize(pool, size, limit):
                block = self._obtain(pool, size)
        if block is None:
            self.empty_cache()
            block = self._obtain(pool, size)
        if block is None:
            capacity = self.capacity
            assert capacity is not None, "an endless card is never full"
            raise OutOfMemory(nbytes, self.allocated_bytes, self.reserved_bytes, capacity)
        return block

    def _obtain(self, pool: Pool, size: int) -> Block | None:
        if self._allowed is not None and self.reserved_bytes + self.settings.segment_size(size) > self._allowed:
            return None
        return self._source.obtain(pool, size)

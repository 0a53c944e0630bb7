"""Blocks, the pools that they wait in, and the memory that they are cut from."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from planner.value import NamedTuple

LIVE, FREE, UNMAPPED = 0, 1, 2
"""States of a block: given away; cached; addresses without memory behind them (expandable segments only)."""


class Block:
    """
    A stretch of a segment.

    Attributes:
        address: Where it begins.
        size: Its bytes, with what is left of a cached block that was not worth splitting.
        requested: Bytes that were asked for.
        previous, next: Its neighbours in the segment.
        state: LIVE, FREE or UNMAPPED.
        freed_at: Of a cached segment, while garbage is collected: how many requests its pool had seen when it became free.
    """

    __slots__ = ("address", "freed_at", "next", "previous", "requested", "size", "state")
    freed_at: int

    def __init__(self, address: int, size: int, state: int, previous: Block | None, following: Block | None) -> None:
        self.address = address
        self.size = size
        self.state = state
        self.previous = previous
        self.next = following
        self.requested = 0

    def __repr__(self) -> str:
        return f"Block({self.address:#x}, {self.size} bytes, {('live', 'free', 'unmapped')[self.state]})"

    @property
    def is_split(self) -> bool:
        """Whether it is only a part of its segment."""
        return self.previous is not None or self.next is not None


NOTHING = Block(-1, 0, UNMAPPED, None, None)
"""Stands for a block where only a size is searched; no address is below its."""


class Segment(NamedTuple):
    """
    What one cudaMalloc gave, or one unbroken run of mapped pages.

    Attributes:
        address: Where it begins.
        size: Its bytes.
        is_large: Whether it belongs to the pool for allocations above 1 MiB.
        blocks: Of each block in it: address, size, requested bytes (0 for a cached one), whether it is live.
    """

    address: int
    size: int
    is_large: bool
    blocks: tuple[tuple[int, int, int, bool], ...]


class Memory:
    """
    The card's memory, as cudaMalloc sees it.

    Attributes:
        capacity: Bytes that can be had; None for an endless card.
        reserved: Bytes taken and not given back.
        peak: The most that `reserved` has been.
    """

    __slots__ = ("capacity", "peak", "reserved")

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.reserved = self.peak = 0

    def take(self, nbytes: int) -> bool:
        """Take so many bytes; False if they are not there."""
        reserved = self.reserved + nbytes
        if self.capacity is not None and reserved > self.capacity:
            return False
        self.reserved = reserved
        self.peak = max(self.peak, reserved)
        return True

    def give_back(self, nbytes: int) -> None:
        """Give bytes back to the driver."""
        self.reserved -= nbytes


class Pool:
    """
    The segments of the small or the large pool.

    Attributes:
        is_large: Which.
        least_rest: What must remain of a block for it to be split.
        page: Bytes that an expandable segment grows by.
        free: Cached blocks as (size, address, block), in order: the first that is large enough is the best fit.
        unmapped: Stretches of expandable segments without memory, as (address, block), in order.
        heads: The first block of each segment, by its address. A block that is split or absorbs its successor stays itself.
        searches: Requests so far, while garbage is collected.
    """

    __slots__ = ("free", "heads", "is_large", "least_rest", "page", "searches", "unmapped")

    def __init__(self, is_large: bool, least_rest: int, page: int) -> None:
        self.is_large = is_large
        self.least_rest = least_rest
        self.page = page
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []
        self.heads: dict[int, Block] = {}
        self.searches = 0

    def put(self, block: Block) -> None:
        """Cache a block."""
        insort(self.free, (block.size, block.address, block))

    def drop(self, block: Block) -> None:
        """Take a cached block out."""
        del self.free[bisect_left(self.free, (block.size, block.address, block))]

    def smallest(self, size: int) -> int:
        """Where the cached blocks of at least `size` bytes begin."""
        return bisect_left(self.free, (size, -1, NOTHING))

    def segments(self) -> Iterator[Segment]:
        """What the pool holds, by address."""
        for _, head in sorted(self.heads.items()):
            run: list[Block] = []
            block: Block | None = head
            while block is not None:
                if block.state != UNMAPPED:
                    run.append(block)
                elif run:
                    yield self._segment(run)
                    run = []
                block = block.next
            if run:
                yield self._segment(run)

    def _segment(self, run: list[Block]) -> Segment:
        blocks = tuple((b.address, b.size, b.requested if b.state == LIVE else 0, b.state == LIVE) for b in run)
        return Segment(run[0].address, sum(b.size for b in run), self.is_large, blocks)

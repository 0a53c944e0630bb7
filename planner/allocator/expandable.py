"""Expandable segments: a range of addresses a pool, backed by memory page by page where it is needed."""

from __future__ import annotations

from bisect import bisect_left, insort

from planner.allocator.blocks import FREE, LIVE, UNMAPPED, Block, Memory, Pool
from planner.units import round_up

ENDLESS_RANGE = 1 << 46
"""Bytes of addresses on an endless card: more than any run maps."""


class ExpandableSegments:
    """
    Where new memory comes from and cached memory goes, under `expandable_segments:True`.

    Args:
        memory: The card's memory.
        device_bytes: The card's size; a range is an eighth longer, so that pages can move to its end.

    Attributes:
        range: Bytes of addresses of one segment.

    Source:
        c10/cuda/CUDACachingAllocator.cpp, Note [Expandable Segments].
    """

    def __init__(self, memory: Memory, device_bytes: int | None) -> None:
        self.memory = memory
        self.range = ENDLESS_RANGE if device_bytes is None else device_bytes + device_bytes // 8
        self._next_address = 0

    def obtain(self, pool: Pool, size: int) -> Block | None:
        """
        A block of at least `size` bytes that is in no list, from pages mapped at the lowest addresses that have room.

        None if the card is full; what was mapped before it filled up stays mapped.

        Source:
            try_allocate_expandable_block.
        """
        block = self._room(pool, size)
        if block.state == UNMAPPED:
            mapped = self._map(pool, block, min(block.size, size))
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            following = block.next
            assert following is not None
            mapped = self._map(pool, following, min(size - block.size, following.size))
            if mapped is None:
                return None
            block = mapped
        pool.drop(block)
        return block

    def release_all(self, pool: Pool) -> None:
        """
        Give back every page that no live block touches.

        Source:
            release_blocks, unmap_block, ExpandableSegment::unmap.
        """
        for _, _, cached in list(pool.free):
            block = self._unmap(pool, cached)
            if block is not None and not block.is_split:
                self._forget(pool, pool.heads.pop(block.address))

    def best_fit(self, pool: Pool, i: int) -> int:
        """
        Where the search ends that began at entry `i` of the free blocks: one that can still grow counts as large as it can grow.

        Source:
            get_free_block, expandable_size.
        """
        free = pool.free
        while i + 1 < len(free) and _expandable_size(free[i + 1][2]) < _expandable_size(free[i][2]):
            i += 1
        return i

    def _room(self, pool: Pool, size: int) -> Block:
        """
        The first of a row of blocks, cached or unmapped, of `size` bytes of addresses; a new range if there is none.

        Source:
            find_expandable_block.
        """
        for _, block in pool.unmapped:
            first = block
            if block.previous is not None and block.previous.state != LIVE:
                first = block.previous
            if _has_room(first, size):
                return first
        address = round_up(self._next_address + pool.page, pool.page)
        nbytes = round_up(max(self.range, size), pool.page)
        self._next_address = address + nbytes
        head = pool.heads[address] = Block(address, nbytes, UNMAPPED, None, None)
        insort(pool.unmapped, (address, head))
        return head

    def _map(self, pool: Pool, block: Block, size: int) -> Block | None:
        """
        Put memory behind the first `size` bytes of an unmapped block, in whole pages.

        Returns:
            The cached block that they are now part of; None if the card is full.

        Source:
            map_block, ExpandableSegment::map.
        """
        nbytes = round_up(size, pool.page)
        if not self.memory.take(nbytes):
            return None
        self._forget(pool, block)
        if nbytes < block.size:
            _cut(block, nbytes, UNMAPPED)
            self._remember(pool, block.next)
        block.state = FREE
        return _merge(pool, block)

    def _unmap(self, pool: Pool, block: Block) -> Block | None:
        """Take the memory from behind the whole pages of a cached block; returns the unmapped block that they are now part of."""
        begin = round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if begin >= end:
            return None
        pool.drop(block)
        if end < block.address + block.size:
            pool.put(_cut(block, end - block.address, FREE))
        if begin > block.address:
            tail = _cut(block, begin - block.address, FREE)
            pool.put(block)
            block = tail
        block.state = UNMAPPED
        self.memory.give_back(end - begin)
        following, previous = block.next, block.previous
        if following is not None and following.state == UNMAPPED:
            self._forget(pool, following)
            _absorb(block)
        if previous is not None and previous.state == UNMAPPED:
            _absorb(previous)
            return previous
        self._remember(pool, block)
        return block

    def _remember(self, pool: Pool, block: Block | None) -> None:
        assert block is not None
        insort(pool.unmapped, (block.address, block))

    def _forget(self, pool: Pool, block: Block) -> None:
        del pool.unmapped[bisect_left(pool.unmapped, (block.address, block))]


def _expandable_size(block: Block) -> int:
    following = block.next
    return block.size + (following.size if following is not None and following.state == UNMAPPED else 0)


def _has_room(block: Block | None, size: int) -> bool:
    room = 0
    while room < size and block is not None and block.state != LIVE:
        room += block.size
        block = block.next
    return room >= size


def _merge(pool: Pool, block: Block) -> Block:
    """Cache a block, joined with cached neighbours."""
    following, previous = block.next, block.previous
    if following is not None and following.state == FREE:
        pool.drop(following)
        _absorb(block)
    if previous is not None and previous.state == FREE:
        pool.drop(previous)
        _absorb(previous)
        block = previous
    pool.put(block)
    return block


def _absorb(block: Block) -> None:
    """A block takes its successor in."""
    gone = block.next
    assert gone is not None
    block.size += gone.size
    block.next = gone.next
    if gone.next is not None:
        gone.next.previous = block


def _cut(block: Block, size: int, state: int) -> Block:
    """Keep `size` bytes of a block; returns what follows them, in the given state."""
    tail = Block(block.address + size, block.size - size, state, block, block.next)
    if block.next is not None:
        block.next.previous = tail
    block.next = tail
    block.size = size
    return tail

"""Segments as cudaMalloc gives them: each of a fixed size, given back as a whole."""

from __future__ import annotations

from planner.allocator.blocks import FREE, Block, Memory, Pool
from planner.allocator.settings import AllocatorSettings

TOP = 1 << 47
"""Where user addresses end on x86-64."""


class FixedSegments:
    """
    Where new memory comes from and cached memory goes, without expandable segments.

    Each segment lies below the one before, since the driver takes ranges from the top of the address space down, as mmap does.
    Addresses only decide between cached blocks of one size, but the choice can cost a whole activation later: of forty published
    runs on a T4, the twenty over a 16-bit base reserve what was measured to within 8 MiB if addresses fall; if they grow, eight
    are 46 to 512 MiB off. A range that was given back is not handed out again.

    Args:
        memory: The card's memory.
        settings: The allocator's settings.
    """

    def __init__(self, memory: Memory, settings: AllocatorSettings) -> None:
        self.memory = memory
        self.settings = settings
        self._lowest = TOP

    def obtain(self, pool: Pool, size: int) -> Block | None:
        """
        A new segment that holds `size` bytes, as one block that is in no list; None if the card is full.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, alloc_block.
        """
        nbytes = self.settings.segment_size(size)
        if not self.memory.take(nbytes):
            return None
        self._lowest -= nbytes
        block = pool.heads[self._lowest] = Block(self._lowest, nbytes, FREE, None, None)
        return block

    def release_all(self, pool: Pool) -> None:
        """
        Give every segment back that is wholly cached.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, release_blocks.
        """
        for _, _, block in [entry for entry in pool.free if not entry[2].is_split]:
            self._release(pool, block)

    def release_oversize(self, pool: Pool, size: int, oversize: int) -> bool:
        """
        Give back the smallest cached block of at least `size` and `oversize` bytes, else the largest until they add up to that.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, release_available_cached_blocks.
        """
        target = max(size, oversize)
        i = pool.smallest(target)
        if i < len(pool.free):
            self._release(pool, pool.free[i][2])
            return True
        released = 0
        while released < target and pool.free and pool.free[-1][0] >= oversize:
            released += pool.free[-1][0]
            self._release(pool, pool.free[-1][2])
        return released >= target

    def collect(self, pool: Pool, allowed: int) -> None:
        """
        Give back the cached segments that have waited longer than the average, until what is reserved is below the threshold.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, garbage_collect_cached_blocks.
        """
        threshold = int(self.settings.garbage_collection_threshold * allowed)
        waiting = [(pool.searches - block.freed_at, block) for _, _, block in pool.free if not block.is_split]
        while self.memory.reserved > threshold and waiting:
            total, count = sum(age for age, _ in waiting), len(waiting)
            for age, block in waiting:
                if age * count >= total:
                    self._release(pool, block)
            waiting = [(age, block) for age, block in waiting if age * count < total]

    def _release(self, pool: Pool, block: Block) -> None:
        """Source: release_block."""
        pool.drop(block)
        del pool.heads[block.address]
        self.memory.give_back(block.size)

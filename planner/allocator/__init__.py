"""
PyTorch's CUDA caching allocator, simulated: what a sequence of allocations and frees makes it reserve, and where it fails.

    allocator = CachingAllocator(capacity=16 << 30, settings=AllocatorSettings.parse("expandable_segments:True"))
    block = allocator.allocate(3 << 20)
    allocator.free(block)
    allocator.reserved_bytes                        # what cudaMalloc has given and has not got back

`planner.allocator.program` runs a whole run at once, compiled where there is a compiler.

One device, one stream, no CUDA graphs: every free takes effect at once.
"""

from planner.allocator.blocks import Block, Segment
from planner.allocator.caching import CachingAllocator, OutOfMemory
from planner.allocator.replay import Replay, replay
from planner.allocator.settings import AllocatorSettings

__all__ = ["AllocatorSettings", "Block", "CachingAllocator", "OutOfMemory", "Replay", "Segment", "replay"]

"""Tensors by name and size, and the blocks in which the CUDA caching allocator hands them out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce

from planner.dtypes import DType
from planner.units import MIB, round_up
from planner.value import NamedTuple

# c10/core/AllocatorConfig.h (torch 2.13.0): kMinBlockSize, kSmallSize, kMinLargeAlloc, kLargeBuffer, kRoundLarge.
BLOCK_BYTES = 512
SMALL_LIMIT_BYTES = MIB
LARGE_LIMIT_BYTES = 10 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
SEGMENT_ROUNDING_BYTES = 2 * MIB


class TensorBytes(NamedTuple):
    """
    One tensor, or several of one size.

    Attributes:
        name: As the library that makes it calls it.
        nbytes: Bytes of its storage, not rounded.
        times: How many there are.
    """

    name: str
    nbytes: int
    times: int = 1

    @property
    def allocated(self) -> int:
        """Bytes of the blocks that hold it, one for each."""
        return self.times * allocated(self.nbytes)


class TensorShape(NamedTuple):
    """
    One tensor whose type is not decided yet.

    Attributes:
        name: As the library that makes it calls it.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    def in_dtype(self, dtype: DType) -> TensorBytes:
        """Its bytes in a type."""
        return TensorBytes(self.name, self.numel * dtype.num_bytes)


Tensors = tuple[TensorBytes, ...]
"""Tensors that are alive together."""

Moments = tuple[Tensors, ...]
"""What is alive at each point of an operation, in their order; the operation's own inputs and outputs left out."""


def allocated(nbytes: int) -> int:
    """
    Bytes of the block that the caching allocator gives for a request, at least: rounded up to 512; nothing for nothing.

    A block of the large pool can be larger by up to 1 MiB that the allocator does not split off (`block_of_new_segment`).

    Args:
        nbytes: Requested bytes; an integer or an integer array.

    Source:
        torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, round_size; a storage of zero bytes never reaches the allocator.
    """
    return round_up(nbytes, BLOCK_BYTES)


def total_bytes(tensors: Iterable[TensorBytes]) -> int:
    """Bytes of all the tensors, not rounded."""
    return sum(tensor.times * tensor.nbytes for tensor in tensors)


def total_allocated(tensors: Iterable[TensorBytes]) -> int:
    """Bytes of the blocks that hold the tensors, each rounded by itself."""
    return sum(tensor.allocated for tensor in tensors)


def in_dtype(tensors: Sequence[TensorShape], dtype: DType) -> Tensors:
    """The tensors' bytes, all in one type."""
    return tuple(tensor.in_dtype(dtype) for tensor in tensors)


def larger(a: int, b: int) -> int:
    """The larger of two sizes. Works for integers and for integer arrays."""
    return a + (b - a) * (b > a)


def smaller(a: int, b: int) -> int:
    """The smaller of two sizes. Works for integers and for integer arrays."""
    return a + (b - a) * (b < a)


def largest(sizes: Iterable[int]) -> int:
    """The largest of sizes, 0 of none. Works for integers and for integer arrays."""
    return reduce(larger, sizes, 0)


def segment_bytes(nbytes: int) -> int:
    """
    Bytes that the allocator asks the driver for when no cached block serves a request.

    Args:
        nbytes: Requested bytes, more than none; an integer.

    Returns:
        2 MiB for requests up to 1 MiB, 20 MiB below 10 MiB, else the request rounded up to 2 MiB.

    Source:
        torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, get_allocation_size.
    """
    size = allocated(nbytes)
    if size <= SMALL_LIMIT_BYTES:
        return SEGMENT_ROUNDING_BYTES
    return LARGE_SEGMENT_BYTES if size < LARGE_LIMIT_BYTES else round_up(size, SEGMENT_ROUNDING_BYTES)


def block_of_new_segment(nbytes: int) -> int:
    """
    Bytes that count as allocated for a request that opens a segment of its own.

    The remainder of a large segment is split off only where it is more than 1 MiB; otherwise the whole segment is the block.

    Args:
        nbytes: Requested bytes, more than none; an integer.

    Source:
        torch@2.13.0, c10/cuda/CUDACachingAllocator.cpp, should_split.
    """
    size, segment = allocated(nbytes), segment_bytes(nbytes)
    if size <= SMALL_LIMIT_BYTES:
        return size
    return size if segment - size > SMALL_LIMIT_BYTES else segment

"""The allocator's blocks, against the rules as PyTorch documents them and against a replay of recorded requests."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.dtypes import DType
from planner.formulas.blocks import (
    TensorBytes,
    TensorShape,
    allocated,
    block_of_new_segment,
    in_dtype,
    segment_bytes,
    total_allocated,
    total_bytes,
)
from planner.units import MIB


@given(st.integers(0, 1 << 40))
def test_a_block_is_the_smallest_multiple_of_512_that_holds_the_request(nbytes: int) -> None:
    """Rounded up, by less than one block."""
    block = allocated(nbytes)

    assert block % 512 == 0
    assert 0 <= block - nbytes < 512


def test_blocks_of_an_array_are_the_blocks_of_its_elements() -> None:
    """The same formula answers one size and a grid of them."""
    sizes = np.array([0, 1, 511, 512, 513, 1 << 33])

    assert allocated(sizes).tolist() == [allocated(int(size)) for size in sizes]


def test_every_tensor_is_rounded_by_itself() -> None:
    """Two scalars take two blocks."""
    scalars = (TensorBytes("a", 4), TensorBytes("b", 4))

    assert total_bytes(scalars) == 8
    assert total_allocated(scalars) == 1024
    assert [tensor.allocated for tensor in scalars] == [512, 512]
    assert total_bytes([TensorBytes("a", 4, times=2)]) == 8
    assert total_allocated([TensorBytes("a", 4, times=2)]) == 1024


def test_shapes_become_bytes_in_a_type() -> None:
    """A shape has elements; a type gives them bytes."""
    assert in_dtype((TensorShape("w", (3, 5)),), DType.BF16) == (TensorBytes("w", 30),)
    assert TensorShape("scalar", ()).numel == 1


def test_segments_follow_the_allocators_table() -> None:
    """2 MiB for small requests, 20 MiB up to 10 MiB, then multiples of 2 MiB."""
    expected = {1: 2 * MIB, MIB: 2 * MIB, MIB + 1: 20 * MIB, 10 * MIB - 512: 20 * MIB, 10 * MIB: 10 * MIB, 10 * MIB + 1: 12 * MIB}

    assert {size: segment_bytes(size) for size in expected} == expected


def test_a_remainder_of_at_most_1_mib_stays_with_its_large_block() -> None:
    """A request of 11 MiB opens 12 MiB: 1 MiB is not split off; of 10.5 MiB, 1.5 MiB is."""
    assert block_of_new_segment(11 * MIB) == 12 * MIB
    assert block_of_new_segment(10 * MIB + MIB // 2) == 10 * MIB + MIB // 2
    assert block_of_new_segment(2 * MIB - 512) == 2 * MIB - 512
    assert block_of_new_segment(4) == 512

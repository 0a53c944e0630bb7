"""The provisional figures: each has a range and a source, and the published runs are what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formulas.runtime import RESERVE_HIGH, RESERVE_LOW, allocator_reserve, cuda_context
from planner.units import MIB

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/measurements/dev.jsonl"


@pytest.mark.parametrize("capability", [(6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0), None])
def test_every_context_has_a_range_and_a_source(capability: tuple[int, int] | None) -> None:
    """Planned inside its range, and said where from."""
    context = cuda_context(capability)

    assert 100 * MIB < context.low <= context.nbytes <= context.high < 1024 * MIB
    assert context.nbytes + context.error_bytes == context.high
    assert context.source


def test_the_t4_context_is_the_published_one() -> None:
    """All published T4 runs have one context size, and it is planned with."""
    if not PUBLISHED.exists():
        pytest.skip("the published measurements are not beside this repository")
    runs = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    contexts = {run["measured"]["context_bytes"] for run in runs if run["gpu"] == "Tesla T4"}

    assert contexts == {cuda_context((7, 5)).nbytes}


@given(st.integers(1, 1 << 42))
def test_reserved_is_whole_segments_inside_the_range(allocated_bytes: int) -> None:
    """Allocated and reserve make a multiple of 2 MiB, 3.2 to 6.0 % above allocated up to that rounding."""
    reserve = allocator_reserve(allocated_bytes)

    assert (allocated_bytes + reserve.nbytes) % (2 * MIB) == 0
    assert reserve.low <= reserve.nbytes <= reserve.high
    assert 0 <= reserve.low * 1000 - allocated_bytes * RESERVE_LOW < 1000 * (2 * MIB + 1)
    assert 0 <= reserve.high * 1000 - allocated_bytes * RESERVE_HIGH < 1000 * (2 * MIB + 1)

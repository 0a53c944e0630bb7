"""Whether it fits, and from allocated bytes to the process."""

from __future__ import annotations

import pytest

from planner import verdict
from planner.device import Device
from planner.formulas import runtime
from planner.units import GIB


def card(total: int, used: int = 0) -> Device:
    """A card of a size."""
    return Device("card", total, (8, 0), used_bytes=used)


def test_process_is_allocated_with_reserve_and_context():
    """The three levels differ by the provisional terms, and by nothing else."""
    found = verdict.sizes(40 * GIB, card(80 * GIB))
    reserve, context = runtime.allocator_reserve(40 * GIB), runtime.cuda_context((8, 0))

    assert found.reserved_bytes - found.allocated_bytes == reserve.nbytes
    assert found.process_bytes - found.reserved_bytes == context.nbytes == found.context_bytes


def test_the_error_is_one_percent_and_the_uncertainty_of_the_provisional_terms():
    """The stated error is made of what is stated."""
    allocated = 40 * GIB
    reserve, context = runtime.allocator_reserve(allocated), runtime.cuda_context((9, 0))
    found = verdict.sizes(allocated, Device("card", 80 * GIB, (9, 0)))

    assert found.error_bytes == -(-allocated // 100) + reserve.error_bytes + context.error_bytes


@pytest.mark.parametrize(
    ("spare", "outcome"),
    [(-1, "does_not_fit"), (0, "tight"), (99, "tight"), (100, "fits")],
)
def test_the_outcome_turns_at_the_edge_and_at_the_error(spare, outcome):
    """One byte too much does not fit; less than the error to spare is tight."""
    needed = verdict.Sizes(allocated_bytes=800, reserved_bytes=900, process_bytes=1000, context_bytes=100, error_bytes=100)
    found = verdict.judge(needed, card(1000 + spare), "backward")

    assert found.outcome == outcome
    assert found.headroom_bytes == spare
    assert found.required_bytes + found.headroom_bytes == found.budget_bytes
    assert found.fits == (outcome != "does_not_fit")


def test_what_others_hold_is_not_ours():
    """The budget is the card less what other processes use, and never negative."""
    assert verdict.budget_bytes(card(100, used=30)) == 70
    assert verdict.budget_bytes(card(100, used=130)) == 0

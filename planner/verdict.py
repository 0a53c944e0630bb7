"""Whether a run fits a card: what the process needs against what the card has left."""

from __future__ import annotations

from typing import NamedTuple

from planner.device import Device
from planner.formulas import runtime
from planner.report import Outcome, Verdict
from planner.units import ceil_div

# The stated error of the closed form at the allocated level: its worst case over the matrix that the tests hold against the
# traced oracle, and over the published runs.
ERROR_PERCENT = 1


class Sizes(NamedTuple):
    """
    The same peak at the three levels that a user can observe.

    Attributes:
        allocated_bytes: Blocks in use: what `torch.cuda.max_memory_allocated()` says.
        reserved_bytes: With what the caching allocator holds beyond them. Provisional: a stated share, not yet a simulation.
        process_bytes: With the CUDA context and libraries: what nvidia-smi shows. Provisional as well.
        context_bytes: The last step's difference.
        error_bytes: The stated error of `process_bytes`.
    """

    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int
    context_bytes: int
    error_bytes: int


def sizes(allocated_bytes: int, device: Device | None) -> Sizes:
    """
    From allocated bytes to what the process holds.

    The error adds up: 1 % of the allocated bytes (the closed form's), and the uncertainty of each provisional term.

    Args:
        allocated_bytes: The peak of allocated blocks.
        device: The card, or None for a card like most.
    """
    reserve = runtime.allocator_reserve(allocated_bytes)
    context = runtime.cuda_context(device.compute_capability if device else None)
    reserved = allocated_bytes + reserve.nbytes
    return Sizes(
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved,
        process_bytes=reserved + context.nbytes,
        context_bytes=context.nbytes,
        error_bytes=ceil_div(allocated_bytes * ERROR_PERCENT, 100) + reserve.error_bytes + context.error_bytes,
    )


def budget_bytes(device: Device) -> int:
    """Bytes of the card that this process may have: all of it, less what others hold now."""
    return max(device.total_bytes - device.used_bytes, 0)


def judge(needed: Sizes, device: Device, binding_phase: str) -> Verdict:
    """
    The verdict of one card.

    `tight` is a fit by less than the stated error: it may well run, and it may not.

    Args:
        needed: What the run needs.
        device: The card.
        binding_phase: The phase that needs the most.
    """
    budget = budget_bytes(device)
    headroom = budget - needed.process_bytes
    outcome: Outcome = "does_not_fit" if headroom < 0 else "tight" if headroom < needed.error_bytes else "fits"
    return Verdict(
        outcome=outcome,
        required_bytes=needed.process_bytes,
        budget_bytes=budget,
        headroom_bytes=headroom,
        binding_phase=binding_phase,
        error_bytes=needed.error_bytes,
    )

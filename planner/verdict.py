"""
Whether a run fits a card: decided by running it through the allocator on what the card has for tensors.

The run is simulated when somebody asks. Sweeps that are told not to simulate have an outlook: what a usual reserve would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.accuracy import accuracy_of
from planner.device import Device
from planner.formulas import runtime
from planner.report import Held, Outcome, Verdict
from planner.units import ceil_div

if TYPE_CHECKING:
    from planner.simulation import Simulation

_AMPERE = (8, 0)


def context_of(device: Device | None) -> runtime.Estimate:
    """Bytes of the CUDA context on a card, or on one like most; where it was measured there, that."""
    if device is not None and device.own is not None:
        nbytes = device.own.context_bytes
        return runtime.Estimate(nbytes, nbytes, nbytes, f"measured on this card, {device.own.measured}")
    return runtime.cuda_context(device.compute_capability if device else None)


def reserve_of(allocated_bytes: int, device: Device | None) -> runtime.Estimate:
    """What the allocator usually reserves beyond an allocated peak; where it was measured on the card, that share."""
    if device is None or device.own is None or device.own.reserve_per_mille is None:
        return runtime.allocator_reserve(allocated_bytes)
    nbytes = ceil_div(allocated_bytes * device.own.reserve_per_mille, 1000)
    return runtime.Estimate(nbytes, nbytes, nbytes, f"measured on this card, {device.own.measured}")


def budget_bytes(device: Device) -> int:
    """Bytes of the card that this process may have: all of it, less what others hold now."""
    return max(device.total_bytes - device.used_bytes, 0)


def usable_bytes(device: Device) -> int:
    """What of that is left for tensors, once the context is there."""
    return max(budget_bytes(device) - context_of(device).nbytes, 0)


def held(simulations: Sequence[Simulation], device: Device | None) -> Held:
    """
    What a run holds at its peak: on the card if it runs there, else where there is room.

    Args:
        simulations: The run; after it the same in other orders of loading, where the stack leaves that to chance.
        device: The card; None for one without end.
    """
    reserved = [_reserved(simulation, device) for simulation in simulations]
    return Held(reserved[0], reserved[0] + context_of(device).nbytes, min(reserved), max(reserved))


def judge(simulations: Sequence[Simulation], device: Device, binding_phase: str, engine: str, *, explains: bool = True) -> Verdict:
    """
    The verdict of one card.

    Args:
        simulations: As for `held`.
        device: The card.
        binding_phase: The phase that allocates the most.
        engine: Whose history it is: its stated error.
        explains: Whether to look for the way out where it does not run at once: expandable segments.
    """
    main, usable, total = simulations[0], usable_bytes(device), device.total_bytes
    trial = main.on(usable, total)
    context, accuracy = context_of(device), accuracy_of(engine)
    required = _reserved(main, device) + context.nbytes
    unexplained = accuracy.process_bytes if device.compute_capability >= _AMPERE else 0
    error = accuracy.error_bytes(required - context.nbytes, max(context.error_bytes, unexplained))
    headroom = budget_bytes(device) - required
    outcome: Outcome = "fits"
    if not trial.runs:
        outcome = "does_not_fit"
    elif trial.num_flushes or headroom < error or not all(other.fits(usable, total) for other in simulations[1:]):
        outcome = "tight"
    is_rescued = None
    if explains and (trial.num_flushes or not trial.runs) and not main.settings.expandable_segments:
        is_rescued = main.on(usable, total, expandable=True).runs
    return Verdict(
        outcome=outcome,
        required_bytes=required,
        budget_bytes=budget_bytes(device),
        headroom_bytes=headroom,
        binding_phase=binding_phase,
        error_bytes=error,
        num_flushes=trial.num_flushes,
        failure=trial.failure,
        runs_with_expandable_segments=is_rescued,
    )


def outcome_of(simulations: Sequence[Simulation], device: Device, engine: str) -> Outcome:
    """
    The outcome that `judge` finds. Where more is allocated at once than the card has, that takes no run on the card: it cannot end well.

    Args:
        simulations: As for `held`.
        device: The card.
        engine: Whose history it is: its stated error.
    """
    if not simulations[0].fits(usable_bytes(device), device.total_bytes):
        return "does_not_fit"
    return judge(simulations, device, "", engine, explains=False).outcome


def _reserved(simulation: Simulation, device: Device | None) -> int:
    if device is not None:
        trial = simulation.on(usable_bytes(device), device.total_bytes)
        if trial.runs:
            return trial.reserved_bytes
    return simulation.endless.reserved_bytes


def outlook(allocated_bytes: int, device: Device, binding_phase: str, engine: str) -> Verdict:
    """
    What to expect of a card, without a simulation: allocated bytes, a usual reserve and the context.

    `tight` where the room left is less than how far that may be off.

    Args:
        allocated_bytes: The peak of allocated blocks.
        device: The card.
        binding_phase: The phase that it falls in.
        engine: Whose peak it is.
    """
    reserve, context = reserve_of(allocated_bytes, device), context_of(device)
    required = allocated_bytes + reserve.nbytes + context.nbytes
    error = ceil_div(allocated_bytes * accuracy_of(engine).allocated, 10_000) + reserve.error_bytes + context.error_bytes
    headroom = budget_bytes(device) - required
    # more than the card has is allocated at once: no reserve decides that
    lacks = allocated_bytes > usable_bytes(device)
    outcome: Outcome = "does_not_fit" if lacks else "tight" if headroom < error else "fits"
    return Verdict(outcome, required, budget_bytes(device), headroom, binding_phase, error)

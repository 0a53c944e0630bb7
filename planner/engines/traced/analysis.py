"""A trace as an engine's answer: unrolled, with its books kept."""

from __future__ import annotations

from planner.accuracy import EXTRAPOLATED_PERCENT
from planner.bookkeeping import keep_books, keep_exact_books, resting_bytes, steady_bytes
from planner.device import Device
from planner.engines.analysis import Analysis, host_ram
from planner.engines.traced.run import DEFAULT_CAPABILITY, Progress, Trace, trace_run
from planner.history import History
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Stack, behaviours
from planner.unrolling import NotRepeatable, unroll_history


def analyse(
    spec: ModelSpec,
    recipe: Recipe,
    stack: Stack,
    device: Device | None = None,
    *,
    every_layer: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """
    The memory of a fine-tuning run, by the code of the installed libraries.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe.
        stack: The versions that are installed.
        device: The card, for the kernels and workspaces it would use.
        every_layer: Whether to run all layers, whatever repeats.
        progress: Is told what the trace is at.

    Raises:
        UnavailableError: torch cannot trace here.
        UnsupportedModelError: The model cannot be built, or an operation of it cannot be followed.
    """
    trace, history = _whole(spec, recipe, stack, device, every_layer=every_layer, progress=progress)
    ledger = keep_books("traced", history)
    known = behaviours(stack, recipe)
    capability = device.compute_capability if device else DEFAULT_CAPABILITY
    return Analysis(
        ledger=ledger,
        steady_bytes=steady_bytes(ledger),
        resting_bytes=resting_bytes(ledger),
        num_quantized_parameters=trace.num_quantized_parameters,
        num_trainable_parameters=trace.num_trainable_parameters,
        paged_bytes=trace.paged_bytes,
        host_ram_bytes=host_ram(spec, recipe, known),
        download_bytes=spec.num_parameters * spec.dtype.num_bytes,
        run_key=("traced", capability, device.own if device else None),
        reading="in_turn",
        _write=lambda _: history,
        warnings=_warnings(trace),
    )


def _whole(
    spec: ModelSpec, recipe: Recipe, stack: Stack, device: Device | None, *, every_layer: bool, progress: Progress | None
) -> tuple[Trace, History]:
    """A trace and its history at full depth; what does not repeat as its layers promise is run whole."""
    trace = trace_run(spec, recipe, stack, device, every_layer=every_layer, progress=progress)
    try:
        return trace, unroll_history(trace.history)
    except NotRepeatable:
        trace = trace_run(spec, recipe, stack, device, every_layer=True, progress=progress)
        return trace, trace.history


def _warnings(trace: Trace) -> tuple[str, ...]:
    if trace.num_layers == trace.whole_layers:
        return ()
    some = f"traced {trace.num_layers} of {trace.whole_layers} layers; the others repeat them"
    return (f"{some} (off full traces by {EXTRAPOLATED_PERCENT} % at most)",)


def analyse_on_cpu(
    spec: ModelSpec, recipe: Recipe, stack: Stack, *, every_layer: bool = False, progress: Progress | None = None
) -> Analysis:
    """
    The memory of the same run on the CPU: its kernels, its autocast, tensors of the very bytes that they have.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe.
        stack: The versions that are installed.
        every_layer: Whether to run all layers, whatever repeats.
        progress: Is told what the trace is at.

    Raises:
        UnavailableError: torch cannot trace here.
        UnsupportedModelError: The model cannot be built, or an operation of it cannot be followed.
    """
    trace = trace_run(spec, recipe, stack, every_layer=every_layer, progress=progress, on_cpu=True)
    try:
        history = unroll_history(trace.history)
    except NotRepeatable:
        trace = trace_run(spec, recipe, stack, every_layer=True, progress=progress, on_cpu=True)
        history = trace.history
    ledger = keep_exact_books("traced", history)
    return Analysis(
        ledger=ledger,
        steady_bytes=steady_bytes(ledger),
        resting_bytes=resting_bytes(ledger),
        num_quantized_parameters=trace.num_quantized_parameters,
        num_trainable_parameters=trace.num_trainable_parameters,
        paged_bytes=trace.paged_bytes,
        host_ram_bytes=ledger.high[1],
        download_bytes=spec.num_parameters * spec.dtype.num_bytes,
        run_key=("traced", "cpu"),
        reading="in_turn",
        _write=lambda _: history,
        warnings=_warnings(trace),
    )

"""`verify`: the run that is planned, done for real in a child process, measured, and laid beside what the planner says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner import api, stack
from planner.bookkeeping import keep_books, keep_exact_books, steady_bytes
from planner.engines.installed import traced_engine
from planner.errors import InvalidRecipeError, QplanError
from planner.history import History
from planner.job import Job, phase_reports
from planner.measuring import TIMEOUT_S, Order, Progress, check_timeout, ordered, run_child
from planner.recipe import Recipe
from planner.report import ModelReport, PhaseReport
from planner.spec import ModelSpec
from planner.value import replace
from planner.verification import Apart, Side, Verification, failure_of

if TYPE_CHECKING:
    from planner.device import Device
    from planner.engines.analysis import Analysis


def verify(
    model: api.Model,
    *,
    weights: str = "synthetic",
    steps: int = 2,
    device: str = "auto",
    timeout: float = TIMEOUT_S,
    ceiling: int | None = None,
    revision: str | None = None,
    every_layer: bool = False,
    record: bool = True,
    progress: Progress | None = None,
    **knobs: Any,
) -> Verification:
    """
    Run real training steps here, measure their memory, and compare it with the plan.

    Args:
        model: As for `estimate`.
        weights: `synthetic`: made on the device, nothing is downloaded; `hub`: the real checkpoint; or a folder that has it.
        steps: Measured steps, after one that warms up.
        device: `auto` (the first card), `cuda`, `cuda:N`, or `cpu`.
        timeout: Seconds after which the run is ended.
        ceiling: On the CPU: bytes that may be alive; more is an out-of-memory error, as a card would give it. None: no end.
        revision: Branch, tag or commit of a Hub id.
        every_layer: Whether the prediction traces all layers rather than three of what repeats.
        record: Whether to keep a record of it on this machine (`qplan records`).
        progress: Is told what goes on.
        knobs: Fields of `Recipe`.

    Returns:
        Measured beside predicted. A run that ends for want of memory is a result: `failure` says where.

    Raises:
        MeasurementError: The child died, hung, or trained nothing.
        UnavailableError: There is no card, and `device` is not `cpu`; or the libraries are not installed.
        QplanError: The request is wrong.
    """
    if type(steps) is not int or steps < 1:
        raise InvalidRecipeError(f"steps is {steps!r}; it must be a whole number from 1 on")
    check_timeout(timeout)
    order = ordered(model, knobs, weights=weights, device=device, ceiling=ceiling, revision=revision)
    spec, recipe, versions, card, where = order.spec, order.recipe, order.stack, order.card, order.where
    whole = every_layer or card is None  # on the CPU models are small, and nothing need be extrapolated
    predicted = predict(spec, recipe, versions, card, every_layer=whole, progress=progress)
    began = time.monotonic()
    last = run_child(order.job(steps), timeout=timeout, progress=progress)
    seconds = time.monotonic() - began
    result = last.get("result", {})
    measured = measured_side(result, on_cpu=where == "cpu") if result else None
    counts = (measured or predicted).num_quantized_parameters, (measured or predicted).num_trainable_parameters
    found = Verification(
        model=ModelReport(spec.id, spec.model_type, spec.source, spec.num_parameters, *counts),
        recipe=recipe.model_dump(),
        stack={**versions.versions, "source": versions.source},
        device="cpu" if card is None else card.name,
        weights=weights if weights in ("synthetic", "hub") else "folder",
        measured=measured,
        predicted=predicted,
        losses=tuple(result.get("losses", ())),
        apart=Apart(**result.get("apart", {})),
        failure=failure_of(last["out_of_memory"]) if "out_of_memory" in last else None,
        environment=_environment(card, result),
        notes=_notes(where, weights, result),
        seconds=seconds,
    )
    return keep(found, order) if record and measured is not None else found


def keep(found: Verification, order: Order) -> Verification:
    """
    A record of a verification, and what is the card's own, kept on this machine; what cannot be kept is told in a note, not lost.

    Args:
        found: What was measured and predicted.
        order: What was asked for.
    """
    from planner.keeping import keep as kept

    try:
        kept(found, order.spec, order.recipe, order.stack, order.card, driver=found.environment.get("driver"))
    except QplanError as error:
        return replace(found, notes=(*found.notes, f"no record was kept: {error.message}"))
    return found


def predict(
    spec: ModelSpec,
    recipe: Recipe,
    versions: stack.Stack,
    card: Device | None,
    *,
    every_layer: bool = False,
    progress: Progress | None = None,
) -> Side:
    """
    What the traced engine says of the run, on a card or on the CPU.

    Args:
        spec: The model.
        recipe: The resolved recipe.
        versions: The installed libraries.
        card: The card; None for the CPU.
        every_layer: Whether all layers are traced.
        progress: Is told what the trace is at.
    """
    engine = traced_engine(None, progress)
    if card is None:
        found: Analysis = engine.analyse_on_cpu(spec, recipe, versions, every_layer=every_layer, progress=progress)
        reserved = process = None
    else:
        job = Job(spec, recipe, versions, engine="traced", progress=progress, every_layer=every_layer)
        report, found = job.report(card), job.analysis(card)
        reserved, process = report.peak.reserved_bytes, report.peak.process_bytes
    return Side(
        engine="traced",
        ledger=found.ledger,
        phases=phase_reports(found.ledger),
        steady_bytes=found.steady_bytes,
        num_quantized_parameters=found.num_quantized_parameters,
        num_trainable_parameters=found.num_trainable_parameters,
        paged_bytes=found.paged_bytes,
        reserved_bytes=reserved,
        process_bytes=process,
    )


def measured_side(result: Mapping[str, Any], *, on_cpu: bool) -> Side:
    """What a child measured; its books are balanced against the card's own counters where there are any."""
    history = History.parse(result["history"])
    ledger = keep_exact_books("measured", history) if on_cpu else keep_books("measured", history)
    counters: dict[str, dict[str, int]] = result.get("counters", {})
    phases = phase_reports(ledger) if on_cpu else _counted(phase_reports(ledger), counters)
    return Side(
        engine="measured",
        ledger=ledger,
        phases=phases,
        steady_bytes=steady_bytes(ledger) if on_cpu else result["steady_bytes"],
        num_quantized_parameters=result["num_quantized_parameters"],
        num_trainable_parameters=result["num_trainable_parameters"],
        paged_bytes=result.get("paged_bytes"),
        reserved_bytes=max((c["reserved_bytes"] for c in counters.values()), default=None),
        process_bytes=result.get("process_bytes"),
    )


def _counted(phases: tuple[PhaseReport, ...], counters: Mapping[str, Mapping[str, int]]) -> tuple[PhaseReport, ...]:
    """Peaks by torch's counters; their categories are those of the history, where both say the same sum."""
    known = {phase.phase: phase for phase in phases}
    found = []
    for name, counted in counters.items():
        nbytes, books = counted["allocated_bytes"], known.get(name)
        is_same = books is not None and books.allocated_peak_bytes == nbytes
        found.append(PhaseReport(name, nbytes, books.by_category if books is not None and is_same else {}))
    return tuple(found)


def _environment(card: Device | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """Hardware and what measured it."""
    import platform

    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    found["card"] = None if card is None else {"name": card.name, "total_bytes": card.total_bytes}
    return {**found, **result.get("environment", {})}


def _notes(where: str, weights: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    found = list(result.get("notes", ()))
    if where == "cpu":
        found.append("measured by the storages of tensors: what kernels of the CPU take and give back inside themselves is not seen")
    if weights not in ("synthetic", "hub"):
        found.append("weights from files are mapped to memory: they count from the moment that the model holds them")
    return tuple(found)

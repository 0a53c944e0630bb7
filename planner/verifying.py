"""`verify`: the run that is planned, done for real in a child process, measured, and laid beside what the planner says of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from planner import api, stack
from planner.bookkeeping import keep_books, keep_exact_books, steady_bytes
from planner.engines.installed import traced_engine
from planner.errors import InvalidRecipeError, MeasurementError, QplanError, UnavailableError, UnsupportedModelError
from planner.history import History
from planner.job import Job, phase_reports
from planner.recipe import Recipe, make_recipe
from planner.report import ModelReport, PhaseReport
from planner.spec import ModelSpec
from planner.supervision import Ending, Message, supervise
from planner.units import GIB, KIB, MIB
from planner.verification import Apart, Side, Verification, failure_of

if TYPE_CHECKING:
    from planner.device import Device
    from planner.engines.analysis import Analysis

TIMEOUT_S = 3600.0
"""Seconds that a child may take, unless the user says otherwise."""

PROGRAM = (sys.executable, "-m", "planner.engines.measured")
"""What measures."""

_WORDS = {
    "load": "loading the model", "prepare": "preparing it", "forward": "forward", "backward": "backward",
    "optimizer_step": "optimizer step", "evaluation": "evaluation", "save": "saving the adapter",
}  # fmt: skip

Progress = Callable[[str], None]


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
    spec, versions, where = api.find_spec(model, revision), stack.detect(), _device(device)
    recipe = stack.resolve(make_recipe(**knobs), versions, spec.dtype)
    card = None if where == "cpu" else _card(where)
    _check(where, ceiling, recipe)
    whole = every_layer or card is None  # on the CPU models are small, and nothing need be extrapolated
    predicted = predict(spec, recipe, versions, card, every_layer=whole, progress=progress)
    job = {
        "model": {"id": spec.id, "model_type": spec.model_type, "config": spec.config},
        "recipe": recipe.model_dump(),
        "weights": _weights(weights, model),
        "steps": steps,
        "device": where,
        "limit_bytes": ceiling,
        "revision": revision,
    }
    began = time.monotonic()
    last = run_child(job, timeout=timeout, progress=progress)
    seconds = time.monotonic() - began
    result = last.get("result", {})
    measured = measured_side(result, on_cpu=where == "cpu") if result else None
    counts = (measured or predicted).num_quantized_parameters, (measured or predicted).num_trainable_parameters
    return Verification(
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


def predict(
    spec: ModelSpec, recipe: Recipe, versions: stack.Stack, card: Device | None, *, every_layer: bool = False, progress: Progress | None = None
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


def run_child(job: Mapping[str, Any], *, timeout: float = TIMEOUT_S, progress: Progress | None = None) -> Message:
    """
    One measurement in a process of its own.

    Args:
        job: What `planner.engines.measured` reads.
        timeout: Seconds after which it is ended.
        progress: Is told what it is at.

    Returns:
        Its last message: a `result`, or `out_of_memory`.

    Raises:
        MeasurementError: It died, hung, or trained nothing.
        QplanError: What it refused.
    """

    def heard(message: Message) -> None:
        if progress is not None:
            words = message.get("stage") or (_WORDS.get(str(message.get("phase"))) if message.get("begins") else None)
            if words:
                progress(f"measuring: {words}")

    ending = supervise(PROGRAM, job, timeout_s=timeout, on_message=heard)
    last = ending.messages[-1] if ending.messages else {}
    if "result" in last or "out_of_memory" in last:
        return last
    raise _trouble(ending, last)


def _trouble(ending: Ending, last: Message) -> QplanError:
    """What went wrong in the child, as an error."""
    from planner import errors

    if "not_real" in last:
        return MeasurementError(
            f"the training step is not real: {last['not_real']}",
            hint="such a step's memory proves nothing: check the weights, the dtypes and the learning config",
        )
    if "refused" in last:
        told = last["refused"]
        kind = getattr(errors, str(told["error"]), UnsupportedModelError)
        return kind(told["message"], hint=told["hint"])  # type: ignore[no-any-return]
    at = next((m for m in reversed(ending.messages) if "phase" in m or "stage" in m), {})
    where = f" in {_WORDS.get(str(at['phase']), at['phase'])}" if "phase" in at else " before it began"
    words = [line.strip() for line in ending.stderr.strip().splitlines() if line.strip()]
    why = f": {words[-1][:300]}" if words and ending.how == "failed" else ""
    hints = {
        "timed_out": "pass --timeout with more seconds",
        "killed": "SIGKILL is what the system does when RAM is short: try a smaller model or batch",
    }
    return MeasurementError(
        f"the measuring process {ending.sentence}{where}{why}",
        hint=hints.get(ending.how, "report it with the command, if another model or version does the same"),
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


def _device(text: str) -> str:
    """`cpu`, `cuda` or `cuda:N`."""
    if text == "cpu":
        return "cpu"
    name, _, number = text.partition(":")
    if text not in ("auto", "cuda") and not (name == "cuda" and number.isdecimal()):
        raise InvalidRecipeError(f"device is `{text}`; it must be auto, cuda, cuda:N or cpu")
    return "cuda" if text == "auto" else text


def _card(where: str) -> Device:
    """
    The card that CUDA calls so.

    Raises:
        UnavailableError: There is none.
    """
    from planner import cards, sampling

    number = int(where.partition(":")[2] or 0)
    seen = None
    try:
        seen = sampling.device_seen(number)
    except UnavailableError:
        pass
    found = None if seen is None else cards.device_of(seen)
    if found is None:
        raise UnavailableError(
            f"there is no NVIDIA GPU {where} here to measure on",
            hint="pass --device cpu and a small model to run the same path on the CPU; qplan doctor says what this machine has",
        )
    return found


def _check(where: str, ceiling: int | None, recipe: Recipe) -> None:
    if ceiling is not None and where != "cpu":
        raise InvalidRecipeError("ceiling is given, but a card has its own; it is for --device cpu")
    if ceiling is not None and (type(ceiling) is not int or ceiling < 1):
        raise InvalidRecipeError(f"ceiling is {ceiling!r}; it must be a whole number of bytes")
    if where == "cpu" and recipe.attn == "flash_attention_2":
        raise InvalidRecipeError("attn is `flash_attention_2`, which has no kernels for the CPU", hint="pass --attn sdpa")
    if recipe.loss == "liger":
        raise InvalidRecipeError("loss is `liger`, which verify does not run yet", hint="pass --loss full or chunked")


def size(text: str) -> int:
    """
    Bytes from text: `200MiB`, `2GiB`, `1500000`.

    Raises:
        InvalidRecipeError: It is no size.

    >>> size("200MiB"), size("1.5 GiB"), size("4096")
    (209715200, 1610612736, 4096)
    """
    import re

    match = re.fullmatch(r"(\d{1,15})(?:\.(\d{1,6}))?\s*(|KiB|MiB|GiB)", text.strip(), re.ASCII | re.IGNORECASE)
    scale = {"": 1, "kib": KIB, "mib": MIB, "gib": GIB}[match[3].lower()] if match else 0
    nbytes = int(match[1] + (match[2] or "")) * scale // 10 ** len(match[2] or "") if match else 0
    if nbytes < 1:
        raise InvalidRecipeError(f"`{text[:40]}` is no size; it must be bytes, KiB, MiB or GiB", hint="such as 200MiB")
    return nbytes


def _weights(weights: str, model: api.Model) -> str:
    """What the child's loader takes."""
    if weights != "hub":
        return weights
    if not isinstance(model, str):
        raise InvalidRecipeError("weights is `hub`, but the model has no id on the Hub", hint="pass the id, or weights='synthetic'")
    return model


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

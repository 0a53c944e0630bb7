"""`verify --max`: the largest batch or sequence that this machine takes, found by running it, beside the one that is predicted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import field
from typing import Any

from planner import api, verifying
from planner.engines.installed import traced_engine
from planner.errors import InvalidRecipeError
from planner.measuring import TIMEOUT_S, Order, Progress, check_timeout, ordered, run_child
from planner.simulation import Failure
from planner.value import NamedTuple, Value
from planner.verification import SCHEMA_VERSION, failure_of

STEPS = {"batch_size": 1, "seq_len": 64}
"""What can be raised, and by how much at least."""


class Try(NamedTuple):
    """
    One run in a process of its own.

    Attributes:
        value: Of what is raised.
        runs: Whether it ran to its end.
        allocated_bytes: The measured peak; None where memory ran out.
        failure: Where it ended for want of memory.
        seconds: How long it took.
    """

    value: int
    runs: bool
    allocated_bytes: int | None
    failure: Failure | None
    seconds: float


class Limit(Value):
    """
    How far it goes, measured and predicted.

    Attributes:
        model: The model's id.
        knob: What was raised.
        step: By how much at least.
        device: `cpu`, or the card's name.
        ceiling_bytes: On the CPU, what could be alive.
        predicted: The largest value that the planner says runs; 0 where it says none does.
        measured: The largest that ran; 0 where none did.
        tries: Every run, in order.
    """

    model: str
    knob: str
    step: int
    device: str
    ceiling_bytes: int | None
    predicted: int
    measured: int
    tries: tuple[Try, ...] = field(default=(), repr=False)

    @property
    def agrees(self) -> bool:
        """Whether both are the same."""
        return self.predicted == self.measured

    def model_dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "vary": self.knob,
            "step": self.step,
            "device": self.device,
            "ceiling_bytes": self.ceiling_bytes,
            "predicted": self.predicted,
            "measured": self.measured,
            "agrees": self.agrees,
            "tries": [{**t._asdict(), "failure": None if t.failure is None else t.failure._asdict()} for t in self.tries],
        }


def find_limit(
    model: api.Model,
    *,
    vary: str = "batch_size",
    weights: str = "synthetic",
    device: str = "auto",
    timeout: float = TIMEOUT_S,
    ceiling: int | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    **knobs: Any,
) -> Limit:
    """
    Raise the batch or the sequence until the device refuses, each try in a process of its own.

    It begins with the predicted limit: where that runs and the next value does not, two tries are enough.

    Args:
        model: As for `estimate`.
        vary: `batch_size`, or `seq_len` in steps of 64.
        weights: As for `verify`.
        device: As for `verify`.
        timeout: Seconds after which a try is ended.
        ceiling: On the CPU, where it must be given: bytes that may be alive.
        revision: As for `verify`.
        progress: Is told what goes on.
        knobs: Fields of `Recipe`.

    Raises:
        InvalidRecipeError: There is no such knob to raise, or on the CPU no ceiling.
        MeasurementError: A try died or hung for another reason than memory.
        QplanError: The request is wrong.
    """
    knob = vary.replace("-", "_")
    if knob not in STEPS:
        raise InvalidRecipeError(f"vary is `{vary}`; it must be batch-size or seq-len")
    check_timeout(timeout)
    knobs.pop(knob, None)
    order = ordered(model, knobs, weights=weights, device=device, ceiling=ceiling, revision=revision)
    if order.card is None and ceiling is None:
        raise InvalidRecipeError("ceiling is missing: the CPU has no limit of its own here", hint="add --ceiling 2GiB, or another size")
    step = STEPS[knob]
    predicted = _predicted(order, knob, step, progress)
    tries: list[Try] = []

    def runs(value: int) -> bool:
        if progress is not None:
            progress(f"trying {knob.replace('_', '-')} {value}")
        tries.append(_try(order, knob, value, timeout, progress))
        return tries[-1].runs

    measured = largest(runs, max(predicted, step), step)
    where = "cpu" if order.card is None else order.card.name
    return Limit(order.spec.id, knob, step, where, ceiling, predicted, measured, tuple(tries))


def largest(runs: Callable[[int], bool], start: int, step: int) -> int:
    """
    The largest multiple of a step that runs, 0 for none, where all below one that runs do.

    From the start it goes one step, then two more, four more, until the answer lies between two tries; then it halves.

    Args:
        runs: Whether a value does; it is asked once a value.
        start: Where to begin: a multiple of the step.
        step: The distance of values.

    >>> largest(lambda value: value <= 37, 32, 1)
    37
    """
    below, above = 0, 0
    value, stride = start, step
    while not above:
        if runs(value):
            below, value, stride = value, value + stride, 2 * stride
        else:
            above = value
    stride = step
    while not below and above > step:
        value = max(above - stride, step)
        if runs(value):
            below = value
        else:
            above, stride = value, 2 * stride
    while above - below > step:
        middle = below + (above - below) // step // 2 * step
        if runs(middle):
            below = middle
        else:
            above = middle
    return below


def _predicted(order: Order, knob: str, step: int, progress: Progress | None) -> int:
    """The planner's limit: on a card what `solve` says of the trace, on the CPU the trace of the CPU under the ceiling."""
    if order.card is not None:
        from planner.solving.solver import solve

        how: dict[str, Any] = {"vary": knob, "engine": "traced", "multiple_of": step, "progress": progress}
        found = solve(order.spec, gpu=order.card, stack=order.stack, **how, **order.knobs)
        return int(getattr(found, "value", None) or 0)
    engine, ceiling = traced_engine(None, progress), order.ceiling
    assert ceiling is not None

    def fits(value: int) -> bool:
        recipe = order.resolved(**{knob: value})
        found = engine.analyse_on_cpu(order.spec, recipe, order.stack, every_layer=True)
        return bool(found.ledger.high[1] <= ceiling)

    if progress is not None:
        progress("predicting the limit")
    return largest(fits, step, step)


def _try(order: Order, knob: str, value: int, timeout: float, progress: Progress | None) -> Try:
    recipe = order.resolved(**{knob: value})
    began = time.monotonic()
    last = run_child(order.job(1, recipe), timeout=timeout, progress=progress)
    seconds = time.monotonic() - began
    if "out_of_memory" in last:
        return Try(value, runs=False, allocated_bytes=None, failure=failure_of(last["out_of_memory"]), seconds=seconds)
    side = verifying.measured_side(last["result"], on_cpu=order.card is None)
    return Try(value, runs=True, allocated_bytes=side.peak.allocated_peak_bytes, failure=None, seconds=seconds)

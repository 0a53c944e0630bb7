"""What a verification answers: measured beside predicted, by phase and category, and in words why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

from planner.display import Displayed
from planner.ledger import Category, Ledger, Phase
from planner.records.record import Level, Row
from planner.report import ModelReport, PhaseReport
from planner.simulation import Failure
from planner.units import human
from planner.value import NamedTuple, Value

SCHEMA_VERSION = 1
_TELLING = 1000
"""A phase that differs by at least one part in so many is told about."""


class Apart(NamedTuple):
    """
    What a process held beyond what torch allocated, each measured by itself; None is what was not measured.

    Attributes:
        context_bytes: Its CUDA context and loaded kernels.
        workspace_bytes: cuBLAS's workspaces.
        reserve_bytes: What the allocator reserved beyond the allocated peak.
    """

    context_bytes: int | None = None
    workspace_bytes: int | None = None
    reserve_bytes: int | None = None


class Side(Value, eq=False):
    """
    One of the two sides, measured or predicted: what a report of estimate says, as far as it can be known.

    Attributes:
        engine: `measured` or `traced`.
        ledger: Every allocation; None where the run ended for want of memory.
        phases: The peak of each phase.
        steady_bytes: What stays allocated between steps.
        num_quantized_parameters, num_trainable_parameters: Counts of elements.
        paged_bytes: Optimizer state in managed memory, where that is known.
        reserved_bytes, process_bytes: At the highest peak; None where there is no such thing, or it was not measured.
    """

    engine: str
    ledger: Ledger | None
    phases: tuple[PhaseReport, ...]
    steady_bytes: int | None
    num_quantized_parameters: int
    num_trainable_parameters: int
    paged_bytes: int | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None

    @property
    def peak(self) -> PhaseReport:
        """The highest phase."""
        return max(self.phases, key=lambda phase: phase.allocated_peak_bytes)


class Verification(Value, Displayed, eq=False):
    """
    One verification.

    Attributes:
        model: Which model was verified; its counts are the measured ones.
        recipe: The run, every knob resolved.
        stack: The installed versions.
        device: `cpu`, or the card's name.
        weights: `synthetic`, or where they came from.
        measured: What was measured; None where memory ran out (`failure`).
        predicted: What the traced engine says of the same run.
        losses: Of every forward, in order.
        apart: What the process held beyond what torch allocated.
        failure: Where the run ended for want of memory; None where it ran to its end.
        environment: Versions and hardware, without names of hosts, users or paths.
        notes: What to know about this measurement.
        seconds: How long the child took.
    """

    model: ModelReport
    recipe: dict[str, Any]
    stack: dict[str, str]
    device: str
    weights: str
    measured: Side | None
    predicted: Side
    losses: tuple[float, ...] = ()
    apart: Apart = field(default_factory=Apart)
    failure: Failure | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every category of every phase that both sides have, each phase led by its sum."""
        return () if self.measured is None else compare(self.measured.phases, self.predicted.phases)

    @property
    def levels(self) -> dict[str, Level]:
        """The highest peak at each level that both sides know."""
        if self.measured is None:
            return {}
        a, b = self.measured, self.predicted
        pairs = {
            "allocated": (a.peak.allocated_peak_bytes, b.peak.allocated_peak_bytes),
            "reserved": (a.reserved_bytes, b.reserved_bytes),
            "process": (a.process_bytes, b.process_bytes),
        }
        return {name: Level(x, y) for name, (x, y) in pairs.items() if x is not None and y is not None}

    @cached_property
    def explanations(self) -> tuple[str, ...]:
        """Why the sides differ, one sentence a phase that differs by a thousandth."""
        if self.measured is None:
            return ()
        return explain(self.rows, self.measured.ledger, self.predicted.ledger)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `--json`: sizes are integers of bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "measured": None if self.measured is None else self._side(self.measured),
            "predicted": self._side(self.predicted),
            "comparison": [
                {"phase": row.phase, "category": row.category, "measured_bytes": row.measured_bytes,
                 "predicted_bytes": row.predicted_bytes, "difference_bytes": row.difference_bytes}
                for row in self.rows
            ],
            "explanations": list(self.explanations),
            "failure": None if self.failure is None else self.failure._asdict(),
            "apart": self.apart._asdict(),
            "losses": list(self.losses),
            "weights": self.weights,
            "environment": self.environment,
            "warnings": list(self.notes),
        }  # fmt: skip

    def _side(self, side: Side) -> dict[str, Any]:
        """One side as `Report.model_dump` has an estimate."""
        peak = side.peak
        counts = {
            "num_quantized_parameters": side.num_quantized_parameters, "num_trainable_parameters": side.num_trainable_parameters,
        }  # fmt: skip
        return {
            "schema_version": SCHEMA_VERSION,
            "engine": side.engine,
            "model": {**self.model._asdict(), **counts},
            "recipe": self.recipe,
            "stack": self.stack,
            "phases": [phase._asdict() for phase in side.phases],
            "peak": {
                "phase": peak.phase,
                "allocated_bytes": peak.allocated_peak_bytes,
                "reserved_bytes": side.reserved_bytes,
                "process_bytes": side.process_bytes,
                "by_category": peak.by_category,
            },
            "steady_bytes": side.steady_bytes,
            "host": {"ram_peak_bytes": None, "paged_bytes": side.paged_bytes, "download_bytes": None},
            "device": None if self.device == "cpu" else self.environment.get("card"),
            "verdict": None,
            "warnings": [],
        }


def compare(measured: Sequence[PhaseReport], predicted: Sequence[PhaseReport]) -> tuple[Row, ...]:
    """
    Measured beside predicted, at each side's own peak of a phase.

    Args:
        measured: The peaks of the phases; where categories are not told apart, sums alone.
        predicted: The same, predicted.
    """
    others = {phase.phase: phase for phase in predicted}
    found = []
    for phase in (p.value for p in Phase):
        mine = next((m for m in measured if m.phase == phase), None)
        theirs = others.get(phase)
        if mine is None or theirs is None:
            continue
        found.append(Row(phase, None, mine.allocated_peak_bytes, theirs.allocated_peak_bytes))
        if mine.by_category:
            found += [
                Row(phase, c.value, mine.by_category.get(c.value, 0), theirs.by_category.get(c.value, 0))
                for c in Category
                if c.value in mine.by_category or c.value in theirs.by_category
            ]
    return tuple(found)


def explain(rows: Sequence[Row], measured: Ledger | None, predicted: Ledger | None) -> tuple[str, ...]:
    """
    In words why phases differ that do by a thousandth: the category that makes up for most of it, and what is largest in it.

    Args:
        rows: From `compare`.
        measured: What was alive when.
        predicted: The same, predicted.
    """
    found = []
    for row in rows:
        if row.category is not None or abs(row.difference_bytes) * _TELLING < max(row.measured_bytes, 1):
            continue
        parts = [part for part in rows if part.phase == row.phase and part.category is not None]
        which = "more" if row.difference_bytes > 0 else "less"
        sentence = f"{row.phase.replace('_', ' ')}: {human(abs(row.difference_bytes))} {which} was predicted than was measured"
        if parts:
            most = max(parts, key=lambda part: abs(part.difference_bytes))
            ledger = predicted if most.difference_bytes > 0 else measured
            side = "predicted" if most.difference_bytes > 0 else "measured"
            name = str(most.category).replace("_", " ")
            sentence += f"; most of it is {name} ({human(abs(most.difference_bytes))}){_largest(ledger, row.phase, most.category, side)}"
        found.append(sentence)
    return tuple(found)


def _largest(ledger: Ledger | None, phase: str, category: str | None, side: str) -> str:
    """What is largest in a category at a phase's peak, in words."""
    if ledger is None or Phase(phase) not in ledger.peaks:
        return ""
    alive = [a for a in ledger.live_at(ledger.peaks[Phase(phase)].step) if a.category.value == category]
    if not alive:
        return ""
    where = f" of {alive[0].scope}" if alive[0].scope else ""
    return f", whose largest {side} is {alive[0].name}{where} ({human(alive[0].nbytes)})"


def failure_of(told: Mapping[str, Any]) -> Failure:
    """An out-of-memory error as the child tells it."""
    return Failure(
        operation="allocation",
        scope=str(told["scope"]),
        phase=str(told["phase"]),
        requested_bytes=int(told["requested_bytes"] or 0),
        allocated_bytes=int(told["allocated_bytes"]),
        reserved_bytes=int(told["reserved_bytes"] or told["allocated_bytes"]),
        by_category=dict(told["by_category"]),
    )

"""The traced engine over a grid: one task for each recipe and kind of card, wherever an executor runs it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from planner import verdict as verdicts
from planner.device import Device
from planner.errors import QplanError, UnavailableError
from planner.job import Job
from planner.ledger import Phase
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.sweeping.deciding import OUTCOMES, UNDECIDED, judge
from planner.sweeping.fanout import Fanout, Submits
from planner.sweeping.grid import Grid, Unit
from planner.sweeping.parts import Points
from planner.sweeping.points import knob_columns
from planner.sweeping.table import Column, Table, joined, numbers, texts
from planner.value import NamedTuple

_PHASES = tuple(phase.value for phase in Phase)


class Task(NamedTuple):
    """
    One recipe on cards of one compute capability.

    Attributes:
        model, number: Index of the model, and which combination of knobs.
        gpus: Indices of the cards.
        spec: The checkpoint, pickled: so a worker knows one that it has seen, and what it has built of it.
        knobs, stack, devices: What is planned; a card is None where none judges.
        simulate: Whether the allocator is run.
    """

    model: int
    number: int
    gpus: tuple[int, ...]
    spec: bytes
    knobs: dict[str, Any]
    stack: Stack
    devices: tuple[Device | None, ...]
    simulate: bool


class Row(NamedTuple):
    """
    What is known of one point.

    Attributes:
        allocated_bytes, phase: The peak.
        outcome: Index into `OUTCOMES`; -1 without a card.
        reserved_bytes, process_bytes, headroom_bytes: Where the allocator was run.
        simulated: Whether it was.
        error: Why there is nothing else.
    """

    allocated_bytes: int = 0
    phase: str | None = None
    outcome: int = UNDECIDED
    reserved_bytes: int = 0
    process_bytes: int = 0
    headroom_bytes: int = 0
    simulated: bool = False
    error: str | None = None


class Traced:
    """
    Computes units of a grid by traces.

    Args:
        grid: The grid.
        simulate: `none` for an outlook in place of the allocator; anything else runs it, which takes little beside a trace.
        make: Makes the executor; None runs everything in this process.
        width: How many tasks are under way at a time.
        advance: Is told of rows as they are done.
    """

    def __init__(
        self, grid: Grid, simulate: str, make: Callable[[], Submits] | None, width: int, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self.advance = advance
        self.specs = [pickle.dumps(spec) for spec in grid.models]
        self.grid, self.simulates = grid, simulate != "none"
        self.points = Points()
        self.fanout = Fanout(trace_point, make or _here, width, fatal=(UnavailableError,))

    def table(self, units: Sequence[Unit]) -> Table:
        """The rows of units that follow each other."""
        for done in self.fanout.run(self._tasks(units)):
            task: Task = done.task
            rows = done.result or [Row(error=done.error)] * len(task.gpus)
            for gpu, row in zip(task.gpus, rows, strict=True):
                self.points.keep((task.model, task.number, gpu), row)
            self.advance(len(rows))
        return joined([Table({**knob_columns(self.grid, unit), **self._results(unit)}) for unit in units])

    def close(self) -> None:
        """Let go of the executor."""
        self.fanout.close()

    def _tasks(self, units: Sequence[Unit]) -> Iterator[Task]:
        """What is not known yet: of each recipe a task for each kind of card."""
        asked: set[tuple[int, int, int]] = set()
        for unit in units:
            kind = _kind(self.grid.gpus[unit.gpu])
            gpus = tuple(i for i, device in enumerate(self.grid.gpus) if _kind(device) == kind)
            for number in range(unit.begin, unit.end):
                key = (unit.model, number, unit.gpu)
                if key in self.points.known or key in asked:
                    continue
                asked.update((unit.model, number, gpu) for gpu in gpus)
                devices = tuple(self.grid.gpus[gpu] for gpu in gpus)
                knobs = self.grid.knobs(number)
                yield Task(unit.model, number, gpus, self.specs[unit.model], knobs, self.grid.stack, devices, self.simulates)

    def _results(self, unit: Unit) -> dict[str, Column]:
        rows = [Row(*self.points.known[unit.model, number, unit.gpu]) for number in range(unit.begin, unit.end)]
        refused = np.array([row.error is not None for row in rows])
        unknown = np.array([not row.simulated for row in rows])
        unjudged = unknown | np.array([row.outcome == UNDECIDED for row in rows])
        return {
            "allocated_bytes": numbers(_integers(row.allocated_bytes for row in rows), refused),
            "reserved_bytes": numbers(_integers(row.reserved_bytes for row in rows), unknown),
            "process_bytes": numbers(_integers(row.process_bytes for row in rows), unknown),
            "phase": texts(_integers(-1 if row.phase is None else _PHASES.index(row.phase) for row in rows), _PHASES),
            "outcome": texts(_integers(row.outcome for row in rows), OUTCOMES),
            "headroom_bytes": numbers(_integers(row.headroom_bytes for row in rows), unjudged),
            "simulated": numbers(~unknown),
            "error": _errors([row.error for row in rows]),
        }


def trace_point(task: Task) -> list[Row]:
    """
    The rows of one task, a card each.

    Raises:
        UnavailableError: The traced engine cannot run here.
    """
    from planner.recipe import make_recipe

    try:
        job = Job(_unpickled(task.spec), make_recipe(**task.knobs), task.stack, engine="traced")
        return [_row(job, device, simulate=task.simulate) for device in task.devices]
    except UnavailableError:
        raise
    except QplanError as error:
        return [Row(error=error.message)] * len(task.devices)


@lru_cache(maxsize=8)
def _unpickled(spec: bytes) -> ModelSpec:
    found: ModelSpec = pickle.loads(spec)  # noqa: S301 - of our own making
    return found


def _row(job: Job, device: Device | None, *, simulate: bool) -> Row:
    phase, allocated = job.analysis(device).ledger.high
    if simulate:
        return Row(allocated, phase.value, *judge(job, device), simulated=True)
    if device is None:
        return Row(allocated, phase.value)
    return Row(allocated, phase.value, OUTCOMES.index(verdicts.outlook(allocated, device, phase.value, "traced").outcome))


def _here() -> Submits:
    """An executor that runs a task at once, in this thread."""
    from concurrent.futures import Future

    class Here:
        def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(fn(*args))
            except Exception as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)
            return future

    return Here()


def _kind(device: Device | None) -> tuple[int, int] | None:
    return None if device is None else device.compute_capability


def _integers(values: Iterator[int]) -> Any:
    return np.fromiter(values, np.int64)


def _errors(errors: list[str | None]) -> Column:
    words = list(dict.fromkeys(error for error in errors if error is not None))
    return texts(_integers(-1 if error is None else words.index(error) for error in errors), words)

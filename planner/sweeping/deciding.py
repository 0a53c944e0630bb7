"""
Verdicts of many rows: decided by bounds where both ends of them say the same, by running the allocator where they do not.

A verdict hangs on what a run makes the allocator reserve (`planner.verdict.judge`), and that takes a replay. Of a replay it is known that

- it reserves at most `RESERVED_AT_MOST` of the allocated peak of the closed form: a row fits where the card has that, the context and the
  stated error;
- what is alive at once in it is at least `ALIVE_AT_LEAST` of that peak: a row does not fit where the card has less for tensors.

Neither is a theorem. Both leave a wide margin to every replay that was looked at, and the tests compare outcomes with replays on random
models, recipes and cards. Rows between the two are replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from planner import verdict as verdicts
from planner.accuracy import accuracy_of
from planner.allocator import AllocatorSettings
from planner.device import Device
from planner.history import WARM_UP_MARGIN
from planner.job import Job
from planner.sweeping.grid import Grid
from planner.sweeping.parts import Points
from planner.units import MIB, ceil_div
from planner.value import NamedTuple

Integers = npt.NDArray[np.int64]

OUTCOMES = ("fits", "tight", "does_not_fit")
UNDECIDED = -1

RESERVED_AT_MOST = (2, 64 * MIB)
"""
A factor and bytes: of 1,500 random runs of bundled models (all methods, losses, attentions, optimizers) none reserved more than 1.68 times
the allocated peak.
"""
ALIVE_AT_LEAST = (4, 5)
"""A share: in the same runs at least 0.85 of the allocated peak was alive at once."""


class Judged(NamedTuple):
    """
    The verdict of one simulated row.

    Attributes:
        outcome: Index into `OUTCOMES`.
        reserved_bytes, process_bytes, headroom_bytes: As the single estimate has them.
    """

    outcome: int
    reserved_bytes: int
    process_bytes: int
    headroom_bytes: int


class Verdicts(NamedTuple):
    """
    Verdicts by column, [n] each; -1 stands for none in `outcome`.

    Attributes:
        outcome: Index into `OUTCOMES`.
        reserved, process, headroom: Bytes, where `simulated`.
        simulated: Whether the row was replayed.
    """

    outcome: npt.NDArray[np.int8]
    reserved: Integers
    process: Integers
    headroom: Integers
    simulated: npt.NDArray[np.bool_]


def bounded(allocated: Integers, device: Device) -> npt.NDArray[np.int8]:
    """
    The outcomes that need no replay, `UNDECIDED` elsewhere.

    Args:
        allocated: Peaks of the closed form, [n].
        device: The card.
    """
    budget, usable = verdicts.budget_bytes(device), verdicts.usable_bytes(device)
    context, accuracy = verdicts.context_of(device), accuracy_of("analytic")
    factor, more = RESERVED_AT_MOST
    reserved = allocated * factor + more
    unexplained = accuracy.process_bytes if device.compute_capability >= (8, 0) else 0
    error = ceil_div(reserved * accuracy.reserved, 10_000) + max(context.error_bytes, unexplained)
    fits = (reserved <= usable) & (budget - reserved - context.nbytes >= error) & (allocated <= device.total_bytes - WARM_UP_MARGIN)
    share, of = ALIVE_AT_LEAST
    fails = allocated * share // of > usable
    return np.where(fits, 0, np.where(fails, 2, UNDECIDED)).astype(np.int8)


def expected(allocated: Integers, device: Device) -> npt.NDArray[np.int8]:
    """The outlook over a card (`planner.verdict.outlook`) by column: a usual reserve instead of a replay."""
    context, accuracy = verdicts.context_of(device), accuracy_of("analytic")
    columns: Any = allocated  # arithmetic alone
    reserve = verdicts.reserve_of(columns, device)
    error = ceil_div(allocated * accuracy.allocated, 10_000) + reserve.error_bytes + context.error_bytes
    headroom = verdicts.budget_bytes(device) - (allocated + reserve.nbytes + context.nbytes)
    lacks = allocated > verdicts.usable_bytes(device)
    return np.where(lacks, 2, np.where(headroom < error, 1, 0)).astype(np.int8)


@dataclass
class Judge:
    """
    Judges rows of a grid in the closed form, and remembers what it simulated for cards that come later.

    Attributes:
        grid: Whose rows.
        simulate: `auto`, `all` or `none`.
        points: What was simulated, by model, combination of knobs and card.
        advance: Is told of each row that was simulated.
    """

    grid: Grid
    simulate: str
    points: Points = field(default_factory=Points)
    advance: Callable[[int], None] = lambda _: None

    def verdicts(self, model: int, gpu: int, numbers: Integers, allocated: Integers) -> Verdicts:
        """
        The verdicts of rows.

        Args:
            model: Index of the model.
            gpu: Index of the card.
            numbers: Which combinations of knobs, [n].
            allocated: Their peaks, [n].
        """
        count, device = len(numbers), self.grid.gpus[gpu]
        outcome = self._outcomes(allocated, device)
        reserved, process, headroom = (np.zeros(count, np.int64) for _ in range(3))
        found = Verdicts(outcome, reserved, process, headroom, np.zeros(count, np.bool_))
        todo = range(count) if self.simulate == "all" else np.flatnonzero(outcome == UNDECIDED) if device is not None else ()
        for i in todo if self.simulate != "none" else ():
            judged = self._judged(model, gpu, int(numbers[i]), allocated[i : i + 1])
            found.simulated[i] = True
            found.outcome[i], found.reserved[i], found.process[i], found.headroom[i] = judged
            self.advance(1)
        return found

    def _outcomes(self, allocated: Integers, device: Device | None) -> npt.NDArray[np.int8]:
        if device is None:
            return np.full(len(allocated), UNDECIDED, np.int8)
        if self.simulate == "none":
            return expected(allocated, device)
        if self.simulate == "all" or AllocatorSettings.from_environment() != AllocatorSettings():
            return np.full(len(allocated), UNDECIDED, np.int8)  # the bounds are of PyTorch's own settings
        return bounded(allocated, device)

    def _judged(self, model: int, gpu: int, number: int, allocated: Integers) -> Judged:
        """One row; with it the same row on the cards that come later, which share its replay."""
        known = self.points.known
        if (model, number, gpu) not in known:
            job = Job(self.grid.models[model], self.grid.recipe(number), self.grid.stack)
            for other in range(gpu, len(self.grid.gpus)):
                device = self.grid.gpus[other]
                if other == gpu or self._outcomes(allocated, device)[0] == UNDECIDED:
                    self.points.keep((model, number, other), judge(job, device))
        return Judged(*known[model, number, gpu])


def judge(job: Job, device: Device | None) -> Judged:
    """What the single estimate says of one run on one card, None for one without end."""
    if device is None:
        held = verdicts.held(job.simulations(None), None)
        return Judged(UNDECIDED, held.reserved_bytes, held.process_bytes, 0)
    found = job.verdict(device, explains=False)
    context = verdicts.context_of(device).nbytes
    return Judged(OUTCOMES.index(found.outcome), found.required_bytes - context, found.required_bytes, found.headroom_bytes)


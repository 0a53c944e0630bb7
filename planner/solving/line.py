"""
One knob of one run on one card: its values in a row, which of them run, and the last that does.

Why no larger value can run: what a step needs at once (`Line.need_bytes`) is never more than what the allocator holds then, so a value
whose need is beyond the card fails whatever the allocator does. Needs rise with a knob from the second value on (a single token takes
another way through a fused head), and the last within the card is found in a few estimates; `tests/test_line.py` holds both. What the
allocator reserves does not rise so: which cached block a tensor lands in changes with its size, and of two lengths the longer one can run
where the shorter fails. So between there and the answer every single value is simulated, from the top down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from planner import verdict as verdicts
from planner.accuracy import accuracy_of
from planner.device import Device
from planner.job import Job
from planner.ledger import Category, Phase
from planner.report import Verdict
from planner.solving.bracket import last_within
from planner.units import MIB
from planner.value import NamedTuple

_SLACK = MIB
"""
How much less a history may need than its ledger says: the remainders that the ledger counts, and a few blocks of 512 bytes.
`tests/test_line.py` holds it.
"""

_SAME_FROM = {"grad_accum": 2}
"""Values from which on a run is the same: of the passes after the first each does what the second does."""


class Point(NamedTuple):
    """
    One value that was planned.

    Attributes:
        value: Of the knob.
        allocated_bytes: The peak of allocated blocks.
        verdict: The card's, by simulation.
    """

    value: int
    allocated_bytes: int
    verdict: Verdict


class Line:
    """
    The values of one knob, the others given.

    Args:
        job: The run; what its recipe says of the knob is replaced.
        device: The card.
        knob: The recipe's field.
        values: In rising order; at least one.
        progress: Is told which value is simulated.
    """

    def __init__(
        self, job: Job, device: Device, knob: str, values: range | tuple[int, ...], progress: Callable[[str], None] | None = None
    ) -> None:
        self.job, self.device, self.knob, self.values, self.progress = job, device, knob, values, progress
        self._jobs: dict[int, Job] = {}
        self.num_simulations = 0

    def at(self, index: int) -> Job:
        """The run with the index-th value."""
        value = min(self.values[index], _SAME_FROM.get(self.knob, self.values[index]))
        if value not in self._jobs:
            self._jobs[value] = self.job.changed({self.knob: value})
        return self._jobs[value]

    def point(self, index: int, *, explains: bool = False) -> Point:
        """The index-th value with its verdict."""
        job = self.at(index)
        return Point(self.values[index], job.analysis(self.device).ledger.high[1], job.verdict(self.device, explains=explains))

    def need_bytes(self, index: int) -> int:
        """
        What the steps of the index-th value hold at once at least, wherever the allocator puts it.

        Loading is left out: it does not hang on a batch, and is simulated anyhow. Of a rank's optimizer states only what never shrinks
        with it is counted: a tensor's states turn to 8 bits at 4,096 elements, and are paged where they are large.
        """
        job = self.at(index)
        found = job.analysis(self.device)
        ledger = found.ledger
        steps = max(size for phase, (size, _) in ledger.highs.items() if phase is not Phase.PREPARE)
        rows = ledger.rows
        remainders = sum(size for name, size in zip(rows.names, rows.sizes, strict=True) if name.startswith("remainders"))
        optim = str(job.resolved.optim)
        if self.knob == "rank" and ("paged" in optim or "8bit" in optim):
            states = zip(rows.categories, rows.sizes, strict=True)
            steps -= sum(size for category, size in states if category is Category.OPTIMIZER_STATE)
            steps += 0 if "paged" in optim else found.num_trainable_parameters
        return steps - remainders - _SLACK

    def runs(self, index: int) -> bool:
        """Whether the index-th value runs on the card."""
        self._tell(index)
        return self.at(index).runs(self.device)

    def fits(self, index: int) -> bool:
        """Whether the index-th value fits with room to spare."""
        self._tell(index)
        return self.at(index).verdict(self.device, explains=False).outcome == "fits"

    @cached_property
    def last_that_runs(self) -> int | None:
        """The index of the largest value that runs; None where none does."""
        return self._last(self.runs, self._last_within(self.need_bytes, len(self.values)))

    @cached_property
    def last_that_fits(self) -> int | None:
        """The index of the largest value that fits with room to spare; None where none does."""
        if self.last_that_runs is None:
            return None
        accuracy, context = accuracy_of(self.at(0).analysis(self.device).ledger.engine), verdicts.context_of(self.device)

        def with_error(index: int) -> int:
            need = max(self.need_bytes(index), 0)
            return need + accuracy.error_bytes(need, context.error_bytes)

        return self._last(self.fits, self._last_within(with_error, self.last_that_runs + 1))

    def _last_within(self, measure: Callable[[int], int], count: int) -> int:
        """The last of so many values whose measure leaves room on the card; -1 where none does. The first may measure more than others."""
        usable = verdicts.usable_bytes(self.device)
        last = 1 + last_within(lambda index: measure(index + 1), count - 1, usable) if count > 1 else 0
        return last if last or measure(0) <= usable else -1

    def _last(self, holds: Callable[[int], bool], index: int) -> int | None:
        """From an index down, the first for which it holds."""
        same_from = _SAME_FROM.get(self.knob)
        while index >= 0:
            if holds(index):
                return index
            while same_from and index and self.values[index - 1] >= same_from:
                index -= 1  # these were tried with it
            index -= 1
        return None

    def _tell(self, index: int) -> None:
        self.num_simulations += 1
        if self.progress is not None:
            self.progress(f"simulating {self.knob} {self.values[index]:,}")

"""What is allocated when: the one record that every engine writes and everything else reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple


class Category(str, Enum):
    """What a byte is for, after the torch profiler's categories."""

    PARAMETER = "parameter"
    QUANT_STATE = "quant_state"
    ADAPTER = "adapter"
    GRADIENT = "gradient"
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATION = "activation"
    LOGITS = "logits"
    TEMPORARY = "temporary"
    WORKSPACE = "workspace"
    INPUT = "input"
    BUFFER = "buffer"
    UNATTRIBUTED = "unattributed"


class Phase(str, Enum):
    """The parts of a run, in their order."""

    LOAD = "load"
    PREPARE = "prepare"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER_STEP = "optimizer_step"
    EVALUATION = "evaluation"
    SAVE = "save"


class Allocation(NamedTuple):
    """
    Bytes that live from one step of a ledger's clock to another.

    Attributes:
        name: What it is, for people: `lm_head: logits`.
        category: What it is for.
        nbytes: Allocated bytes of all its instances: each rounded up to the allocator's 512-byte blocks.
        begin: First step at which it lives.
        end: First step at which it no longer does (half-open); at most the ledger's last.
        formula: Where the number comes from, for `--explain`; may be empty.
    """

    name: str
    category: Category
    nbytes: int
    begin: int
    end: int
    formula: str = ""


@dataclass(frozen=True)
class Span:
    """A stretch of a ledger's clock that belongs to one phase: [begin, end)."""

    phase: Phase
    begin: int
    end: int


@dataclass(frozen=True)
class Peak:
    """
    The largest sum of live bytes in a phase, and what it is made of.

    Attributes:
        phase: The phase it falls in.
        step: The first step of the ledger's clock at which it is reached.
        nbytes: The sum.
        by_category: Bytes of each category; the values add up to `nbytes`.
    """

    phase: Phase
    step: int
    nbytes: int
    by_category: dict[Category, int]


@dataclass(frozen=True)
class Ledger:
    """
    Every allocation of one run, on the clock of the engine that wrote it.

    Steps of different ledgers are not comparable; (phase, category) is.
    """

    engine: str
    allocations: tuple[Allocation, ...]
    timeline: tuple[Span, ...]

    def live_at(self, step: int) -> list[Allocation]:
        """The allocations that live at a step, largest first."""
        live = [a for a in self.allocations if a.begin <= step < a.end]
        return sorted(live, key=lambda a: -a.nbytes)

    def live_bytes(self, step: int) -> int:
        """Bytes alive at a step."""
        return sum(a.nbytes for a in self.allocations if a.begin <= step < a.end)

    @cached_property
    def curve(self) -> list[int]:
        """Live bytes at each step, from 0 to the last."""
        last = max((span.end for span in self.timeline), default=0)
        change = [0] * (last + 1)
        for _, _, nbytes, begin, end, _ in self.allocations:
            change[begin] += nbytes
            change[end] -= nbytes
        return list(accumulate(change[:last]))

    @cached_property
    def peaks(self) -> dict[Phase, Peak]:
        """The peak of each phase of the timeline."""
        found: dict[Phase, tuple[int, int]] = {}
        for span in self.timeline:
            stretch = self.curve[span.begin : span.end]
            size = max(stretch, default=0)
            if span.phase not in found or size > found[span.phase][0]:
                found[span.phase] = (size, span.begin + stretch.index(size))
        return {phase: Peak(phase, step, size, self._by_category(step)) for phase, (size, step) in found.items()}

    def peak(self, phase: Phase | None = None) -> Peak:
        """The peak of one phase, or of all."""
        if phase is not None:
            return self.peaks[phase]
        return max(self.peaks.values(), key=lambda p: p.nbytes)

    def _by_category(self, step: int) -> dict[Category, int]:
        sums = dict.fromkeys(Category, 0)
        for _, category, nbytes, begin, end, _ in self.allocations:
            if begin <= step < end:
                sums[category] += nbytes
        return {category: nbytes for category, nbytes in sums.items() if nbytes}

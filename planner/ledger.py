"""What is allocated when: the one record that every engine writes and everything else reads."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from itertools import accumulate
from typing import Any

from planner.display import Displayed
from planner.value import NamedTuple


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
        name: What it is, for people: `logits`.
        category: What it is for.
        nbytes: Allocated bytes of all its instances: each rounded up to the allocator's 512-byte blocks.
        begin: First step at which it lives.
        end: First step at which it no longer does (half-open); at most the ledger's last.
        scope: The module it belongs to: `self_attn.q_proj`; empty where there is none.
        formula: Where the number comes from, for `--explain`; may be empty.
    """

    name: str
    category: Category
    nbytes: int
    begin: int
    end: int
    scope: str = ""
    formula: str = ""


class Span(NamedTuple):
    """A stretch of a ledger's clock that belongs to one phase: [begin, end)."""

    phase: Phase
    begin: int
    end: int


class Peak(NamedTuple):
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


class Rows:
    """
    Allocations by column, which is what sweeping over a thousand of them wants.

    >>> rows = Rows()
    >>> rows.add(Allocation("weight", Category.PARAMETER, 512, 0, 2))
    >>> rows.sizes, rows.begins, rows.ends
    ([512], [0], [2])
    """

    def __init__(self, allocations: Iterable[Allocation] = ()) -> None:
        self.names: list[str] = []
        self.categories: list[Category] = []
        self.sizes: list[int] = []
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.scopes: list[str] = []
        self.formulas: list[str] = []
        for column, values in zip(self.columns, zip(*allocations, strict=True), strict=False):  # without rows there are no columns
            column.extend(values)

    def extend(self, other: Rows) -> None:
        """Append the allocations of others."""
        for column, values in zip(self.columns, other.columns, strict=True):
            column.extend(values)

    def add(self, allocation: Allocation) -> None:
        """Append one allocation."""
        for column, value in zip(self.columns, allocation, strict=True):
            column.append(value)

    def with_sizes(self, sizes: list[int]) -> Rows:
        """The same allocations with other sizes."""
        rows = Rows()
        rows.names, rows.categories, _, rows.begins, rows.ends, rows.scopes, rows.formulas = self.columns
        rows.sizes = sizes
        return rows

    @property
    def columns(self) -> tuple[list[Any], ...]:
        """The columns in the order of an `Allocation`'s fields."""
        return self.names, self.categories, self.sizes, self.begins, self.ends, self.scopes, self.formulas


class Ledger(Displayed):
    """
    Every allocation of one run, on the clock of the engine that wrote it.

    Steps of different ledgers are not comparable; (phase, category) is.

    Args:
        engine: Who wrote it.
        rows: Its allocations.
        timeline: The phases' spans of its clock, in order.
    """

    def __init__(self, engine: str, rows: Rows | Iterable[Allocation], timeline: Iterable[Span]) -> None:
        self.engine = engine
        self.rows = rows if isinstance(rows, Rows) else Rows(rows)
        self.timeline = tuple(timeline)

    @cached_property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every allocation, in the order of their births."""
        return tuple(map(Allocation, *self.rows.columns))

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
        for size, begin, end in zip(self.rows.sizes, self.rows.begins, self.rows.ends, strict=True):
            change[begin] += size
            change[end] -= size
        return list(accumulate(change[:last]))

    @cached_property
    def highs(self) -> dict[Phase, tuple[int, int]]:
        """The largest sum of live bytes in each phase of the timeline, and the first step at which it is reached."""
        found: dict[Phase, tuple[int, int]] = {}
        for span in self.timeline:
            stretch = self.curve[span.begin : span.end]
            size = max(stretch, default=0)
            if span.phase not in found or size > found[span.phase][0]:
                found[span.phase] = (size, span.begin + stretch.index(size))
        return found

    @cached_property
    def peaks(self) -> dict[Phase, Peak]:
        """The peak of each phase of the timeline."""
        return {phase: self.peak(phase) for phase in self.highs}

    def peak(self, phase: Phase | None = None) -> Peak:
        """The peak of one phase, or of all."""
        if phase is None:
            phase = max(self.highs, key=lambda p: self.highs[p][0])
        size, step = self.highs[phase]
        return Peak(phase, step, size, self.by_category(step))

    @property
    def high(self) -> tuple[Phase, int]:
        """The phase of the highest peak and its bytes: what a verdict needs, without what it is made of."""
        phase = max(self.highs, key=lambda p: self.highs[p][0])
        return phase, self.highs[phase][0]

    def by_category(self, step: int) -> dict[Category, int]:
        """Live bytes of each category at a step, in the order of `Category`; they add up to `live_bytes`."""
        sums = dict.fromkeys(Category, 0)
        rows = self.rows
        for category, size, begin, end in zip(rows.categories, rows.sizes, rows.begins, rows.ends, strict=True):
            if begin <= step < end:
                sums[category] += size
        return {category: size for category, size in sums.items() if size}

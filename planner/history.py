"""
The births and deaths of a run in order: what an engine saw, before anybody judges it.

Engines that lay a step out write one; the allocator replays it, the timeline draws it, the snapshot spells it for PyTorch's viewer.
Where a model's layers repeat, three instances of the repeated stretch stand for all of them (`planner.unrolling` adds the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from planner.ledger import Category, Phase
from planner.value import NamedTuple

WARM_UP_MARGIN = 12 * (1 << 30) // 10
"""
What a loader's warm-up leaves of a card's whole memory.

Source:
    transformers@5.23.0, modeling_utils.py, caching_allocator_warmup: `min(byte_count, total_device_memory - 1.2 * 1024**3)`.
"""


class Stretch(NamedTuple):
    """
    A run of events.

    Attributes:
        phase: The phase that they belong to.
        begin, end: Indices of events, half-open.
        instance: Which instance of the repeated layers they are: 0 the first, 1 the second, 2 the last (where every instance is there, its
            number); None for what is no layer.
    """

    phase: Phase
    begin: int
    end: int
    instance: int | None = None


@dataclass(eq=False)
class History:
    """
    Every storage of a run, by column, and the order in which they come and go.

    Attributes:
        sizes: Bytes that each storage asks the allocator for.
        names, scopes, categories: What it is for people (an operation), its module, and what it is for.
        owners: The instance of the repeated layers that it belongs to: the one that it is born in, or whose parameter it serves
            (a gradient's norm, an optimizer's state); None for the rest.
        events: An index for a birth, its complement (`~index`) for a death.
        stretches: They cover the events, in order.
        flushes: Events before which the cache is emptied (`torch.cuda.empty_cache()`), in order.
        repeat: How many instances of the repeated layers the whole model has; 3 or fewer are all here. 0 where every instance is.
        warm_up: The storage by which transformers has the whole checkpoint's size cached before it loads, if any: on a card it is no
            larger than the card less `WARM_UP_MARGIN`.
        layers: How many layers one instance has.
        workspaces: The storages that are cuBLAS's workspaces, which the card decides on.
        shape: The history that it shares everything with but the sizes, if any.
        unrolled: What `planner.unrolling` made of it; once that is there, nothing is written any more.
    """

    sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    repeat: int = 0
    layers: int = 1
    warm_up: int | None = None
    workspaces: list[int] = field(default_factory=list)
    shape: History | None = field(default=None, repr=False)
    unrolled: Any = field(default=None, init=False, repr=False)

    def with_sizes(self, sizes: list[int]) -> History:
        """The same storages in other sizes."""
        return replace(self, sizes=sizes, shape=self.shape or self)

    def with_workspaces(self, nbytes: int) -> History:
        """The same on a card where cuBLAS takes so much for each."""
        if all(self.sizes[index] == nbytes for index in self.workspaces):
            return self
        sizes = list(self.sizes)
        for index in self.workspaces:
            sizes[index] = nbytes
        return self.with_sizes(sizes)

    def add(self, nbytes: int, name: str, category: Category, scope: str = "", owner: int | None = None) -> int:
        """A storage's birth; returns its index."""
        index = len(self.sizes)
        self.sizes.append(nbytes)
        self.names.append(name)
        self.scopes.append(scope)
        self.categories.append(category)
        self.owners.append(owner)
        self.events.append(index)
        return index

    def drop(self, index: int) -> None:
        """A storage's death."""
        self.events.append(~index)

    def sizes_on(self, total_bytes: int | None) -> list[int]:
        """The sizes on a card of so many bytes, None for an endless one: of a small card the warm-up asks for less."""
        if total_bytes is None or self.warm_up is None:
            return self.sizes
        sizes = list(self.sizes)
        sizes[self.warm_up] = min(sizes[self.warm_up], max(total_bytes - WARM_UP_MARGIN, 0))
        return sizes

    def model_dump(self) -> dict[str, Any]:
        """Every column as JSON can hold it."""
        found = {name: list(getattr(self, name)) for name in ("sizes", "names", "scopes", "owners", "events", "flushes", "workspaces")}
        return {
            **found,
            "categories": [category.value for category in self.categories],
            "stretches": [[s.phase.value, s.begin, s.end, s.instance] for s in self.stretches],
            "repeat": self.repeat,
            "layers": self.layers,
            "warm_up": self.warm_up,
        }

    @classmethod
    def parse(cls, dumped: Mapping[str, Any]) -> History:
        """A history from what `model_dump` gave."""
        columns = {name: value for name, value in dumped.items() if name not in ("categories", "stretches")}
        return cls(
            **columns,
            categories=[Category(c) for c in dumped["categories"]],
            stretches=[Stretch(Phase(phase), *rest) for phase, *rest in dumped["stretches"]],
        )

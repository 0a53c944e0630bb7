"""
The births and deaths of a run in order: what an engine saw, before anybody judges it.

Engines that lay a step out write one; the allocator replays it, the timeline draws it, the snapshot spells it for PyTorch's viewer.
Where a model's layers repeat, three instances of the repeated stretch stand for all of them (`planner.unrolling` adds the others).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from planner.ledger import Category, Phase


class Stretch(NamedTuple):
    """
    A run of events.

    Attributes:
        phase: The phase that they belong to.
        begin, end: Indices of events, half-open.
        instance: Which instance of the repeated layers they are: 0 the first, 1 the second, 2 the last; None for what is no layer.
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
        repeat: How many instances of the repeated layers the whole model has; 3 or fewer are all here.
        layers: How many layers one instance has.
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

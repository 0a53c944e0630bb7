"""Memory over time: a history's events replayed through the allocator, as columns of numbers, and what is alive at the peak."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import accumulate

from planner.allocator import AllocatorSettings, Block, CachingAllocator, OutOfMemory
from planner.history import History
from planner.ledger import Category, Phase, Span
from planner.value import NamedTuple, Value

_LAYER = re.compile(r"(?<![^.])\d+(?![^.])")  # a layer's number in a module's path


class Alive(NamedTuple):
    """
    Storages of one name that are alive together.

    Attributes:
        name, scope, category: As in the history; where modules differ only by a layer's number, that reads `*`.
        instances: How many.
        nbytes: Bytes of their blocks.
    """

    name: str
    scope: str
    category: Category
    instances: int
    nbytes: int


class Peak(NamedTuple):
    """
    The first event after which the most is allocated.

    Attributes:
        event: Position in the timeline's columns; -1 where nothing in them exceeds what is alive before.
        phase: The phase that the event belongs to.
        allocated_bytes, reserved_bytes: After the event.
        by_category: They add up to `allocated_bytes`.
        alive: What is alive after the event, the largest first; it adds up to `allocated_bytes`.
    """

    event: int
    phase: Phase
    allocated_bytes: int
    reserved_bytes: int
    by_category: dict[Category, int]
    alive: tuple[Alive, ...]


class Failure(NamedTuple):
    """
    Where the card is full.

    Attributes:
        event: Position in the history's events.
        phase: The phase that it belongs to.
        storage: Index of what could not be allocated.
        requested_bytes: Its size.
        allocated_bytes, reserved_bytes: What was held then.
    """

    event: int
    phase: Phase
    storage: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class _Replayed(NamedTuple):
    """What the allocator did: the block of each storage, what is reserved after each event, which events made it flush, and its end."""

    blocks: list[int]
    reserved: list[int]
    flushes: list[int]
    failure: tuple[int, OutOfMemory] | None


class Timeline(Value, eq=False):
    """
    A stretch of a run, event by event. An event is the birth or the death of one storage; all sizes are bytes.

    Attributes:
        history: What was replayed.
        begin, end: The events of the history that are shown, half-open.
        blocks: The size of each storage's block, by index.
        reserved_throughout: What the allocator holds after each event of the history.
        flushes_throughout: Events of the history that found the card full until cached memory was given back.
        usable_bytes: What the card gives to tensors; None where there is none.
        failure: Where the card is full. All else is then as on an endless card.
    """

    history: History
    begin: int
    end: int
    blocks: list[int]
    reserved_throughout: list[int]
    flushes_throughout: list[int]
    usable_bytes: int | None
    failure: Failure | None

    @property
    def is_whole_run(self) -> bool:
        """Whether every event is shown."""
        return (self.begin, self.end) == (0, len(self.history.events))

    @cached_property
    def phases(self) -> tuple[Span, ...]:
        """The phases as spans of the columns, in order."""
        clipped = (Span(s.phase, max(s.begin, self.begin), min(s.end, self.end)) for s in phases(self.history))
        return tuple(Span(s.phase, s.begin - self.begin, s.end - self.begin) for s in clipped if s.begin < s.end)

    @cached_property
    def storages(self) -> list[int]:
        """The storage of each event."""
        return [max(event, ~event) for event in self.history.events[self.begin : self.end]]

    @cached_property
    def changes(self) -> list[int]:
        """What each event adds to the allocated bytes: the size of a block, or less that."""
        blocks = self.blocks
        return [blocks[event] if event >= 0 else -blocks[~event] for event in self.history.events[self.begin : self.end]]

    @cached_property
    def start(self) -> dict[Category, int]:
        """Allocated bytes of each category before the first event."""
        return _by_category(self._alive(self.begin))

    @property
    def start_reserved(self) -> int:
        """Reserved bytes before the first event."""
        return self.reserved_throughout[self.begin - 1] if self.begin else 0

    @cached_property
    def allocated(self) -> list[int]:
        """Allocated bytes after each event: `torch.cuda.memory_allocated()`."""
        return list(accumulate(self.changes, initial=sum(self.start.values())))[1:]

    @cached_property
    def reserved(self) -> list[int]:
        """Reserved bytes after each event: `torch.cuda.memory_reserved()`."""
        return self.reserved_throughout[self.begin : self.end]

    @cached_property
    def by_category(self) -> dict[Category, list[int]]:
        """Allocated bytes of each category after each event; categories without a byte are left out."""
        categories = self.history.categories
        kinds = [categories[storage] for storage in self.storages]
        shown = {*kinds, *self.start}
        found = {}
        for category in (category for category in Category if category in shown):
            steps = (change if kind is category else 0 for change, kind in zip(self.changes, kinds, strict=True))
            found[category] = list(accumulate(steps, initial=self.start.get(category, 0)))[1:]
        return found

    @cached_property
    def peak(self) -> Peak:
        """The most that is allocated, and what it is made of."""
        start = sum(self.start.values())
        top = max(self.allocated, default=start)
        event = self.allocated.index(top) if top > start else -1
        alive = self._alive(self.begin + event + 1)
        reserved = self.reserved[event] if event >= 0 else self.start_reserved
        return Peak(event, self.phase_at(event), max(top, start), reserved, _by_category(alive), alive)

    @property
    def peak_reserved(self) -> int:
        """The most that is reserved."""
        return max(self.reserved, default=self.start_reserved)

    @property
    def flushes(self) -> list[int]:
        """Positions in the columns of the events that found the card full until cached memory was given back."""
        return [event - self.begin for event in self.flushes_throughout if self.begin <= event < self.end]

    def phase_at(self, event: int) -> Phase:
        """The phase of an event of the columns; before them, that of the first."""
        return next(span.phase for span in self.phases if event < span.end)

    def _alive(self, end: int) -> tuple[Alive, ...]:
        """What is alive after the first `end` events."""
        history, blocks = self.history, self.blocks
        live: dict[int, None] = {}
        for event in history.events[:end]:
            if event >= 0:
                live[event] = None
            else:
                del live[~event]
        sums: dict[tuple[str, str, Category], tuple[int, int]] = {}
        for storage in live:
            key = history.names[storage], _LAYER.sub("*", history.scopes[storage]), history.categories[storage]
            count, nbytes = sums.get(key, (0, 0))
            sums[key] = count + 1, nbytes + blocks[storage]
        found = (Alive(*key, *total) for key, total in sums.items())
        return tuple(sorted((item for item in found if item.nbytes), key=lambda item: -item.nbytes))


def record(
    history: History,
    usable_bytes: int | None = None,
    settings: AllocatorSettings | None = None,
    *,
    total_bytes: int | None = None,
    whole_run: bool = False,
) -> Timeline:
    """
    Replay a history and keep what the allocator holds after each event.

    Args:
        history: A run at its full depth.
        usable_bytes: What the card gives to tensors; None for an endless card.
        settings: The allocator's.
        total_bytes: The whole card: memory fractions are shares of it, and a loader's warm-up is no larger.
        whole_run: Everything from the loading on, rather than the last training step.

    Raises:
        ValueError: The history has no event.
    """
    if not history.events:
        raise ValueError("the history is empty; it must have at least one event")
    played = _replay(history, history.sizes_on(total_bytes), CachingAllocator(usable_bytes, settings, device_bytes=total_bytes))
    failure = None
    if played.failure is not None:
        failure = _failure(history, *played.failure)
        played = _replay(history, history.sizes, CachingAllocator(None, settings))
    begin, end = (0, len(history.events)) if whole_run else steady_step(history)
    return Timeline(history, begin, end, played.blocks, played.reserved, played.flushes, usable_bytes, failure)


def phases(history: History) -> list[Span]:
    """The phases of a history, as spans of its events; stretches of one phase that follow each other are one span."""
    found: list[Span] = []
    for stretch in history.stretches:
        if stretch.begin == stretch.end:
            continue
        if found and found[-1].phase is stretch.phase:
            found[-1] = found[-1]._replace(end=stretch.end)
        else:
            found.append(Span(stretch.phase, stretch.begin, stretch.end))
    return found


def steady_step(history: History) -> tuple[int, int]:
    """
    The events of the last training step: forward and backward, as often as gradients are accumulated, and the optimizer's step.

    Returns:
        The first of them and one past the last; the whole history where nothing is trained.
    """
    spans = phases(history)
    last = max((i for i, span in enumerate(spans) if span.phase is Phase.OPTIMIZER_STEP), default=None)
    if last is None:
        return 0, len(history.events)
    first = last
    while first > 0 and spans[first - 1].phase in (Phase.FORWARD, Phase.BACKWARD):
        first -= 1
    return spans[first].begin, spans[last].end


def _replay(history: History, sizes: list[int], allocator: CachingAllocator) -> _Replayed:
    """Run a history to its end, or to the first event that cannot be served."""
    due = set(history.flushes)
    live: dict[int, Block] = {}
    blocks, known = [0] * len(sizes), 0
    reserved: list[int] = []
    flushes: list[int] = []
    for position, event in enumerate(history.events):
        if position in due:
            allocator.empty_cache()
        if event < 0:
            allocator.free(live.pop(~event))
        else:
            try:
                live[event] = block = allocator.allocate(sizes[event])
            except OutOfMemory as error:
                return _Replayed(blocks, reserved, flushes, (position, error))
            blocks[event] = block.size
            if allocator.num_flushes > known:
                known = allocator.num_flushes
                flushes.append(position)
        reserved.append(allocator.reserved_bytes)
    return _Replayed(blocks, reserved, flushes, None)


def _failure(history: History, position: int, error: OutOfMemory) -> Failure:
    phase = next(span.phase for span in phases(history) if position < span.end)
    return Failure(position, phase, history.events[position], error.requested, error.allocated, error.reserved)


def _by_category(alive: tuple[Alive, ...]) -> dict[Category, int]:
    """Bytes of each category, in the order of `Category`."""
    sums = dict.fromkeys(Category, 0)
    for item in alive:
        sums[item.category] += item.nbytes
    return {category: nbytes for category, nbytes in sums.items() if nbytes}

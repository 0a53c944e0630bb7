"""Three instances give the events of all, where they can; where they cannot, that is said."""

from __future__ import annotations

import pytest

from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.unrolling import NotRepeatable, unroll_events, unroll_history

SIZES = {"weight": 100, "kept": 10, "passing": 5, "gradient": 7, "state": 3}


class Writer:
    """A model of equal layers: loading, a forward that keeps, a backward that frees the neighbour's, an optimizer's step."""

    def __init__(self, layers: list[int], numbers: list[int]) -> None:
        self.history = History()
        self.layers, self.numbers = layers, numbers
        self.named: dict[tuple[str, int], int] = {}

    def add(self, name: str, owner: int) -> None:
        """A layer's storage is born."""
        self.named[name, owner] = self.history.add(
            SIZES[name], name, Category.ACTIVATION, f"layers.{self.layers[owner]}", self.numbers[owner]
        )

    def drop(self, name: str, owner: int) -> None:
        """It dies."""
        self.history.drop(self.named.pop((name, owner)))

    def stretch(self, phase: Phase, begin: int, owner: int | None = None) -> None:
        """What was written since `begin`."""
        number = None if owner is None else self.numbers[owner]
        self.history.stretches.append(Stretch(phase, begin, len(self.history.events), number))

    def write(self) -> History:
        """Two steps."""
        h, owners = self.history, range(len(self.layers))
        embedding = h.add(1000, "embedding", Category.PARAMETER)
        for owner in owners:
            self.add("weight", owner)
        h.flushes.append(len(h.events))
        self.stretch(Phase.LOAD, 0)
        for step in range(2):
            for owner in owners:
                begin = len(h.events)
                self.add("kept", owner)
                self.add("passing", owner)
                if owner:
                    self.drop("passing", owner - 1)
                self.stretch(Phase.FORWARD, begin, owner)
            begin = len(h.events)
            self.drop("passing", owners[-1])
            h.drop(h.add(50, "loss", Category.LOGITS))
            self.stretch(Phase.BACKWARD, begin)
            for owner in reversed(owners):
                begin = len(h.events)
                self.add("gradient", owner)
                if owner < owners[-1]:
                    self.drop("kept", owner + 1)  # the layer after it
                self.stretch(Phase.BACKWARD, begin, owner)
            begin = len(h.events)
            self.drop("kept", 0)
            for owner in owners:
                if step == 0:
                    self.add("state", owner)
            for owner in owners:
                self.drop("gradient", owner)
            self.stretch(Phase.OPTIMIZER_STEP, begin)
        h.drop(embedding)
        h.stretches.append(Stretch(Phase.SAVE, len(h.events) - 1, len(h.events)))
        return h


def written(depth: int, *, all_of_them: bool) -> History:
    """A history of so many layers: of three of them, or of every one."""
    if all_of_them:
        return Writer(list(range(depth)), list(range(depth))).write()
    history = Writer([0, 1, depth - 1], [0, 1, 2]).write()
    history.repeat = depth
    return history


def spelled(history: History) -> list[tuple[str, str, str, int]]:
    """Events in words, and the books kept: nothing dies twice or before it was born."""
    alive: set[int] = set()
    found = []
    for event in history.events:
        storage = event if event >= 0 else ~event
        if event >= 0:
            alive.add(storage)
        else:
            alive.remove(storage)
        found.append(("born" if event >= 0 else "dies", history.names[storage], history.scopes[storage], history.sizes[storage]))
    return found


@pytest.mark.parametrize("depth", [4, 5, 6, 7, 12])
def test_every_event_of_every_layer(depth):
    """Event for event what a run of all layers writes, with names, owners, stretches and flushes."""
    whole, unrolled = written(depth, all_of_them=True), unroll_history(written(depth, all_of_them=False))

    assert spelled(unrolled) == spelled(whole)
    assert unrolled.flushes == whole.flushes
    assert unrolled.stretches == whole.stretches
    births = [[history.owners[e] for e in history.events if e >= 0] for history in (unrolled, whole)]
    assert births[0] == births[1]


@pytest.mark.parametrize("depth", [4, 9])
def test_events_alone_are_the_same(depth):
    """What an allocator needs, and where each storage comes from."""
    history = written(depth, all_of_them=False)
    events, named = unroll_events(history), unroll_history(history)

    assert (events.events, list(events.sizes), events.flushes) == (named.events, named.sizes, named.flushes)
    assert [events.scope(i) for i in range(len(events.sizes))] == named.scopes
    assert [history.names[events.origin(i)] for i in range(len(events.sizes))] == named.names


@pytest.mark.parametrize("depth", [0, 3])
def test_what_is_whole_stays_as_it_is(depth):
    """Three instances or fewer are all there are."""
    history = written(3, all_of_them=True)
    history.repeat = depth

    assert unroll_history(history) is history
    assert unroll_events(history).events == history.events


def test_instances_that_differ_are_refused():
    """A last layer that makes something else stands for no other."""
    history = written(8, all_of_them=False)
    history.sizes[next(i for i, owner in enumerate(history.owners) if owner == 2)] += 1

    with pytest.raises(NotRepeatable, match="make different storages"):
        unroll_history(history)


def test_a_layer_that_frees_what_belongs_to_no_layer_is_refused():
    """Every copy would free it again."""
    history = written(8, all_of_them=False)
    last = next(s for s in history.stretches if s.instance == 2)
    history.events[last.end - 1] = ~history.names.index("embedding")

    with pytest.raises(NotRepeatable, match="belongs to no neighbour"):
        unroll_history(history)


def test_a_storage_that_would_die_twice_is_refused():
    """A second optimizer's step that frees the gradients of the first again, in every instance."""
    history = written(8, all_of_them=False)
    gradients = [i for i, name in enumerate(history.names) if name == "gradient" and history.owners[i] == 1]
    history.events[history.events.index(~gradients[1])] = ~gradients[0]

    with pytest.raises(NotRepeatable, match="freed twice"):
        unroll_history(history)


def test_other_sizes_share_the_events():
    """A history of another batch is unrolled with it: the same events, its own sizes."""
    history = written(8, all_of_them=False)
    other = history.with_sizes([2 * size for size in history.sizes])
    ours, theirs = unroll_events(history), unroll_events(other)

    assert ours.program is theirs.program
    assert list(theirs.sizes) == [2 * size for size in ours.sizes]
    assert unroll_history(other).sizes == list(theirs.sizes)


def test_instances_in_another_order_are_refused():
    """Passes run from the first to the last, or back."""
    history = written(8, all_of_them=False)
    i = next(i for i, s in enumerate(history.stretches) if s.instance == 1)
    history.stretches[i] = history.stretches[i]._replace(instance=2)

    with pytest.raises(NotRepeatable, match="in the order"):
        unroll_history(history)


def test_a_cache_emptied_between_layers_is_refused():
    """How often it would be for all of them is not known."""
    history = written(8, all_of_them=False)
    second = next(s for s in history.stretches if s.instance == 1)
    history.flushes.append(second.begin)

    with pytest.raises(NotRepeatable, match="emptied between layers"):
        unroll_history(history)

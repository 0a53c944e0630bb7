"""
From a history with the first, the second and the last instance of what repeats to every event of the whole model.

What an allocator does hangs on every single event and on their order, so nothing is summed here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby, pairwise

from planner.allocator.program import Part, Program, extend, pack
from planner.history import History, Stretch
from planner.ledger import Phase
from planner.repetition import Repetition, numbered, repetition
from planner.value import NamedTuple

__all__ = ["NotRepeatable", "Repetition", "Unrolled", "repetition", "unroll_events", "unroll_history"]

_HELD = 3
"""Instances that a history holds: first, second, last."""


class NotRepeatable(Exception):
    """
    Three instances of a stretch do not stand for all of them: they differ in what they make, or reach further than to a neighbour.

    Internal: who catches it runs every layer.
    """


def unroll_history(history: History) -> History:
    """
    Every event of the whole model, from a history with the first, the second and the last instance of what repeats.

    Copies of the second instance are put between the second and the last. In forward each does what the last does, and what that
    takes from the second is taken from the instance before; in backward each does what the second does, and what that takes from the
    last is taken from the instance after. Elsewhere (loading, the optimizer's step) what happens to storages of the second happens
    right after to those of each copy, in the layers' order.

    Returns:
        A history whose `repeat` is 0, whose owners and stretches have the instances' true numbers; the one that was given where it has
        three or fewer.

    Raises:
        NotRepeatable: The second and the last instance make different storages, or one frees what belongs to no neighbour.
    """
    return history if history.repeat <= _HELD else Unrolled(history).named()


def unroll_events(history: History) -> Unrolled:
    """
    The sizes, events and stretches of `unroll_history`, without names: what an allocator asks for.

    Raises:
        NotRepeatable: As `unroll_history`.
    """
    shape = history.shape or history
    if shape.unrolled is None:
        shape.unrolled = Unrolled(shape)
    found: Unrolled = shape.unrolled
    return found if history is shape else found.resized(history)



class _Pass(NamedTuple):
    """
    One pass over the three instances, a forward or a backward.

    Attributes:
        phase: Its phase.
        first, second, last: Events of each; what comes before the next instance of the pass belongs to the one before it.
        after_second: How many of the second's events come after its own stretch.
        end: The index of the first stretch that is no longer part of it.
    """

    phase: Phase
    first: list[int]
    second: list[int]
    last: list[int]
    after_second: int
    end: int


def _passes(history: History) -> dict[int, _Pass]:
    """The passes by the index of their first stretch."""
    stretches, events = history.stretches, history.events
    layered = [i for i, stretch in enumerate(stretches) if stretch.instance is not None]
    found = {}
    for a, b, c in zip(layered[::3], layered[1::3], layered[2::3], strict=True):
        order = [stretches[i].instance for i in (a, b, c)]
        parts = [events[stretches[i].begin : stretches[j].begin] for i, j in ((a, b), (b, c))]
        parts.append(events[stretches[c].begin : stretches[c].end])
        after = stretches[c].begin - stretches[b].end
        if order == [0, 1, 2]:
            found[a] = _Pass(stretches[a].phase, parts[0], parts[1], parts[2], after, c + 1)
        elif order == [2, 1, 0]:
            found[a] = _Pass(stretches[a].phase, parts[2], parts[1], parts[0], after, c + 1)
        else:
            raise NotRepeatable(f"the instances come in the order {order}")
    return found


_LAST = 2


class _Deed(NamedTuple):
    """
    What one event of an instance does.

    Attributes:
        shift: How many instances before or after the acting one the storage belongs to; None for what belongs to none of these.
        part: The storage's role; where it belongs to none, the storage.
        is_birth: Whether it is born, or dies.
    """

    shift: int | None
    part: int
    is_birth: bool


class Unrolled:
    """
    The events of every instance.

    Attributes:
        sizes, events, stretches, flushes: As in a `History`.
        program: The events and flushes, as an allocator runs them; what instances do alike stands there once.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.owners = history.owners
        self.stretches, self.flushes = history.stretches, history.flushes
        self.program = Program([Part(history.events)], history.flushes)
        if history.repeat <= _HELD:
            return
        self.stretches, self.flushes, self.length = [], [], 0
        self.parts: list[Part] = []
        self.end = history.repeat - 1  # the true number of the last instance
        self.second = [i for i, owner in enumerate(self.owners) if owner == 1]
        self.roles = {storage: role for role, storage in enumerate(self.second)}
        self.passes = _passes(history)
        self.twins = self._find_twins()  # of each storage of the last instance: the second's that plays its part
        self.lasts = {second: last for last, second in self.twins.items()}
        self.last = [self.lasts.get(i, i) for i in self.second]
        self.firsts: dict[int, int] = {}  # of the first instance, by role, those that the second frees
        self._run()
        self.program = Program(self.parts, self.flushes)

    @property
    def events(self) -> Sequence[int]:
        """Every event."""
        return self.program.events

    @cached_property
    def sizes(self) -> Sequence[int]:
        """Bytes of every storage, packed where they are not absurd."""
        sizes = self.history.sizes
        if self.history.repeat <= _HELD:
            return pack(sizes)
        return extend(pack(sizes), [sizes[i] for i in self.second], self.end - 2)

    def resized(self, history: History) -> Unrolled:
        """The same events of a history in other sizes."""
        found = copy.copy(self)
        found.history = history
        found.__dict__.pop("sizes", None)
        return found

    def origin(self, storage: int) -> int:
        """The storage of the given history that it is, or that it is a copy of."""
        beyond = storage - len(self.owners)
        return storage if beyond < 0 else self.second[beyond % len(self.second)]

    def scope(self, storage: int) -> str:
        """The module that it belongs to."""
        found = self.origin(storage)
        if found == storage:
            return self.history.scopes[storage]
        number = 2 + (storage - len(self.owners)) // len(self.second)
        return numbered(self.history.scopes[found], self.history.scopes[self.lasts[found]], self.end - 1).of(number)

    def named(self) -> History:
        """The history of all instances."""
        h = self.history
        out = History(list(self.sizes), list(h.names), list(h.scopes), list(h.categories), layers=h.layers, warm_up=h.warm_up)
        out.workspaces = h.workspaces
        out.events, out.stretches, out.flushes = list(self.events), self.stretches, self.flushes
        out.owners = [self.end if owner == _LAST else owner for owner in h.owners]
        names, categories = [h.names[i] for i in self.second], [h.categories[i] for i in self.second]
        scopes = [numbered(h.scopes[i], h.scopes[self.lasts[i]], self.end - 1) for i in self.second]
        for number in range(2, self.end):
            out.names += names
            out.categories += categories
            out.scopes += [scope.of(number) for scope in scopes]
            out.owners += [number] * len(self.second)
        return out

    def _run(self) -> None:
        """Stretch by stretch."""
        stretches, i = self.history.stretches, 0
        while i < len(stretches):
            found = self.passes.get(i)
            if found is None:
                self._outside(stretches[i])
                i += 1
                continue
            begin, end = stretches[i].begin, stretches[found.end - 1].end
            if any(begin < flush < end for flush in self.history.flushes):
                raise NotRepeatable("the cache is emptied between layers")
            self.flushes += [self.length] * (begin in self.history.flushes)
            if stretches[i].instance == 0:
                self._forward(found)
                i = found.end
            else:
                self._backward(found)
                i = found.end
        self._check_deaths()
        self.flushes += [self.length] * (len(self.history.events) in self.history.flushes)

    def _check_deaths(self) -> None:
        """No storage dies twice: neither once and again, nor while instances in turn free theirs."""
        width, base = len(self.second), len(self.owners)
        once = [~event for part in self.parts if part.count == 1 for event in part.events if event < 0]
        turns: dict[int, list[tuple[int, int]]] = {}  # by role: the first and the last storage
        for events, count, shift in self.parts:
            if count > 1:
                far = (count - 1) * shift
                low, high = min(far, 0), max(far, 0)
                for storage in [~event for event in events if event < 0]:
                    turns.setdefault((storage - base) % width, []).append((storage + low, storage + high))
        again = len(set(once)) < len(once)
        again = again or any(a[1] >= b[0] for run in turns.values() if len(run) > 1 for a, b in pairwise(sorted(run)))
        copies = [i for i in once if i >= base and (i - base) % width in turns]
        if again or any(low <= i <= high for i in copies for low, high in turns[(i - base) % width]):
            raise NotRepeatable("a storage would be freed twice")

    def _put(self, events: Sequence[int], count: int = 1, shift: int = 0) -> None:
        """So many instances of the events, each to storages that lie `shift` further on."""
        if count == 1 and self.parts and self.parts[-1].count == 1:
            self.parts[-1].events.extend(events)
        else:
            self.parts.append(Part(list(events), count, shift))
        self.length += len(events) * count

    def _find_twins(self) -> dict[int, int]:
        inside: set[int] = set()
        pairs = []
        for found in self.passes.values():
            born = [[e for e in events if e >= 0 and self.owners[e] is not None] for events in (found.second, found.last)]
            inside.update(*born)
            pairs.append(born)
        pairs.append([[i for i, o in enumerate(self.owners) if o == owner and i not in inside] for owner in (1, _LAST)])
        sizes, owners = self.history.sizes, self.owners
        twins: dict[int, int] = {}
        for second, last in pairs:
            are_theirs = {owners[i] for i in second} <= {1} and {owners[i] for i in last} <= {_LAST}
            if not are_theirs or [sizes[i] for i in second] != [sizes[i] for i in last]:
                raise NotRepeatable("the second and the last instance make different storages")
            twins.update(zip(last, second, strict=True))
        return twins

    def _emit(self, phase: Phase, numbers: Sequence[int], events: Sequence[int], shift: int = 0) -> None:
        """What instances do; of several, what the first of them does."""
        for i, number in enumerate(numbers):
            begin = self.length + i * len(events)
            self.stretches.append(Stretch(phase, begin, begin + len(events), number))
        self._put(events, len(numbers), shift)

    def _forward(self, found: _Pass) -> None:
        firsts = dict(zip(_births(found.first), _births(found.second), strict=False))
        after = found.second[len(found.second) - found.after_second :]
        last, between = self._template(found.last, {1: -1, _LAST: 0}), self._template(after, {0: -1, 1: 0}, firsts)
        self._emit(found.phase, [0], found.first)
        self._emit(found.phase, [1], found.second)
        self._copies(found.phase, range(2, self.end), last + between)
        self._emit(found.phase, [self.end], self._as(self.end, last))

    def _backward(self, found: _Pass) -> None:
        firsts = self._freed_before(found)
        last, second = self._template(found.last, {1: -1, _LAST: 0}), self._template(found.second, {0: -1, 1: 0, _LAST: 1}, firsts)
        self._emit(found.phase, [self.end], self._as(self.end, last))
        self._copies(found.phase, range(self.end - 1, 1, -1), second)
        self._emit(found.phase, [1], self._as(1, second))
        self._emit(found.phase, [0], found.first)

    def _copies(self, phase: Phase, numbers: range, template: list[_Deed]) -> None:
        """
        The instances between, one after the other. Away from the ends each does what the one before it did, to storages that lie as far
        apart as instances do.
        """
        shift = numbers.step * len(self.second)
        ends = (2, 3, self.end - 2, self.end - 1)  # with a neighbour among the instances that are there
        far = [number for number in numbers if number not in ends]
        template = self._of_neighbours(template)
        for number in numbers:
            if number in ends:
                self._emit(phase, [number], self._as(number, template))
            elif number == far[0]:
                self._emit(phase, far, self._as(number, template), shift)

    def _freed_before(self, found: _Pass) -> dict[int, int]:
        """Of the first's storages that the second's backward frees: the second's that the last's frees at the same point."""
        taken = [~e for e in found.second if e < 0 and self.owners[~e] == 0]
        theirs = [~e for e in found.last if e < 0 and self.owners[~e] == 1]
        sizes = self.history.sizes
        if [sizes[i] for i in taken] != [sizes[i] for i in theirs]:
            raise NotRepeatable("the second and the last instance free different storages of the one before")
        return dict(zip(taken, theirs, strict=True))

    def _template(self, events: list[int], shifts: dict[int, int], firsts: dict[int, int] | None = None) -> list[_Deed]:
        """
        Events of the second or the last as any instance does them.

        Args:
            events: Theirs.
            shifts: By owner, how many instances before or after the acting one a storage belongs to.
            firsts: Of the first's storages, the second's that plays the part.
        """
        owners, twins, roles = self.owners, self.twins, self.roles
        parts: dict[int, tuple[int | None, int]] = {}
        for storage in {e if e >= 0 else ~e for e in events}:
            owner = owners[storage]
            shift = None if owner is None else shifts.get(owner)
            if shift is None:
                parts[storage] = None, storage
                continue
            second = twins[storage] if owner == _LAST else storage if owner == 1 else (firsts or {}).get(storage)
            if second is None:
                raise NotRepeatable("the first instance makes other storages than the second")
            parts[storage] = shift, roles[second]
            if owner == 0:
                self.firsts[roles[second]] = storage
        return [_Deed(*parts[e], is_birth=True) if e >= 0 else _Deed(*parts[~e], is_birth=False) for e in events]

    def _of_neighbours(self, template: list[_Deed]) -> list[_Deed]:
        """What an instance between does to its own storages and its neighbours': what belongs to nobody is born once, and not here."""
        for shift, storage, is_birth in template:
            if shift is None and not (is_birth and self.owners[storage] is None):
                raise NotRepeatable(f"an instance frees {self.history.names[storage]}, which belongs to no neighbour")
        return [deed for deed in template if deed.shift is not None]

    def _as(self, number: int, template: list[_Deed]) -> list[int]:
        """The events of a template as one instance does them."""
        near = {shift: self._storages(number + shift) for shift in (-1, 0, 1)}
        storages = [part if shift is None else near[shift][part] for shift, part, _ in template]
        return [storage if deed.is_birth else ~storage for storage, deed in zip(storages, template, strict=True)]

    def _storages(self, number: int) -> Mapping[int, int] | Sequence[int]:
        """The storages of an instance by their roles; of the first, those that were asked for."""
        if number in (1, self.end):
            return self.second if number == 1 else self.last
        begin = len(self.owners) + (number - 2) * len(self.second)
        return self.firsts if number == 0 else range(begin, begin + len(self.second))

    def _outside(self, stretch: Stretch) -> None:
        """What happens to storages of the second happens to those of each copy: run of events by run."""
        h, roles = self.history, self.roles
        begin, at = self.length, stretch.begin
        flushes = sorted({i for i in h.flushes if stretch.begin <= i < stretch.end})
        for end in (*flushes, stretch.end):
            for mine, run in groupby(h.events[at:end], lambda event: (event if event >= 0 else ~event) in roles):
                self._put(events := list(run))
                if mine:
                    self._repeat(events)
            at = end
            self.flushes += [self.length] * (end in flushes)
        self.stretches.append(Stretch(stretch.phase, begin, self.length))

    def _repeat(self, run: list[int]) -> None:
        """The same by the copies."""
        base, roles = len(self.owners), self.roles
        self._put([base + roles[e] if e >= 0 else ~(base + roles[~e]) for e in run], self.end - 2, len(self.second))


def _births(events: list[int]) -> list[int]:
    return [event for event in events if event >= 0]

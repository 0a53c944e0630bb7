"""
A run in the allocator: what it makes PyTorch reserve, and whether a card can hold it.

Everything here is computed when somebody asks, and once: in Python a replay of an 80-layer model takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property
from threading import Thread
from typing import Any

from planner.allocator import AllocatorSettings, native
from planner.allocator.program import Ending, run
from planner.history import WARM_UP_MARGIN, History
from planner.ledger import Category, Phase
from planner.unrolling import Unrolled, unroll_events
from planner.value import NamedTuple, replace


class Failure(NamedTuple):
    """
    Where a run ends for want of memory.

    Attributes:
        operation, scope: What asked for it, and in which module.
        phase: The part of the run.
        requested_bytes: What it asked for.
        allocated_bytes: What was alive then.
        reserved_bytes: What the allocator held then, after it had given back what it could.
        by_category: What was alive, by what it is for; the values add up to `allocated_bytes`.
    """

    operation: str
    scope: str
    phase: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    by_category: dict[str, int]


class Trial(NamedTuple):
    """
    One run in an allocator.

    Attributes:
        reserved_bytes: The most that was reserved.
        allocated_bytes: The most that was allocated.
        num_flushes: Requests that found the card full, and were served after cached memory was given back.
        failure: Where it failed; None if it ran to its end.
    """

    reserved_bytes: int
    allocated_bytes: int
    num_flushes: int = 0
    failure: Failure | None = None

    @property
    def runs(self) -> bool:
        """Whether it ran to its end."""
        return self.failure is None


class Simulation:
    """
    One history, in allocators of any capacity.

    Args:
        history: Gives the history; of repeated layers it may have three instances.
        settings: What the allocator is told.
    """

    def __init__(self, history: Callable[[], History], settings: AllocatorSettings) -> None:
        self._history = history
        self.settings = settings
        self._ahead: Thread | None = None
        self._found: Trial | None = None
        self._trials: dict[tuple[int, int, bool], Trial] = {}
        self._refused: dict[tuple[int, int, bool], bool] = {}

    @cached_property
    def history(self) -> History:
        """The history as it was given."""
        return self._history()

    @cached_property
    def endless(self) -> Trial:
        """On a card without end: what the run reserves where there is room."""
        if self._ahead is not None:
            self._ahead.join()
        return self._found or self._try(self.settings)

    def begin(self) -> None:
        """
        Start that run beside what the caller does next; who asks for it waits until it is done.

        Only compiled code runs beside: it does not hold the interpreter.
        """
        if self._ahead is None and "endless" not in self.__dict__:
            whole = unroll_events(self.history)
            if native.library(whole.program.num_events) is not None:
                self._ahead = Thread(target=self._begun, daemon=True)
                self._ahead.start()

    def _begun(self) -> None:
        with suppress(Exception):  # who asks meets it again
            self._found = self._try(self.settings)

    def on(self, usable_bytes: int, total_bytes: int, *, expandable: bool = False) -> Trial:
        """
        On a card.

        A run that reserves no more on an endless card than this one has does the very same here, and is not run again.

        Args:
            usable_bytes: What the card has for tensors.
            total_bytes: The whole card, which memory fractions are shares of.
            expandable: Whether expandable segments are switched on.
        """
        settings = replace(self.settings, expandable_segments=True) if expandable else self.settings
        is_simple = settings == self.settings and settings.per_process_memory_fraction == 1
        if is_simple and self._warm_up(total_bytes) is None and self.endless.reserved_bytes <= usable_bytes:
            return self.endless
        key = (usable_bytes, total_bytes, settings.expandable_segments)
        if key not in self._trials:
            self._trials[key] = self._try(settings, usable_bytes, total_bytes)
        return self._trials[key]

    def runs_on(self, usable_bytes: int, total_bytes: int) -> bool:
        """
        Whether it runs on a card: what `on` says, for those who ask of many runs that fail. The card goes before the endless one, and a
        failure is not explained.

        A run that never finds the card full does the very same on an endless one, which is then known too.
        """
        key = (usable_bytes, total_bytes, self.settings.expandable_segments)
        if key in self._trials or "endless" in self.__dict__:
            return self.on(usable_bytes, total_bytes).runs
        if key not in self._refused:
            found = self._run(self.settings, usable_bytes, total_bytes, explains=False)[-1]
            self._refused[key] = found.failed_at is not None
            if found.failed_at is None:
                trial = self._trials[key] = Trial(found.reserved_bytes, found.allocated_bytes, found.num_flushes)
                is_simple = self.settings.per_process_memory_fraction == 1 and not self.settings.garbage_collection_threshold
                if not found.num_flushes and is_simple and self._warm_up(total_bytes) is None:
                    self.__dict__["endless"] = trial
        return not self._refused[key]

    def fits(self, usable_bytes: int, total_bytes: int) -> bool:
        """Whether it runs on a card: without a replay where more is allocated at once than the card has."""
        if self.endless.allocated_bytes > usable_bytes:
            return False
        return self.on(usable_bytes, total_bytes).runs

    def _warm_up(self, total_bytes: int) -> int | None:
        """What the loader's warm-up asks of a card of this size, where that is less than on an endless one."""
        storage, most = self.history.warm_up, total_bytes - WARM_UP_MARGIN
        return most if storage is not None and self.history.sizes[storage] > most else None

    def _try(self, settings: AllocatorSettings, usable_bytes: int | None = None, total_bytes: int | None = None) -> Trial:
        """Run every event, and say where it fails."""
        whole, sizes, found = self._run(settings, usable_bytes, total_bytes)
        failure = None if found.failed_at is None else self._failure(whole, sizes, found.failed_at, found)
        return Trial(found.reserved_bytes, found.allocated_bytes, found.num_flushes, failure)

    def _run(
        self, settings: AllocatorSettings, usable_bytes: int | None, total_bytes: int | None, *, explains: bool = True
    ) -> tuple[Unrolled, Sequence[int], Ending]:
        """Run every event; `torch.cuda.empty_cache()` where the history has it."""
        whole = unroll_events(self.history)
        warm_up = None if total_bytes is None else self._warm_up(total_bytes)
        sizes: Any = whole.sizes
        if warm_up is not None and self.history.warm_up is not None:
            sizes = copy(sizes)
            sizes[self.history.warm_up] = max(warm_up, 0)
        return whole, sizes, run(whole.program, sizes, settings, usable_bytes, total_bytes, explains=explains)

    def _failure(self, whole: Unrolled, sizes: Sequence[int], position: int, found: Ending) -> Failure:
        history = self.history
        event = whole.program.event(position)
        asked = whole.origin(event)
        phase = next((s.phase for s in whole.stretches if s.begin <= position < s.end), Phase.FORWARD)
        sums: dict[Category, int] = {}
        for storage, size in found.held:
            category = history.categories[whole.origin(storage)]
            sums[category] = sums.get(category, 0) + size
        return Failure(
            operation=history.names[asked],
            scope=whole.scope(event),
            phase=phase.value,
            requested_bytes=sizes[event],
            allocated_bytes=found.allocated_then,
            reserved_bytes=found.reserved_then,
            by_category={category.value: sums[category] for category in Category if sums.get(category)},
        )

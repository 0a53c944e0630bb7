"""What an engine finds out about a run, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from planner.dtypes import DType
from planner.engines.traps import Trap
from planner.ledger import Ledger
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Behaviours, Reading
from planner.value import Value

if TYPE_CHECKING:
    from planner.history import History


class Analysis(Value, eq=False):
    """
    What an engine found.

    Attributes:
        ledger: Every allocation and its lifetime.
        steady_bytes: What stays allocated between steps, from the second step on.
        resting_bytes: What of that stays whatever the card: all but cuBLAS's workspaces.
        num_quantized_parameters, num_trainable_parameters: Counts of elements.
        paged_bytes: Optimizer state in CUDA managed memory.
        host_ram_bytes: RAM of the process beside the card.
        download_bytes: Size of the checkpoint's weights.
        run_key: What of the card its history hangs on: cards that share it share the history.
        reading: Whether the stack's loader reads ahead in threads, so that the order of loading is a matter of luck.
        warnings: What the user should know about this answer.
    """

    ledger: Ledger
    steady_bytes: int
    resting_bytes: int
    num_quantized_parameters: int
    num_trainable_parameters: int
    paged_bytes: int
    host_ram_bytes: int
    download_bytes: int
    run_key: tuple[object, ...]
    reading: Reading
    _write: Callable[[int | None], History] = field(repr=False)
    warnings: tuple[str, ...] = ()
    _find_traps: Callable[[], tuple[Trap, ...]] = field(default=tuple, repr=False)

    @cached_property
    def history(self) -> History:
        """
        Every storage in order, from loading through two steps; of layers that repeat, three instances. Threads that read ahead keep their
        hands full, and nobody waits for the one that quantises, which has the least to do.
        """
        return self._write(0 if self.reading == "ahead" else None)

    def other_histories(self) -> tuple[Callable[[], History], ...]:
        """
        What else the run may be like where the stack's loader races: in turn, as one thread would read; the main thread just keeping up
        with the others; half as fast; everything read first. Where the versions are in doubt, each of them with the cache emptied and not.
        """
        if self.reading == "in_turn":
            return ()
        from planner.engines.reading import IN_TURN, NEVER, WORKERS

        slower = (100 // WORKERS, 200 // WORKERS, NEVER)
        if self.reading == "ahead":
            return tuple(partial(self._write, pace) for pace in (IN_TURN, *slower))
        raced: list[Callable[[], History]] = [cache(partial(self._write, pace)) for pace in (0, *slower)]
        return (*raced, *(partial(_without_flushes, write) for write in (self._planned, *raced)))

    def _planned(self) -> History:
        return self.history

    @cached_property
    def traps(self) -> tuple[Trap, ...]:
        """What the recipe costs without saying so, largest first; found when somebody asks, since it may plan the run again."""
        return self._find_traps()


def _without_flushes(write: Callable[[], History]) -> History:
    return replace(write(), flushes=[], shape=None)  # a shape would bring its flushes


def host_ram(spec: ModelSpec, recipe: Recipe, known: Behaviours) -> int:
    """
    RAM that loading takes beside the interpreter: the whole model where it is built on the CPU first, else the largest tensor, as
    stored and as cast. Files are memory-mapped: their pages count as cache.

    Source:
        transformers@5.23.0, core_model_loading.py; facts by version in `stack.Behaviours.loads_on`.
    """
    wanted = DType(recipe.dtype)
    if known.loads_on == "cpu":
        return spec.num_parameters * wanted.num_bytes
    largest = max((module.weight_numel for module in spec.modules), default=0)
    return largest * (spec.dtype.num_bytes + (0 if wanted is spec.dtype else wanted.num_bytes))

"""What an engine finds out about a run, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from planner.dtypes import DType
from planner.engines.traps import Trap
from planner.ledger import Ledger
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Behaviours

if TYPE_CHECKING:
    from planner.history import History

_READ_AHEAD = (4, None)
"""Tensors that a racing loader is ahead: one for each of its four threads, and all of them."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """
    What an engine found.

    Attributes:
        ledger: Every allocation and its lifetime.
        steady_bytes: What stays allocated between steps, from the second step on.
        num_quantized_parameters, num_trainable_parameters: Counts of elements.
        paged_bytes: Optimizer state in CUDA managed memory.
        host_ram_bytes: RAM of the process beside the card.
        download_bytes: Size of the checkpoint's weights.
        run_key: What of the card its history hangs on: cards that share it share the history.
        races: Whether the stack's loader reads ahead in threads, so that the order of loading is a matter of luck.
        warnings: What the user should know about this answer.
    """

    ledger: Ledger
    steady_bytes: int
    num_quantized_parameters: int
    num_trainable_parameters: int
    paged_bytes: int
    host_ram_bytes: int
    download_bytes: int
    run_key: tuple[object, ...]
    races: bool
    _write: Callable[[int | None], History] = field(repr=False)
    warnings: tuple[str, ...] = ()
    _find_traps: Callable[[], tuple[Trap, ...]] = field(default=tuple, repr=False)

    @cached_property
    def history(self) -> History:
        """Every storage in order, from loading through two steps; of layers that repeat, three instances."""
        return self._write(0)

    def other_histories(self) -> tuple[Callable[[], History], ...]:
        """Where the stack's loader races: histories in which it has read more tensors ahead, up to all of them."""
        return tuple(partial(self._write, ahead) for ahead in _READ_AHEAD) if self.races else ()

    @cached_property
    def traps(self) -> tuple[Trap, ...]:
        """What the recipe costs without saying so, largest first; found when somebody asks, since it may plan the run again."""
        return self._find_traps()


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

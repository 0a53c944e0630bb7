"""The closed form over a grid: which rows are computed together, and how they become a table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.engines.analytic import DEFAULT_CAPABILITY
from planner.engines.arrays import Peaks
from planner.engines.moments import PHASES
from planner.errors import QplanError
from planner.recipe import Recipe
from planner.sweeping.deciding import OUTCOMES, UNDECIDED, Judge, Verdicts
from planner.sweeping.grid import Axis, Grid, Unit
from planner.sweeping.parts import Points
from planner.sweeping.table import Column, Table, joined, numbers, texts
from planner.value import NamedTuple

Integers = npt.NDArray[np.int64]

_PHASE_NAMES = tuple(phase.value for phase in PHASES)
_TOGETHER = ("batch_size", "seq_len")
_MOST_HELD = 1 << 22
"""Peaks that are kept for cards that share them."""


class Found(NamedTuple):
    """
    What the closed form finds for a unit.

    Attributes:
        allocated: Peaks, [n]; 0 where refused.
        phase: Index into `PHASES`, [n]; -1 where refused.
        refusal: Index into `refusals`, [n]; -1 where there is none.
        refusals: Why.
    """

    allocated: Integers
    phase: npt.NDArray[np.int8]
    refusal: npt.NDArray[np.int32]
    refusals: tuple[str, ...]


class Analytic:
    """
    Computes units of a grid.

    Args:
        grid: The grid.
        simulate: How verdicts are found: `auto`, `all` or `none`.
        advance: Is told of rows as they are done.
    """

    def __init__(self, grid: Grid, simulate: str, advance: Callable[[int], None] = lambda _: None) -> None:
        self.grid, self.advance = grid, advance
        self.judge = Judge(grid, simulate, advance=advance)
        self._peaks: OrderedDict[tuple[int, ...], Peaks] = OrderedDict()
        self._found: OrderedDict[tuple[object, ...], Found] = OrderedDict()

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def points(self) -> Points:
        """What was simulated, and need not be again."""
        return self.judge.points

    @points.setter
    def points(self, points: Points) -> None:
        points.known = {**self.judge.points.known, **points.known}
        self.judge.points = points

    def table(self, units: Sequence[Unit]) -> Table:
        """The rows of units that follow each other."""
        return joined([self._table(unit) for unit in units])

    def _table(self, unit: Unit) -> Table:
        found = self.found(unit)
        good = np.flatnonzero(found.refusal < 0)
        verdicts = self.judge.verdicts(unit.model, unit.gpu, unit.begin + good, found.allocated[good])
        self.advance(len(unit) - int(verdicts.simulated.sum()))
        return Table({**knob_columns(self.grid, unit), **_results(self.grid, unit, found, good, verdicts)})

    def found(self, unit: Unit) -> Found:
        """The peaks of a unit; cards of one compute capability share them."""
        device = self.grid.gpus[unit.gpu]
        capability = DEFAULT_CAPABILITY if device is None else device.compute_capability
        key = (unit.model, unit.begin, unit.end, capability)
        if key not in self._found:
            self._found[key] = self._compute(unit, capability)
            while sum(len(found.allocated) for found in self._found.values()) > _MOST_HELD and len(self._found) > 1:
                self._found.popitem(last=False)
        return self._found[key]

    def _compute(self, unit: Unit, capability: tuple[int, int]) -> Found:
        count = len(unit)
        allocated, phase = np.zeros(count, np.int64), np.full(count, -1, np.int8)
        refusal, refusals = np.full(count, -1, np.int32), list[str]()
        indices = axis_indices(self.grid, unit)
        batch, length = (self._values(name, indices, count) for name in _TOGETHER)
        for rows, number in _groups(self.grid, unit, indices):
            try:
                recipe = self.grid.recipe(number)
                peaks = self._peaks_of(unit.model, recipe, number)
                allocated[rows], phase[rows] = peaks.at(recipe.rank, batch[rows], length[rows], capability)
            except QplanError as error:
                refusal[rows] = len(refusals)
                refusals.append(error.message)
        return Found(allocated, phase, refusal, tuple(refusals))

    def _values(self, name: str, indices: dict[str, Integers], count: int) -> Integers:
        if name in indices:
            axis = next(axis for axis in self.grid.axes if axis.name == name)
            return np.array(axis.values, np.int64)[indices[name]]
        default = getattr(Recipe, name)
        return np.full(count, self.grid.fixed.get(name, default), np.int64)

    def _peaks_of(self, model: int, recipe: Recipe, number: int) -> Peaks:
        """What computes the peaks of a recipe, whatever its batch, length and rank."""
        free = (*_TOGETHER, "rank")
        key = (model, *(-1 if axis.name in free else i for axis, i in zip(self.grid.axes, self.grid.indices(number), strict=True)))
        if key not in self._peaks:
            self._peaks[key] = Peaks(self.grid.models[model], recipe, self.grid.stack)
            if len(self._peaks) > 64:
                self._peaks.popitem(last=False)
        return self._peaks[key]


def axis_indices(grid: Grid, unit: Unit) -> dict[str, Integers]:
    """Which value of each axis the rows of a unit have."""
    number = np.arange(unit.begin, unit.end)
    found: dict[str, Integers] = {}
    for axis in reversed(grid.axes):
        number, found[axis.name] = np.divmod(number, len(axis.values))
    return {axis.name: found[axis.name] for axis in grid.axes}


def _groups(grid: Grid, unit: Unit, indices: dict[str, Integers]) -> list[tuple[Any, int]]:
    """Rows that differ in batch and length alone: which they are, and the number of the first."""
    key = np.zeros(len(unit), np.int64)
    for axis in grid.axes:
        if axis.name not in _TOGETHER:
            key = key * len(axis.values) + indices[axis.name]
    if (key == key[0]).all():
        return [(slice(None), unit.begin)]
    order = np.argsort(key, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    return [(part, unit.begin + int(part[0])) for part in parts]


def knob_columns(grid: Grid, unit: Unit) -> dict[str, Column]:
    """The columns that say which point a row is: its model, its card if there is one, its knobs that vary."""
    count = len(unit)
    columns = {"model": texts(np.full(count, unit.model, np.int64), [spec.id for spec in grid.models])}
    names = [device.name for device in grid.gpus if device is not None]
    if names:
        columns["gpu"] = texts(np.full(count, unit.gpu, np.int64), names)
    indices = axis_indices(grid, unit)
    return columns | {axis.name: axis_column(axis, indices[axis.name]) for axis in grid.axes}


def axis_column(axis: Axis, indices: Integers) -> Column:
    """A knob's column: by the kind of its values."""
    dtype = _dtype(axis)
    if dtype is not None:
        if isinstance(axis.values, range):
            return numbers(np.array(axis.values, dtype)[indices])
        values = np.array([0 if value is None else value for value in axis.values], dtype)
        missing = np.array([value is None for value in axis.values])
        return numbers(values[indices], missing[indices])
    words = list(dict.fromkeys(text for value in axis.values if (text := _text(value)) is not None))
    codes = np.array([-1 if (text := _text(value)) is None else words.index(text) for value in axis.values], np.int64)
    return texts(codes[indices], words)


def _dtype(axis: Axis) -> type[np.generic] | None:
    """What holds all its values but None; None where only texts do."""
    kinds = {int} if isinstance(axis.values, range) else {type(value) for value in axis.values if value is not None}
    if kinds == {bool}:
        return np.bool_
    if kinds == {int}:
        return np.int64
    return np.float64 if kinds and kinds <= {int, float} else None


def _text(value: Any) -> str | None:
    """A knob's value as one text: names joined by commas, ranks as `NAME=RANK,...`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return ",".join(f"{name}={rank}" for name, rank in value.items()) if isinstance(value, dict) else str(value)


def _results(grid: Grid, unit: Unit, found: Found, good: Integers, verdicts: Verdicts) -> dict[str, Column]:
    """The columns that were computed."""
    count = len(unit)

    def whole(values: npt.NDArray[Any], otherwise: int) -> npt.NDArray[Any]:
        full = np.full(count, otherwise, values.dtype)
        full[good] = values
        return full

    simulated = whole(verdicts.simulated, 0).astype(np.bool_)
    judged = simulated & (grid.gpus[unit.gpu] is not None)
    return {
        "allocated_bytes": numbers(found.allocated, found.refusal >= 0),
        "reserved_bytes": numbers(whole(verdicts.reserved, 0), ~simulated),
        "process_bytes": numbers(whole(verdicts.process, 0), ~simulated),
        "phase": texts(found.phase.astype(np.int64), _PHASE_NAMES),
        "outcome": texts(whole(verdicts.outcome, UNDECIDED).astype(np.int64), OUTCOMES),
        "headroom_bytes": numbers(whole(verdicts.headroom, 0), ~judged),
        "simulated": numbers(simulated),
        "error": texts(found.refusal.astype(np.int64), found.refusals),
    }


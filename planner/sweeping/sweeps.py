"""`sweep`: a grid over models, cards and anything in a recipe, as rows by column."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from planner import __version__, api, catalog
from planner.allocator import AllocatorSettings
from planner.device import Device
from planner.errors import InvalidRecipeError
from planner.render.breakdown import bars
from planner.render.chart import Chart
from planner.render.pictured import named_rows
from planner.report import Report
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.sweeping.fanout import Submits, on_executor, processes
from planner.sweeping.frame import WRITERS, Frame, Streamed, check_output
from planner.sweeping.grid import Grid, Unit, make_axes
from planner.sweeping.parts import Parts, Points
from planner.sweeping.table import Table

CHUNK = 1 << 17
"""Rows that are computed, and held, at a time."""
_MOST_BARS, _FEW = 40, 100
_MOST_KEPT = 1 << 21
"""Rows of a sweep that are kept once they are computed; those of larger ones are computed again by each reader."""
SIMULATE = ("auto", "all", "none")

Workers = tuple[Callable[[], Submits], int]
"""What makes an executor, and how many tasks to give it at a time."""

Model = str | Mapping[str, Any] | ModelSpec


class Sweep(Frame):
    """
    The rows of a grid, computed while they are read and in the order of the grid.

    Attributes:
        grid: Its points.
        engine: `analytic` or `traced`.
        simulate: How verdicts are found: `auto`, `all` or `none`.
        workers: Where traces run.
        progress: Is told how many rows are done, and of how many.
    """

    def __init__(
        self,
        grid: Grid,
        engine: str = "analytic",
        simulate: str = "auto",
        workers: Workers | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.grid, self.engine, self.simulate, self.workers, self.progress = grid, engine, simulate, workers, progress
        self._kept: list[Table] = []
        self._done = 0

    def __len__(self) -> int:
        return len(self.grid)

    def __repr__(self) -> str:
        axes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items()) or "1 point"
        return f"<Sweep of {len(self):,} rows: {axes}>"

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What varies, the slowest first: `model` and `gpu` by name where there are several, then the knobs."""
        found: dict[str, tuple[Any, ...]] = {}
        if len(self.grid.models) > 1:
            found["model"] = tuple(spec.id for spec in self.grid.models)
        if len(self.grid.gpus) > 1:
            found["gpu"] = tuple(device.name for device in self.grid.gpus if device is not None)
        return found | {axis.name: tuple(axis.values) for axis in self.grid.axes}

    def is_computed(self) -> bool:
        """Whether reading the rows takes no time worth mentioning."""
        return sum(map(len, self._kept)) == len(self) or (self.engine == "analytic" and len(self) <= _FEW)

    def report(self, number: int) -> Report:
        """
        The whole answer for one row: what `estimate` says.

        Args:
            number: Which row, from 0.

        Raises:
            IndexError: There is no such row.
            QplanError: The row is one that the real stack would refuse.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        place, recipe = divmod(number, self.grid.num_recipes)
        model, gpu = divmod(place, len(self.grid.gpus))
        knobs = self.grid.knobs(recipe)
        return api.estimate(
            self.grid.models[model], gpu=self.grid.gpus[gpu], stack=self.grid.stack, engine=self.engine, **knobs
        )

    def bars(
        self, *, where: Mapping[str, Any] | None = None, path: str | os.PathLike[str] | None = None, interactive: bool = False
    ) -> Chart:
        """
        What the peaks of rows are made of, a bar each; each of those rows is estimated anew, with its parts.

        Args:
            where: The values of knobs to keep; at most 40 rows may be left.
            path: Where to write it too: .png or .svg (matplotlib), .html (plotly).
            interactive: Whether plotly draws it.

        Raises:
            InvalidRecipeError: No rows are left, or too many.
            InvalidOutputError: The file cannot be written.
            MissingExtraError: What draws is not installed: `pip install "qplan[plot]"`.
        """
        found = named_rows(self.columns, where or {})
        if len(found) > _MOST_BARS:
            raise InvalidRecipeError(
                f"{len(found)} rows are left; there is room for {_MOST_BARS} bars", hint='name the values of knobs: where={"rank": 16}'
            )
        return bars({name: self.report(row) for name, row in found.items()}, path, interactive=interactive)

    def tables(self) -> Iterator[Table]:
        """The rows in order, some thousands at a time; of a sweep that is not too large they are kept, and computed once."""
        self._done = sum(map(len, self._kept))
        yield from list(self._kept)
        if self._done == len(self):
            return
        try:
            for number, units in enumerate(self._chunks()):
                if number < len(self._kept):
                    continue
                table = self._computer.table(units)
                if len(self) <= _MOST_KEPT and number == len(self._kept):
                    self._kept.append(table)
                yield table
        finally:
            self._computer.close()

    def write(self, path: str | os.PathLike[str], *, fits_only: bool = False, restart: bool = False) -> None:
        """
        Write a `.parquet`, `.csv` or `.jsonl` file. What is done is kept beside it until it is whole: if the process ends before, the same
        call goes on from there. In memory are some thousands of rows at a time.

        Args:
            path: The file; it appears, or replaces the one before, once it is whole.
            fits_only: Whether rows that do not run are left out.
            restart: Whether to throw away what another sweep left there, rather than to refuse.

        Raises:
            InvalidOutputError: The file cannot be written, or another sweep is under way there.
            MissingExtraError: What writes it is not installed.
        """
        found = check_output(path)
        parts = Parts(found, self._fingerprint(), restart=restart)
        self._done = 0
        try:
            self._computer.points = parts.points
            for number, units in enumerate(self._chunks()):
                if parts.has(number):
                    self._advance(sum(map(len, units)))
                else:
                    parts.keep(number, self._computer.table(units))
            rows = Streamed(parts.tables)
            kept = rows.fits_only() if fits_only else rows
            parts.become(lambda file: WRITERS[found.suffix.lower()](kept.tables(), file))
        finally:
            parts.close()
            self._computer.close()

    def _fingerprint(self) -> str:
        """What its rows hang on: the grid, how they are found, and by which version."""
        settings = repr(AllocatorSettings.from_environment())
        return self.grid.fingerprint(
            engine=self.engine, simulate=self.simulate, chunk=CHUNK, settings=settings, version=__version__
        )  # fmt: skip

    def _chunks(self) -> Iterator[list[Unit]]:
        """The grid's units, as many together as are computed at a time: always the same."""
        held: list[Unit] = []
        for unit in self.grid.units(CHUNK):
            if held and sum(map(len, held)) + len(unit) > CHUNK:
                yield held
                held = []
            held.append(unit)
        yield held

    def _advance(self, rows: int) -> None:
        self._done += rows
        if self.progress is not None:
            self.progress(self._done, len(self))

    @cached_property
    def _computer(self) -> Computer:
        if self.engine == "traced":
            from planner.sweeping.traced_points import Traced

            make, width = (None, 1) if self.workers is None else self.workers
            return Traced(self.grid, self.simulate, make, width, self._advance)
        from planner.sweeping.points import Analytic

        return Analytic(self.grid, self.simulate, self._advance)


class Computer(Protocol):
    """What computes the rows of units, in the closed form or by traces."""

    points: Points

    def table(self, units: Sequence[Unit]) -> Table:
        """The rows of units that follow each other."""

    def close(self) -> None:
        """Let go of what is held open."""


def sweep(
    models: Model | Sequence[Model],
    *,
    gpu: str | Device | Sequence[str | Device] | None = None,
    stack: str | Stack = "auto",
    engine: str = "analytic",
    executor: Submits | Callable[[], Submits] | None = None,
    jobs: int | None = None,
    simulate: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **axes: Any,
) -> Sweep:
    """
    A grid over models, cards and the knobs of a recipe: one row for each combination, computed when it is read.

    A knob that is given as a range, a list or another iterable varies; any other value holds for all rows. The model changes slowest, then
    the card, then the knobs as they are named. Each row has the columns `model`, `gpu` (where cards are named), the knobs that vary under
    their own names, and

    - `allocated_bytes`, `phase`: the peak, to the byte what `estimate` says;
    - `outcome`: its verdict: `fits`, `tight` or `does_not_fit`;
    - `simulated`: whether the allocator was run to find it; then `reserved_bytes`, `process_bytes` and `headroom_bytes` are what `estimate`
      says too, else they are null: no reserve is guessed;
    - `error`: why the real stack would refuse the row; then nothing else is there.

    Args:
        models: As for `estimate`, one or several.
        gpu: A card's name or size, several, or None for the local one. Without a card there is no outcome.
        stack: As for `estimate`.
        engine: `analytic`, the closed form; or `traced`: seconds a point, in this process, in `jobs` others, or on an executor. A point
            that fails is tried again twice, then its row says why; a worker that dies stops nothing.
        executor: Runs traces: anything with the `submit` of `concurrent.futures.Executor`, or a function that makes one, which is called
            again where a worker's death breaks the first.
        jobs: How many processes of this machine run traces.
        simulate: `auto`: the allocator is run where bounds on what it reserves leave the outcome open (`planner.sweeping.deciding` says
            which bounds, and why); the outcome is that of `estimate`. `all`: it is run for every row. `none`: for no row, and the outcome
            is the outlook of a usual reserve.
        progress: Is told how many rows are done, and of how many.
        axes: Fields of `Recipe`, each one value or several.

    Raises:
        QplanError: The request is wrong as a whole: no such model, card or knob, or a value that a knob cannot have.

    >>> found = sweep("meta-llama/Llama-2-7b-hf", gpu="rtx 4090", batch_size=range(1, 5), seq_len=[1024, 2048])
    >>> len(found), list(found.axes)
    (8, ['batch_size', 'seq_len'])
    >>> [row["outcome"] for row in found.rows()]
    ['fits', 'fits', 'fits', 'fits', 'fits', 'fits', 'fits', 'tight']
    """
    if engine not in ("analytic", "traced"):
        raise InvalidRecipeError(f"engine is `{engine}`; it must be analytic or traced", hint="pass --engine analytic")
    if simulate not in SIMULATE:
        raise InvalidRecipeError(f"simulate is `{simulate}`; it must be one of {', '.join(SIMULATE)}")
    workers = _workers(engine, executor, jobs)
    grid = make_grid(models, gpu, stack, axes)
    if engine == "traced" and executor is None:
        from planner.engines.installed import check_installed

        check_installed(grid.stack)
    return Sweep(grid, engine, simulate, workers, progress)


def _workers(engine: str, executor: Submits | Callable[[], Submits] | None, jobs: int | None) -> Workers | None:
    """What makes executors, and how many tasks to give them at a time; None for this process."""
    if executor is None and jobs is None:
        return None
    if engine != "traced":
        raise InvalidRecipeError("an executor or jobs are given, but the closed form runs in this process", hint="add --engine traced")
    if executor is not None and jobs is not None:
        raise InvalidRecipeError("both an executor and jobs are given; it must be one of them", hint="leave out jobs")
    if jobs is not None and not (isinstance(jobs, int) and 1 <= jobs <= 4096):
        raise InvalidRecipeError(f"jobs is {jobs}; it must be a whole number from 1 to 4096", hint="pass --jobs 2")
    return on_executor(executor) if executor is not None else (lambda: processes(jobs or 1), jobs or 1)


def make_grid(
    models: Model | Sequence[Model], gpu: str | Device | Sequence[str | Device] | None, stack: str | Stack, knobs: Mapping[str, Any]
) -> Grid:
    """
    The points of a sweep.

    Raises:
        QplanError: As `sweep`.
    """
    varied, fixed = make_axes(knobs)
    named = [models] if isinstance(models, (str, Mapping, ModelSpec)) else list(models)
    if not named:
        raise InvalidRecipeError("models is empty; a sweep needs at least one", hint="qplan models lists what is bundled")
    return Grid(tuple(api.find_spec(model) for model in named), _devices(gpu), varied, fixed, api.find_stack(stack))


def _devices(gpu: str | Device | Iterable[str | Device] | None) -> tuple[Device | None, ...]:
    if gpu is None:
        return (catalog.local_device(),)
    named = [gpu] if isinstance(gpu, (str, Device)) else list(gpu)
    if not named:
        raise InvalidRecipeError("gpu is an axis without values", hint='pass gpu=["t4", "80GiB"], or leave it out')
    return tuple(catalog.find_device(one) if isinstance(one, str) else one for one in named)


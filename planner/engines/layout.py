"""
Steps that are laid out once and then answer for other batches.

Which tensors a step makes, and in which order they come and go, does not depend on the batch and its length but in a few places that ask
for them. So the third time a recipe comes with another batch, its step is run with sizes that remember how they were computed
(`planner.symbolic`), and from then on only the sizes are computed again. A history is written the second time with such sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planner.extrapolation import unroll
from planner.ledger import Rows, Span
from planner.recipe import Recipe
from planner.schedule import Tape
from planner.symbolic import Recording
from planner.value import NamedTuple

if TYPE_CHECKING:
    from planner.history import History

Run = Callable[[Recipe], Tape]
Steps = tuple[Rows, list[Span]]

_PLAIN_RUNS = 2
"""Runs before a step is recorded: recording costs as much as several runs, and most recipes are asked for once."""
_PLAIN_HISTORIES = 1
"""The same for histories, which are asked for more rarely, and where more is saved: a replay after another replay is worth it."""
_MOST_LAYOUTS = 16


class _Layout(NamedTuple):
    """The rows of a recorded step without their sizes, and the program that computes those."""

    rows: Rows
    spans: list[Span]
    program: Callable[..., list[int] | None]

    def steps(self, recipe: Recipe) -> Steps | None:
        """The step of another batch; None where it is another step."""
        sizes = self.program(recipe.batch_size, recipe.seq_len)
        return None if sizes is None else (self.rows.with_sizes(sizes), self.spans)


class Layouts:
    """
    The steps of one recipe, whatever the batch.

    Args:
        run: Runs a step on a tape.
        begin: The first step of the ledger's clock that is the tape's.
    """

    def __init__(self, run: Run, begin: int) -> None:
        self.run, self.begin = run, begin
        self.num_runs = 0
        self.layouts: list[_Layout] = []
        self.last: tuple[tuple[int, int], Steps] | None = None

    def steps(self, recipe: Recipe) -> Steps:
        """The rows of the recipe's step and their spans."""
        batch = (recipe.batch_size, recipe.seq_len)
        if self.last is not None and self.last[0] == batch:
            return self.last[1]
        for layout in self.layouts:
            found = layout.steps(recipe)
            if found is not None:
                return found
        self.num_runs += 1
        if self.num_runs > _PLAIN_RUNS and len(self.layouts) < _MOST_LAYOUTS:
            layout = self._record(recipe)
            self.layouts.append(layout)
            found = layout.steps(recipe)
            assert found is not None
            return found
        rows = Rows()
        steps = rows, unroll(self.run(recipe), self.begin, rows)
        self.last = batch, steps
        return steps

    def _record(self, recipe: Recipe) -> _Layout:
        recording = Recording()
        rows = Rows()
        spans = unroll(self.run(_sized(recording, recipe)), self.begin, rows)
        return _Layout(rows, spans, recording.program(rows.sizes))


class _Written(NamedTuple):
    """A recorded history and the program that computes its sizes."""

    history: History
    program: Callable[..., list[int] | None]


class Histories:
    """
    The histories of one recipe, whatever the batch: they share everything but the sizes, and with it how they are unrolled.

    Args:
        write: Writes a history.
    """

    def __init__(self, write: Callable[[Recipe], History]) -> None:
        self.write = write
        self.num_runs = 0
        self.written: list[_Written] = []
        self.last: tuple[tuple[int, int], History] | None = None

    def history(self, recipe: Recipe) -> History:
        """The history of the recipe's run."""
        batch = (recipe.batch_size, recipe.seq_len)
        if self.last is not None and self.last[0] == batch:
            return self.last[1]
        for history, program in self.written:
            sizes = program(recipe.batch_size, recipe.seq_len)
            if sizes is not None:
                return history.with_sizes(sizes)
        self.num_runs += 1
        if self.num_runs <= _PLAIN_HISTORIES or len(self.written) >= _MOST_LAYOUTS:
            history = self.write(recipe)
            self.last = batch, history
            return history
        recording = Recording()
        history = self.write(_sized(recording, recipe))
        program = recording.program(history.sizes)
        sizes = program(recipe.batch_size, recipe.seq_len)
        assert sizes is not None
        history.sizes = sizes
        self.written.append(_Written(history, program))
        return history


def _sized(recording: Recording, recipe: Recipe) -> Recipe:
    """The recipe with a batch that remembers what is computed from it."""
    batch_size, seq_len = recording.size("batch_size", recipe.batch_size), recording.size("seq_len", recipe.seq_len)
    return recipe.unchecked(batch_size=batch_size, seq_len=seq_len)

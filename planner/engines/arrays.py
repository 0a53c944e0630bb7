"""
Peaks of a million batches at once: the closed form's step as polynomials of batch, length and rank, evaluated with NumPy.

A step is recorded once for each stretch of the grid in which the program asks the same questions with the same answers
(`planner.symbolic`), and evaluated there (`planner.engines.moments`).
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from planner import stack as stacks
from planner.device import Device
from planner.engines import analytic
from planner.engines.dominance import Bounds, undominated
from planner.engines.modules import Kernels, kernels_of
from planner.engines.moments import (
    INPUTS,
    PHASES,
    Integers,
    Moments,
    NotExactError,
    divided,
    is_number,
    moments_of,
    needed,
    substituted,
    values_at,
)
from planner.engines.resting import Resting, trained_tensors
from planner.engines.step import run_step
from planner.errors import InvalidRecipeError
from planner.extrapolation import unroll
from planner.formulas.four_bit_kernel import NEVER_FUSED_ABOVE_TOKENS
from planner.formulas.workspace import PRODUCT_THREADS, cublas_workspace
from planner.ledger import Ledger, Phase, Rows, Span
from planner.polynomials import Forms, answers
from planner.preparation import prepare
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.symbolic import Recording

_COUNTABLE = 1 << 63
_BLOCK = 1 << 16
"""Points that are sorted by their step at a time."""
_FEW = 24
"""Points whose steps are run for less than recording one takes."""

class _Region:
    """
    A step as it was recorded, for all batches, lengths and ranks that give the same answers.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe, whose batch, length and rank the recording is made at.
        stack: The library versions.
        kernels: What the card runs.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, stack: Stack, kernels: Kernels) -> None:
        recording = Recording()
        sized = copy.copy(recipe)
        for name in INPUTS:
            object.__setattr__(sized, name, recording.size(name, getattr(recipe, name)))
        known, decoder = stacks.behaviours(stack, recipe), analytic.decoder_of(spec)
        preparation = prepare(spec, sized, known)
        resting = Resting(
            trainables=[
                (parameter, row.count)
                for row in preparation.modules
                if decoder.reaches(row.name)
                for parameter in trained_tensors(row, sized)
            ]
        )
        rows = Rows()
        spans = unroll(run_step(decoder, preparation, sized, known, resting, kernels), 0, rows)
        self.forms = Forms(recording)
        self._by_rank: dict[int, Moments | None] = {}
        self.moments = moments_of(self.forms, rows, spans)

    def at_rank(self, rank: int) -> Moments | None:
        """The moments of a rank; None where it is another step at that rank."""
        if rank not in self._by_rank:
            self._by_rank[rank] = self._settle(rank)
        return self._by_rank[rank]

    def _settle(self, rank: int) -> Moments | None:
        values = {"rank": rank}
        renamed: dict[str, int] = {}
        quotients = []
        for quotient in self.forms.quotients:
            numerator, divisor = (substituted(p, values | renamed) for p in (quotient.numerator, quotient.divisor))
            if is_number(numerator) and is_number(divisor):
                renamed[quotient.name] = divided(numerator.get((), 0), divisor[()], up=quotient.up)
            else:
                quotients.append(quotient._replace(numerator=numerator, divisor=divisor))
        known = values | renamed
        questions = []
        for question in self.forms.questions:
            polynomial = substituted(question.polynomial, known)
            if not is_number(polynomial):
                questions.append(question._replace(polynomial=polynomial))
            elif answers(question.sign, polynomial.get((), 0)) is not question.answer:
                return None
        rows = [substituted(row, known) for row in self.moments.rows]
        kept = undominated(Bounds(dict.fromkeys(INPUTS, 1), quotients), rows, self.moments.phases)
        rows, phases = [rows[i] for i in kept], [self.moments.phases[i] for i in kept]
        return Moments(rows, phases, needed(quotients, [*rows, *(q.polynomial for q in questions)]), questions)



class Peaks:
    """
    The allocated peak of one recipe over batches, lengths and ranks, as the closed form has it for each.

    Args:
        spec: The checkpoint.
        recipe: The recipe as it was given; its batch size, length and rank stand for those of the points.
        stack: The library versions.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, stack: Stack) -> None:
        self.spec, self.recipe, self.stack = spec, recipe, stack
        self._regions: dict[tuple[object, ...], list[_Region]] = {}
        self._kernels: list[Kernels] = []
        self._by_tokens: dict[tuple[int, int], Integers] = {}
        self._rests: dict[tuple[int, bool], tuple[int, int]] = {}

    def at(self, rank: int, batch: Integers, length: Integers, capability: tuple[int, int]) -> tuple[Integers, npt.NDArray[np.int8]]:
        """
        The peaks of points that share a rank and a card's compute capability.

        Args:
            rank: Of the adapters.
            batch: Sequences in a micro-batch, [n].
            length: Tokens in each, [n].
            capability: (major, minor).

        Returns:
            Allocated bytes [n], and the phase of each as an index into `PHASES` [n].

        Raises:
            QplanError: As `analytic.analyse` does; a refusal holds for all points alike.
        """
        peaks, phases = np.empty(len(batch), np.int64), np.empty(len(batch), np.int8)
        for begin in range(0, len(batch), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            points = batch[block], length[block]
            try:
                self._block(rank, *points, capability, peaks[block], phases[block])
            except NotExactError:
                self._one_by_one(rank, *points, capability, peaks[block], phases[block])
        return peaks, phases

    def _one_by_one(
        self,
        rank: int,
        batch: Integers,
        length: Integers,
        capability: tuple[int, int],
        peaks: Integers,
        phases: npt.NDArray[np.int8],
        which: Integers | None = None,
    ) -> None:
        """What `_block` does, in Python's integers: for sizes that float64 cannot count, and where a recording costs more."""
        device = Device("", 0, capability)
        for i in range(len(batch)) if which is None else which:
            sequences, tokens = int(batch[i]), int(length[i])
            found = analytic.analyse(self.spec, self._resolved(rank, sequences, tokens), self.stack, device)
            phase, peak = found.ledger.high
            if peak >= _COUNTABLE:
                raise InvalidRecipeError(f"{sequences:,} sequences of {tokens:,} tokens need more than 2**63 bytes")
            peaks[i], phases[i] = peak, PHASES.index(phase)

    def _block(
        self, rank: int, batch: Integers, length: Integers, capability: tuple[int, int], peaks: Integers, phases: npt.NDArray[np.int8]
    ) -> None:
        """The peaks of a few thousand points, written into the last two."""
        workspace = len(PRODUCT_THREADS) * cublas_workspace(capability[0])
        is_padded = batch > 1  # where the recipe leaves that open: `stack.resolve`
        left = np.arange(len(batch))
        kinds = None
        while len(left):
            first = left[0]
            recipe = self._resolved(rank, int(batch[first]), int(length[first]))
            if kinds is None:
                kinds = 2 * self._kernels_at(recipe, batch * length, capability) + is_padded
            prepared, resting = self._rest(recipe)
            same = kinds[left] == kinds[first]
            todo = left[same]
            if len(todo) <= _FEW and (self._kernels[kinds[first] // 2], recipe.padding) not in self._regions:
                self._one_by_one(rank, batch, length, capability, peaks, phases, todo)
                left = left[~same]
                continue
            for region in self._recorded(recipe, self._kernels[kinds[first] // 2]):
                moments = region.at_rank(rank)
                if moments is None or not len(todo):
                    continue
                found, sums, codes = values_at(moments, batch[todo], length[todo])
                mine = todo[found]
                steps = sums + (resting + workspace)
                peaks[mine] = np.maximum(steps, prepared)
                phases[mine] = np.where(steps > prepared, codes, 0)
                todo = todo[~found]
                if found[0]:  # the first of the points, for which a region would be recorded
                    break
            left = np.sort(np.concatenate((left[~same], todo)))

    def _recorded(self, recipe: Recipe, kernels: Kernels) -> Any:
        """The regions that are known for this recipe, then one that is recorded at its batch."""
        regions = self._regions.setdefault((kernels, recipe.padding), [])
        yield from list(regions)
        with _uncollected():
            regions.append(_Region(self.spec, recipe, self.stack, kernels))
        yield regions[-1]

    def _resolved(self, rank: int, batch: int, length: int) -> Recipe:
        recipe = self.recipe.model_copy(update={"rank": rank, "batch_size": batch, "seq_len": length})
        return stacks.resolve(recipe, self.stack, self.spec.dtype)

    def _kernels_at(self, recipe: Recipe, tokens: Integers, capability: tuple[int, int]) -> Integers:
        """What the card runs for so many tokens each, as indices into `_kernels`; above a threshold it is the same for all."""
        table = self._by_tokens.setdefault(capability, np.full(NEVER_FUSED_ABOVE_TOKENS + 2, -1, np.int64))
        tokens = np.minimum(tokens, NEVER_FUSED_ABOVE_TOKENS + 1)
        found = table[tokens]
        if (found < 0).any():
            preparation = analytic.foundation_of(self.spec, recipe, self.stack).preparation
            for count in np.unique(tokens[found < 0]):
                one = recipe.model_copy(update={"batch_size": 1, "seq_len": int(count)})
                kernels = kernels_of(preparation, one, capability)
                if kernels not in self._kernels:
                    self._kernels.append(kernels)
                table[count] = self._kernels.index(kernels)
            found = table[tokens]
        return found

    def _rest(self, recipe: Recipe) -> tuple[int, int]:
        """The peak of the preparation, and what rests through the step but for the workspaces."""
        key = (recipe.rank, bool(recipe.padding))
        if key not in self._rests:
            resting = analytic.foundation_of(self.spec, recipe, self.stack).resting
            self._rests[key] = _prepared(resting), resting.steady_bytes
        return self._rests[key]



@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles: a recording makes a hundred thousand objects, and none that only a collection would free."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _prepared(resting: Resting) -> int:
    end = resting.prepare_end
    rows = Rows(row if row.end else row._replace(end=end) for row in resting.rows if row.begin < end)
    return Ledger("analytic", rows, (Span(Phase.PREPARE, 0, end),)).high[1]


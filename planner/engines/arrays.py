"""
Peaks of a million batches at once: the closed form's step as polynomials of batch, length and rank, evaluated with NumPy.

A step is recorded once for each stretch of the grid in which the program asks the same questions with the same answers
(`planner.symbolic`). Its live bytes at each event are then a polynomial; events that another is never below are left out, and the peak is
the largest of the rest: a small matrix product in float64, which is exact below 2**53, as is checked before each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from planner import stack as stacks
from planner.device import Device
from planner.engines import analytic
from planner.engines.dominance import Bounds, undominated
from planner.engines.modules import Kernels, kernels_of
from planner.engines.resting import Resting, trained_tensors
from planner.engines.step import run_step
from planner.errors import InvalidRecipeError
from planner.extrapolation import unroll
from planner.formulas.four_bit_kernel import NEVER_FUSED_ABOVE_TOKENS
from planner.formulas.workspace import PRODUCT_THREADS, cublas_workspace
from planner.ledger import Ledger, Phase, Rows, Span
from planner.polynomials import (
    Forms,
    Monomial,
    Polynomial,
    Question,
    Quotient,
    answers,
    evaluate,
    substitute,
)
from planner.preparation import prepare
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.symbolic import Recording

Integers = npt.NDArray[np.int64]

PHASES = (Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP)
"""What the codes of `Peaks.at` stand for: the phases in the order in which the first of equal peaks is taken."""

_EXACT, _COUNTABLE = 1 << 53, 1 << 63
_BLOCK = 1 << 16
"""Points that are sorted by their step at a time."""
_CACHED = 1 << 13
"""Points that are evaluated at a time: so many keep the matrices in the processor's cache."""
_FEW = 10
"""Points whose steps are run for less than recording one takes."""
_INPUTS = ("batch_size", "seq_len", "rank")


@dataclass(eq=False)
class _Moments:
    """
    The moments of a step that can be its peak, of one rank.

    Attributes:
        rows: Live bytes at each, beyond what rests; phase by phase.
        phases: The code of each row's phase.
        quotients: Rounded divisions that the rows are made of, each after those that it is made of.
        questions: What a batch and a length must answer for the rows to be theirs.
    """

    rows: list[Polynomial]
    phases: list[int]
    quotients: list[Quotient]
    questions: list[Question]

    @cached_property
    def monomials(self) -> list[Monomial]:
        """What the rows are sums of."""
        return list(dict.fromkeys(monomial for row in self.rows for monomial in row))

    @cached_property
    def matrix(self) -> npt.NDArray[np.float64]:
        """Coefficients, [row, monomial]."""
        return np.array([[row.get(monomial, 0) for monomial in self.monomials] for row in self.rows], np.float64)

    @cached_property
    def largest(self) -> Polynomial:
        """A polynomial that is above every row, and every part of one."""
        found: dict[Monomial, int] = {}
        for row in self.rows:
            for monomial, coefficient in row.items():
                found[monomial] = max(found.get(monomial, 0), abs(coefficient))
        return found


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
        for name in _INPUTS:
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
        self._by_rank: dict[int, _Moments | None] = {}
        self.moments = _moments(self.forms, rows, spans)

    def at_rank(self, rank: int) -> _Moments | None:
        """The moments of a rank; None where it is another step at that rank."""
        if rank not in self._by_rank:
            self._by_rank[rank] = self._settle(rank)
        return self._by_rank[rank]

    def _settle(self, rank: int) -> _Moments | None:
        values = {"rank": rank}
        renamed: dict[str, int] = {}
        quotients = []
        for quotient in self.forms.quotients:
            numerator, divisor = (_substituted(p, values | renamed) for p in (quotient.numerator, quotient.divisor))
            if _is_number(numerator) and _is_number(divisor):
                renamed[quotient.name] = _divided(numerator.get((), 0), divisor[()], up=quotient.up)
            else:
                quotients.append(quotient._replace(numerator=numerator, divisor=divisor))
        known = values | renamed
        questions = []
        for question in self.forms.questions:
            polynomial = _substituted(question.polynomial, known)
            if not _is_number(polynomial):
                questions.append(question._replace(polynomial=polynomial))
            elif answers(question.sign, polynomial.get((), 0)) is not question.answer:
                return None
        rows = [_substituted(row, known) for row in self.moments.rows]
        kept = undominated(Bounds(dict.fromkeys(_INPUTS, 1), quotients), rows, self.moments.phases)
        rows, phases = [rows[i] for i in kept], [self.moments.phases[i] for i in kept]
        return _Moments(rows, phases, _needed(quotients, [*rows, *(q.polynomial for q in questions)]), questions)


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
            except _NotExactError:
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
                found, sums, codes = _evaluate(moments, batch[todo], length[todo])
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


def _prepared(resting: Resting) -> int:
    end = resting.prepare_end
    rows = Rows(row if row.end else row._replace(end=end) for row in resting.rows if row.begin < end)
    return Ledger("analytic", rows, (Span(Phase.PREPARE, 0, end),)).high[1]


def _moments(forms: Forms, rows: Rows, spans: Sequence[Span]) -> _Moments:
    """Live bytes at the moments that can be the highest of a step."""
    forms_by_name: dict[str, Polynomial] = {}
    for size in rows.sizes:
        forms_by_name.setdefault(str(size), forms.of(size))
    monomials = list(dict.fromkeys(monomial for form in forms_by_name.values() for monomial in form))
    index = {monomial: i for i, monomial in enumerate(monomials)}
    vectors = {name: np.zeros(len(monomials), np.int64) for name in forms_by_name}
    for name, form in forms_by_name.items():
        for monomial, coefficient in form.items():
            vectors[name][index[monomial]] = coefficient
    sizes = np.array([vectors[str(size)] for size in rows.sizes])
    changes = np.zeros((spans[-1].end + 1, len(monomials)), np.int64)
    np.add.at(changes, rows.begins, sizes)
    np.subtract.at(changes, rows.ends, sizes)
    live = np.cumsum(changes, axis=0)
    codes = np.concatenate([np.full(span.end - span.begin, PHASES.index(span.phase)) for span in spans])
    last = np.array([span.end - 1 for span in spans])
    steps = np.union1d(np.array(rows.ends) - 1, last)  # sizes are never negative: before a birth is no peak
    steps = steps[steps < spans[-1].end]
    found = np.unique(np.column_stack((codes[steps], live[steps])), axis=0)
    polynomials = [{m: c for m, c in zip(monomials, row, strict=True) if c} for row in found[:, 1:].tolist()]
    phases: list[int] = found[:, 0].tolist()
    kept = undominated(Bounds(dict.fromkeys(_INPUTS, 1), forms.quotients), polynomials, phases)
    return _Moments([polynomials[i] for i in kept], [phases[i] for i in kept], forms.quotients, forms.questions)


def _evaluate(m: _Moments, batch: Integers, length: Integers) -> tuple[npt.NDArray[np.bool_], Integers, npt.NDArray[np.int8]]:
    """Which points the moments hold for; of those the largest sum, and the code of its phase."""
    values: dict[str, Any] = {"batch_size": batch, "seq_len": length}
    limits = {"batch_size": int(batch.max()), "seq_len": int(length.max())}
    for quotient in m.quotients:
        top = evaluate(_absolute(quotient.numerator), limits)
        _check_exact(top)
        limits[quotient.name] = top // quotient.divisor.get((), 1) + 1
        values[quotient.name] = _divided(_values(quotient.numerator, values), _values(quotient.divisor, values), up=quotient.up)
    holds = np.ones(len(batch), np.bool_)
    for sign, polynomial, answer in m.questions:
        _check_exact(evaluate(_absolute(polynomial), limits))
        holds &= _compared(sign, _values(polynomial, values)) == answer
    if not holds.all():
        values = {name: value[holds] for name, value in values.items()}
    _check_exact(evaluate(m.largest, limits))
    best, codes = np.empty(int(holds.sum()), np.int64), np.empty(int(holds.sum()), np.int8)
    for begin in range(0, len(best), _CACHED):
        part = slice(begin, begin + _CACHED)
        some = {name: value[part] for name, value in values.items()}
        table = np.empty((len(m.monomials), len(best[part])), np.float64)
        for i, monomial in enumerate(m.monomials):
            table[i] = _values({monomial: 1}, some)
        best[part], codes[part] = _highest(m.matrix @ table, m.phases)
    return holds, best, codes


def _highest(sums: npt.NDArray[np.float64], phases: Sequence[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
    """Of each column the largest sum, and the first phase that reaches it; rows come phase by phase."""
    best, codes = np.full(sums.shape[1], -1.0), np.zeros(sums.shape[1], np.int8)
    for code in dict.fromkeys(phases):
        first = phases.index(code)
        high = sums[first : first + phases.count(code)].max(axis=0)
        codes[high > best] = code
        np.maximum(best, high, out=best)
    return best, codes


class _NotExactError(Exception):
    """Something may be larger than float64 can count."""


def _check_exact(limit: int) -> None:
    if limit >= _EXACT:
        raise _NotExactError


def _values(p: Polynomial, values: dict[str, Any]) -> Any:
    total: Any = p.get((), 0)
    for monomial, coefficient in p.items():
        if not monomial:
            continue
        term = values[monomial[0]]
        for name in monomial[1:]:
            term = term * values[name]
        total = total + (term if coefficient == 1 else term * coefficient)
    return total


def _divided(a: Any, b: Any, *, up: bool) -> Any:
    if not isinstance(b, int):
        return -(-a // b) if up else a // b
    if up:
        a = a + (b - 1)
    return a // b if b & (b - 1) else a >> (b.bit_length() - 1)


_COMPARISONS: dict[str, Callable[[Any, int], Any]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def _compared(sign: str, value: Any) -> Any:
    return _COMPARISONS[sign](value, 0)


def _absolute(p: Polynomial) -> Polynomial:
    return {m: abs(c) for m, c in p.items()}


def _is_number(p: Polynomial) -> bool:
    return not p or set(p) == {()}


def _substituted(p: Polynomial, values: dict[str, int]) -> Polynomial:
    for name in {name for monomial in p for name in monomial if name in values}:
        p = substitute(p, name, values[name])
    return p


def _needed(quotients: Sequence[Quotient], rows: Sequence[Polynomial]) -> list[Quotient]:
    """The quotients that the rows are made of, in their order."""
    names = {name for row in rows for monomial in row for name in monomial}
    kept = []
    for quotient in reversed(quotients):
        if quotient.name in names:
            kept.append(quotient)
            names |= {name for p in (quotient.numerator, quotient.divisor) for monomial in p for name in monomial}
    return kept[::-1]

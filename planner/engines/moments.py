"""
The moments of a step that can be its peak, as polynomials, and their values at many points.

Live bytes at each event of a step are a polynomial of batch, length and rank; events that another is never below are left out, and the peak
is the largest of the rest: a small matrix product in float64, which is exact below 2**53, as is checked before each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.engines.dominance import Bounds, undominated_rows
from planner.ledger import Phase, Rows, Span
from planner.polynomials import Forms, Monomial, Polynomial, Question, Quotient, evaluate, substitute

Integers = npt.NDArray[np.int64]

PHASES = (Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP)
"""What codes of phases stand for: in the order in which the first of equal peaks is taken."""

_EXACT = 1 << 53
_CACHED = 1 << 13
"""Points that are evaluated at a time: so many keep the matrices in the processor's cache."""
INPUTS = ("batch_size", "seq_len", "rank")

_COMPARISONS: dict[str, Callable[[Any, int], Any]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


@dataclass(eq=False)
class Moments:
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



def moments_of(forms: Forms, rows: Rows, spans: Sequence[Span]) -> Moments:
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
    phases, matrix = found[:, 0], found[:, 1:]
    kept = undominated_rows(Bounds(dict.fromkeys(INPUTS, 1), forms.quotients), monomials, matrix.astype(np.float64), phases)
    polynomials: list[Polynomial] = [{m: c for m, c in zip(monomials, row, strict=True) if c} for row in matrix[kept].tolist()]
    return Moments(polynomials, phases[kept].tolist(), forms.quotients, forms.questions)



def values_at(m: Moments, batch: Integers, length: Integers) -> tuple[npt.NDArray[np.bool_], Integers, npt.NDArray[np.int8]]:
    """Which points the moments hold for; of those the largest sum, and the code of its phase."""
    values: dict[str, Any] = {"batch_size": batch, "seq_len": length}
    limits = {"batch_size": int(batch.max()), "seq_len": int(length.max())}
    for quotient in m.quotients:
        top = evaluate(_absolute(quotient.numerator), limits)
        _check_exact(top)
        limits[quotient.name] = top // quotient.divisor.get((), 1) + 1
        values[quotient.name] = divided(_values(quotient.numerator, values), _values(quotient.divisor, values), up=quotient.up)
    holds = np.ones(len(batch), np.bool_)
    for sign, polynomial, answer in m.questions:
        _check_exact(evaluate(_absolute(polynomial), limits))
        holds &= _COMPARISONS[sign](_values(polynomial, values), 0) == answer
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



class NotExactError(Exception):
    """Something may be larger than float64 can count."""



def _check_exact(limit: int) -> None:
    if limit >= _EXACT:
        raise NotExactError



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



def divided(a: Any, b: Any, *, up: bool) -> Any:
    """a / b rounded up or down: whole numbers or arrays of them."""
    if not isinstance(b, int):
        return -(-a // b) if up else a // b
    if up:
        a = a + (b - 1)
    return a // b if b & (b - 1) else a >> (b.bit_length() - 1)



def _absolute(p: Polynomial) -> Polynomial:
    return {m: abs(c) for m, c in p.items()}



def is_number(p: Polynomial) -> bool:
    """Whether a polynomial has no variables."""
    return not p or set(p) == {()}



def substituted(p: Polynomial, values: dict[str, int]) -> Polynomial:
    """The polynomial with numbers in the place of some variables."""
    for name in {name for monomial in p for name in monomial if name in values}:
        p = substitute(p, name, values[name])
    return p



def needed(quotients: Sequence[Quotient], rows: Sequence[Polynomial]) -> list[Quotient]:
    """The quotients that the rows are made of, in their order."""
    names = {name for row in rows for monomial in row for name in monomial}
    kept = []
    for quotient in reversed(quotients):
        if quotient.name in names:
            kept.append(quotient)
            names |= {name for p in (quotient.numerator, quotient.divisor) for monomial in p for name in monomial}
    return kept[::-1]


"""Which of many sums of sizes can be the largest: those that no other is never below, decided on coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from planner.polynomials import Monomial, Polynomial, Quotient

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
_Terms = dict[Monomial, float]

_UNKNOWN: Monomial = ("?",)
"""Stands for what has no bound: a coefficient here is never made up for."""
_TOGETHER = 64
"""Rows that are compared with each other at once."""
_EXACT = float(1 << 45)
"""Below this, sums of coefficients with eight binary places are exact in float64."""


class Bounds:
    """
    Polynomials of the inputs below and above each product of variables, in how much each input exceeds its least value.

    A quotient by a power of two lies within one of the division that it rounds; of others only the sign is known.

    Args:
        inputs: The least value of each input.
        quotients: The variables that are quotients, each after those that it is made of.
    """

    def __init__(self, inputs: Mapping[str, int], quotients: Sequence[Quotient]) -> None:
        self._low: dict[str, _Terms] = {name: {(): float(low), (name,): 1.0} for name, low in inputs.items()}
        self._high = dict(self._low)
        for quotient in quotients:
            self._low[quotient.name], self._high[quotient.name] = self._around(quotient)

    def tables(self, monomials: Sequence[Monomial]) -> tuple[Floats, Floats]:
        """
        Bounds of monomials as coefficients [monomial, term] of the same terms; the first is the constant, the second what is not known.
        """
        below, above = ([self._product(m, terms) for m in monomials] for terms in (self._low, self._high))
        columns = {term: i for i, term in enumerate(dict.fromkeys([(), _UNKNOWN, *(t for row in (*below, *above) for t in row)]))}
        tables = np.zeros((2, len(monomials), len(columns)))
        for table, rows in zip(tables, (below, above), strict=True):
            for i, row in enumerate(rows):
                for term, coefficient in row.items():
                    table[i, columns[term]] = coefficient
        return tables[0], tables[1]

    def _around(self, quotient: Quotient) -> tuple[_Terms, _Terms]:
        divisor, only = quotient.divisor.get((), 0), set(quotient.divisor) == {()}
        if not only or divisor & (divisor - 1) or divisor > 1 << 8 or min(quotient.numerator.values()) < 0:
            return ({(): float(quotient.lowest)} if quotient.lowest is not None else {_UNKNOWN: -1.0}), {_UNKNOWN: 1.0}
        low = self._sum(quotient.numerator, self._low, divisor, 0.0 if quotient.up else 1 / divisor - 1)
        high = self._sum(quotient.numerator, self._high, divisor, 1 - 1 / divisor if quotient.up else 0.0)
        return ({} if min(low.values()) < 0 else low), high

    def _sum(self, p: Polynomial, bounds: Mapping[str, _Terms], divisor: int, more: float) -> _Terms:
        total: _Terms = {(): more}
        for monomial, coefficient in p.items():
            for term, factor in self._product(monomial, bounds).items():
                total[term] = total.get(term, 0.0) + factor * coefficient / divisor
        return total

    @staticmethod
    def _product(monomial: Monomial, bounds: Mapping[str, _Terms]) -> _Terms:
        """Bounds of a product of factors that are never negative."""
        product: _Terms = {(): 1.0}
        for name in monomial:
            found: _Terms = {}
            for a, c in product.items():
                for b, d in bounds[name].items():
                    term = _UNKNOWN if _UNKNOWN in (a, b) else tuple(sorted(a + b))
                    found[term] = found.get(term, 0.0) + c * d
            product = found
        return product


def undominated(bounds: Bounds, rows: Sequence[Polynomial], phases: Sequence[int]) -> list[int]:
    """
    The rows that are above every other somewhere, as far as coefficients tell, in the order of their phases.

    A row is left out where another is never below it; one of a later phase must be above it, since of equal peaks the first counts.

    Args:
        bounds: Of the variables.
        rows: Sums of sizes.
        phases: Of each row, the rank of its phase.
    """
    monomials = list(dict.fromkeys(m for row in rows for m in row))
    matrix = np.array([[row.get(m, 0) for m in monomials] for row in rows], np.float64)
    return undominated_rows(bounds, monomials, matrix, np.array(phases, np.int64))


def undominated_rows(bounds: Bounds, monomials: Sequence[Monomial], matrix: Floats, codes: Codes) -> list[int]:
    """
    As `undominated`, of rows that are coefficients already.

    Args:
        bounds: Of the variables.
        monomials: What the columns are coefficients of.
        matrix: The rows, [row, monomial].
        codes: Of each row, the rank of its phase.
    """
    low, high = bounds.tables(monomials)
    exact = np.abs(matrix) @ np.maximum(np.abs(low), np.abs(high)).sum(axis=1) < _EXACT
    order = np.lexsort((codes, -(matrix @ low.sum(axis=1))))  # what is above another stands before it
    kept = [int(i) for i in order if not exact[i]]
    left = np.array([i for i in order if exact[i]], np.int64)
    while len(left):
        some, left = left[:_TOGETHER], left[_TOGETHER:]
        found = [int(i) for i, is_below in zip(some, _below(matrix, low, high, codes, some, some), strict=True) if not is_below]
        kept += found
        left = left[~_below(matrix, low, high, codes, np.array(found), left)]
    return sorted(kept, key=lambda i: (int(codes[i]), i))


def _below(matrix: Floats, low: Floats, high: Floats, codes: Codes, tops: Codes, rows: Codes) -> npt.NDArray[np.bool_]:
    """
    Which rows are never the peak for one of the tops. Both are in one order; a row is compared with the tops that stand before it.
    """
    differences = matrix[tops][:, None] - matrix[rows][None]
    least = np.maximum(differences, 0) @ low + np.minimum(differences, 0) @ high
    above = (least >= 0).all(axis=2) & ((codes[tops][:, None] <= codes[rows][None]) | (least[..., 0] > 0))
    if tops is rows:
        above = np.triu(above, 1)
    found: npt.NDArray[np.bool_] = np.logical_or.reduce(above, axis=0)
    return found

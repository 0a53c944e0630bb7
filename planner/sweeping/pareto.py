"""The rows that no other row beats in everything that is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from planner.errors import InvalidRecipeError
from planner.sweeping.table import Table


def front(table: Table, maximize: Sequence[str], minimize: Sequence[str], within: Sequence[str] = ()) -> Table:
    """
    The rows that no other beats: as good in every named column, and better in one. Rows without a value in one of them are left out; of
    rows that are equal in all of them, all are there.

    Args:
        table: The rows.
        maximize: Columns of numbers of which more is better.
        minimize: Columns of numbers of which less is better.
        within: Columns whose values must be the same for a row to beat another.

    Raises:
        InvalidRecipeError: There is no such column.
    """
    losses = [-_numbers(table, name) for name in maximize] + [_numbers(table, name) for name in minimize]
    if not losses:
        raise InvalidRecipeError("pareto has nothing to compare by", hint='pass maximize=("batch_size",) or minimize=(...)')
    points = np.stack(losses, axis=1) if len(table) else np.empty((0, len(losses)))
    groups = _groups(table, within)
    kept = [np.empty(0, np.int64)]
    for group in np.unique(groups):
        rows = np.flatnonzero((groups == group) & ~np.isnan(points).any(axis=1))
        order = rows[np.lexsort(points[rows].T[::-1])]
        kept.append(order[unbeaten(points[order])])
    return table.take(np.sort(np.concatenate(kept)))


def _groups(table: Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each row: the same for rows that agree in all the named columns."""
    found = np.zeros(len(table), np.int64)
    for name in names:
        column = table.columns.get(name)
        if column is None:
            raise _unknown(name, "column", list(table.columns))
        values, codes = np.unique(column.numbers, return_inverse=True)
        found = found * (len(values) + 1) + (codes if column.missing is None else np.where(column.missing, len(values), codes))
    return found


def unbeaten(points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """
    Which points no other is as small as in every coordinate and smaller in one.

    Args:
        points: In lexicographic order, [n, coordinates]: what beats a point stands before it.
    """
    keep = np.zeros(len(points), np.bool_)
    best = np.empty((0, points.shape[1]))
    for i, point in enumerate(points):
        if i and (point == points[i - 1]).all():
            keep[i] = keep[i - 1]
        elif not (best <= point).all(axis=1).any():
            keep[i] = True
            best = np.concatenate((best, point[None]))
    return keep


def _numbers(table: Table, name: str) -> npt.NDArray[np.float64]:
    column = table.columns.get(name)
    if column is None or column.kind == "text":
        known = [other for other, values in table.columns.items() if values.kind != "text"]
        raise _unknown(name, "column of numbers", known)
    values = column.numbers.astype(np.float64)
    return values if column.missing is None else np.where(column.missing, np.nan, values)


def _unknown(name: str, what: str, known: list[str]) -> InvalidRecipeError:
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"they are {', '.join(known)}"
    return InvalidRecipeError(f"{name} is no {what} of this sweep", hint=hint)

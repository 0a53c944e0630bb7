"""The rows that no other row beats in everything that is asked for."""

from __future__ import annotations

import difflib

import numpy as np
import numpy.typing as npt

from planner.errors import InvalidRecipeError
from planner.table import Table


def front(table: Table, maximize: tuple[str, ...], minimize: tuple[str, ...]) -> Table:
    """
    The rows that no other beats: as good in every named column, and better in one. Rows without a value in one of them are left out; of
    rows that are equal in all of them, all are there.

    Args:
        table: The rows.
        maximize: Columns of which more is better.
        minimize: Columns of which less is better.

    Raises:
        InvalidRecipeError: There is no such column of numbers.
    """
    losses = [-_numbers(table, name) for name in maximize] + [_numbers(table, name) for name in minimize]
    if not losses:
        raise InvalidRecipeError("pareto has nothing to compare by", hint='pass maximize=("batch_size",) or minimize=(...)')
    points = np.stack(losses, axis=1) if len(table) else np.empty((0, len(losses)))
    whole = np.flatnonzero(~np.isnan(points).any(axis=1))
    order = whole[np.lexsort(points[whole].T[::-1])]
    return table.take(np.sort(order[unbeaten(points[order])]))


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
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"they are {', '.join(known)}"
        raise InvalidRecipeError(f"{name} is no column of numbers of this sweep", hint=hint)
    values = column.numbers.astype(np.float64)
    return values if column.missing is None else np.where(column.missing, np.nan, values)

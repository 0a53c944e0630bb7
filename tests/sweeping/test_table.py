"""Rows by column."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import MissingExtraError
from planner.sweeping.table import Table, import_extra, joined, numbers, texts


def table(first=0):
    """Three rows of every kind, with holes."""
    return Table(
        {
            "size": numbers(np.array([first, first + 1, 1 << 60]), np.array([False, True, False])),
            "share": numbers(np.array([0.5, 1.5, 2.5])),
            "on": numbers(np.array([True, False, True])),
            "word": texts(np.array([1, -1, 0]), ["a", f"b{first}"]),
        }
    )


ROWS = [
    {"size": 0, "share": 0.5, "on": True, "word": "b0"},
    {"size": None, "share": 1.5, "on": False, "word": None},
    {"size": 1 << 60, "share": 2.5, "on": True, "word": "a"},
]


def test_rows_are_pythons_own_values():
    """Integers beyond float64 stay integers; holes are None."""
    assert list(table().rows()) == ROWS
    assert type(next(iter(table().rows()))["on"]) is bool


def test_arrow_has_the_same_rows():
    """Through Arrow nothing changes."""
    assert table().arrow().to_pylist() == ROWS


def test_numpy_columns():
    """Texts are objects, holes in numbers are masked, and whole columns are plain arrays."""
    found = table().numpy()

    assert found["word"].tolist() == ["b0", None, "a"]
    assert found["size"].mask.tolist() == [False, True, False]
    assert type(found["share"]) is np.ndarray


def test_tables_are_joined_and_taken_apart():
    """One below the other, texts that one has and the other has not among them."""
    both = joined([table(), table(5)])

    assert list(both.rows()) == [*table().rows(), *table(5).rows()]
    assert list(both.take(np.array([5, 0])).rows()) == [list(table(5).rows())[2], ROWS[0]]


def test_a_missing_library_says_how_to_install_it(monkeypatch):
    """The hint is the command."""
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(MissingExtraError) as missing:
        import_extra("polars")

    assert (missing.value.message, missing.value.hint) == ("polars is not installed, and this needs it", "pip install polars")

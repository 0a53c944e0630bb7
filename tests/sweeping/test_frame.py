"""Results in tables, and their files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from planner.errors import InvalidOutputError, InvalidRecipeError, MissingExtraError
from planner.sweeping.frame import Frame, Kept, Streamed
from planner.sweeping.table import Table, numbers, texts


def frame() -> Frame:
    """Six rows in two tables: sizes with a hole, outcomes, and a refusal."""
    outcomes = ("fits", "tight", "does_not_fit")
    tables = [
        Table({
            "batch_size": numbers(np.array(batch)),
            "allocated_bytes": numbers(np.array(size), np.array([s == 0 for s in size])),
            "outcome": texts(np.array(codes), outcomes),
        })
        for batch, size, codes in (([1, 2, 3], [10, 20, 30], [0, 0, 1]), ([4, 5, 6], [40, 0, 1 << 55], [2, -1, 2]))
    ]  # fmt: skip
    return Streamed(lambda: iter(tables))


ROWS = [
    {"batch_size": 1, "allocated_bytes": 10, "outcome": "fits"},
    {"batch_size": 2, "allocated_bytes": 20, "outcome": "fits"},
    {"batch_size": 3, "allocated_bytes": 30, "outcome": "tight"},
    {"batch_size": 4, "allocated_bytes": 40, "outcome": "does_not_fit"},
    {"batch_size": 5, "allocated_bytes": None, "outcome": None},
    {"batch_size": 6, "allocated_bytes": 1 << 55, "outcome": "does_not_fit"},
]


def test_every_form_has_the_same_rows(tmp_path):
    """NumPy, Arrow, pandas, Polars, Parquet, CSV and JSON lines agree, integers beyond float64 and holes included."""
    found = frame()
    for suffix in ("parquet", "csv", "jsonl"):
        getattr(found, f"to_{suffix}")(tmp_path / f"rows.{suffix}")
    pandas, polars = found.to_pandas(), found.to_polars()
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))

    assert list(found.rows()) == ROWS
    assert found.to_arrow().to_pylist() == ROWS
    assert isinstance(pandas, pd.DataFrame) and isinstance(polars, pl.DataFrame)
    assert pandas.astype(object).where(pandas.notna(), None).to_dict("records") == ROWS
    assert polars.to_dicts() == ROWS
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == ROWS
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 2
    assert [{key: value or None for key, value in row.items()} for row in read] == [
        {key: None if value is None else str(value) for key, value in row.items()} for row in ROWS
    ]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ROWS
    assert [len(batch["batch_size"]) for batch in found.batches()] == [3, 3]
    assert found.columns["batch_size"].tolist() == [1, 2, 3, 4, 5, 6]


def test_fits_only_keeps_what_runs():
    """A tight fit counts; a refusal does not."""
    assert list(frame().fits_only().rows()) == ROWS[:3]
    assert len(frame().fits_only()) == 3


def test_pareto_is_of_what_runs():
    """Most batch: the largest that runs; least bytes too: all that run."""
    assert list(frame().pareto(maximize=["batch_size"]).rows()) == [ROWS[2]]
    assert list(frame().pareto(["batch_size"], ["allocated_bytes"]).rows()) == ROWS[:3]
    assert list(frame().pareto(["batch_size"], within=["outcome"]).rows()) == [ROWS[1], ROWS[2]]


def test_pareto_names_what_there_is():
    """A column that is not there, a text, and nothing at all are refused."""
    with pytest.raises(InvalidRecipeError, match="batchsize is no column of numbers") as unknown:
        frame().pareto(["batchsize"])
    with pytest.raises(InvalidRecipeError, match="outcome is no column of numbers"):
        frame().pareto(["outcome"])
    with pytest.raises(InvalidRecipeError, match="nothing to compare by"):
        frame().pareto()

    assert unknown.value.hint == "did you mean batch_size?"


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    """Another ending is refused, and so is Parquet without pyarrow; nothing is left behind."""
    with pytest.raises(InvalidOutputError, match="does not end in"):
        frame().save(tmp_path / "rows.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):
        frame().save(tmp_path / "rows.parquet")

    assert list(tmp_path.iterdir()) == []


def test_kept_rows_are_a_frame():
    """A table that is there already answers as one that comes."""
    (first, *_) = frame().tables()

    assert (len(Kept(first)), list(Kept(first).rows())) == (3, ROWS[:3])

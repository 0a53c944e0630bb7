"""Results that come in tables, one after the other: what can be asked of them, and the files that they can be written to."""

from __future__ import annotations

import csv
import io
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from planner.files import output_path, write_whole
from planner.render.pictured import Pictured
from planner.sweeping.pareto import front
from planner.sweeping.table import Array, Table, import_extra, joined

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""What a file of results may end in."""


class Frame(Pictured):
    """Rows by column, made while they are read."""

    @abstractmethod
    def tables(self) -> Iterator[Table]:
        """The rows in order, some thousands at a time."""

    @abstractmethod
    def __len__(self) -> int: ...

    def batches(self) -> Iterator[dict[str, Array]]:
        """
        The rows in order, some thousands at a time, as NumPy arrays by column: integers of bytes as int64, texts as objects; masked (None
        for texts) where there is no value.
        """
        return (table.numpy() for table in self.tables())

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """
        The rows in order, some thousands at a time, as Arrow record batches; texts are dictionaries.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        return (table.arrow() for table in self.tables())

    @cached_property
    def _whole(self) -> Table:
        return joined(list(self.tables()))

    @property
    def columns(self) -> dict[str, Array]:
        """All rows as NumPy arrays by column, as `batches` has them."""
        return self._whole.numpy()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Row by row, as Python's own values; None where there is none."""
        return (row for table in self.tables() for row in table.rows())

    def to_arrow(self) -> pa.Table:
        """
        All rows as an Arrow table.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        pa = import_extra("pyarrow")
        return pa.Table.from_batches([self._whole.arrow()]).unify_dictionaries()

    def to_pandas(self) -> pd.DataFrame:
        """
        All rows as a data frame: sizes as nullable integers, texts as categories.

        Raises:
            MissingExtraError: pandas or pyarrow is not installed.
        """
        pd, pa = import_extra("pandas"), import_extra("pyarrow")
        kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.float64(): pd.Float64Dtype()}
        return self.to_arrow().to_pandas(types_mapper=kinds.get)

    def to_polars(self) -> pl.DataFrame:
        """
        All rows as a Polars data frame.

        Raises:
            MissingExtraError: polars or pyarrow is not installed.
        """
        polars = import_extra("polars")
        found: pl.DataFrame = polars.from_arrow(self.to_arrow())
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write a `.parquet`, `.csv` or `.jsonl` file, by the end of its name; however many rows there are, only some thousands are in memory.

        Raises:
            MissingExtraError: What writes it is not installed.
            InvalidOutputError: The file cannot be written.
        """
        found = check_output(path)
        write_whole(found, lambda file: WRITERS[found.suffix.lower()](self.tables(), file))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """
        Write a Parquet file; however many rows there are, only some thousands are in memory.

        Raises:
            MissingExtraError: pyarrow is not installed.
            InvalidOutputError: The file cannot be written.
        """
        self._to(path, ".parquet")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """
        Write a CSV file with a header; nothing stands where there is no value.

        Raises:
            InvalidOutputError: The file cannot be written.
        """
        self._to(path, ".csv")

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """
        Write a JSON object a line.

        Raises:
            InvalidOutputError: The file cannot be written.
        """
        self._to(path, ".jsonl")

    def _to(self, path: str | os.PathLike[str], suffix: str) -> None:
        found = output_path(path, (suffix,))
        write_whole(found, lambda file: WRITERS[suffix](self.tables(), file))

    def fits_only(self) -> Frame:
        """The rows that run, a tight fit included."""
        return Filtered(self, fits)

    def pareto(self, maximize: Sequence[str] = (), minimize: Sequence[str] = (), *, within: Sequence[str] = ()) -> Frame:
        """
        The rows that run and that no other such row beats: that is as good in every named column, and better in one. Rows without a value
        in one of them are left out. Only the best of what was read is held in memory.

        Args:
            maximize: Columns of numbers of which more is better, such as `batch_size` and `seq_len`.
            minimize: Columns of numbers of which less is better, such as `allocated_bytes`.
            within: Columns that must be the same for one row to beat another, such as `model` and `gpu`.

        Raises:
            InvalidRecipeError: There is no such column.
        """
        best: list[Table] = []
        for table in self.tables():
            best = [front(joined([*best, table.take(fits(table))]), maximize, minimize, within)]
        return Kept(best[0]) if best else self


class Filtered(Frame):
    """
    Some rows of others.

    Args:
        source: The others.
        keep: Which rows of a table, as a mask.
    """

    def __init__(self, source: Frame, keep: Callable[[Table], Array]) -> None:
        self.source, self.keep = source, keep

    def __repr__(self) -> str:
        return f"<some rows of: {repr(self.source).strip('<>')}>"

    def is_computed(self) -> bool:
        """As the rows that they are taken from."""
        return self.source.is_computed()

    def tables(self) -> Iterator[Table]:
        """The rows in order, some thousands at a time."""
        return (table.take(self.keep(table)) for table in self.source.tables())

    def __len__(self) -> int:
        return sum(map(len, self.tables()))


class Streamed(Frame):
    """
    Rows that somebody else makes.

    Args:
        make: Gives them, from the first on.
    """

    def __init__(self, make: Callable[[], Iterator[Table]]) -> None:
        self.make = make

    def tables(self) -> Iterator[Table]:
        """The rows in order, some thousands at a time."""
        return self.make()

    def __len__(self) -> int:
        return sum(map(len, self.tables()))


class Kept(Frame):
    """
    Rows that are there already.

    Args:
        table: They.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def tables(self) -> Iterator[Table]:
        """All of them at once."""
        yield self.table

    def __len__(self) -> int:
        return len(self.table)


def fits(table: Table) -> Array:
    """Which rows run, a tight fit included."""
    outcome = table.columns["outcome"]
    good = [i for i, text in enumerate(outcome.texts) if text in ("fits", "tight")]
    return np.isin(outcome.numbers, good)


def write_parquet(tables: Iterable[Table], file: BinaryIO) -> None:
    """Tables as one Parquet file, a row group each."""
    pq = import_extra("pyarrow.parquet")
    writer = None
    for table in tables:
        batch = table.arrow()
        if writer is None:
            writer = pq.ParquetWriter(file, batch.schema, compression="zstd")
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def write_csv(tables: Iterable[Table], file: BinaryIO) -> None:
    """Tables as one CSV file."""
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=False)
    writer = csv.writer(text, lineterminator="\n")
    for number, table in enumerate(tables):
        if number == 0:
            writer.writerow(table.columns)
        writer.writerows(row.values() for row in table.rows())
    text.flush()
    text.detach()


def write_jsonl(tables: Iterable[Table], file: BinaryIO) -> None:
    """Tables as JSON objects, one a line."""
    file.writelines("".join(json.dumps(row) + "\n" for row in table.rows()).encode() for table in tables)


WRITERS: dict[str, Callable[[Iterable[Table], BinaryIO], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".jsonl": write_jsonl,
}
"""By the end of the file's name."""


def check_output(path: str | os.PathLike[str]) -> Path:
    """
    The file that a path names; one that cannot be written is refused before any work is done.

    Raises:
        InvalidOutputError: It ends otherwise, or lies where nothing can be written.
        MissingExtraError: What writes it is not installed.
    """
    found = output_path(path, SUFFIXES)
    if found.suffix.lower() == ".parquet":
        import_extra("pyarrow")
    return found

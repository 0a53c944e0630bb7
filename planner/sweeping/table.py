"""
Rows by column, as NumPy holds them, and what else can hold them: Arrow, pandas, Polars, Parquet, CSV, JSON lines.

Texts are kept once, and each row has a number; where there is no value, a number is masked and a text is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from planner.errors import MissingExtraError
from planner.value import NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

KINDS = ("integer", "number", "switch", "text")
"""What a column can hold."""


class Column(NamedTuple):
    """
    One column.

    Attributes:
        kind: One of `KINDS`.
        numbers: Integers (int64), numbers (float64), switches (bool); of texts their indices in `texts`, -1 for none.
        missing: Where there is no value; None where all are there.
        texts: The different texts.
    """

    kind: str
    numbers: Array
    missing: npt.NDArray[np.bool_] | None = None
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Array) -> Column:
        """Some of its rows, by a mask or by number."""
        missing = None if self.missing is None else self.missing[rows]
        return Column(self.kind, self.numbers[rows], missing, self.texts)

    def numpy(self) -> Array:
        """As one NumPy array: texts as objects, None for none; numbers masked where there is none."""
        if self.kind == "text":
            return np.array([*self.texts, None], object)[self.numbers]
        if self.missing is None or not self.missing.any():
            return self.numbers
        return np.ma.array(self.numbers, mask=self.missing)

    def arrow(self) -> pa.Array:
        """As an Arrow array: texts as a dictionary."""
        pa = import_extra("pyarrow")
        if self.kind == "text":
            indices = pa.array(self.numbers.astype(np.int32), mask=self.numbers < 0)
            return pa.DictionaryArray.from_arrays(indices, pa.array(self.texts, pa.string()))
        return pa.array(self.numbers, mask=self.missing)


def numbers(values: Array, missing: Array | None = None) -> Column:
    """A column of integers or switches or numbers, by the type of the array."""
    kind = {"b": "switch", "f": "number"}.get(values.dtype.kind, "integer")
    return Column(kind, values, None if missing is None or not missing.any() else missing)


def texts(values: Array, words: Sequence[str]) -> Column:
    """A column of texts: their numbers (-1 for none) and the texts."""
    return Column("text", values, None, tuple(words))


class Table:
    """
    Some rows.

    Args:
        columns: By name, in order; all of one length.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def take(self, rows: Array) -> Table:
        """Some of the rows, by a mask or by number."""
        return Table({name: column.take(rows) for name, column in self.columns.items()})

    def numpy(self) -> dict[str, Array]:
        """Its columns as NumPy arrays."""
        return {name: column.numpy() for name, column in self.columns.items()}

    def arrow(self) -> pa.RecordBatch:
        """As a record batch."""
        pa = import_extra("pyarrow")
        return pa.RecordBatch.from_arrays([column.arrow() for column in self.columns.values()], names=list(self.columns))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Row by row, as Python's own values; None where there is none."""
        lists = [_listed(column) for column in self.columns.values()]
        for values in zip(*lists, strict=True):
            yield dict(zip(self.columns, values, strict=True))


def _listed(column: Column) -> list[Any]:
    found: list[Any] = column.numpy().tolist()
    return found


def joined(tables: Sequence[Table]) -> Table:
    """Tables of the same columns, one below the other."""
    if len(tables) == 1:
        return tables[0]
    return Table({name: _joined([table.columns[name] for table in tables]) for name in tables[0].columns})


def _joined(columns: Sequence[Column]) -> Column:
    values = [column.numbers for column in columns]
    words: tuple[str, ...] = columns[0].texts
    if columns[0].kind == "text" and any(column.texts != words for column in columns):
        words = tuple(dict.fromkeys(word for column in columns for word in column.texts))
        index = {word: i for i, word in enumerate(words)}
        values = [np.array([*(index[word] for word in c.texts), -1], np.int64)[c.numbers] for c in columns]
    missing = None
    if any(column.missing is not None for column in columns):
        missing = np.concatenate([np.zeros(len(c), np.bool_) if c.missing is None else c.missing for c in columns])
    return Column(columns[0].kind, np.concatenate(values), missing, words)


def import_extra(name: str) -> Any:
    """
    A library of the extra `sweep`.

    Raises:
        MissingExtraError: It is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{name} is not installed, and this needs it", hint=_INSTALL.get(name, f"pip install {name}")) from error


_INSTALL = {
    "pyarrow": 'pip install "qplan[sweep]"',
    "pandas": 'pip install "qplan[sweep]"',
    "yaml": 'pip install "qplan[sweep]"',
    "tomli": 'pip install "qplan[sweep]"',
    "polars": "pip install polars",
    "ray": 'pip install "qplan[ray]"',
}

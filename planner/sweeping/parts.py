"""
What a sweep has done so far, beside the file that it will become: a killed sweep goes on from there.

`out.parquet.parts/` holds `sweep.json`, which says whose rows these are; a file for each finished run of rows; and `points.jsonl`, a line
for each point that took long by itself. Files appear whole or not at all, and of a line that was cut off nothing is taken.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from planner.errors import InvalidOutputError
from planner.files import write_whole
from planner.sweeping.table import Array, Column, Table

_VERSION = 1


class Parts:
    """
    The folder of a sweep that is under way.

    Args:
        path: The file that the sweep will become.
        fingerprint: Whose rows these are.
        restart: Whether what is there of another sweep is thrown away.

    Raises:
        InvalidOutputError: It holds parts of another sweep, or cannot be written to.
    """

    def __init__(self, path: Path, fingerprint: str, *, restart: bool = False) -> None:
        self.path, self.folder = path, path.with_name(path.name + ".parts")
        manifest = {"version": _VERSION, "fingerprint": fingerprint}
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        found = self._manifest()
        if found is not None and found != manifest:
            raise InvalidOutputError(
                f"`{self.folder}` holds parts of another sweep than this one",
                hint=f"pass --restart to throw them away, or write to another file than {path.name}",
            )
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidOutputError(f"`{self.folder}` cannot be made: {error.strerror}", hint="name another file") from error
        if found is None:
            write_whole(self.folder / "sweep.json", lambda file: file.write(json.dumps(manifest).encode()))
        self.points = Points(self.folder / "points.jsonl")

    def has(self, number: int) -> bool:
        """Whether a part is kept."""
        return self._part(number).exists()

    def read(self, number: int) -> Table:
        """A part that is kept."""
        return unpack(self._part(number))

    def keep(self, number: int, table: Table) -> None:
        """Keep a part: it is on disk when this returns."""
        write_whole(self._part(number), lambda file: pack(table, file))

    def tables(self) -> Iterator[Table]:
        """The parts that are kept, from the first on."""
        number = 0
        while self.has(number):
            yield self.read(number)
            number += 1

    def become(self, write: Callable[[BinaryIO], object]) -> None:
        """
        The sweep is whole: its file appears, and its parts go.

        Args:
            write: Writes the file's content.

        Raises:
            InvalidOutputError: The system refused.
        """
        whole = self.folder / "whole"
        write_whole(whole, write)
        whole.replace(self.path)
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Nothing more is kept; what is, stays."""
        self.points.close()

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def _manifest(self) -> Any:
        try:
            return json.loads((self.folder / "sweep.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}


class Points:
    """
    Points that took long, kept one by one.

    Args:
        path: A file of a JSON line each; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.known: dict[tuple[int, ...], Any] = dict(_read(path)) if path is not None else {}
        self._path = path
        self._file: BinaryIO | None = None

    def keep(self, key: tuple[int, ...], value: Any) -> None:
        """Keep one: it is on disk when this returns."""
        self.known[key] = value
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("ab")
            if self._file.tell():
                self._file.write(b"\n")  # ends a line that was cut off
        self._file.write(json.dumps([key, value]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more is kept."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(path: Path) -> Iterator[tuple[tuple[int, ...], Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            key, value = json.loads(line)
        except ValueError:
            continue  # cut off
        yield tuple(key), value


def pack(table: Table, file: BinaryIO) -> None:
    """
    A table as a file of NumPy arrays: each column in the narrowest type that holds it, one value where all are the same.
    """
    arrays: dict[str, Array] = {}
    about = []
    for i, (name, column) in enumerate(table.columns.items()):
        about.append([name, column.kind, list(column.texts), column.missing is not None])
        arrays[f"v{i}"] = _narrowed(column.numbers)
        if column.missing is not None:
            arrays[f"m{i}"] = _narrowed(column.missing)
    header = json.dumps({"rows": len(table), "columns": about}).encode()
    np.savez(file, header=np.frombuffer(header, np.uint8), **arrays)  # type: ignore[arg-type]


def unpack(path: Path) -> Table:
    """
    The table of a file that `pack` wrote.

    Raises:
        InvalidOutputError: It is no such file.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            about = json.loads(arrays["header"].tobytes())
            rows = about["rows"]
            columns = {}
            for i, (name, kind, texts, has_missing) in enumerate(about["columns"]):
                values = _widened(arrays[f"v{i}"], rows)
                missing = _widened(arrays[f"m{i}"], rows) if has_missing else None
                columns[name] = Column(kind, values, missing, tuple(texts))
            return Table(columns)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidOutputError(f"`{path}` is no part of a sweep: {error}", hint="pass --restart to begin anew") from error


def _narrowed(values: Array) -> Array:
    if len(values) and (values == values[0]).all():
        return values[:1]
    if values.dtype.kind == "i" and len(values):
        low, high = int(values.min()), int(values.max())
        return values.astype(next(t for t in (np.int8, np.int16, np.int32, np.int64) if np.iinfo(t).min <= low <= high <= np.iinfo(t).max))
    return values


def _widened(values: Array, rows: int) -> Array:
    wide = values.astype(np.int64) if values.dtype.kind in "iu" else values
    return np.full(rows, wide[0]) if len(wide) == 1 and rows != 1 else wide

"""
The folder of records: one file each, named after its content, written as a whole or not at all.

So two that write at once never touch the same file, and a process that is killed leaves all files whole. A file that is not a record is
put aside, never deleted, and everything else goes on.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from planner import home
from planner.errors import InvalidOutputError, InvalidRecordError
from planner.files import write_whole
from planner.records.record import SCHEMA_VERSION, OtherVersionError, Record
from planner.units import MIB
from planner.value import Value

FOLDER = "records"
ASIDE = "damaged"
"""Where in it files go that are no records."""

MAX_EXPORT_BYTES = 256 * MIB
"""What is larger is no file of records."""

_MAX_RECORD = MIB
_ABANDONED_SECONDS = 3600
"""A part of a file that is older was left behind by a process that was killed."""


class Damaged(Value):
    """A file that is no record: its name, why, and where it is now (None: where it was)."""

    name: str
    reason: str
    moved_to: str | None = None


class Listing(Value):
    """The records, oldest first, and what was found beside them."""

    records: tuple[Record, ...]
    damaged: tuple[Damaged, ...] = ()


class Store:
    """
    The records of this user.

    Args:
        folder: Where; None for `records` in the user's data (`planner.home`). It is made when the first record is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(home.folder(FOLDER) if folder is None else folder)

    def add(self, record: Record) -> Path:
        """
        Keep a record; one that is already here stays as it is.

        Returns:
            Its file.

        Raises:
            InvalidOutputError: The system refused: no room, no right. What is kept already is not touched.
        """
        path = self.folder / f"{record.id}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_whole(path, lambda file: _written(file, record))
            self._sweep()
        except (OSError, InvalidOutputError) as error:
            why = error.strerror if isinstance(error, OSError) else error.message.rpartition(": ")[2]
            raise InvalidOutputError(
                f"the record could not be written to `{self.folder}`: {why or error}; the ones before are as they were",
                hint=f"make room or rights there, or set {home.VARIABLE} to a folder elsewhere",
            ) from error
        return path

    def read(self, *, aside: bool = True) -> Listing:
        """
        All records.

        Args:
            aside: Whether to move files that are no records into the folder `damaged`; else they are named and stay.

        Never raises for a file: what cannot be read is named.
        """
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".json") and entry.is_file())
        except FileNotFoundError:
            return Listing(())
        except OSError as error:
            return Listing((), (Damaged(str(self.folder), error.strerror or str(error)),))
        records, damaged = [], []
        for name in names:
            try:
                records.append(_parsed((self.folder / name).read_bytes()))
            except FileNotFoundError:  # another process put it aside meanwhile
                continue
            except OSError as error:
                damaged.append(Damaged(name, error.strerror or str(error)))
            except OtherVersionError as error:
                damaged.append(Damaged(name, error.message))
            except InvalidRecordError as error:
                damaged.append(Damaged(name, error.message, self._put_aside(name) if aside else None))
        return Listing(tuple(sorted(records, key=lambda record: (record.time, record.id))), tuple(damaged))

    def export(self) -> str:
        """All records as one JSON document, to be shared."""
        return self.exported(self.read())

    def exported(self, found: Listing) -> str:
        """A listing's records as one JSON document."""
        documents = [record.model_dump() for record in found.records]
        return json.dumps({"schema_version": SCHEMA_VERSION, "records": documents}, indent=2, ensure_ascii=False) + "\n"

    def take(self, data: bytes) -> tuple[int, int]:
        """
        Keep the records of an exported document, or a single one: all of them, or, where one is wrong, none.

        Returns:
            How many were new, and how many were here already.

        Raises:
            InvalidRecordError: It is no such document, or a record in it is wrong; which one is said.
            InvalidOutputError: The system refused; those before are kept.
        """
        records = {record.id: record for record in _documents(data)}
        new = [record for id_, record in records.items() if not (self.folder / f"{id_}.json").is_file()]
        for record in new:
            self.add(record)
        return len(new), len(records) - len(new)

    def _put_aside(self, name: str) -> str | None:
        """Move a file into the folder of damaged ones, beside what is there; None where that cannot be."""
        target = self.folder / ASIDE / name
        with suppress(OSError):
            target.parent.mkdir(exist_ok=True)
            for number in range(1, 1000):
                if not target.exists():
                    break
                target = target.with_name(f"{name}.{number}")
            (self.folder / name).rename(target)
            return f"{ASIDE}/{target.name}"
        return None

    def _sweep(self) -> None:
        """Remove parts of files that killed processes left behind."""
        for part in self.folder.glob(".*.part"):
            with suppress(OSError):
                if part.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    part.unlink()


def _written(file: BinaryIO, record: Record) -> None:
    """The record's bytes, on the disk before the file gets its name."""
    file.write((json.dumps(record.model_dump(), indent=1, ensure_ascii=False) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())


def _loaded(data: bytes, limit: int) -> Any:
    """What JSON text says."""
    if len(data) > limit:
        raise InvalidRecordError(f"it is larger than {limit // MIB} MiB")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError("it is no JSON text", hint="give a file that `qplan records export` wrote") from error


def _parsed(data: bytes) -> Record:
    return Record.parse(_loaded(data, _MAX_RECORD))


def _documents(data: bytes) -> list[Record]:
    """The records of an exported document, or a single one."""
    document = _loaded(data, MAX_EXPORT_BYTES)
    if not isinstance(document, dict):
        raise InvalidRecordError("it is no record and no list of records", hint="give a file that `qplan records export` wrote")
    if "records" not in document:
        return [Record.parse(document)]
    if document.get("schema_version") != SCHEMA_VERSION or not isinstance(document["records"], list):
        raise InvalidRecordError(
            f"schema_version is {document.get('schema_version')!r}; this qplan reads {SCHEMA_VERSION}", hint="pip install -U qplan"
        )
    found = []
    for number, item in enumerate(document["records"]):
        try:
            found.append(Record.parse(item))
        except InvalidRecordError as error:
            raise InvalidRecordError(f"record {number}: {error.message}; nothing was imported", hint=error.hint) from error
    return found

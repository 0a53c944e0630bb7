"""`qplan records`: what past verifications measured, and files of them to share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import completion, options

if TYPE_CHECKING:
    from planner.records import Listing, Store

ACTIONS = ("list", "export", "import")


def records(
    action: Annotated[
        str,
        typer.Argument(
            help="list: what there is; export: write all of them to FILE; import: take over those in FILE.",
            metavar="list|export|import",
            show_default=False,
            autocompletion=completion.choices(ACTIONS),
        ),
    ] = "list",
    file: Annotated[
        str | None,
        typer.Argument(help="A .json file; - for standard output or input.", metavar="FILE", show_default=False),
    ] = None,
    json: options.Json = False,
) -> int:
    """
    List, export or import the records of past verifications.

    A record says which card, model, recipe and versions it was, and what was measured and predicted: no host names, user names, paths or
    tokens. Records are in QPLAN_HOME, else in the user's data folder; a file there that is no record is put aside and named.

    Exit code 0; 2: the request is wrong, or a file of records is; 3: something it needs is missing or unreachable.
    """
    from planner.errors import QplanError
    from planner.records import Store

    store = Store()
    if action == "list" and file is None:
        return _list(store, json=json)
    if action in ("export", "import") and file is not None:
        return _export(store, file) if action == "export" else _import(store, file)
    if action in ("export", "import"):
        raise QplanError(f"{action} is given without a file", hint=f"qplan records {action} records.json")
    wrong = f"`{file}` is given, but list takes no file" if action == "list" else f"there is nothing called `{action}` to do"
    raise QplanError(f"{wrong}; it must be one of {', '.join(ACTIONS)}", hint="qplan records, or qplan records export records.json")


def _list(store: Store, *, json: bool) -> int:
    """Print what there is; what is damaged is told beside it."""
    from planner.render import records as screen
    from planner.render import terminal

    found = store.read()
    if json:
        terminal.write([screen.as_json(found)])
    else:
        terminal.write(screen.lines(found, terminal.Terminal.of(sys.stdout)))
        _tell_damaged(found)
    return 0


def _export(store: Store, file: str) -> int:
    """Write all records to a file, or to standard output."""
    from planner.files import output_path, write_whole
    from planner.render import terminal

    path = None if file == "-" else output_path(file, (".json",))
    found = store.read()
    text = store.exported(found)
    if path is None:
        terminal.write(text.splitlines())
    else:
        write_whole(path, lambda out: out.write(text.encode()))
        terminal.write([f"wrote {file}: {len(found.records)} record{'' if len(found.records) == 1 else 's'}"], sys.stderr)
    _tell_damaged(found)
    return 0


def _import(store: Store, file: str) -> int:
    """Take over the records of a file, or of standard input."""
    from planner.errors import InvalidRecordError
    from planner.records import MAX_EXPORT_BYTES
    from planner.render import terminal

    if file == "-":
        data = sys.stdin.buffer.read(MAX_EXPORT_BYTES + 1)
    else:
        path = Path(file).expanduser()
        try:
            if not path.is_file():  # a pipe or a device could be read for ever
                raise InvalidRecordError(f"`{file}` is no file", hint="give a file that `qplan records export` wrote")
            with path.open("rb") as opened:
                data = opened.read(MAX_EXPORT_BYTES + 1)
        except OSError as error:
            raise InvalidRecordError(f"`{file}` cannot be read: {error.strerror or error}") from error
    try:
        new, known = store.take(data)
    except InvalidRecordError as error:
        raise InvalidRecordError(f"`{file}`: {error.message}", hint=error.hint) from error
    terminal.write([f"{new} new record{'' if new == 1 else 's'}; {known} were here already"], sys.stderr)
    return 0


def _tell_damaged(found: Listing) -> None:
    """Files that are no records, on standard error."""
    from planner.render import terminal

    rows = [
        terminal.printable(f"skipped {bad.name}: {bad.reason}" + (f"; it is kept as {bad.moved_to}" if bad.moved_to else ""))
        for bad in found.damaged
    ]
    if rows:
        terminal.write(rows, sys.stderr)

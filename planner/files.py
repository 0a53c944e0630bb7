"""Files that are asked for by name: refused before the work begins, and written as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from planner.errors import InvalidOutputError


def output_path(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """
    The file that a path names, if it can be written.

    Args:
        path: As the user gave it; `~` is the home folder, and a link is followed.
        suffixes: What it may end in, such as `.html`; upper and lower case are the same.

    Raises:
        InvalidOutputError: It ends otherwise, it is a folder or a device, or its folder is missing or may not be written to.
    """
    given = os.fspath(path)
    found = Path(os.path.realpath(Path(given).expanduser()))
    if found.is_dir():
        inside = Path(given) / f"qplan{suffixes[0]}"
        raise InvalidOutputError(f"`{given}` is a folder; it must be a file", hint=f"name a file in it: {inside}")
    if Path(given).suffix.lower() not in suffixes:
        ends = " or ".join((", ".join(suffixes[:-1]), suffixes[-1])) if len(suffixes) > 1 else suffixes[0]
        raise InvalidOutputError(f"`{given}` does not end in {ends}", hint=f"name it {Path(given or 'qplan').with_suffix(suffixes[0])}")
    if found.exists() and not found.is_file():
        raise InvalidOutputError(f"`{given}` is no ordinary file", hint="name a file that may be replaced")
    if not found.parent.is_dir():
        raise InvalidOutputError(f"`{given}` is in a folder that does not exist", hint=f"mkdir -p {Path(given).parent}")
    if not os.access(found.parent, os.W_OK) or (found.exists() and not os.access(found, os.W_OK)):
        raise InvalidOutputError(f"`{given}` may not be written to", hint="name a file in a folder of yours")
    return found


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """
    Write a file that appears, or replaces the one before, once it is complete.

    Args:
        path: Where.
        write: Writes the content to an open file.

    Raises:
        InvalidOutputError: The system refused: no room, no right.
    """
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            write(file)
        part.replace(path)
    except OSError as error:
        raise InvalidOutputError(f"`{path}` could not be written: {error.strerror or error}", hint="name another file") from error
    finally:
        part.unlink(missing_ok=True)

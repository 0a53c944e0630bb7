"""Where a user's own data is kept: records of verifications, and what was measured on the cards at hand."""

from __future__ import annotations

import os
import sys

VARIABLE = "QPLAN_HOME"

_MOST = 1 << 20


def folder(name: str = "") -> str:
    r"""
    The folder of the user's data, or one in it; nothing is made, and nothing is looked at.

    QPLAN_HOME where it is set; else XDG_DATA_HOME/qplan (relative ones are ignored, as its specification asks), and what the system
    has for it: ~/.local/share/qplan, ~/Library/Application Support/qplan, %LOCALAPPDATA%\qplan.

    Source:
        https://specifications.freedesktop.org/basedir-spec/latest: "All paths set in these environment variables must be absolute."
    """
    own, shared = os.environ.get(VARIABLE), os.environ.get("XDG_DATA_HOME")
    if own:
        base = os.path.abspath(os.path.expanduser(own))  # noqa: PTH100, PTH111 - pathlib costs a cold start more than this
    elif shared and os.path.isabs(shared):  # noqa: PTH117 - the same
        base = os.path.join(shared, "qplan")  # noqa: PTH118 - the same
    else:
        places = {"darwin": "~/Library/Application Support", "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local"}
        base = os.path.join(os.path.expanduser(places.get(sys.platform, "~/.local/share")), "qplan")  # noqa: PTH111, PTH118 - the same
    return os.path.join(base, name) if name else base  # noqa: PTH118 - the same


def mentions(name: str, text: str) -> bool:
    """Whether a file in that folder has the text in it: loading what checks them all costs a cold start 30 ms, a look into them little."""
    wanted = text.encode()
    try:
        with os.scandir(folder(name)) as entries:
            return any(entry.name.endswith(".json") and wanted in _bytes(entry.path) for entry in entries)
    except OSError:
        return False


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the same
            return file.read(_MOST)
    except OSError:
        return b""


def has(name: str) -> bool:
    """Whether that folder is there: one question to the system."""
    return os.path.isdir(folder(name))  # noqa: PTH112 - the same

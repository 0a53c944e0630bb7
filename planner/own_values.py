"""
The local profile: what was measured on the cards of this machine beyond what torch allocates, one file a card.

Three figures are a card's own: its CUDA context, one cuBLAS workspace, and what the allocator reserves beyond an allocated peak. An
estimate for that card takes them in place of published ones, and says so. Nothing else is ever adjusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from planner import home
from planner.device import Device
from planner.errors import InvalidOutputError
from planner.files import write_whole
from planner.units import GIB, ceil_div
from planner.value import NamedTuple, replace

FOLDER = "cards"
SCHEMA_VERSION = 1

_MAX_BYTES = 1 << 16
_WORDS = re.compile(r"[A-Za-z0-9 .,:+_-]{0,120}", re.ASCII)


class OwnValues(NamedTuple):
    """
    What is a card's own.

    Attributes:
        context_bytes: Of one process's CUDA context and loaded kernels: what it held beyond what torch reserved.
        workspace_bytes: Of one cuBLAS workspace; None where it was not measured.
        reserve_per_mille: What the allocator reserved beyond the allocated peak, in thousandths of it; None where it was not measured.
        measured: When, and with which versions, in words.
    """

    context_bytes: int
    workspace_bytes: int | None
    reserve_per_mille: int | None
    measured: str


def reserve_per_mille(allocated_bytes: int, reserved_bytes: int) -> int:
    """What was reserved beyond an allocated peak, in thousandths of it, rounded up."""
    return ceil_div(max(reserved_bytes - allocated_bytes, 0) * 1000, max(allocated_bytes, 1))


def remember(device: Device, values: OwnValues) -> Path:
    """
    Keep what was measured on a card, in place of what was kept of it before; a figure that was not measured now stays.

    Returns:
        Its file.

    Raises:
        InvalidOutputError: The system refused, or a figure cannot be one.
    """
    if not _is_sane(values._asdict()):
        raise InvalidOutputError(f"what was measured on {device.name} cannot be: {values}", hint="measure it again")
    path, before = _file(device), recall(device)
    if before is not None:
        values = values._replace(**{name: old for name, old in before._asdict().items() if getattr(values, name) is None})
    capability = list(device.compute_capability)
    document = {"schema_version": SCHEMA_VERSION, "name": device.name, "compute_capability": capability, **values._asdict()}

    def write(file: BinaryIO) -> None:
        file.write((json.dumps(document, indent=1) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except (OSError, InvalidOutputError) as error:
        why = error.strerror if isinstance(error, OSError) else error.message.rpartition(": ")[2]
        raise InvalidOutputError(
            f"what was measured on {device.name} could not be kept in `{path.parent}`: {why or error}",
            hint=f"make room or rights there, or set {home.VARIABLE} to a folder elsewhere",
        ) from error
    return path


def recall(device: Device) -> OwnValues | None:
    """What was measured on a card of that name and compute capability; None where nothing was, or its file is damaged."""
    try:
        with _file(device).open("rb") as file:
            document: Any = json.loads(file.read(_MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION or not _is_sane(document):
        return None
    if (document.get("name"), document.get("compute_capability")) != (device.name, list(device.compute_capability)):
        return None
    return OwnValues(*(document[name] for name in OwnValues._fields))


def applied(device: Device) -> Device:
    """The card with its own values, where some are known."""
    found = recall(device)
    return device if found is None else replace(device, own=found)


def _file(device: Device) -> Path:
    """Named after the card; a digest tells names apart that are spelled alike."""
    spelled = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")[:60]
    digest = hashlib.sha256(f"{device.name} {device.compute_capability}".encode()).hexdigest()[:8]
    return Path(home.folder(FOLDER)) / f"{spelled}-{digest}.json"


def _is_sane(values: dict[str, Any]) -> bool:
    """Whether the figures can be what they say: a damaged file must not move a verdict."""
    context, workspace, reserve, measured = (values.get(name) for name in OwnValues._fields)
    return (
        type(context) is int
        and 0 < context < 16 * GIB
        and (workspace is None or (type(workspace) is int and 0 <= workspace < GIB))
        and (reserve is None or (type(reserve) is int and 0 <= reserve < 100_000))
        and isinstance(measured, str)
        and _WORDS.fullmatch(measured) is not None
    )

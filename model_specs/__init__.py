"""
Facts about checkpoints and cards, and the only code that opens their files.

`<org>/<name>.json` holds one checkpoint, `gpus.json` the cards, and `schema.json` says what both must look like. Adding a
model is adding a file: no code lists them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent


def checkpoint(name: str) -> dict[str, Any] | None:
    """
    The facts about one bundled checkpoint, named in any case by its id or by an id with the same shapes.

    Reads one file for an id; all of them, once, for an id with the same shapes.

    Args:
        name: A Hub id, such as `meta-llama/Llama-2-70b-hf`.

    Returns:
        The file's contents, fresh for the caller to change. For an id that only shares the shapes `id` is that id and
        `gated` is None. None where no bundled checkpoint has the name.
    """
    path = _path(name)
    if path is not None:
        facts: dict[str, Any] = _read(path)
        return facts
    alias = aliases().get(name.lower())
    return None if alias is None else {**_read(_FOLDER / f"{alias[1]}.json"), "id": alias[0], "gated": None}


@cache
def checkpoint_ids() -> tuple[str, ...]:
    """The ids of the bundled checkpoints in alphabetical order, from the names of their files alone."""
    return tuple(sorted((f"{path.parent.name}/{path.stem}" for path in _FOLDER.glob("*/*.json")), key=str.lower))


@cache
def checkpoints() -> tuple[dict[str, Any], ...]:
    """The facts about every bundled checkpoint, in the order of `checkpoint_ids`. Shared: not for the caller to change."""
    return tuple(_read(_FOLDER / f"{checkpoint_id}.json") for checkpoint_id in checkpoint_ids())


@cache
def aliases() -> dict[str, tuple[str, str]]:
    """Ids that share the shapes of a bundled checkpoint: the id in lower case -> (its own spelling, the bundled id)."""
    return {alias.lower(): (alias, facts["id"]) for facts in checkpoints() for alias in facts["same_shapes"]}


@cache
def gpus() -> tuple[dict[str, Any], ...]:
    """The facts about every card, in the order of `gpus.json`. Shared: not for the caller to change."""
    return tuple(_read(_FOLDER / "gpus.json"))


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a checkpoint's file; `$defs/gpus` in it is that of `gpus.json`."""
    facts: dict[str, Any] = _read(_FOLDER / "schema.json")
    return facts


def _path(name: str) -> Path | None:
    """The file of an id in any case. Names are compared with what is there, so that no name can lead outside the folder."""
    organisation, _, stem = name.lower().partition("/")
    folder = next((child for child in _FOLDER.iterdir() if child.name.lower() == organisation and child.is_dir()), None)
    if folder is None:
        return None
    return next((child for child in folder.iterdir() if child.name.lower() == f"{stem}.json"), None)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())

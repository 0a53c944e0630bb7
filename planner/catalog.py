"""Find a checkpoint: bundled, in a folder, a config.json, or on the Hub. Cards are in `planner.cards`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import model_specs
from planner.cards import common_devices, find_device, list_devices, local_device
from planner.config_file import adapter_error, printable, read_config, read_object
from planner.errors import InvalidConfigError, QplanError, UnknownModelError
from planner.value import NamedTuple, Value

__all__ = [
    "Checkpoint",
    "CheckpointSummary",
    "common_devices",
    "find_checkpoint",
    "find_device",
    "list_checkpoints",
    "list_devices",
    "local_device",
    "nearest_checkpoints",
]

# What the Hub accepts as a repository's name. Source: huggingface_hub@2.4.0, utils/_validators.py, validate_repo_id.
HUB_ID = re.compile(r"(?=.{1,96}$)([A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What the Hub accepts as a repository's name."""
_NAMES = "name a Hub id such as `org/name`, a folder with a config.json, or a config.json"
# Below this likeness (0 to 1) a suggestion is noise: the default of difflib.get_close_matches.
_LIKE_ENOUGH = 0.6
_WORD = 4  # letters that a name must share to be meant by a part of it


class Checkpoint(NamedTuple):
    """
    A checkpoint that was found: its config.json and what is known about it. No weights are read.

    Attributes:
        id: A bundled id in its published spelling; a Hub id or a path as given.
        config: The fields of its config.json, unchanged; `model_type` is always there.
        source: `bundled`, `hub: <id>@<commit>` or `file: <path>`.
        published_parameters: The count that was published, where one is known. It can count more than the modules hold.
        gated: Whether the Hub asks for a licence before a download.
        size_bytes: Bytes of the weight files that a download fetches, where they are known.
    """

    id: str
    config: dict[str, Any]
    source: str
    published_parameters: int | None = None
    gated: bool = False
    size_bytes: int | None = None


class CheckpointSummary(Value):
    """
    One line of the list of bundled checkpoints.

    Attributes:
        id: Its Hub id.
        model_type: Its family, as config.json spells it.
        published_parameters: The count that was published, where one is known.
        gated: Whether the Hub asks for a licence before a download.
        same_shapes: Other ids that answer as this one does.
    """

    id: str
    model_type: str
    published_parameters: int | None
    gated: bool
    same_shapes: tuple[str, ...]


def find_checkpoint(name: str, *, revision: str | None = None, offline: bool | None = None) -> Checkpoint:
    """
    The checkpoint of that name.

    Looked for in this order: a bundled id in any case, or one with the same shapes (never touches the network, unless a
    revision is asked for); a folder with a config.json, or a JSON file; a repository on the Hub.

    Args:
        name: A Hub id, a folder or a file.
        revision: Branch, tag or commit on the Hub; it goes past what is bundled.
        offline: Whether to look no further than this machine, the Hub's cache included; None for what HF_HUB_OFFLINE says.

    Raises:
        UnknownModelError: Nothing of that name is a model. The hint holds the nearest names.
        InvalidConfigError: It has a config.json that no model can be built from.
        HubError: The Hub could not be reached, or it refused.
    """
    name = name.strip()
    if revision is None:
        facts = model_specs.checkpoint(name)
        if facts is not None:
            return _bundled(facts)
        # Not pathlib: these two answer False and the text itself where Path raises (a name too long, a null byte, no home).
        path = os.path.expanduser(name)  # noqa: PTH111
        if name and os.path.exists(path):  # noqa: PTH110
            return _local(name, Path(path))
    if name.startswith((".", "/", "~", "\\")) or name.endswith(".json") or name.count("/") > 1:
        raise UnknownModelError(f"there is no file or folder `{printable(name)}`", hint=_suggest(name, _NAMES))
    if not HUB_ID.fullmatch(name) or "--" in name or ".." in name or name.endswith(("-", ".", ".git")):
        raise UnknownModelError(
            f"`{printable(name)}` is neither bundled nor a path, and no Hub id looks like it", hint=_suggest(name, _NAMES)
        )
    return _from_hub(name, revision, offline)


def list_checkpoints(query: str | None = None) -> list[CheckpointSummary]:
    """
    The bundled checkpoints, in alphabetical order.

    Args:
        query: Words that must all occur in the id, in an id with the same shapes or in the family, in any case.
    """
    words = (query or "").lower().split()
    return [
        CheckpointSummary(
            id=facts["id"],
            model_type=facts["config"]["model_type"],
            published_parameters=facts["published_parameters"],
            gated=bool(facts["gated"]),
            same_shapes=tuple(facts["same_shapes"]),
        )
        for facts in model_specs.checkpoints()
        if _mentions(words, (facts["id"], facts["config"]["model_type"], *facts["same_shapes"]))
    ]


def nearest_checkpoints(name: str, count: int = 3) -> list[str]:
    """
    The bundled ids that look most like a name, the likest first: in full, or in the part after the slash.

    Args:
        name: What was typed.
        count: How many at most.
    """
    wanted = name.lower()[:96]  # no id is longer, and comparing takes the product of the lengths
    known = {candidate.lower(): candidate for candidate in model_specs.checkpoint_ids()}
    known |= {alias: spelling for alias, (spelling, _) in model_specs.aliases().items()}
    likeness: dict[str, float] = {}
    import difflib

    matcher = difflib.SequenceMatcher(autojunk=False)
    for target, part in ((wanted, slice(None)), (wanted.rpartition("/")[2], slice(-1, None))):
        matcher.set_seq2(target)
        for candidate in known:
            text = "/".join(candidate.split("/")[part])
            matcher.set_seq1(text)
            if len(target) >= _WORD and target in text:  # the family alone, such as `mistral-7b`
                likeness[candidate] = max(likeness.get(candidate, _LIKE_ENOUGH), matcher.ratio())
            elif matcher.real_quick_ratio() >= _LIKE_ENOUGH and matcher.quick_ratio() >= _LIKE_ENOUGH:
                likeness[candidate] = max(likeness.get(candidate, 0.0), matcher.ratio())
    best = sorted((c for c in likeness if likeness[c] >= _LIKE_ENOUGH), key=lambda c: (-likeness[c], c))
    return [known[candidate] for candidate in best[:count]]


def _mentions(words: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether every word occurs in one of the texts."""
    joined = "\n".join(texts).lower()
    return all(word in joined for word in words)


def _bundled(facts: dict[str, Any]) -> Checkpoint:
    """A bundled file as a checkpoint. Its config gets the classes back that the file keeps beside it."""
    return Checkpoint(
        id=facts["id"],
        config={"architectures": facts["architectures"], **facts["config"]},
        source="bundled",
        published_parameters=facts["published_parameters"],
        gated=bool(facts["gated"]),
    )


def _local(name: str, path: Path) -> Checkpoint:
    """A folder or a file as a checkpoint."""
    from planner import hub  # what a bundled model never needs

    if not path.is_dir():
        if path.suffix.lower() != ".json":
            raise UnknownModelError(
                f"`{printable(name)}` is a file but no config.json",
                hint="give the config.json that lies beside the weights, or its folder",
            )
        return Checkpoint(id=name, config=read_config(path), source=f"file: {path}")
    files = _files(name, path)
    if "config.json" in files:
        config = path / "config.json"
        return Checkpoint(id=name, config=read_config(config), source=f"file: {config}", size_bytes=hub.weight_bytes(files))
    if "adapter_config.json" in files:
        raise adapter_error(name, read_object(path / "adapter_config.json"))
    raise UnknownModelError(
        f"folder `{printable(name)}` has no config.json{hub.what_else(files)}",
        hint=_suggest(name, "name the folder that `save_pretrained` wrote, or a Hub id"),
    )


def _files(name: str, folder: Path) -> dict[str, int]:
    """Names and sizes of what lies in a folder; a link into nowhere has no size."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size if entry.is_file() else 0 for entry in entries}
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidConfigError(f"folder `{printable(name)}` cannot be read: {reason}", hint="check its permissions") from error


def _from_hub(name: str, revision: str | None, offline: bool | None) -> Checkpoint:
    """A repository on the Hub as a checkpoint."""
    from planner import hub  # what a bundled model never needs

    try:
        config, commit = hub.fetch_config(name, revision, offline=offline)
    except QplanError as error:
        raise type(error)(error.message, hint=_suggest(name, error.hint)) from error
    facts = hub.repository_facts(name, commit, offline=offline)
    return Checkpoint(
        id=name,
        config=config,
        source=f"hub: {name}@{commit}",
        published_parameters=facts.parameters,
        gated=facts.gated,
        size_bytes=facts.weight_bytes,
    )


def _suggest(name: str, hint: str | None) -> str | None:
    """A hint with the bundled names that were perhaps meant."""
    nearest = nearest_checkpoints(name)
    if not nearest:
        return hint
    bundled = "bundled, no network needed: " + ", ".join(nearest)
    return bundled if hint is None else f"{hint}; {bundled}"

"""Read a config.json that anybody may have written: a dictionary comes out, or an error that says what is wrong with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from planner.errors import InvalidConfigError, UnknownModelError
from planner.units import MIB

# A config.json is a few KiB, some hundred with a list of every module that a quantiser skipped. What is larger is another file
# given by mistake (weights, a tokenizer), and a hostile one must be refused in less than a second.
MAX_CONFIG_BYTES = MIB
# For the same reasons: one MiB holds 350 thousand empty lists.
MAX_VALUES = 100_000
# Real ones nest four deep. A limit here lets everything that reads a config later recurse without fear.
MAX_DEPTH = 64
# Mamba-2 checkpoints publish `"time_step_limit": [0.0, Infinity]`: the one place where infinity means "no limit".
UNLIMITED_FIELDS = frozenset({"time_step_limit"})

_HINT = "pass a Hugging Face config.json, as `save_pretrained` writes it"


def printable(text: str, limit: int = 80) -> str:
    r"""
    Text from outside on one line: what cannot be printed is escaped, and what is too long is cut.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[:limit])
    return shown if len(text) <= limit else shown + "..."


def read_config(path: Path, name: str | None = None) -> dict[str, Any]:
    """
    The config.json at a path.

    Args:
        path: A regular file.
        name: What to call it in an error; its path if None.

    Returns:
        Its fields; `model_type` is among them and a string.

    Raises:
        InvalidConfigError: It cannot be read, or it is not the config.json of a model.
        UnknownModelError: It is the configuration of an adapter.
    """
    return parse_config(_read_bytes(path), name or str(path))


def read_object(path: Path) -> dict[str, Any]:
    """
    The JSON object at a path, whatever it describes.

    Raises:
        InvalidConfigError: It cannot be read, or it is not a JSON object of sane values.
    """
    return _parse_object(_read_bytes(path), printable(str(path)))


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """
    The fields of a config.json.

    Args:
        data: The file's bytes.
        name: What to call it in an error.

    Returns:
        Its fields; `model_type` is among them and a string. Of a key that occurs twice the last one counts, as in every
        JSON reader.

    Raises:
        InvalidConfigError: It is not the config.json of a model.
        UnknownModelError: It is the configuration of an adapter.
    """
    shown = printable(name)
    config = _parse_object(data, shown)
    if "model_type" not in config and "base_model_name_or_path" in config:
        raise adapter_error(shown, config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type.strip() or not model_type.isprintable() or len(model_type) > 100:
        given = "has no `model_type`" if model_type is None else f"has `model_type` {printable(repr(model_type))}"
        raise InvalidConfigError(
            f"`{shown}` {given}; it must name the family, such as `llama`",
            hint='add "model_type" as the Hugging Face checkpoint of the same family has it'
            if model_type is None and config
            else _HINT,
        )
    return config


def adapter_error(name: str, adapter: dict[str, Any]) -> UnknownModelError:
    """
    What to say about an adapter that was given as a model.

    Args:
        name: What was given.
        adapter: Its adapter_config.json.
    """
    base = adapter.get("base_model_name_or_path")
    kind = adapter.get("peft_type")
    kind = f" ({printable(kind, 20)})" if isinstance(kind, str) else ""
    hint = "plan for the model that it was trained on"
    if isinstance(base, str) and base:
        hint = f"plan for its base: qplan estimate {printable(base)}"
    return UnknownModelError(f"`{printable(name)}` is a PEFT adapter{kind}, not a model", hint=hint)


def _read_bytes(path: Path) -> bytes:
    """A regular file's bytes, never many more than a config.json may have."""
    try:
        if not path.is_file():  # a pipe or a device could be read for ever
            raise InvalidConfigError(f"`{printable(str(path))}` is not a regular file", hint=_HINT)
        with path.open("rb") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidConfigError(f"`{printable(str(path))}` cannot be read: {reason}", hint=_HINT) from error


def _parse_object(data: bytes, shown: str) -> dict[str, Any]:
    """The JSON object that the bytes spell, its values checked."""
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidConfigError(f"`{shown}` is larger than {MAX_CONFIG_BYTES // MIB} MiB, so it is no config.json", hint=_HINT)
    if data.count(b",") > MAX_VALUES:  # so many are not even made
        raise InvalidConfigError(f"`{shown}` holds more than {MAX_VALUES} values", hint=_HINT)
    try:
        config = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidConfigError(f"`{shown}` is not UTF-8 text (byte {error.start})", hint=_HINT) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidConfigError(f"`{shown}` is not valid JSON: {error.msg} at {where}", hint=_json_hint(data)) from error
    except RecursionError as error:
        raise InvalidConfigError(f"`{shown}` nests too deeply to be a config.json", hint=_HINT) from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise InvalidConfigError(f"`{shown}` has a number with too many digits", hint=_HINT) from error
    if not isinstance(config, dict):
        raise InvalidConfigError(f"`{shown}` holds a JSON {_json_type(config)}; it must be an object", hint=_HINT)
    _check_values(config, shown)
    return config


def _json_hint(data: bytes) -> str:
    """What to do about text that is not JSON: some broken files are common enough to be named."""
    if not data.strip():
        return "the file is empty: download it again"
    if data.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer: run `git lfs pull`"
    if data.lstrip()[:1] == b"<":
        return "the file is a web page: download the raw config.json"
    return _HINT


def _json_type(value: object) -> str:
    """What JSON calls a value."""
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]


def _check_values(config: dict[str, Any], shown: str) -> None:
    """Refuse what JSON readers let through and arithmetic or a terminal would choke on later. Walks without recursion."""
    pending: list[tuple[str, Any, int]] = [("", config, 0)]
    while pending:
        field, value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidConfigError(f"`{shown}` nests deeper than {MAX_DEPTH} levels", hint=_HINT)
        if isinstance(value, (dict, list)) and len(pending) + len(value) > MAX_VALUES:
            raise InvalidConfigError(f"`{shown}` holds more than {MAX_VALUES} values", hint=_HINT)
        if isinstance(value, dict):
            pending += [(str(key), item, depth + 1) for key, item in value.items()]
            pending += [(field, key, depth) for key in value]
        elif isinstance(value, list):
            pending += [(field, item, depth + 1) for item in value]
        elif isinstance(value, float) and not math.isfinite(value) and (math.isnan(value) or field not in UNLIMITED_FIELDS):
            raise InvalidConfigError(f"`{shown}`: `{printable(field)}` is {value}; it must be a finite number", hint=_HINT)
        elif isinstance(value, str) and not _is_text(value):
            raise InvalidConfigError(f"`{shown}`: `{printable(field)}` holds half of a surrogate pair", hint=_HINT)


def _is_text(value: str) -> bool:
    """Whether a string can be written anywhere: JSON can spell half of a surrogate pair, which no encoding takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

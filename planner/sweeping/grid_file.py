"""Axes as people write them: `1:65` on a command line, and grids in YAML or TOML files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import InvalidGridError, InvalidRecipeError, QplanError
from planner.recipe import KNOBS, RANGES
from planner.sweeping.grid import make_axes
from planner.sweeping.table import import_extra

SUFFIXES = (".yaml", ".yml", ".toml")
"""What a grid's file may end in."""

_OTHERS = ("models", "gpu", "stack", "engine", "simulate")
"""What a grid's file has beside knobs."""


def whole_numbers(text: str) -> Any:
    """
    The values of an axis of whole numbers.

    >>> whole_numbers("1:4"), whole_numbers("512:2049:512"), whole_numbers("1,2,8:10"), whole_numbers("16")
    (range(1, 4), range(512, 2049, 512), [1, 2, 8, 9], 16)

    Args:
        text: Numbers, and ranges without their ends as Python has them, separated by commas. What is neither stays a text.
    """
    parts = [_range(part.strip()) for part in text.split(",")]
    if len(parts) == 1:
        return parts[0]
    return [value for part in parts for value in (part if isinstance(part, range) else [part])]


def _range(text: str) -> Any:
    try:
        ends = [int(part) for part in text.split(":")]
    except ValueError:
        return text
    if len(ends) == 1:
        return ends[0]
    return range(*ends) if len(ends) <= 3 and (len(ends) == 2 or ends[2]) else text


def read_grid(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    The arguments of a sweep from a file.

    Args:
        path: A YAML or TOML file: `models`, and where wanted `gpu`, `stack`, `engine`, `simulate`; every other key is a knob with a value,
            a list of values, or, of whole numbers, a text such as `1:65`.

    Returns:
        `models` and the other arguments by name.

    Raises:
        InvalidGridError: It cannot be read, or a key has what it cannot have; says which.
        MissingExtraError: What reads it is not installed.
    """
    name = os.fspath(path)
    read = _parse(Path(name).expanduser(), name)
    if not isinstance(read, Mapping):
        raise InvalidGridError(f"{name}: it holds no keys; a grid has at least `models`", hint="models: [meta-llama/Llama-2-7b-hf]")
    found: dict[str, Any] = {}
    for key, value in read.items():
        given = "models" if key == "model" else "gpu" if key == "gpus" else key
        if given not in (*_OTHERS, *KNOBS):
            raise InvalidGridError(f"{name}: {key}: there is no such knob", hint=_near(str(key)))
        found[given] = whole_numbers(value) if given in RANGES and isinstance(value, str) else _listed(given, value)
        _check(name, str(key), given, found[given])
    if not found.get("models"):
        raise InvalidGridError(f"{name}: models: is missing; a grid needs at least one", hint="models: [meta-llama/Llama-2-7b-hf]")
    return found


def _listed(key: str, value: Any) -> Any:
    """A list of numbers and ranges as one list; anything else as it is."""
    if key in RANGES and isinstance(value, list) and any(isinstance(part, str) for part in value):
        return whole_numbers(",".join(map(str, value)))
    return value


def _check(file: str, key: str, given: str, value: Any) -> None:
    try:
        if given in KNOBS:
            make_axes({given: value})
        elif not isinstance(value, str) and not (
            isinstance(value, list) and given in ("models", "gpu") and all(isinstance(v, str) for v in value)
        ):
            raise InvalidRecipeError(f"{key} is {value!r}; it must be a text" + ("s" if given in ("models", "gpu") else ""))
    except QplanError as error:
        raise InvalidGridError(f"{file}: {key}: {error.message}", hint=error.hint) from error


def _parse(path: Path, name: str) -> Any:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidGridError(f"`{name}` ends in none of {', '.join(SUFFIXES)}", hint="name it grid.yaml or grid.toml")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InvalidGridError(f"`{name}` cannot be read: {reason}", hint="name a grid.yaml or grid.toml") from error
    if suffix == ".toml":
        toml = _toml()
        parse, fault = toml.loads, toml.TOMLDecodeError
    else:
        yaml = import_extra("yaml")
        parse, fault = _load_yaml, yaml.YAMLError
    try:
        return parse(text)
    except fault as error:
        raise InvalidGridError(f"{name}: {' '.join(str(error).split())}", hint=f"it must be {suffix[1:].upper()}") from error


def _load_yaml(text: str) -> Any:
    """YAML in which `1:65` is a text: PyYAML follows YAML 1.1, where it is 125, a number to the base of 60."""
    yaml = import_extra("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        pass

    without = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.yaml_implicit_resolvers = without
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
    number = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9]+([eE][-+]?[0-9]+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return yaml.load(text, Loader)


def _toml() -> Any:
    try:
        return import_extra("tomllib")
    except QplanError:  # before Python 3.11
        return import_extra("tomli")


def _near(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, (*_OTHERS, *KNOBS), n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"keys are {', '.join((*_OTHERS, *KNOBS))}"

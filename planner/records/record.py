"""
One verification as it is kept and shared.

Only what `WHITELIST` names is ever in it: no host names, user names, paths or tokens. What comes from outside is checked field by field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from planner.errors import InvalidRecordError, QplanError
from planner.ledger import Category, Phase
from planner.recipe import KNOBS, Recipe, make_recipe
from planner.stack import PACKAGES, Stack
from planner.value import NamedTuple, Value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.device import Device
    from planner.spec import ModelSpec

SCHEMA_VERSION = 1

WHITELIST: dict[str, tuple[str, ...]] = {
    "": ("schema_version", "time", "origin", "engine", "card", "driver", "model", "recipe", "stack", "comparison", "peak", "process"),
    "card": ("name", "total_bytes", "compute_capability"),
    "model": ("id", "model_type", "num_parameters", "dimensions"),
    "dimensions": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    "recipe": KNOBS,
    "stack": PACKAGES,
    "comparison": ("phase", "category", "measured_bytes", "predicted_bytes", "difference_bytes"),
    "peak": ("allocated", "reserved", "process"),
    "process": ("context_bytes", "workspace_bytes", "reserve_bytes"),
}
"""Every field that a record may have, by the object that it is in."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .()+_-]{0,99}", re.ASCII)
_NO_NAME = re.compile(r"[^A-Za-z0-9 .()+_-]", re.ASCII)
_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
# Local labels of versions are free text, such as a user's name; those of torch's own builds are known.
_VERSION = re.compile(r"\d+(\.\d+){0,4}((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+(cu\d{2,3}|cpu|rocm[\d.]{1,9}|xpu))?", re.ASCII)
# What stands in paths and addresses, but in no name of a module.
_NO_MODULE = re.compile(r"[/@~:]|\\\\")
_LARGEST = 1 << 56


class OtherVersionError(InvalidRecordError):
    """A record that another version of qplan wrote: nothing is wrong with it."""


class Row(NamedTuple):
    """
    One category at the peaks of one phase, in allocated bytes.

    Attributes:
        phase: The phase.
        category: The category; None for the sum.
        measured_bytes, predicted_bytes: What was alive at the peak of the phase; a measurement that cannot tell categories has sums alone.
    """

    phase: str
    category: str | None
    measured_bytes: int
    predicted_bytes: int

    @property
    def difference_bytes(self) -> int:
        """How much more was predicted."""
        return self.predicted_bytes - self.measured_bytes


class Level(NamedTuple):
    """A peak at one level that a user can observe."""

    measured_bytes: int
    predicted_bytes: int


class Record(Value):
    """
    One verification.

    Attributes:
        time: When, in UTC: `2026-11-28T01:20:00Z`.
        origin: `verify` or `callback`.
        engine: Whose prediction it was: `analytic` or `traced`.
        card: Name, total bytes, compute capability; None for a run on the CPU.
        driver: Of the card; None where it is not known.
        model: Id (None where the model is no published one), family, parameters, dimensions.
        recipe: Every knob, resolved.
        stack: Versions of the libraries.
        comparison: Measured beside predicted, by phase and category.
        peak: The highest of the phases, at each level that was measured: `allocated`, `reserved`, `process`.
        process: What the process held beyond what torch allocated, measured apart; None is what was not.
    """

    time: str
    origin: str
    engine: str
    card: dict[str, Any] | None
    driver: str | None
    model: dict[str, Any]
    recipe: dict[str, Any]
    stack: dict[str, str]
    comparison: tuple[Row, ...]
    peak: dict[str, Level]
    process: dict[str, int | None]

    @cached_property
    def id(self) -> str:
        """What its content hashes to: the same record has the same id everywhere."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:24]

    @property
    def tokens(self) -> int:
        """Tokens in one micro-batch."""
        return int(self.recipe["batch_size"] * self.recipe["seq_len"])

    def model_dump(self) -> dict[str, Any]:
        """Everything, as JSON has it; sizes are integers of bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "time": self.time,
            "origin": self.origin,
            "engine": self.engine,
            "card": self.card,
            "driver": self.driver,
            "model": self.model,
            "recipe": self.recipe,
            "stack": self.stack,
            "comparison": [{**row._asdict(), "difference_bytes": row.difference_bytes} for row in self.comparison],
            "peak": {name: level._asdict() for name, level in self.peak.items()},
            "process": self.process,
        }

    @classmethod
    def parse(cls, document: Any) -> Record:
        """
        A record from JSON; fields that it does not have are left out.

        Raises:
            InvalidRecordError: A field is missing or is not what it must be.
        """
        found = _Fields(document, "")
        if found.integer("schema_version") != SCHEMA_VERSION:
            raise OtherVersionError(
                f"schema_version is {document['schema_version']}; this qplan reads {SCHEMA_VERSION}", hint="pip install -U qplan"
            )
        return cls(
            time=found.time(),
            origin=found.choice("origin", ("verify", "callback")),
            engine=found.choice("engine", ("analytic", "traced")),
            card=None if document.get("card") is None else _card(found.inside("card")),
            driver=None if document.get("driver") is None else found.text("driver", _VERSION),
            model=_model(found.inside("model")),
            recipe=_recipe(found.inside("recipe")),
            stack=_stack(found.inside("stack")),
            comparison=tuple(_row(_Fields(row, "comparison")) for row in found.rows("comparison")),
            peak=_peak(found.inside("peak")),
            process=_process(found.inside("process")),
        )


class _Fields:
    """The fields of a JSON object, each checked when it is read."""

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, Mapping):
            raise InvalidRecordError(f"{where or 'a record'} is {_shown(document)}; it must be an object")
        self.document, self.where = document, where

    def refuse(self, name: str, must: str) -> InvalidRecordError:
        """The error for a field."""
        path = f"{self.where}.{name}" if self.where else name
        if name not in self.document:
            return InvalidRecordError(f"{path} is missing; it must be {must}")
        return InvalidRecordError(f"{path} is {_shown(self.document[name])}; it must be {must}")

    def integer(self, name: str, low: int = 0) -> int:
        """A whole number."""
        value = self.document.get(name)
        if type(value) is not int or not low <= value <= _LARGEST:
            raise self.refuse(name, "a whole number, of bytes where it is a size")
        return value

    def optional(self, name: str) -> int | None:
        """A whole number, or None."""
        return None if self.document.get(name) is None else self.integer(name)

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """A text of a form."""
        value = self.document.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.refuse(name, f"a text such as {pattern.pattern[:60]} describes")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of a few texts."""
        value = self.document.get(name)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(name, f"one of {', '.join(choices)}")
        return value

    def time(self) -> str:
        """A moment in UTC."""
        value = self.text("time", _TIME)
        try:
            datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007 - Z is UTC
        except ValueError as error:
            raise self.refuse("time", "a moment in UTC such as 2026-11-28T01:20:00Z") from error
        return value

    def inside(self, name: str) -> _Fields:
        """An object in it."""
        return _Fields(self.document.get(name), name)

    def rows(self, name: str) -> list[Any]:
        """A list in it."""
        value = self.document.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= len(Phase) * (len(Category) + 1):
            raise self.refuse(name, "a list of rows, one for each phase and category")
        return value


def _card(found: _Fields) -> dict[str, Any]:
    capability = found.document.get("compute_capability")
    if not isinstance(capability, list) or len(capability) != 2 or not all(type(n) is int and 0 <= n < 100 for n in capability):
        raise found.refuse("compute_capability", "two whole numbers")
    return {"name": found.text("name", _NAME), "total_bytes": found.integer("total_bytes", 1), "compute_capability": capability}


def _model(found: _Fields) -> dict[str, Any]:
    sizes = found.inside("dimensions")
    return {
        "id": None if found.document.get("id") is None else found.text("id", _ID),
        "model_type": found.text("model_type", _NAME),
        "num_parameters": found.integer("num_parameters", 1),
        "dimensions": {name: sizes.integer(name) for name in WHITELIST["dimensions"] if name in sizes.document},
    }


def _recipe(found: _Fields) -> dict[str, Any]:
    knobs = {name: found.document[name] for name in KNOBS if name in found.document}
    texts = [str(knobs.get(name, "")) for name in ("targets", "modules_to_save", "rank_pattern")]
    for text in texts:
        if len(text) > 4000 or _NO_MODULE.search(text.replace("': ", "").replace('": ', "")):
            raise InvalidRecordError(f"recipe names {_shown(text)}; it must be names of modules")
    try:
        recipe = make_recipe(**knobs)
    except QplanError as error:
        raise InvalidRecordError(f"recipe: {error.message}") from error
    return recipe.model_dump()


def _stack(found: _Fields) -> dict[str, str]:
    return {name: found.text(name, _VERSION) for name in PACKAGES if name in found.document}


def _row(found: _Fields) -> Row:
    category = found.document.get("category")
    return Row(
        found.choice("phase", tuple(phase.value for phase in Phase)),
        None if category is None else found.choice("category", tuple(category.value for category in Category)),
        found.integer("measured_bytes"),
        found.integer("predicted_bytes"),
    )


def _peak(found: _Fields) -> dict[str, Level]:
    levels = {}
    for name in WHITELIST["peak"]:
        if found.document.get(name) is not None or name == "allocated":
            level = _Fields(found.document.get(name), f"peak.{name}")
            levels[name] = Level(level.integer("measured_bytes"), level.integer("predicted_bytes"))
    return levels


def _process(found: _Fields) -> dict[str, int | None]:
    return {name: found.optional(name) for name in WHITELIST["process"]}


def make(
    *,
    origin: str,
    engine: str,
    device: Device | None,
    driver: str | None,
    spec: ModelSpec,
    recipe: Recipe,
    stack: Stack,
    comparison: Iterable[Row],
    peak: Mapping[str, Level],
    process: Mapping[str, int | None] | None = None,
    now: datetime | None = None,
) -> Record:
    """
    The record of a verification that just ended.

    Args:
        origin: As in `Record`.
        engine: As in `Record`.
        device: The card; None for the CPU.
        driver: Its driver's version.
        spec: The model. Its id is kept where it is bundled or the Hub's; that of a file is a path, and is not.
        recipe: The run, resolved.
        stack: The libraries. Of a version's local label only what torch's own builds have is kept.
        comparison: As in `Record`.
        peak: As in `Record`.
        process: As in `Record`.
        now: The time; None for this moment.
    """
    time = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    sizes = {**spec.config, **(spec.config.get("text_config") or {})}
    document = {
        "schema_version": SCHEMA_VERSION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "origin": origin,
        "engine": engine,
        "card": None if device is None else _card_of(device),
        "driver": driver if driver and _VERSION.fullmatch(driver) else None,
        "model": {
            "id": spec.id if spec.source.startswith(("bundled", "hub")) and _ID.fullmatch(spec.id) else None,
            "model_type": spec.model_type,
            "num_parameters": spec.num_parameters,
            "dimensions": {name: sizes[name] for name in WHITELIST["dimensions"] if type(sizes.get(name)) is int},
        },
        "recipe": recipe.model_dump(),
        "stack": {name: _public(version) for name, version in stack.versions.items() if name in PACKAGES},
        "comparison": [row._asdict() for row in comparison],
        "peak": {name: level._asdict() for name, level in peak.items()},
        "process": dict(process or {}),
    }
    return Record.parse(document)


def _card_of(device: Device) -> dict[str, Any]:
    """The card's fields; of its name, what names of cards have."""
    name = _NO_NAME.sub(" ", device.name).strip()[:100]
    return {"name": name, "total_bytes": device.total_bytes, "compute_capability": list(device.compute_capability)}


def _public(version: str) -> str:
    """A version without a local label of somebody's own."""
    return version if _VERSION.fullmatch(version) else version.partition("+")[0]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Reading config.json: every field is asked for by its name and type, and refused in one sentence when it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InvalidConfigError

# Larger than any published dimension (vocabularies of 262,208; stacked widths of 65,536) by two orders of magnitude: beyond it a
# value is a mistake, and products of a few such values still fit 128 bits when others read our figures.
MAX_SIZE = 1 << 25
MAX_LAYERS = 10_000

_REQUIRED = object()


class Fields:
    """
    The fields of one config, or of a section of it.

    Missing fields take the family's default, as transformers' config class would give it; `null` counts as missing.

    >>> Fields({"hidden_size": 64}).integer("hidden_size")
    64
    """

    def __init__(self, values: Mapping[str, Any], *, path: str = "") -> None:
        self.values = values
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(
        self, *names: str, default: Any = _REQUIRED, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """
        A whole number under the first of these names that is there.

        Raises:
            InvalidConfigError: It is missing without a default, no whole number, or out of range.
        """
        name, value = self._find(names, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._refuse(name, value, f"a whole number from {minimum} to {maximum}")
        if not minimum <= value <= maximum:
            raise self._refuse(name, value, f"from {minimum} to {maximum}")
        return value

    def optional_integer(self, *names: str, minimum: int = 0, maximum: int = MAX_SIZE) -> int | None:
        """A whole number, or None where the field is missing or null."""
        if not any(name in self for name in names):
            return None
        return self.integer(*names, minimum=minimum, maximum=maximum)

    def layers(self, *names: str, default: Any = _REQUIRED) -> int:
        """A number of layers."""
        return self.integer(*names, default=default, maximum=MAX_LAYERS)

    def number(self, *names: str, default: Any = _REQUIRED) -> float:
        """A number."""
        name, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._refuse(name, value, "a number")
        return float(value)

    def flag(self, *names: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        name, value = self._find(names, default)
        if not isinstance(value, bool):
            raise self._refuse(name, value, "true or false")
        return value

    def text(self, *names: str, default: Any = _REQUIRED) -> str:
        """A string."""
        name, value = self._find(names, default)
        if not isinstance(value, str):
            raise self._refuse(name, value, "a string")
        return value

    def integers(self, *names: str, default: Any = _REQUIRED, minimum: int = 0) -> list[int]:
        """A list of whole numbers."""
        name, value = self._find(names, default)
        if not isinstance(value, (list, tuple)) or len(value) > MAX_LAYERS:
            raise self._refuse(name, value, f"a list of at most {MAX_LAYERS} whole numbers")
        return [Fields({name: v}, path=self.path).integer(name, minimum=minimum) for v in value]

    def texts(self, *names: str, default: Any = _REQUIRED) -> list[str]:
        """A list of strings."""
        name, value = self._find(names, default)
        if not isinstance(value, (list, tuple)) or len(value) > MAX_LAYERS or not all(isinstance(v, str) for v in value):
            raise self._refuse(name, value, f"a list of at most {MAX_LAYERS} strings")
        return list(value)

    def section(self, name: str, *, default: Mapping[str, Any] | None = None) -> Fields:
        """A nested config such as `text_config`."""
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name)
            value = default
        if not isinstance(value, Mapping):
            raise self._refuse(name, value, "an object with the fields of a config")
        return Fields(value, path=f"{self.path}{name}.")

    def raw(self, name: str, default: Any = None) -> Any:
        """A value as it stands, for a family that checks it by itself."""
        value = self.values.get(name)
        return default if value is None else value

    def _find(self, names: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for name in names:
            value = self.values.get(name)
            if value is not None:
                return name, value
        if default is _REQUIRED:
            raise self._missing(names[0])
        return names[0], default

    def _missing(self, name: str) -> InvalidConfigError:
        return InvalidConfigError(
            f"config.json has no {self.path}{name}; this model family cannot be built without it",
            hint="use the model's own config.json, whole",
        )

    def _refuse(self, name: str, value: object, rule: str) -> InvalidConfigError:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return InvalidConfigError(f"{self.path}{name} is {shown} in config.json; it must be {rule}")

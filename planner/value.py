"""
Frozen values and named tuples: what `@dataclass(frozen=True)` and `typing.NamedTuple` make, without their price at every start.

A dataclass writes and compiles six methods for each class, 0.4 to 1.6 ms each time a process starts; `typing.NamedTuple` compiles the text
of every annotation. For the hundred classes that an estimate needs that was a sixth of a cold command. Here all values share their methods,
and annotations stay texts. Defaults are said as in a dataclass, `dataclasses.field` included.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = ["NamedTuple", "Value", "plain", "replace"]

if TYPE_CHECKING:
    from typing import NamedTuple

    from typing_extensions import Self, dataclass_transform
else:

    class _NamedTuples(type):
        """Makes a named tuple of a class whose annotated attributes are its fields."""

        def __new__(cls, name: str, _: tuple[type, ...], namespace: dict[str, Any]) -> type:
            fields = namespace.get("__annotations__", {})
            defaults = [namespace[field] for field in fields if field in namespace]
            if any(field in namespace for field in list(fields)[: len(fields) - len(defaults)]):
                raise TypeError(f"{name} has a field without a default after one with a default")
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])  # noqa: PYI024
            made.__annotations__ = made.__new__.__annotations__ = fields
            for key, value in namespace.items():
                if key not in fields and key not in ("__module__", "__annotations__"):
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_NamedTuples, "NamedTuple", (), {})

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        """For type checkers alone."""
        return lambda cls: cls


_V = TypeVar("_V", bound="Value")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """
    The base of a class whose annotated attributes are its fields, in their order.

    Class keywords: `eq=False` compares and hashes by identity; `kw_only=True` takes no positional arguments. `__post_init__` is called once
    the fields are set.

    Raises:
        TypeError: Fields are missing, unknown or given twice.
        FrozenInstanceError: Somebody assigns to one.

    >>> class Point(Value):
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1, y=0) == Point(1), replace(Point(1), x=2)
    (Point(x=1, y=0), True, Point(x=2, y=0))
    """

    _fields: tuple[str, ...] = ()
    _field_defaults: dict[str, Any] = {}  # noqa: RUF012  # of the class, never changed
    _factories: dict[str, Callable[[], Any]] = {}  # noqa: RUF012
    _shown: tuple[str, ...] = ()
    _compared: tuple[str, ...] = ()
    _kw_only = False

    def __init_subclass__(cls, *, eq: bool = True, kw_only: bool = False) -> None:
        super().__init_subclass__()
        own = [name for name, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar")]
        defaults, factories = dict(cls._field_defaults), dict(cls._factories)
        hidden, ignored = set(cls._fields) - set(cls._shown), set(cls._fields) - set(cls._compared)
        for name in own:
            default = cls.__dict__.get(name, MISSING)
            if isinstance(default, Field):
                if not default.repr:
                    hidden.add(name)
                if default.compare is False:
                    ignored.add(name)
                if default.default_factory is not MISSING:
                    factories[name] = default.default_factory
                default = default.default
                delattr(cls, name)
            if default is not MISSING:
                defaults[name] = default
        cls._fields = (*cls._fields, *(name for name in own if name not in cls._fields))
        cls._field_defaults, cls._factories, cls._kw_only = defaults, factories, kw_only or cls._kw_only
        cls._shown = tuple(name for name in cls._fields if name not in hidden)
        cls._compared = tuple(name for name in cls._fields if name not in ignored)
        if not eq:
            cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls, values = type(self), self.__dict__
        values.update(cls._field_defaults)
        values.update(zip(cls._fields, args))  # noqa: B905  # too many are found below
        values.update(kwargs)
        for name, make in cls._factories.items():
            if name not in values:
                values[name] = make()
        if len(values) != len(cls._fields) or (args and (kwargs or cls._kw_only or len(args) > len(cls._fields))):
            self._check(args, kwargs)
        self.__post_init__()

    def __post_init__(self) -> None:
        """What a class does once its fields are set."""

    @classmethod
    def _check(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that are not the fields."""
        most = 0 if cls._kw_only else len(cls._fields)
        if len(args) > most:
            raise TypeError(f"{cls.__name__}() takes at most {most} positional arguments, not {len(args)}")
        given = {*cls._fields[: len(args)], *kwargs}
        unknown = [name for name in kwargs if name not in cls._fields]
        twice = [name for name in cls._fields[: len(args)] if name in kwargs]
        missing = [name for name in cls._fields if name not in given and name not in cls._field_defaults and name not in cls._factories]
        for names, fault in ((unknown, "does not know"), (twice, "was given twice:"), (missing, "lacks")):
            if names:
                raise TypeError(f"{cls.__name__}() {fault} {', '.join(names)}")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r} of a {type(self).__name__}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r} of a {type(self).__name__}")

    def __repr__(self) -> str:
        values = self.__dict__
        return f"{type(self).__qualname__}({', '.join(f'{name}={values[name]!r}' for name in self._shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        ours, theirs = self.__dict__, other.__dict__
        return all(ours[name] == theirs[name] for name in self._compared)

    def __hash__(self) -> int:
        values = self.__dict__
        return hash(tuple([values[name] for name in self._compared]))

    def _asdict(self) -> dict[str, Any]:
        """The fields by name, as of a NamedTuple: values inside stay what they are."""
        values = self.__dict__
        return {name: values[name] for name in self._fields}

    def __replace__(self, **changes: Any) -> Self:
        return type(self)(**{**self._asdict(), **changes})


def replace(value: _V, **changes: Any) -> _V:
    """
    The same value with some fields changed, as `copy.replace` of Python 3.13 does.

    Raises:
        TypeError: It has no such field.
    """
    return value.__replace__(**changes)


def plain(value: Any) -> Any:
    """
    A value as JSON can hold it, all the way down: named fields as a dictionary, tuples as lists.

    >>> plain({"at": (1, 2)})
    {'at': [1, 2]}
    """
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value

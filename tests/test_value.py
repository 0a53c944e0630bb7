"""Frozen values behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing
from functools import cached_property
from typing import ClassVar

import pytest

import planner.value
from planner.value import NamedTuple, Value, plain, replace


class Point(Value):
    """A value with every kind of field."""

    kind: ClassVar[str] = "point"
    x: int
    y: int = 0
    tags: list[str] = dataclasses.field(default_factory=list, repr=False)
    note: str = dataclasses.field(default="", compare=False)

    @cached_property
    def norm(self) -> int:
        return self.x * self.x + self.y * self.y


@dataclasses.dataclass(frozen=True)
class AsDataclass:
    """The same as Python makes it: the oracle."""

    kind: ClassVar[str] = "point"
    x: int
    y: int = 0
    tags: list[str] = dataclasses.field(default_factory=list, repr=False)
    note: str = dataclasses.field(default="", compare=False)


class Deep(Point):
    """A value with more fields than its base."""

    z: int = 0


class Named(Value, kw_only=True):
    """A value whose fields are given by name."""

    x: int = 0


class Itself(Value, eq=False):
    """A value that is equal to nothing but itself."""

    x: int = 0


class Pair(NamedTuple):
    """A tuple with names."""

    left: Point
    right: tuple[int, ...]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}), ((1, 2), {}), ((1,), {"y": 2}), ((), {"x": 1, "y": 2, "note": "n"}), ((1, 2, ["a"], "n"), {}), ((), {"y": 2, "x": 1}),
    ],
)  # fmt: skip
def test_fields_and_text_are_a_dataclasss(args, kwargs):
    """Positional, named and defaulted fields arrive, and are shown, as in a dataclass."""
    ours, theirs = Point(*args, **kwargs), AsDataclass(*args, **kwargs)
    assert ours._asdict() == dataclasses.asdict(theirs)
    assert repr(ours) == repr(theirs).replace("AsDataclass", "Point")


@pytest.mark.parametrize(
    ("args", "kwargs", "fault"),
    [
        ((), {}, "lacks x"), ((), {"y": 1}, "lacks x"), ((1,), {"z": 1}, "does not know z"), ((1,), {"x": 1}, "given twice: x"),
        ((1, 2, [], "", 5), {}, "at most 4"), ((1, 2, []), {"tags": []}, "given twice: tags"),
        ((), {"x": 1, "z": 2, "norm": 3}, "know z, norm"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_as_a_dataclass_does(args, kwargs, fault):
    """What a dataclass takes for a wrong call is one here too, and the message names the field."""
    with pytest.raises(TypeError):
        AsDataclass(*args, **kwargs)
    with pytest.raises(TypeError, match=fault):
        Point(*args, **kwargs)


def test_a_value_is_frozen():
    """Fields cannot be set, added or deleted, and a default that is made is every value's own."""
    point = Point(1)
    for act in (lambda: setattr(point, "x", 2), lambda: setattr(point, "new", 2), lambda: delattr(point, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            act()
    assert point.tags is not Point(1).tags
    assert (point.kind, point.norm) == ("point", 1)


def test_values_compare_by_their_fields():
    """Equal are values of one class with equal fields, but for those left out; what was computed and kept plays no part."""
    one, same, noted = Point(1, 2), Point(1, y=2), Point(1, 2, note="n")
    assert one.norm == 5
    assert one == same == noted
    assert one != Point(1, 3)
    assert one != Deep(1, 2)
    assert hash(Named(x=1)) == hash(Named(x=1))
    assert {Named(x=1), Named(x=1), Named(x=2)} == {Named(x=1), Named(x=2)}
    assert Itself() != Itself()
    assert len({Itself(), Itself()}) == 2


def test_a_base_hands_its_fields_down():
    """A class of a class has the fields of both, the base's first."""
    assert Deep._fields == ("x", "y", "tags", "note", "z")
    assert Deep(1, 2, ["a"], "n", 3) == Deep(1, 2, ["a"], "other", z=3)
    assert "tags" not in repr(Deep(1))


def test_some_take_names_only():
    """With `kw_only`, a positional argument is refused."""
    with pytest.raises(TypeError, match="at most 0"):
        Named(1)


def test_copies_and_pickles_are_equal():
    """A value survives `copy` and `pickle`, as processes that share work need."""
    deep = Deep(1, 2, ["a"], z=3)
    assert pickle.loads(pickle.dumps(deep)) == copy.copy(deep) == copy.deepcopy(deep) == deep  # noqa: S301 - our own


def test_replacing_fields():
    """The changed value is checked like a new one, and the old one is as it was."""
    point = Point(1, 2, ["a"], "n")
    assert replace(point, x=5)._asdict() == {"x": 5, "y": 2, "tags": ["a"], "note": "n"}
    assert point.x == 1
    with pytest.raises(TypeError, match="does not know z"):
        replace(point, z=1)


def test_plain_goes_all_the_way_down():
    """Values, named tuples, dictionaries and tuples inside each other become what JSON holds."""
    assert plain({1: Pair(Point(1), (2, 3))}) == {"1": {"left": {"x": 1, "y": 0, "tags": [], "note": ""}, "right": [2, 3]}}


class Named2(typing.NamedTuple):
    """What `typing` makes: the oracle."""

    left: Point
    right: int | None = None

    @property
    def both(self) -> tuple[Point, int | None]:
        """The pair."""
        return self.left, self.right


class Quick(planner.value.NamedTuple):
    """The same, made here."""

    left: Point
    right: int | None = None

    @property
    def both(self) -> tuple[Point, int | None]:
        """The pair."""
        return self.left, self.right


def test_a_named_tuple_is_typings():
    """A tuple with the same fields, defaults, methods, documentation, text and copies; annotations stay what was written."""
    ours, theirs = Quick(Point(1)), Named2(Point(1))

    assert tuple(ours) == tuple(theirs)
    assert (ours._asdict(), Quick._fields, Quick._field_defaults) == (theirs._asdict(), Named2._fields, Named2._field_defaults)
    assert repr(ours) == repr(theirs).replace("Named2", "Quick")
    assert ours._replace(right=3).both == theirs._replace(right=3).both
    assert (Quick.__module__, Quick.__qualname__, Quick.__doc__) == (__name__, "Quick", "The same, made here.")
    assert Quick.__annotations__ == {"left": "Point", "right": "int | None"}
    assert typing.get_type_hints(Quick) == typing.get_type_hints(Named2)
    assert pickle.loads(pickle.dumps(ours)) == copy.copy(ours) == ours  # noqa: S301 - our own
    for make in (Quick, Named2):
        with pytest.raises(TypeError):
            make()
        with pytest.raises(AttributeError):
            make(Point(1)).left = 2


@pytest.mark.parametrize("base", [planner.value.NamedTuple, typing.NamedTuple])
def test_a_default_before_a_field_without_one_is_refused(base):
    """As `typing` refuses it, when the class is made."""
    with pytest.raises(TypeError, match="default"):

        class Wrong(base):
            first: int = 1
            second: int

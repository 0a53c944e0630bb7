"""The points of a sweep: models by cards by knobs, in order, none of them made before it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

from planner.device import Device
from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.recipe import KNOBS, RANGES, Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.value import NamedTuple, Value

_TUPLES = ("targets", "modules_to_save")
"""Knobs that are tuples of names themselves."""


class Axis(NamedTuple):
    """
    A knob and the values that it takes.

    Attributes:
        name: The knob.
        values: Its values, in order.
    """

    name: str
    values: Sequence[Any]


class Unit(NamedTuple):
    """
    A run of points that share a model and a card: what is computed, written and, in a resumed sweep, skipped as one.

    Attributes:
        model: Index of the model.
        gpu: Index of the card.
        begin, end: Indices of points among those of one model and card.
    """

    model: int
    gpu: int
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


class Grid(Value, eq=False):
    """
    Every combination of models, cards and knobs: the model changes slowest, then the card, then the axes, the first of them slowest.

    Attributes:
        models: The checkpoints.
        gpus: The cards; None where no card judges.
        axes: The knobs that vary.
        fixed: The knobs that do not.
        stack: The library versions.
    """

    models: tuple[ModelSpec, ...]
    gpus: tuple[Device | None, ...]
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any]
    stack: Stack

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(len(axis.values) for axis in self.axes)

    @cached_property
    def num_recipes(self) -> int:
        """How many combinations of knobs there are."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    def __len__(self) -> int:
        return len(self.models) * len(self.gpus) * self.num_recipes

    def units(self, size: int) -> Iterator[Unit]:
        """
        All points in order, in runs.

        Args:
            size: The most points of a run.
        """
        for model in range(len(self.models)):
            for gpu in range(len(self.gpus)):
                for begin in range(0, self.num_recipes, size):
                    yield Unit(model, gpu, begin, min(begin + size, self.num_recipes))

    def indices(self, number: int) -> tuple[int, ...]:
        """Which value of each axis a combination of knobs has."""
        found = []
        for size in reversed(self.shape):
            number, index = divmod(number, size)
            found.append(index)
        return tuple(found[::-1])

    def knobs(self, number: int) -> dict[str, Any]:
        """The knobs of a combination."""
        varied = {axis.name: axis.values[i] for axis, i in zip(self.axes, self.indices(number), strict=True)}
        return {**self.fixed, **varied}

    def recipe(self, number: int) -> Recipe:
        """
        The recipe of a combination.

        Raises:
            UnsupportedRecipeError: Its knobs contradict each other.
        """
        return make_recipe(**self.knobs(number))

    def fingerprint(self, **more: Any) -> str:
        """
        A text that is equal for equal grids alone: what a resumed sweep is recognised by.

        Args:
            more: What else its rows hang on.
        """
        axes = {axis.name: _plain(axis.values) for axis in self.axes}
        facts = {
            "models": [[spec.id, repr(spec.config)] for spec in self.models],
            "gpus": [repr(gpu) for gpu in self.gpus],
            "axes": list(axes.items()),
            "fixed": sorted(self.fixed.items(), key=lambda item: item[0]),
            "stack": sorted(self.stack.versions.items()),
            **more,
        }
        return sha256(json.dumps(facts, default=repr).encode()).hexdigest()


def make_axes(knobs: Mapping[str, Any]) -> tuple[tuple[Axis, ...], dict[str, Any]]:
    """
    The knobs that vary, and those that do not.

    A knob varies where it is given as a range, a list, an array or another iterable; a text, and a tuple of names for `targets` and
    `modules_to_save`, is one value.

    Args:
        knobs: Fields of `Recipe` by name, in order.

    Raises:
        InvalidRecipeError: There is no such knob, an axis is empty, or a value is one that the knob cannot have.
    """
    axes, fixed = [], {}
    for name, given in knobs.items():
        values = _values(name, given)
        if values is None:
            fixed[name] = given
            _check(name, given)
            continue
        if not len(values):
            raise InvalidRecipeError(f"{name} is an axis without values", hint=f"pass {name}=[...] with at least one")
        for value in _extremes(name, values):
            _check(name, value)
        axes.append(Axis(name, values))
    return tuple(axes), fixed


def _values(name: str, given: Any) -> Sequence[Any] | None:
    """The values of an axis; None for one value."""
    if isinstance(given, range):
        return given
    if given is None or isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        return None
    if name in _TUPLES and (isinstance(given, tuple) or (name == "modules_to_save" and all(isinstance(v, str) for v in given))):
        return None
    return tuple(value.item() if hasattr(value, "item") else value for value in given)


def _extremes(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Values that are all valid only if the others are: the ends of whole numbers in a range."""
    is_long = isinstance(values, range) or (name in RANGES and all(type(value) is int for value in values))
    return (min(values), max(values)) if is_long else values


def _check(name: str, value: Any) -> None:
    if name not in KNOBS:
        make_recipe(**{name: value})  # says which names there are
    try:
        make_recipe(**{name: value})
    except UnsupportedRecipeError:
        return  # alone it contradicts a default; with others it may not


def _plain(values: Sequence[Any]) -> Any:
    return repr(values) if isinstance(values, range) else [repr(value) for value in values]

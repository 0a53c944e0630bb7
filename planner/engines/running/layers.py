"""Layers that repeat: which ones have to be run, the config of a model that has only those, and where one begins and ends in a step."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from planner.engines.running.books import Books
from planner.repetition import Repetition, repetition
from planner.value import NamedTuple


class Stack(NamedTuple):
    """
    The decoder layers of a model.

    Attributes:
        path: Of their list: `model.layers`.
        kinds: What each one is; equal ones do the same.
    """

    path: str
    kinds: tuple[Hashable, ...]

    @property
    def repetition(self) -> Repetition:
        """The stretch of which three instances stand for all."""
        return repetition(self.kinds)


def find_stack(model: nn.Module) -> Stack | None:
    """The list of modules that holds the most parameters: a model's decoder layers; None where there is no such list."""
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1
    }
    if not lists:
        return None
    sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in lists.items()}
    path = max(sizes, key=lambda name: (sizes[name], -len(name)))
    return Stack(path, tuple(_kind(layer) for layer in lists[path]))


def _kind(layer: nn.Module) -> Hashable:
    """What a layer is: its modules, their shapes and their switches, but not its number."""
    found: list[Hashable] = []
    for name, module in layer.named_modules():
        switches = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (bool, int, float, str)) and not re.search(r"layer_?(idx|id|number)|^_", key)
        )
        shapes = tuple((key, tuple(p.shape), p.dtype) for key, p in module.named_parameters(recurse=False))
        found.append((name, type(module), switches, shapes))
    return tuple(found)


def kept(stack: Stack) -> list[int]:
    """The layers to run: all but the instances between the second and the last."""
    start, period, count = stack.repetition
    if not count:
        return list(range(len(stack.kinds)))
    skipped = range(start + 2 * period, start + (count - 1) * period)
    return [i for i in range(len(stack.kinds)) if i not in skipped]


def shortened(config: Any, layers: list[int]) -> Any:
    """
    A config of a model that has only some of the layers: lists that have an entry for each layer lose the others'. None where the
    family counts its layers in another way.

    Args:
        config: A transformers config; it is not changed.
        layers: The layers to keep.
    """
    short = copy.deepcopy(config)
    text = short.get_text_config()
    total = getattr(text, "num_hidden_layers", None)
    if total is None:
        return None
    for name, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == total and name != "architectures":
            setattr(text, name, type(value)([value[i] for i in layers]))
    try:
        text.num_hidden_layers = len(layers)
    except NotImplementedError:
        return None
    return short


class Instances:
    """
    Which instance of the repeated stretch a layer of a shortened model belongs to, and a watch on when each one runs.

    Args:
        path: Of the list of layers.
        repeated: The stretch that repeats in the whole model.
    """

    def __init__(self, path: str, repeated: Repetition) -> None:
        self.repeated = repeated
        self.pattern = re.compile(rf"(?:^|\.){re.escape(path)}\.(\d+)(?:\.|$)")
        self.path = path

    def of_layer(self, index: int) -> int | None:
        """The instance that a layer of the shortened model belongs to."""
        start, period, count = self.repeated
        if not count or not start <= index < start + 3 * period:
            return None
        return (index - start) // period

    def of_name(self, name: str) -> int | None:
        """The instance that a parameter or a module belongs to, by its name."""
        match = self.pattern.search(name)
        return self.of_layer(int(match[1])) if match else None

    def times(self, instance: int | None) -> int:
        """How many instances of the whole model one stands for."""
        return self.repeated.count - 2 if instance == 1 else 1

    def true_path(self, path: str) -> str:
        """A module's path in the whole model: layers after those that were left out have higher numbers there."""
        match = self.pattern.search(path)
        start, period, count = self.repeated
        if match is None or not count or int(match[1]) < start + 2 * period:
            return path
        return f"{path[: match.start(1)]}{int(match[1]) + (count - 3) * period}{path[match.end(1) :]}"

    @contextmanager
    def watched(self, layers: nn.ModuleList, books: Books) -> Iterator[None]:
        """
        Inside, the books are told when an instance begins and ends, in forward and in backward.

        A layer is watched from outside its checkpoint: what is run again in backward belongs to the instance that backward is in.
        """
        numbers = {id(layer): i for i, layer in enumerate(layers)}
        calls = {type(layer): type(layer).__call__ for layer in layers}

        def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            original = calls[type(layer)]
            number = numbers.get(id(layer))
            if number is None or torch._C._current_graph_task_id() != -1:
                return original(layer, *args, **kwargs)
            instance = self.of_layer(number)
            books.enter(instance, is_in_layer=True)
            _before_backward(args, kwargs, books, self.of_layer(number - 1) if number else None, is_in_layer=number > 0)
            out = original(layer, *args, **kwargs)
            _before_backward(out, {}, books, instance, is_in_layer=True)
            books.leave()
            return out

        with ExitStack() as stack:
            for kind in calls:
                stack.enter_context(mock.patch.object(kind, "__call__", call))
            yield


def _before_backward(found: Any, named: dict[str, Any], books: Books, instance: int | None, *, is_in_layer: bool) -> None:
    """When backward reaches what made the first of these tensors, it is in this instance."""
    values = found if isinstance(found, (list, tuple)) else (found,)
    x = next((v for v in (*values, *named.values()) if isinstance(v, torch.Tensor) and v.is_floating_point()), None)
    if x is None or x.grad_fn is None:
        return

    def reached(_: Any) -> None:
        books.enter(instance, is_in_layer=is_in_layer)

    x.grad_fn.register_prehook(reached)


NOTHING = Repetition(0, 1, 0)
"""No stretch repeats, or all of it is run."""

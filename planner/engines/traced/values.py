"""Which operations' numbers are carried along, and how arguments come to the meta device and to the CPU."""

from __future__ import annotations

import math
from typing import Any

import torch

from planner.engines.traced.ghosts import MAX_VALUES, META, Ghost

_INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})

_aten = torch.ops.aten
SIZED_BY_VALUES = frozenset({
    _aten.nonzero.default, _aten.masked_select.default, _aten.unique_consecutive.default, _aten._unique2.default,
    _aten.unique_dim.default, _aten.repeat_interleave.Tensor,
})  # fmt: skip
"""Operations whose result is as large as their arguments' numbers say."""

COUNTING = frozenset({
    _aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.full.default, _aten.ones.default, _aten.zeros.default,
    _aten.tril_indices.default, _aten.triu_indices.default, _aten.randint.default, _aten.randint.low, _aten.randperm.default,
    _aten.scalar_tensor.default,
})  # fmt: skip
"""Operations that make numbers from nothing, which are worth carrying along."""

FILLS = frozenset({
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.new_zeros.default, _aten.new_ones.default,
    _aten.new_full.default,
})  # fmt: skip
"""Operations that take an argument's shape alone."""

FACTORIES = frozenset({
    _aten.empty.memory_format, _aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.randn.default, _aten.rand.default,
})  # fmt: skip
"""Operations that weights begin with."""

NO_NUMBERS = frozenset({_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default})


def lower(a: Any, ghosts: dict[int, Ghost]) -> Any:
    """An argument for the meta device; which ghosts it came from is noted."""
    if isinstance(a, Ghost):
        ghosts[id(a.meta)] = a
        return a.meta
    if isinstance(a, (list, tuple)):
        return type(a)([lower(x, ghosts) for x in a])
    return a


def to_meta(a: Any, reals: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A real tensor of the CPU beside ghosts: numbers that a kernel takes along, or indices; what it became is noted."""
    if isinstance(a, torch.Tensor) and a.device.type == "cpu":
        made = a.to(META)
        reals[id(made)] = made, a
        return made
    if isinstance(a, (list, tuple)):
        return type(a)([to_meta(x, reals) for x in a])
    return a


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ghosts: dict[int, Ghost]) -> Any:
    """An operation's numbers, where they follow from numbers that are known and are small integers; else None."""
    follows = bool(ghosts) or func in COUNTING or any(isinstance(a, torch.Tensor) for a in args)
    if func in FILLS:
        args = (torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:])
    elif not follows or func in NO_NUMBERS or any(ghost.value is None for ghost in ghosts.values()):
        return None
    try:
        given = {name: _valued(a) for name, a in kwargs.items()}
        if "device" in given:
            given["device"] = "cpu"
        return _kept(func(*[_valued(a) for a in args], **given))
    except (NotImplementedError, RuntimeError):
        return None


def are_small_integers(out: Any) -> bool:
    """Whether an output's numbers are worth carrying along."""
    if isinstance(out, torch.Tensor):
        return out.dtype in _INTEGERS and out.numel() <= MAX_VALUES
    return isinstance(out, (list, tuple)) and any(map(are_small_integers, out))


def is_weight(func: Any, args: tuple[Any, ...], limit: int | None) -> bool:
    """Whether a tensor of so many elements is being made on the CPU: weights, which are then on the host without data."""
    if limit is None or func not in FACTORIES or not isinstance(args[0], (list, tuple)):
        return False
    return math.prod(args[0]) >= limit


def _valued(a: Any) -> Any:
    if isinstance(a, Ghost):
        return a.value
    if isinstance(a, (list, tuple)):
        return type(a)([_valued(x) for x in a])
    return a


def _kept(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return out if are_small_integers(out) else None
    return type(out)(map(_kept, out)) if isinstance(out, (list, tuple)) else None

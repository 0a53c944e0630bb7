"""
CUDA's autocast for tensors that C++ does not take for CUDA's.

The lists of operations and what becomes of their arguments are read from the header of the installed torch; the kernels here follow its
templates. `torch.autocast("cuda")` itself, its state and its nesting are the real ones.

Source:
    torch@2.13.0, aten/src/ATen/autocast_mode.h (lists, CastPolicy, WrapFunction_), autocast_mode.cpp (cached_cast).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from planner.engines.traced.ghosts import NAME, Ghost
from planner.errors import UnavailableError

_LISTS = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")
_NAME = "AutocastPrivateUse1"
_KEY = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _NAME))
_casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
"""Copies of trainable fp32 leaves, by the leaf: autocast keeps them until its outermost region ends."""


@cache
def operations() -> dict[str, tuple[str, ...]]:
    """
    The operations of each list, as `name` or `name.overload`.

    Raises:
        UnavailableError: The installed torch came without its headers, or spells them in another way.
    """
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text() if header.exists() else ""
    found = {}
    for name in _LISTS:
        match = re.search(rf"#define AT_FORALL_{name}\(_\)((?:.*\\\n)*.*)", text)
        entries = re.findall(r"_\((\w+)(?:, (\w+))?\)", match[1]) if match else []
        found[name] = tuple(op if not overload else f"{op}.{overload}" for op, overload in entries)
    if not all(found.values()):
        raise UnavailableError(
            f"torch {torch.__version__} cannot trace: its list of autocast operations ({header}) is missing or unreadable",
            hint="pip install --force-reinstall torch, or leave --engine traced out",
        )
    return found


@cache
def register() -> tuple[torch.library.Library, torch.library.Library]:
    """Give the ghosts' backend CUDA's autocast; once a process."""
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, _NAME)
    library = torch.library.Library("aten", "IMPL")
    policies = {"LOWER_PRECISION_FP": _lower, "FP32": _raise, "FP32_SET_OPT_DTYPE": _set_dtype, "PROMOTE": _promote}
    for name, entries in operations().items():
        for entry in entries:
            _register(library, entry, policies[name])
    for overload in ("Scalar", "ScalarOpt_dim", "names_ScalarOpt_dim"):  # norm: the overload with a dtype stands in
        _register(library, f"norm.{overload}", _norm)
    _register(library, "binary_cross_entropy", _refuse)
    return others, library


def _register(library: torch.library.Library, entry: str, policy: Policy) -> None:
    packet, _, overload = entry.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
    if found is not None:
        library.impl(entry, _Kernel(found, policy), _NAME)


class _Kernel:
    """One operation under autocast."""

    def __init__(self, op: Any, policy: Policy) -> None:
        self.op, self.policy = op, policy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            if torch.is_autocast_enabled("cuda"):
                return self.policy(self.op, args, kwargs)
            return self.op(*args, **kwargs)


Policy = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _lower(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dtype = torch.get_autocast_dtype("cuda")
    return op(*_cast(args, dtype), **{name: _cast(a, dtype) for name, a in kwargs.items()})


def _raise(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return op(*_cast(args, torch.float32), **{name: _cast(a, torch.float32) for name, a in kwargs.items()})


def _set_dtype(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation accumulates in fp32 unless it is told otherwise."""
    position = [argument.name for argument in op._schema.arguments].index("dtype")
    given = kwargs.get("dtype") if len(args) <= position else args[position]
    if given is None and _is_eligible(args[0]):
        args = args[:position]
        kwargs = {**kwargs, "dtype": torch.float32}
    return op(*args, **kwargs)


def _norm(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _is_eligible(args[0]):
        return op(*args, **kwargs)
    power = args[1] if len(args) > 1 else 2
    dims = (args[2] if len(args) > 2 else None) or []
    keepdim = args[3] if len(args) > 3 else False
    return torch.ops.aten.norm.ScalarOpt_dim_dtype(args[0], power, dims, keepdim, dtype=torch.float32)


def _refuse(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Source: torch@2.13.0, autocast_mode.cpp, binary_cross_entropy_banned."""
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast; "
        "binary_cross_entropy_with_logits and BCEWithLogitsLoss are safe"
    )


def _promote(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The widest type among the arguments."""
    floats = [x.dtype for x in _tensors((args, tuple(kwargs.values()))) if _is_eligible(x)]
    widest = torch.float32 if torch.float32 in floats else torch.get_autocast_dtype("cuda")
    return op(*_cast(args, widest), **{name: _cast(a, widest) for name, a in kwargs.items()})


def _tensors(args: Any) -> Iterator[torch.Tensor]:
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from _tensors(a)


def _is_eligible(x: Any) -> bool:
    return isinstance(x, Ghost) and x.is_floating_point() and x.dtype is not torch.float64


def _cast(a: Any, dtype: torch.dtype) -> Any:
    if isinstance(a, torch.Tensor):
        return _cached(a, dtype) if _is_eligible(a) and a.dtype is not dtype else a
    if isinstance(a, (list, tuple)):
        return type(a)([_cast(x, dtype) for x in a])
    return a


def _cached(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    is_kept = (
        x.dtype is torch.float32 and x.requires_grad and x.is_leaf and not x._is_view() and torch.is_autocast_cache_enabled()
        and dtype is torch.get_autocast_dtype("cuda")
    )  # fmt: skip
    if not is_kept:
        return x.to(dtype)
    if id(x) not in _casts:
        _casts[id(x)] = (x, x.to(dtype))
    return _casts[id(x)][1]


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Inside, `torch.autocast("cuda")` rules the ghosts too."""
    register()
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        _casts.clear()
        clear()

    before = torch.is_autocast_enabled(NAME)
    torch.set_autocast_enabled(NAME, True)
    try:
        with mock.patch.object(torch, "clear_autocast_cache", clear_both):
            yield
    finally:
        torch.set_autocast_enabled(NAME, before)
        _casts.clear()

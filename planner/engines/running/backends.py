"""bitsandbytes' Python kernels, each backend's from a second copy of its module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import bitsandbytes

from planner.engines.running.blueprint import quiet

Kernels = dict[str, Callable[..., Any]]
"""By operation: `bitsandbytes::quantize_4bit`."""


def load_backend(name: str, owner: str) -> tuple[Kernels, ModuleType]:
    """
    The kernels of a backend and the module that they are from, which is registered nowhere.

    Args:
        name: The backend's folder: `default`, `cpu`, `cuda`.
        owner: Whose copy it is.

    Source:
        bitsandbytes@0.50.2, backends/*/ops.py, `@register_kernel(op, device)`.
    """
    from bitsandbytes import _ops  # not there before 0.46

    kernels: Kernels = {}

    def collect(op: str, _: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def keep(function: Callable[..., Any]) -> Callable[..., Any]:
            kernels[op] = function
            return function

        return keep

    path = Path(bitsandbytes.__file__).parent / "backends" / name / "ops.py"
    spec = importlib.util.spec_from_file_location(f"bitsandbytes.backends.{name}._{owner}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(_ops, "register_kernel", collect), quiet():
        spec.loader.exec_module(module)
    return kernels, module

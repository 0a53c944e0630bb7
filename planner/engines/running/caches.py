"""What bitsandbytes keeps in a process from its first use on: a run that is planned or measured begins without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest import mock

import bitsandbytes
from bitsandbytes import functional
from bitsandbytes.backends import utils

_Cached: Any = type(lru_cache(lambda: None))


@contextmanager
def cold() -> Iterator[None]:
    """Inside, the maps that weights share are made anew when the first weight is quantised, and nobody has overridden an optimizer."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(functional.name2qmap))
        functional.name2qmap.pop("dynamic", None)
        stack.enter_context(mock.patch.dict(getattr(utils, "_code_4bit_cache", {}), clear=True))
        stack.enter_context(mock.patch.object(bitsandbytes.optim.GlobalOptimManager, "_instance", None))
        yield


def forget(module: ModuleType) -> None:
    """Clear what the functions of a module remember."""
    for function in vars(module).values():
        if isinstance(function, _Cached):
            function.cache_clear()

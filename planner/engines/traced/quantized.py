"""
bitsandbytes' layers on ghosts: the installed Python of its CUDA backend runs, its compiled kernels do not.

What a 4-bit or 8-bit product allocates, whether it dequantises the weight at a number of tokens on an architecture, is decided by the
code that is installed, not by a table here.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from bitsandbytes import cextension

from planner.engines.running.backends import Kernels, load_backend
from planner.engines.running.books import Rule
from planner.engines.running.caches import cold, forget
from planner.engines.traced.ghosts import META, Ghost
from planner.engines.traced.recorder import Recorder


class _NoKernels:
    """The compiled library: every function is there, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return _NoKernel()


class _NoKernel:
    argtypes: Any = None
    restype: Any = None

    def __call__(self, *_: Any) -> int:
        return 0


def _no_address(_: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(0)


@cache
def _backend(name: str) -> tuple[Kernels, ModuleType]:
    """A backend's kernels with nothing behind them; once a process."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cextension, "lib", _NoKernels()))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", _NoKernel(), create=True))
        kernels, module = load_backend(name, "traced")
    for attribute, value in {
        "lib": _NoKernels(),
        "get_ptr": _no_address,
        "_get_raw_stream": _NoKernel(),
        "_cuda_device_of": lambda _: nullcontext(),
        "CUBLAS_Context": mock.Mock(),
    }.items():
        if hasattr(module, attribute):
            setattr(module, attribute, value)
    return kernels, module


def rules(device: str = "cuda") -> dict[Any, Rule]:
    """bitsandbytes' operations as its backend runs them; each card anew, since that of CUDA remembers the first one it saw."""
    if importlib.util.find_spec("bitsandbytes._ops") is None:  # before 0.46 its functions are no operations: they are seen as they run
        return {}
    (general, shared), (own, module) = _backend("default"), _backend(device)
    forget(shared)
    forget(module)
    found: dict[Any, Rule] = {}
    for name, kernel in {**general, **own}.items():
        namespace, _, op = name.partition("::")
        packet, _, overload = op.partition(".")
        run = _RunWithoutOutliers if packet == "int8_vectorwise_quant" else _Run
        found[getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")] = run(kernel)
    return found


class _Run:
    """Runs a Python kernel with everything it allocates recorded; what it does not return, such as a dequantised weight, is temporary."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel

    def __call__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(isinstance(a, Ghost) for a in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        first = len(recorder.history.sizes)
        with recorder:
            out = self.kernel(*args, **kwargs)
        recorder.keep_apart(first, out)
        return out


class _RunWithoutOutliers(_Run):
    """LLM.int8 where no activation is beyond its threshold: which columns are, only a real run knows, and they are few."""

    def __call__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mock.patch.dict(recorder.rules, {torch.ops.aten.is_nonzero.default: lambda *_: False}):
            return super().__call__(recorder, func, args, kwargs)


@cache
def _parameters() -> dict[str, type]:
    """Ghosts that are bitsandbytes' parameters too."""
    from bitsandbytes.nn import Int8Params, Params4bit

    return {
        base.__name__: type(base.__name__, (Ghost, base), {"__deepcopy__": _copied}) for base in (Params4bit, Int8Params)
    }


class _CpuFeatures(_NoKernels):
    """No kernels; what the processor can do is still asked of the real library."""

    has_avx512bf16_cpu = staticmethod(getattr(cextension.lib, "has_avx512bf16_cpu", lambda: False))


@contextmanager
def parameters(device: str = "cuda") -> Iterator[None]:
    """Inside, bitsandbytes' parameters can be made of ghosts."""
    import bitsandbytes as bnb
    from bitsandbytes import functional

    with ExitStack() as stack:
        stack.enter_context(cold())
        stack.enter_context(mock.patch.object(functional, "lib", _NoKernels() if device == "cuda" else _CpuFeatures()))
        stack.enter_context(mock.patch.object(functional, "get_ptr", _no_address))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", _NoKernel(), create=True))  # which a CPU build lacks
        for base, make in ((bnb.nn.Params4bit, _make_four_bit), (bnb.nn.Int8Params, _make_int8)):
            stack.enter_context(mock.patch.object(base, "__new__", _Constructor(base, make)))
        yield


class _Constructor:
    """`__new__` of a parameter's class, for ghosts and for others."""

    def __init__(self, base: type, make: Callable[..., Any]) -> None:
        self.original, self.make = base.__new__, make

    def __call__(self, cls: type, data: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(data, torch.Tensor) and data.device.type == "cpu" and not isinstance(data, Ghost):
            data = Ghost(data.detach().to(META), on_host=True)  # a small layer of the CPU, to be moved to the card
        if isinstance(data, Ghost):
            return self.make(data, *args, **kwargs)
        return self.original(cls, data, *args, **kwargs)


def _wrap(name: str, data: Ghost, requires_grad: bool) -> Any:
    made = Ghost.__new__(_parameters()[name], data.meta, data.value, on_host=data.on_host)
    made.owner = data.owner
    made.requires_grad_(requires_grad)
    return made


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    """
    A copy with memory and statistics of its own, as DoRA makes one of a base layer.

    Source:
        bitsandbytes@0.50.2, nn/modules.py, Params4bit.__deepcopy__, Int8Params.__deepcopy__.
    """
    made = _wrap(type(self).__name__, self.detach().clone(), self.requires_grad)
    memo[id(self)] = made
    for name, value in vars(self).items():
        if name not in vars(made):
            setattr(made, name, value if name == "module" else copy.deepcopy(value, memo))
    return made


def _make_four_bit(
    data: Ghost, requires_grad: bool = False, quant_state: Any = None, blocksize: int | None = None, compress_statistics: bool = True,
    quant_type: str = "fp4", quant_storage: torch.dtype = torch.uint8, module: Any = None, bnb_quantized: bool = False, **_: Any,
) -> Any:  # fmt: skip
    """Source: bitsandbytes@0.50.2, nn/modules.py, Params4bit.__new__."""
    self = _wrap("Params4bit", data, requires_grad)
    self.blocksize, self.compress_statistics, self.quant_type = blocksize or 64, compress_statistics, quant_type
    self.quant_state, self.quant_storage, self.bnb_quantized, self.module = quant_state, quant_storage, bnb_quantized, module
    return self


def _make_int8(
    data: Ghost, requires_grad: bool = True, has_fp16_weights: bool = False, CB: Any = None, SCB: Any = None, **_: Any
) -> Any:
    """Source: bitsandbytes@0.50.2, nn/modules.py, Int8Params.__new__."""
    self = _wrap("Int8Params", data, requires_grad)
    self.CB, self.SCB, self.has_fp16_weights = CB, SCB, has_fp16_weights
    return self

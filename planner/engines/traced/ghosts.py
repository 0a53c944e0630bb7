"""
Tensors without data that take CUDA's paths, on any build of torch.

C++ sees a tensor of PyTorch's backend for extensions (PrivateUse1), for which torch lets Python register a device guard: autograd, views,
in-place operations and its threads work as on a card, in a build without CUDA, in one with it, with a driver or without, and no compiler
is needed. Python sees a CUDA tensor, so that transformers, PEFT, bitsandbytes and TRL take the branches that they take on a card. The
arithmetic of shapes is the meta device's.

For a plan of the CPU itself (`host`) a ghost is what C++ takes for a tensor of the CPU: then autocast, attention and every other choice
are the CPU's own.

What was not taken for cards: fake tensors on `cpu` (other autocast lists, masks of dropout four times as large), fake tensors on `cuda`
(need a compiled device guard in a CPU build, and fail at the first view in a CUDA build without a driver).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._device import DeviceContext, _device_constructors

from planner.errors import UnavailableError

NAME = "ghost"
"""What the backend is called; a process can name it once."""

CUDA = torch.device("cuda", 0)
HOST = torch.device("cpu")
META = torch.device("meta")

MAX_VALUES = 1 << 20
"""Elements up to which the numbers of an integer tensor are carried along; masks and positions of a batch are below it."""


class Ghost(torch.Tensor):
    """
    A tensor on the card that is not there.

    Attributes:
        meta: Its shape and storage, on the meta device.
        value: Its numbers, on the CPU, where they follow from the batch alone (token ids, masks, positions); else None.
        on_host: Whether it is in the machine's memory: a checkpoint's tensor, a copy that is saved.
        owner: Of one on the host: the instance of the repeated layers that it belongs to.
    """

    meta: torch.Tensor
    on_host: bool
    owner: int | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type, meta: torch.Tensor, value: torch.Tensor | None = None, *, on_host: bool = False) -> Any:
        """Wrap a meta tensor."""
        self: Any = torch.Tensor._make_wrapper_subclass(
            cls, meta.size(), strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype, device=_devices[on_host]
        )
        self.meta = meta
        self.value = value
        self.on_host = on_host
        self.owner = None
        return self

    @property
    def value(self) -> torch.Tensor | None:
        """The numbers, unless some of them were written over, here or through another view, with what nobody knows."""
        if self._value is None or hasattr(self._value.untyped_storage(), "is_forgotten"):
            return None
        return self._value

    @value.setter
    def value(self, value: torch.Tensor | None) -> None:
        self._value = value

    def forget(self) -> None:
        """Nobody knows these numbers any more; nor does a view of them."""
        if self._value is not None:
            self._value.untyped_storage().is_forgotten = True  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what happens outside a trace."""
        raise RuntimeError(f"{func} on a traced tensor after its trace has ended")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that Python code believes in."""
        return HOST if self.on_host else _place[0]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return self.device.type == "cuda"

    @property
    def data(self) -> torch.Tensor:
        """The same storage, outside the graph."""
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        """What `param.data = param.data.to(...)` does: the tensor stays, its memory is another's."""
        assert isinstance(other, Ghost), f"a {type(other).__name__} on {other.device} cannot take the place of a traced tensor"
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.meta, self.value, self.on_host = other.meta, other.value, other.on_host

    def untyped_storage(self) -> torch.UntypedStorage:
        """Its storage, on the meta device."""
        return self.meta.untyped_storage()

    def tolist(self) -> Any:
        """Its numbers, as `.item()` gives them."""
        if self.value is None and not self.is_floating_point() and self.numel():
            self.reshape(-1)[0].item()  # refuses
        return (torch.zeros(self.shape) if self.value is None else self.value).tolist()

    def data_ptr(self) -> int:
        """No address: kernels that would be given one are not run."""
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """A copy with memory of its own."""
        if id(self) in memo:
            return memo[id(self)]
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Ghost({tuple(self.shape)}, {self.dtype})"


_devices: list[torch.device] = []
"""What C++ takes the card and the host for: two devices of one backend, so that a parameter can move between them in place."""


_place = [CUDA]
"""Where Python code believes ghosts to be."""


_traces: list[None] = []
"""One entry for each trace that runs: outside of traces the backend says that it has no device."""


class _Backend:
    """What `torch.ghost` answers."""

    def is_initialized(self) -> bool:
        """Whether a trace runs."""
        return bool(_traces)

    def is_available(self) -> bool:
        """The same."""
        return bool(_traces)

    def device_count(self) -> int:
        """One card while a trace runs."""
        return len(_traces[:1])

    def current_device(self) -> int:
        """The only one."""
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Nothing is random without numbers."""

    def _is_in_bad_fork(self) -> bool:
        return False


def _hook() -> Any:
    """What C++ asks."""

    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return bool(_traces)

        def has_primary_context(self, _: int) -> bool:
            return bool(_traces)

        def is_built(self) -> bool:
            return True

    return Hook()


def _register() -> None:
    """
    The backend, once a process.

    Raises:
        UnavailableError: torch is too old to let Python do this, or the process has given the backend to somebody else.
    """
    from torch.utils import backend_registration

    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise UnavailableError(
            f"torch {torch.__version__} cannot trace: it does not let Python register a device",
            hint="pip install -U 'torch>=2.10', or leave --engine traced out",
        )
    taken = torch._C._get_privateuse1_backend_name()
    if taken not in ("privateuseone", NAME):
        raise UnavailableError(
            f"this process has given torch's one backend for extensions to `{taken}`, and a trace needs it",
            hint="trace in a process of its own",
        )
    if taken != NAME:
        setup(rename=NAME, backend_module=_Backend(), hook=_hook())
    _devices[:], _place[:] = (torch.device(NAME, 0), torch.device(NAME, 1)), (CUDA,)


_original_to = torch.Tensor.to


def _to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`x.to(...)` with a card that has an index: C++ would ask CUDA's device guard for it."""
    return _original_to(x, *map(_indexed, args), **{name: _indexed(a) for name, a in kwargs.items()})


def _cuda(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _original_to(x, CUDA)


def _constructor(make: Any) -> Any:
    """`torch.tensor(..., device="cuda")` and its like, for the same reason."""
    return lambda *args, **kwargs: make(*args, **{name: _indexed(a) for name, a in kwargs.items()})


_enter_device = DeviceContext.__init__


def _device_context(context: Any, device: Any) -> None:
    """`with torch.device("cuda")`, too."""
    _enter_device(context, _indexed(device))


def _indexed(a: Any) -> Any:
    return CUDA if isinstance(a, (str, torch.device)) and a in ("cuda", _NO_INDEX) else a


_NO_INDEX = torch.device("cuda")


@contextmanager
def card(capability: tuple[int, int], total_bytes: int, multiprocessors: int) -> Iterator[None]:
    """
    A process that believes in a CUDA card.

    Args:
        capability: Its compute capability.
        total_bytes: Its memory.
        multiprocessors: How many it has.

    Raises:
        UnavailableError: torch cannot do it here.
    """
    if torch.cuda.is_initialized():
        raise UnavailableError(
            "this process already uses CUDA, and a trace would come between torch and the card", hint="trace in a process of its own"
        )
    _register()
    properties = SimpleNamespace(
        name="traced card", major=capability[0], minor=capability[1], total_memory=total_bytes, multi_processor_count=multiprocessors,
        gcnArchName="",
    )  # fmt: skip
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "get_device_capability": lambda *_, **__: capability,
        "get_device_properties": lambda *_, **__: properties,
        "get_device_name": lambda *_, **__: properties.name,
        "synchronize": lambda *_, **__: None,
        "mem_get_info": lambda *_, **__: (total_bytes, total_bytes),
        "memory_reserved": lambda *_, **__: 0,
        "memory_allocated": lambda *_, **__: 0,
    }
    with ExitStack() as stack:
        _traces.append(None)
        stack.callback(_traces.pop)
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(import_module("torch.cuda.amp.common"), "amp_definitely_not_available", return_value=False))
        for module in map(import_module, ("torch.optim.optimizer", "torch.utils._foreach_utils")):
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", [*module._foreach_supported_types, Ghost]))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", _to))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", _cuda))
        _device_constructors()  # asked once a process, for the functions that are patched now
        for name in ("tensor", "as_tensor", "asarray"):
            stack.enter_context(mock.patch.object(torch, name, _constructor(getattr(torch, name))))
        stack.enter_context(mock.patch.object(DeviceContext, "__init__", _device_context))
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") copies through the dispatcher, not by itself
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        yield


@contextmanager
def host() -> Iterator[None]:
    """A process whose ghosts are on the CPU, for C++ and for Python."""
    before = list(_devices), list(_place)
    _devices[:], _place[:] = (HOST, HOST), (HOST,)
    with ExitStack() as stack:
        for module in map(import_module, ("torch.optim.optimizer", "torch.utils._foreach_utils")):
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", [*module._foreach_supported_types, Ghost]))
        try:
            yield
        finally:
            _devices[:], _place[:] = before

"""
The dispatch mode under which a measurement runs: operations are really computed, and every storage of the device enters the books.

bitsandbytes' operations are entered: what their Python allocates beside what they return is memory too. Below them, and below torch's own
operations, kernels may take scratch that no dispatcher sees: on a card the allocator's own history has it (`cuda`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.engines.measured.realness import Check
from planner.engines.running.backends import Kernels, load_backend
from planner.engines.running.books import COPY, Books, Rule, operation
from planner.engines.running.caches import forget
from planner.engines.running.synthetic import Slice
from planner.ledger import Category, Phase


class Full(Exception):
    """
    No memory is left: the ceiling of a measurement on the CPU, or the card's own answer.

    Attributes:
        requested_bytes: What was asked for.
        allocated_bytes: What was alive without it.
        reserved_bytes: What the allocator held then; on the CPU there is none.
        phase, scope: Where the run was.
        by_category: What was alive, by what it is for.
    """

    def __init__(self, requested_bytes: int | None, allocated_bytes: int, reserved_bytes: int | None = None) -> None:
        super().__init__(f"out of memory: {requested_bytes} bytes asked for, {allocated_bytes} allocated")
        self.requested_bytes, self.allocated_bytes, self.reserved_bytes = requested_bytes, allocated_bytes, reserved_bytes
        self.phase, self.scope = Phase.LOAD, ""
        self.by_category: dict[Category, int] = {}

    def model_dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "phase": self.phase.value,
            "scope": self.scope,
            "requested_bytes": self.requested_bytes,
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "by_category": {category.value: size for category, size in self.by_category.items()},
        }


class Tracker(Books, TorchDispatchMode):
    """
    Runs operations as they are, and records their memory.

    Args:
        device: `cuda` or `cpu`; storages of other devices do not count.
        rules: What runs otherwise, by operation.
        limit_bytes: On the CPU: what may be alive at most; None for no end.
        on_birth: Is told of every storage that is born: its index in the history, and the storage.
        on_phase: Is told when a stage of the run begins (True) and when it has ended (False).

    Attributes:
        allocated_bytes: What is alive now.
        loads_on: Where the loader wants a checkpoint's tensors.
        vocabulary: Token ids are below it.
        check: Whether a step is real; None where nobody asks.
    """

    is_real = True

    def __init__(
        self,
        device: str,
        rules: dict[Any, Rule],
        limit_bytes: int | None = None,
        on_birth: Callable[[int, torch.UntypedStorage], None] | None = None,
        on_phase: Callable[[Phase, bool], None] | None = None,
    ) -> None:
        Books.__init__(self, device)
        TorchDispatchMode.__init__(self)
        self.rules, self.limit_bytes = rules, limit_bytes
        self.on_birth, self.on_phase = on_birth, on_phase
        self.allocated_bytes = 0
        self.vocabulary = 2
        self.loads_on = device
        self.check: Check | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if self._is_leaving:
            self.enter(None)
        rule = self.rules.get(func)
        if rule is not None:
            return rule(self, func, args, kwargs or {})
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        An operation as it is, its outputs recorded.

        Raises:
            Full: They are more than may be alive.
        """
        out = func(*args, **kwargs)
        self._copies_weight = func is COPY and self.is_weight(args[0])
        self._origins = self.owners(args) if self.inherits else None
        for place, x in enumerate(out if isinstance(out, (list, tuple)) else (out,)):
            storage = self.storage_of(x) if isinstance(x, torch.Tensor) else None
            if storage is not None:
                self.enters(storage, operation(func), self.purpose or self.category(x), place)
        return out

    # What its tensors are

    def storage_of(self, x: Any) -> torch.UntypedStorage | None:
        """The storage of a tensor that is on the device; None of others."""
        return x.untyped_storage() if x.device.type == self.device and x.layout is torch.strided else None

    def unseen(self, x: torch.Tensor) -> torch.UntypedStorage | None:
        """A tensor that is held is memory, whoever made it: a file's pages, a loader's thread."""
        return self.storage_of(x)

    def born(self, index: int, storage: torch.UntypedStorage) -> None:
        """
        Count it.

        Raises:
            Full: It is more than may be alive.
        """
        nbytes = self.history.sizes[index]
        if self.limit_bytes is not None and self.allocated_bytes + nbytes > self.limit_bytes:
            full = Full(nbytes, self.allocated_bytes)
            full.phase, full.scope, full.by_category = self.phase, self.scope, self.by_category(without=index)
            raise full
        self.allocated_bytes += nbytes
        if self.on_birth is not None:
            self.on_birth(index, storage)

    def _died(self, history: Any, key: int, index: int) -> None:
        if history is self.history and not self._has_ended:
            self.allocated_bytes -= history.sizes[index]
        super()._died(history, key, index)

    def checkpoint(self, stored: dict[str, torch.Tensor], owner_of: Callable[[str], int | None]) -> Any:
        """Made when it is read, where the loader wants it."""
        return {name: Slice(x, self.loads_on) for name, x in stored.items()}

    def add_in_place(self, a: Any, b: Any) -> Any:
        """As the engine does it without a mode."""
        return torch.ops.aten.add_.Tensor(a, b)

    def tokens(self, shape: tuple[int, int]) -> torch.Tensor:
        """Any ids of the vocabulary."""
        return torch.randint(0, self.vocabulary, shape, dtype=torch.int64)

    def loss(self, loss: torch.Tensor) -> None:
        """Is it a number?"""
        if self.check is not None:
            with _unseen():
                self.check.loss(float(loss.detach()))

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Are there gradients, and do the weights change?"""
        check = self.check
        if check is None or not check.looks:
            yield
            return
        with _unseen():
            check.before()
        yield
        with _unseen():
            check.after()

    def flush(self) -> None:
        """`torch.cuda.empty_cache()`, noted and done."""
        super().flush()
        if self.device == "cuda":
            _empty_cache()

    def begins(self, phase: Phase) -> None:
        """A stage of the run begins."""
        if self.on_phase is not None:
            self.on_phase(phase, True)

    def ends(self, phase: Phase) -> None:
        """A stage of the run has ended."""
        if self.on_phase is not None:
            self.on_phase(phase, False)

    def by_category(self, *, without: int | None = None) -> dict[Category, int]:
        """What is alive now, by what it is for; one storage may be left out."""
        sums = dict.fromkeys(Category, 0)
        for index in set(self.live.values()) - {without}:
            sums[self.history.categories[index]] += self.history.sizes[index]
        return {category: size for category, size in sums.items() if size}


@contextmanager
def _unseen() -> Iterator[None]:
    """Inside, what is computed is no part of the run."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        yield


_empty_cache = torch.cuda.empty_cache


def rules(device: str) -> dict[Any, Rule]:
    """bitsandbytes' operations, entered: the installed Python of its backend for a device, and its real compiled kernels."""
    found: dict[Any, Rule] = {}
    (general, shared), (own, module) = _backend("default"), _backend(device)
    forget(shared)
    forget(module)
    for name, kernel in {**general, **own}.items():
        namespace, _, op = name.partition("::")
        packet, _, overload = op.partition(".")
        found[getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")] = _Enter(kernel)
    return found


@cache
def _backend(name: str) -> tuple[Kernels, ModuleType]:
    """A backend's kernels; once a process."""
    return load_backend(name, "measured")


class _Enter:
    """Runs a Python kernel with everything it allocates recorded; what it does not return is temporary."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel

    def __call__(self, books: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = len(books.history.sizes)
        with books:
            out = self.kernel(*args, **kwargs)
        books.keep_apart(first, out)
        return out

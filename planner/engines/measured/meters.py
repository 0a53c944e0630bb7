"""
What a training run allocates, phase by phase, while somebody else runs it.

On CUDA torch's own counters say it, reset between phases; elsewhere storages are followed from their first operation to their end.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.formulas.blocks import BLOCK_BYTES
from planner.units import round_up

if TYPE_CHECKING:
    from planner.sampling import MemorySampler

IDLE = "idle"
"""Between the phases that count."""


class Meter:
    """
    The most that was allocated in each phase, in bytes.

    Attributes:
        phase: The one that runs.
        allocated: The most in each phase, by its name.
        reserved: The same of what torch's allocator reserved; empty where there is none.
    """

    def __init__(self) -> None:
        self.phase = IDLE
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}

    def start(self, model: torch.nn.Module) -> None:
        """Begin; the model is there already."""
        raise NotImplementedError

    def enter(self, phase: str, *, was: str | None = None) -> None:
        """
        The phase so far ends, and that one begins, or goes on.

        Args:
            phase: What begins.
            was: What the time since the last change turned out to be, where it is another phase than was thought.
        """
        ended = was or self.phase
        if phase == ended:
            return
        allocated, reserved = self._most()
        self.allocated[ended] = max(self.allocated.get(ended, 0), allocated)
        if reserved is not None:
            self.reserved[ended] = max(self.reserved.get(ended, 0), reserved)
        self.phase = phase

    def stop(self) -> None:
        """End; a second call does nothing."""
        raise NotImplementedError

    def _most(self) -> tuple[int, int | None]:
        """The most allocated and reserved since this was asked last."""
        raise NotImplementedError


class CudaMeter(Meter):
    """
    By torch's counters of a card, and NVML beside them.

    Args:
        sampler: Watches this process on the card; None where NVML does not answer.

    Attributes:
        contexts: What the process held beyond what torch had reserved, each time a phase ended.
    """

    def __init__(self, sampler: MemorySampler | None) -> None:
        super().__init__()
        self.sampler = sampler
        self.contexts: list[int] = []

    def start(self, model: torch.nn.Module) -> None:
        """What was allocated until now was for loading and preparing the model."""
        self.enter(IDLE, was="load")

    def enter(self, phase: str, *, was: str | None = None) -> None:
        """As for every meter; NVML is asked at each change."""
        ended = was or self.phase
        super().enter(phase, was=was)
        if self.sampler is not None and phase != ended:
            held = self.sampler.phase(phase)
            if held is not None:
                self.contexts.append(held - torch.cuda.memory_reserved())

    def stop(self) -> None:
        """The last phase ends."""
        self.enter(f"after {self.phase}")

    def _most(self) -> tuple[int, int | None]:
        most = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return most


class StorageMeter(Meter):
    """
    By the storages of this process's tensors. What kernels take and give back inside themselves is not seen.

    Args:
        block_bytes: What each is rounded up to: 512 as CUDA's allocator would, or 1.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        super().__init__()
        self._block = block_bytes
        self._sizes: dict[int, int] = {}
        self._now = self._peak = 0
        self._mode: _Following | None = None

    def start(self, model: torch.nn.Module) -> None:
        """What the model holds is there; from now on every operation is followed, in this thread."""
        for tensor in _held(model):
            self.follow(tensor.untyped_storage())
        self.allocated["load"] = self._peak
        self._mode = _Following(self)
        self._mode.__enter__()

    def stop(self) -> None:
        """The last phase ends, and no operation is followed any more."""
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)
            self.enter(f"after {self.phase}")

    def follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it dies, if it is new."""
        key, nbytes = storage._cdata, round_up(storage.nbytes(), self._block)
        before = self._sizes.get(key)
        if before is None:
            weakref.finalize(storage, self._died, key)
        self._sizes[key] = nbytes
        self._now += nbytes - (before or 0)
        self._peak = max(self._peak, self._now)

    def _died(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)

    def _most(self) -> tuple[int, int | None]:
        most, self._peak = self._peak, self._now
        return most, None


class _Following(TorchDispatchMode):
    """Shows a meter what every operation makes."""

    def __init__(self, meter: StorageMeter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and look at what came out."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided:
                self.meter.follow(leaf.untyped_storage())
        return out


def _held(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a model rests on: parameters, buffers, and the statistics of quantised weights."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter.data
        state = getattr(parameter, "quant_state", None)
        for inner in (state, getattr(state, "state2", None)):
            yield from (x for x in vars(inner).values() if isinstance(x, torch.Tensor)) if inner is not None else ()

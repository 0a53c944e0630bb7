"""
The dispatch mode under which a trace runs: it computes shapes on the meta device and feeds the books with every storage.

Operations arrive here one by one, below autograd and autocast, as they would arrive at the device's kernels.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.engines.running.books import COPY, Books, Rule, operation
from planner.engines.running.synthetic import Slice
from planner.engines.traced import values
from planner.engines.traced.ghosts import META, NAME, Ghost
from planner.errors import UnsupportedModelError
from planner.ledger import Phase

__all__ = ["Recorder", "Rule"]


class Recorder(Books, TorchDispatchMode):
    """
    Runs operations without data, and records their memory.

    Args:
        rules: What runs otherwise than on the meta device, by operation.
        device: Where the ghosts believe to be. On `cuda` what is on the CPU does not count; on `cpu` everything does, and small
            tensors that nothing without data went into are real.

    Attributes:
        after: What happens inside CUDA's kernel of an operation beside its outputs.
    """

    def __init__(self, rules: dict[Any, Rule], device: str = "cuda") -> None:
        Books.__init__(self, device)
        TorchDispatchMode.__init__(self)
        self.rules = rules
        self.after: dict[Any, Callable[[Recorder, tuple[Any, ...]], None]] = {}
        self._on_host = False
        self._reals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._host_limit: int | None = None

    # What happens

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if self._is_leaving:
            self.enter(None)
        rule = self.rules.get(func)
        if rule is not None:
            return rule(self, func, args, kwargs or {})
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Callable[..., Any] | None = None) -> Any:
        """
        An operation as the meta device does it, its outputs recorded.

        Args:
            func: The operation.
            args: Its arguments.
            kwargs: Those that are named.
            shape: What makes its outputs on the meta device; the operation itself unless given.

        Raises:
            UnsupportedModelError: Its result depends on numbers that are not there.
        """
        ghosts: dict[int, Ghost] = {}
        reals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        lowered = [values.lower(a, ghosts) for a in args]
        named = {name: values.lower(a, ghosts) for name, a in kwargs.items()} if kwargs else {}
        device = named.get("device")
        if not ghosts and self._is_elsewhere(device) and not self._is_weight(func, args, device):
            return self._run_real(func, args, kwargs)
        on_host = self._goes_to_host(device, ghosts)
        if device is not None or not ghosts:
            named["device"] = META
        try:
            if func in values.SIZED_BY_VALUES:
                value = values.compute(func, args, kwargs, ghosts)
                out = self._sized(func, value)
            else:
                out = (shape or func)(*[values.to_meta(a, reals) for a in lowered], **named)
                value = values.compute(func, args, kwargs, ghosts) if values.are_small_integers(out) else None
        except (NotImplementedError, RuntimeError) as error:
            raise self.refusal(func, error) from error
        if on_host and isinstance(value, torch.Tensor):
            return value
        if self.phase is Phase.LOAD and not on_host:
            self._arrives(ghosts)
        self._on_host = on_host
        self._copies_weight = func is COPY and self.is_weight(args[0])
        self._origins = self.owners(args) if self.inherits else None
        self._reals = reals if self.device == "cpu" else {}
        result = self._lift(func, out, ghosts, value)
        self._reals = {}
        after = self.after.get(func)
        if after is not None:
            after(self, args)
        return result

    def _is_elsewhere(self, device: Any) -> bool:
        """Whether something that is made of no ghost is made on the CPU."""
        return device is None or torch.device(device).type not in ("cuda", NAME)

    def _is_weight(self, func: Any, args: tuple[Any, ...], device: Any) -> bool:
        """Whether it is made with so many elements that it has no numbers; on the meta device it has none anyway."""
        return (device is None or torch.device(device) != META) and values.is_weight(func, args, self._host_limit)

    def _goes_to_host(self, device: Any, ghosts: dict[int, Ghost]) -> bool:
        if self.device == "cpu":
            return False
        if device is not None:
            return self._is_elsewhere(device)
        return all(ghost.on_host for ghost in ghosts.values())

    def _run_real(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What no ghost goes into is computed; where the trace is of the CPU, it is memory too."""
        out = func(*args, **kwargs)
        if self.device == "cpu":
            self._copies_weight, self._origins = False, None
            for place, x in enumerate(out if isinstance(out, (list, tuple)) else (out,)):
                if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                    self.see(x, func, place)
        return out

    def _arrives(self, ghosts: dict[int, Ghost]) -> None:
        """A checkpoint's tensor comes onto the card: until the next one does, what is made is made of it."""
        for ghost in ghosts.values():
            if ghost.on_host:
                self.owner = ghost.owner

    def owner_of(self, x: torch.Tensor) -> int | None:
        """The instance of the repeated layers that a tensor belongs to."""
        if isinstance(x, Ghost) and x.on_host:
            return x.owner
        return super().owner_of(x)

    def _lift(self, func: Any, out: Any, ghosts: dict[int, Ghost], value: Any, place: int = 0) -> Any:
        """Outputs as ghosts: an argument that was changed in place is itself, a new storage is born."""
        if isinstance(out, torch.Tensor):
            known = ghosts.get(id(out))
            if known is not None:
                if value is None:
                    known.forget()
                known.value = value
                return known
            if id(out) in self._reals:  # a small tensor of the CPU that was changed in place
                return self._reals[id(out)][1]
            made = Ghost(out, value if isinstance(value, torch.Tensor) else None, on_host=self._on_host)
            if self._on_host:
                made.owner = self._origins[min(place, len(self._origins) - 1)] if self._origins else None
            else:
                self.see(out, func, place)
            return made
        if isinstance(out, (list, tuple)):
            numbers = value if isinstance(value, (list, tuple)) else [None] * len(out)
            return type(out)([self._lift(func, o, ghosts, v, i) for i, (o, v) in enumerate(zip(out, numbers, strict=True))])
        return out

    def see(self, meta: torch.Tensor, func: Any, place: int = 0) -> None:
        """Note a tensor's storage, if it is new."""
        self.enters(meta.untyped_storage(), operation(func), self.purpose or self.category(meta), place)

    # What its tensors are

    def storage_of(self, x: Any) -> torch.UntypedStorage | None:
        """A ghost's is on the meta device; one on the host does not count."""
        if isinstance(x, Ghost):
            return None if x.on_host else x.meta.untyped_storage()
        return x.untyped_storage() if self.device == "cpu" and x.device.type == "cpu" else None

    def checkpoint(self, stored: dict[str, torch.Tensor], owner_of: Callable[[str], int | None]) -> Any:
        """On the host, without data; for a trace of the CPU it is made when it is read."""
        if self.device == "cpu":
            return {name: _GhostSlice(x, self) for name, x in stored.items()}
        found = {}
        for name, x in stored.items():
            found[name] = ghost = Ghost(x.detach(), on_host=True)
            ghost.owner = owner_of(name)
        return found

    def add_in_place(self, a: Any, b: Any) -> Any:
        """The same storage."""
        return Ghost(a.meta) if isinstance(a, Ghost) else a

    def sample(self) -> torch.Tensor:
        """A ghost, on whatever device."""
        with self.making_weights(0):
            return super().sample()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Managed memory of a card is not the caching allocator's; on the CPU bitsandbytes pages nothing."""
        with mock.patch("bitsandbytes.functional.get_paged", _paged):
            yield

    # Numbers

    def _sized(self, func: Any, value: Any) -> Any:
        if value is None:
            raise self.refusal(func, "the size of its result depends on numbers that only a real run has")
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to(META), value)

    def refusal(self, func: Any, why: object) -> UnsupportedModelError:
        """What stopped the trace, and where."""
        where = f" in `{self.scope}`" if self.scope else ""
        frames = [f for f in traceback.extract_stack() if _is_foreign(f.filename)]
        line = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
        is_theirs = isinstance(why, RuntimeError) and not isinstance(why, NotImplementedError)
        hint = "pass --engine analytic, or report the model: a rule for this operation may be missing"
        if is_theirs:  # shapes or types that do not go together
            hint = "a real run would stop there too: change --targets, --quantization or --dtype"
        return UnsupportedModelError(
            f"the trace stopped at {func}{where}{f' ({line})' if line else ''}: {str(why).strip().splitlines()[0]}", hint=hint
        )

    @contextmanager
    def making_weights(self, limit: int) -> Iterator[None]:
        """Inside, tensors of at least so many elements that are made on the CPU have no data either."""
        before, self._host_limit = self._host_limit, limit
        try:
            yield
        finally:
            self._host_limit = before


class _GhostSlice(Slice):
    """A checkpoint's tensor that is made without data when it is read."""

    def __init__(self, like: torch.Tensor, recorder: Recorder) -> None:
        super().__init__(like, "cpu")
        self.recorder = recorder

    def __getitem__(self, index: Any) -> torch.Tensor:
        """The tensor, made now."""
        with self.recorder.making_weights(0):
            return super().__getitem__(index)


def _paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Ghost:
    """bitsandbytes' managed memory, which is not the caching allocator's."""
    made = Ghost(torch.empty(shape, dtype=dtype, device="meta"), on_host=True)
    made.is_paged, made.page_deviceid = True, 0
    return made


def _is_foreign(filename: str) -> bool:
    return "/torch/" not in filename and "/planner/" not in filename

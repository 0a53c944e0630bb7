"""
The dispatch mode under which everything runs: it computes shapes on the meta device and writes every storage's birth and death down.

Operations arrive here one by one, below autograd and autocast, as they would arrive at CUDA's kernels.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.attribution import category_of
from planner.engines.traced import values
from planner.engines.traced.ghosts import META, NAME, Ghost
from planner.errors import UnsupportedModelError
from planner.history import History, Stretch
from planner.ledger import Category, Phase

Rule = Callable[["Recorder", Any, tuple[Any, ...], dict[str, Any]], Any]
"""How an operation runs where the meta device would not do what CUDA does."""


class Recorder(TorchDispatchMode):
    """
    Runs operations without data, and records their memory.

    Args:
        rules: What runs otherwise than on the meta device, by operation.

    Attributes:
        history: What has been recorded.
        phase: Where the run is.
        scope: The module that runs; empty where none does, as in most of backward.
        paths: The modules' names, by their identity.
        purpose: The category of what is born now, if it is set; else `category` says.
        instance: The instance of the repeated layers that runs.
        owner: The one that what is born now belongs to.
        inherits: Whether what is born outside the layers belongs to its arguments' owner: not in forward and backward.
        is_in_layer: Whether one of the repeated layers runs, or its backward.
        vocab_size: Width of the logits.
        live: Which storage of the history a live storage is, by its address.
        after: What happens inside CUDA's kernel of an operation beside its outputs.
    """

    def __init__(self, rules: dict[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.history = History()
        self.phase = Phase.LOAD
        self.scope = ""
        self.paths: dict[int, str] = {}
        self.purpose: Category | None = None
        self.owner: int | None = None
        self.instance: int | None = None
        self.is_in_layer = False
        self.vocab_size: int | None = None
        self.live: dict[int, int] = {}
        self.after: dict[Any, Callable[[Recorder, tuple[Any, ...]], None]] = {}
        self.inherits = True
        self._on_host = self._is_leaving = self._copies_weight = False
        self._host_limit: int | None = None
        self._has_ended = False
        self._origins: list[int | None] | None = None
        self._begin = 0

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
        lowered = [values.lower(a, ghosts) for a in args]
        named = {name: values.lower(a, ghosts) for name, a in kwargs.items()} if kwargs else {}
        device = named.get("device")
        on_host = False
        if device is not None:
            on_host = torch.device(device).type not in ("cuda", NAME)
            if on_host and not ghosts and not values.is_weight(func, args, self._host_limit):
                return func(*args, **kwargs)
            named["device"] = META
        elif not ghosts:
            if not values.is_weight(func, args, self._host_limit):
                return func(*args, **kwargs)
            on_host, named["device"] = True, META
        else:
            on_host = all(ghost.on_host for ghost in ghosts.values())
        try:
            if func in values.SIZED_BY_VALUES:
                value = values.compute(func, args, kwargs, ghosts)
                out = self._sized(func, value)
            else:
                out = (shape or func)(*[values.to_meta(a) for a in lowered], **named)
                value = values.compute(func, args, kwargs, ghosts) if values.are_small_integers(out) else None
        except (NotImplementedError, RuntimeError) as error:
            raise self.refusal(func, error) from error
        if on_host and isinstance(value, torch.Tensor):
            return value
        if self.phase is Phase.LOAD and not on_host:
            self._arrives(ghosts)
        self._on_host = on_host
        self._copies_weight = func is _COPY and self._is_weight(args[0])
        self._origins = self._owners(args) if self.inherits else None
        result = self._lift(func, out, ghosts, value)
        after = self.after.get(func)
        if after is not None:
            after(self, args)
        return result

    def _arrives(self, ghosts: dict[int, Ghost]) -> None:
        """A checkpoint's tensor comes onto the card: until the next one does, what is made is made of it."""
        for ghost in ghosts.values():
            if ghost.on_host:
                self.owner = ghost.owner

    def _owners(self, args: tuple[Any, ...]) -> list[int | None]:
        """Whom the outputs belong to: the arguments' one owner, or each output the owner at its place in a list of arguments."""
        lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor)]
        if lists:
            return [self.owner_of(x) for x in lists[0]]
        found = {owner for a in args if isinstance(a, torch.Tensor) if (owner := self.owner_of(a)) is not None}
        return [found.pop()] if len(found) == 1 else [None]

    def owner_of(self, x: torch.Tensor) -> int | None:
        """The instance of the repeated layers that a tensor belongs to."""
        if not isinstance(x, Ghost):
            return None
        if x.on_host:
            return x.owner
        index = self.live.get(x.meta.untyped_storage()._cdata)
        return None if index is None else self.history.owners[index]

    def _lift(self, func: Any, out: Any, ghosts: dict[int, Ghost], value: Any, place: int = 0) -> Any:
        """Outputs as ghosts: an argument that was changed in place is itself, a new storage is born."""
        if isinstance(out, torch.Tensor):
            known = ghosts.get(id(out))
            if known is not None:
                if value is None:
                    known.forget()
                known.value = value
                return known
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
        storage = meta.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        nbytes = storage.nbytes()
        if nbytes == 0:
            return
        index = self.history.add(nbytes, _name(func), self.purpose or self.category(meta), self.scope, self._origin(place))
        self.live[key] = index
        weakref.finalize(storage, self._died, self.history, key, index)

    def _origin(self, place: int) -> int | None:
        """Whom an output belongs to: the instance that runs, else the one that its arguments belong to."""
        if self.owner is not None or not self._origins:
            return self.owner
        return self._origins[min(place, len(self._origins) - 1)]

    def _died(self, history: History, key: int, index: int) -> None:
        if self._has_ended or history is not self.history:
            return
        del self.live[key]
        history.events.append(~index)

    def scratch(self, name: str, *sizes: int) -> None:
        """Buffers that live only inside a kernel: all at once, then gone."""
        made = [self.history.add(n, name, Category.WORKSPACE, self.scope, self.owner) for n in sizes if n]
        for index in made:
            self.history.drop(index)

    def hold(self, nbytes: int, name: str) -> None:
        """A buffer that a library takes from the allocator and keeps."""
        self.history.add(nbytes, name, Category.WORKSPACE)

    def flush(self) -> None:
        """`torch.cuda.empty_cache()`."""
        self.history.flushes.append(len(self.history.events))

    def category(self, meta: torch.Tensor) -> Category:
        """What a tensor that is born now is for, until something holds it by name."""
        return category_of(
            self.phase,
            meta.shape,
            vocab_size=self.vocab_size,
            is_in_layer=self.is_in_layer,
            grad_enabled=torch.is_grad_enabled(),
            copies_weight=self._copies_weight,
        )

    def _is_weight(self, x: torch.Tensor) -> bool:
        index = self.live.get(x.meta.untyped_storage()._cdata) if isinstance(x, Ghost) else None
        return index is not None and self.history.categories[index] in (Category.PARAMETER, Category.ADAPTER)

    def keep_apart(self, first: int, out: Any) -> None:
        """Of what was born from a storage on, all but an operation's outputs and what libraries keep for themselves is temporary."""
        outputs = out if isinstance(out, (list, tuple)) else (out,)
        kept = {self.live.get(x.meta.untyped_storage()._cdata) for x in outputs if isinstance(x, Ghost)}
        for index in range(first, len(self.history.sizes)):
            if index not in kept and self.history.categories[index] is not Category.WORKSPACE:
                self.history.categories[index] = Category.TEMPORARY

    def hold_by_name(self, x: torch.Tensor, name: str, scope: str, category: Category, owner: int | None) -> None:
        """Say what a tensor is that is there already: a parameter, a gradient, a state of a module."""
        if not isinstance(x, Ghost) or x.on_host:
            return
        index = self.live.get(x.meta.untyped_storage()._cdata)
        if index is not None:
            history = self.history
            history.names[index], history.scopes[index] = name, scope
            history.categories[index], history.owners[index] = category, owner

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

    # Where the run is

    def close(self) -> None:
        """What happened since the last close is one stretch."""
        end = len(self.history.events)
        if end > self._begin:
            self.history.stretches.append(Stretch(self.phase, self._begin, end, self.instance))
        self._begin = end

    def enter(self, instance: int | None, *, is_in_layer: bool = False) -> None:
        """An instance of the repeated layers begins, or none of them."""
        if self.instance != instance:
            self.close()
        self.instance = self.owner = instance
        self.is_in_layer, self._is_leaving = is_in_layer, False

    def leave(self) -> None:
        """
        A layer has returned. What its caller lets go of until the next operation, the layer's own input, still belongs to it.
        """
        self._is_leaving = True

    def end(self) -> History:
        """The history so far; what dies from now on is no longer part of it."""
        self.close()
        self._has_ended = True
        return self.history

    def forget(self) -> None:
        """Begin anew: nothing that was recorded so far is part of the run."""
        self.history = History()
        self.live.clear()
        self._begin = 0

    def move_to(self, phase: Phase) -> None:
        """From now on the run is in this phase."""
        if phase is not self.phase:
            self.enter(None)
            self.close()
            self.phase = phase

    @contextmanager
    def making_weights(self, limit: int) -> Iterator[None]:
        """Inside, tensors of at least so many elements that are made on the CPU have no data either."""
        self._host_limit = limit
        try:
            yield
        finally:
            self._host_limit = None

    @contextmanager
    def during(self, phase: Phase, purpose: Category | None = None) -> Iterator[None]:
        """What happens inside belongs to a phase."""
        self.close()
        before, self.phase = (self.phase, self.purpose), phase
        self.purpose = purpose
        try:
            yield
        finally:
            self.enter(None)
            self.close()
            self.phase, self.purpose = before

    @contextmanager
    def in_modules(self) -> Iterator[None]:
        """Inside, `scope` is the innermost named module that runs."""
        outer: list[str] = []

        def enter(module: torch.nn.Module, *_: Any) -> None:
            outer.append(self.scope)
            self.scope = self.paths.get(id(module), self.scope)

        def leave(*_: Any) -> None:
            self.scope = outer.pop()

        hooks = (
            torch.nn.modules.module.register_module_forward_pre_hook(enter),
            torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def meaning(self, purpose: Category | None, owner: int | None = None) -> Iterator[None]:
        """What is born inside is for this."""
        before = self.purpose, self.owner
        self.purpose, self.owner = purpose, owner
        try:
            yield
        finally:
            self.purpose, self.owner = before


_COPY = torch.ops.aten._to_copy.default


def _name(func: Any) -> str:
    return str(func).removesuffix(".default")


def _is_foreign(filename: str) -> bool:
    return "/torch/" not in filename and "/planner/" not in filename

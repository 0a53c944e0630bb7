"""
The books of a run: which storage is born and dies when, in which phase, module and layer, and what it is for.

A dispatch mode of an engine feeds them; that of a trace sees tensors without data, that of a measurement real ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from planner.attribution import category_of
from planner.history import History, Stretch
from planner.ledger import Category, Phase

Rule = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
"""How an operation runs where the mode would not do the right thing by itself: books, operation, arguments, named ones."""

COPY = torch.ops.aten._to_copy.default


class Books:
    """
    What is recorded, and where the run is.

    Args:
        device: Where the run's tensors live: `cuda` or `cpu`.

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
        named: Which storages something holds by name.
        rules: What runs otherwise than the mode would run it, by operation.
    """

    is_real = False
    """Whether tensors have numbers."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
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
        self.named: set[int] = set()
        self.inherits = True
        self.rules: dict[Any, Rule] = {}
        self._is_leaving = self._copies_weight = False
        self._has_ended = False
        self._origins: list[int | None] | None = None
        self._begin = 0

    # What an engine says of its tensors

    def storage_of(self, x: Any) -> torch.UntypedStorage | None:
        """The storage that the books know a tensor by; None for what lives elsewhere."""
        raise NotImplementedError

    def checkpoint(self, stored: dict[str, torch.Tensor], owner_of: Callable[[str], int | None]) -> Any:
        """
        What the loader reads.

        Args:
            stored: The checkpoint's tensors by name, on the meta device.
            owner_of: The instance of the repeated layers that a name belongs to.
        """
        raise NotImplementedError

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation as the mode does that has no rule for it."""
        raise NotImplementedError

    def add_in_place(self, a: Any, b: Any) -> Any:
        """What `a += b` gives: the same storage."""
        raise NotImplementedError

    def sample(self) -> torch.Tensor:
        """Some tensor on the device that is part of a graph."""
        return torch.empty(2, device=self.device, requires_grad=True) * 1

    def tokens(self, shape: tuple[int, int]) -> torch.Tensor:
        """Token ids of a batch."""
        return torch.zeros(shape, dtype=torch.int64)

    def updating(self) -> AbstractContextManager[Any]:
        """Inside, an optimizer steps."""
        return nullcontext()

    def loss(self, loss: torch.Tensor) -> None:
        """A forward has given its loss."""

    def unseen(self, x: torch.Tensor) -> torch.UntypedStorage | None:
        """The storage of a tensor that is held but that no operation made, if it counts: a file that is mapped to memory."""
        return None

    # Births and deaths

    def index_of(self, x: Any) -> int | None:
        """Which storage of the history a tensor's is, while it lives."""
        storage = self.storage_of(x) if isinstance(x, torch.Tensor) else None
        return None if storage is None else self.live.get(storage._cdata)

    def enters(self, storage: torch.UntypedStorage, name: str, category: Category, place: int = 0) -> None:
        """Note a storage, if it is new; its death is noted when it comes."""
        key = storage._cdata
        if key in self.live:
            return
        nbytes = storage.nbytes()
        if nbytes == 0:
            return
        index = self.history.add(nbytes, name, category, self.scope, self.origin(place))
        self.live[key] = index
        weakref.finalize(storage, self._died, self.history, key, index)
        self.born(index, storage)

    def born(self, index: int, storage: torch.UntypedStorage) -> None:
        """A storage has just been noted."""

    def origin(self, place: int) -> int | None:
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

    def category(self, x: torch.Tensor) -> Category:
        """What a tensor that is born now is for, until something holds it by name."""
        return category_of(
            self.phase,
            x.shape,
            vocab_size=self.vocab_size,
            is_in_layer=self.is_in_layer,
            grad_enabled=torch.is_grad_enabled(),
            copies_weight=self._copies_weight,
        )

    def is_weight(self, x: Any) -> bool:
        """Whether a tensor is of the model's weights."""
        index = self.index_of(x)
        return index is not None and self.history.categories[index] in (Category.PARAMETER, Category.ADAPTER)

    def owners(self, args: tuple[Any, ...]) -> list[int | None]:
        """Whom the outputs belong to: the arguments' one owner, or each output the owner at its place in a list of arguments."""
        lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor)]
        if lists:
            return [self.owner_of(x) for x in lists[0]]
        found = {owner for a in args if isinstance(a, torch.Tensor) if (owner := self.owner_of(a)) is not None}
        return [found.pop()] if len(found) == 1 else [None]

    def owner_of(self, x: torch.Tensor) -> int | None:
        """The instance of the repeated layers that a tensor belongs to."""
        index = self.index_of(x)
        return None if index is None else self.history.owners[index]

    def keep_apart(self, first: int, out: Any) -> None:
        """Of what was born from a storage on, all but an operation's outputs and what libraries keep for themselves is temporary."""
        outputs = out if isinstance(out, (list, tuple)) else (out,)
        kept = {self.index_of(x) for x in outputs}
        for index in range(first, len(self.history.sizes)):
            if index not in kept and self.history.categories[index] is not Category.WORKSPACE:
                self.history.categories[index] = Category.TEMPORARY

    def hold_by_name(self, x: torch.Tensor, name: str, scope: str, category: Category, owner: int | None) -> None:
        """Say what a tensor is that is there already: a parameter, a gradient, a state of a module."""
        index = self.index_of(x)
        if index is None:
            storage = self.unseen(x)
            if storage is None:
                return
            self.enters(storage, name, category)
            index = self.live.get(storage._cdata)
        if index is not None:
            history = self.history
            history.names[index], history.scopes[index] = name, scope
            history.categories[index], history.owners[index] = category, owner
            self.named.add(index)

    def name_tables(self) -> None:
        """What loading left and nobody holds by name are tables that libraries keep: those of bitsandbytes' kernels for the CPU."""
        for index in set(self.live.values()) - self.named:
            if self.history.categories[index] is Category.PARAMETER:
                self.history.categories[index] = Category.WORKSPACE

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

    def flush(self) -> None:
        """`torch.cuda.empty_cache()`."""
        self.history.flushes.append(len(self.history.events))

    @contextmanager
    def during(self, phase: Phase, purpose: Category | None = None) -> Iterator[None]:
        """What happens inside belongs to a phase."""
        self.close()
        before, self.phase = (self.phase, self.purpose), phase
        self.purpose = purpose
        self.begins(phase)
        try:
            yield
        finally:
            self.enter(None)
            self.close()
            self.phase, self.purpose = before
        self.ends(phase)

    def begins(self, phase: Phase) -> None:
        """A stage of the run begins."""

    def ends(self, phase: Phase) -> None:
        """A stage of the run has ended, and well."""

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


def operation(func: Any) -> str:
    """An operation's name, for people."""
    return str(func).removesuffix(".default")

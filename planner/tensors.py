"""Tensors without data: their size, their type, the graph that autograd would keep for them, and stretches of their comings and goings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from planner.dtypes import DType
from planner.ledger import Category, Phase
from planner.value import NamedTuple

if TYPE_CHECKING:
    from planner.schedule import Tape


class Storage:
    """Memory of one tensor and of all its views; allocated when made, freed when unreferenced."""

    __slots__ = ("events", "index")

    def __init__(self, tape: Tape, nbytes: int, name: str, category: Category) -> None:
        self.index = len(tape.storages)
        tape.storages.append((nbytes, tape.scope, name, category))
        self.events = tape.events
        self.events.append(self.index)

    def __del__(self) -> None:
        self.events.append(~self.index)


class Tensor:
    """
    A tensor's size, type and place in the graph.

    Attributes:
        storage: Its memory; None for a parameter, which rests outside the tape.
        numel: Its elements.
        dtype: Their type.
        requires_grad: As in PyTorch.
        node: Its grad_fn; None for a leaf.
        slot: Which of the node's outputs it is.
        grad: Of a leaf: its gradient.
        is_view: Whether it is a view whose base somebody else holds: a linear's transposed weight gradient.
    """

    __slots__ = ("dtype", "grad", "is_view", "node", "numel", "requires_grad", "slot", "storage")

    def __init__(self, storage: Storage | None, numel: int, dtype: DType, requires_grad: bool = False) -> None:
        self.storage = storage
        self.numel = numel
        self.dtype = dtype
        self.requires_grad = requires_grad
        self.node: Node | None = None
        self.slot = 0
        self.grad: Tensor | None = None
        self.is_view = False

    def detach(self, requires_grad: bool = False) -> Tensor:
        """A leaf on the same storage."""
        return Tensor(self.storage, self.numel, self.dtype, requires_grad)


class Leaf(Tensor):
    """What no operation made and yet needs a gradient, with memory on the tape: autocast treats it like a parameter."""

    __slots__ = ()

    @classmethod
    def of(cls, x: Tensor) -> Leaf:
        """`x.detach().requires_grad_()`."""
        return cls(x.storage, x.numel, x.dtype, True)


Saved = tuple["Tensor | None", ...]
"""What a node kept for its backward."""

Grads = list["Tensor | None"]
"""Gradients of a node's outputs."""

Backward = Callable[["Tape", Grads, Saved], "Sequence[Tensor | None]"]
"""From the gradients of the outputs to those of the inputs."""


class Node:
    """One step of the backward graph: what it saved, and whom it hands gradients to."""

    __slots__ = ("edges", "frame", "grads", "run", "saved")

    def __init__(
        self, edges: list[tuple[Node | Tensor, int, DType] | None], saved: Saved, run: Backward, outputs: int, frame: Any
    ) -> None:
        self.edges = edges
        self.saved = saved
        self.run = run
        self.grads: Grads = [None] * outputs
        self.frame = frame


class Segment(NamedTuple):
    """
    A stretch of the tape's events.

    Attributes:
        phase: The phase it belongs to.
        begin, end: Indices of events, half-open.
        region: Which repeated region it belongs to; None for what happens once.
        repeat: How often the region occurs in the model.
    """

    phase: Phase
    begin: int
    end: int
    region: int | None = None
    repeat: int = 1

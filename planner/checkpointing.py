"""
What gradient checkpointing keeps of a region, and how it runs it again.

Source:
    torch@2.13.0, torch/utils/checkpoint.py, CheckpointFunction (reentrant) and _CheckpointFrame (non-reentrant, with early stop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from planner.dtypes import DType
from planner.ledger import Category
from planner.tensors import Grads, Leaf, Node, Saved, Tensor

if TYPE_CHECKING:
    from planner.schedule import Tape


class StopRecomputation(Exception):
    """Raised inside a recomputation once everything that backward needs has been saved again."""


class Frame:
    """One region under non-reentrant checkpointing."""

    __slots__ = ("autocast", "done", "function", "nodes", "recomputed", "tensor", "total")

    def __init__(self, function: Callable[[Tensor], Tensor], tensor: Tensor, autocast: DType | None) -> None:
        self.function = function
        self.tensor = tensor
        self.autocast = autocast
        self.nodes: list[Node] = []
        self.recomputed: list[Saved] = []
        self.total = 0
        self.done = False


class Rerun:
    """The backward of a reentrant checkpoint: forward again with grad, then a backward of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor], autocast: DType | None) -> None:
        self.function, self.autocast = function, autocast

    def __call__(self, tape: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
        """The gradient of the region's input."""
        x = saved[0]
        assert x is not None
        detached = Leaf.of(x)
        with tape.inner_graph():
            category, tape.category = tape.category, Category.ACTIVATION
            with tape.autocasting(self.autocast):
                out = self.function(detached)
            tape.category = category
            grad = grads[0]
            assert grad is not None
            tape.backward(out, grad)
        return (detached.grad,)

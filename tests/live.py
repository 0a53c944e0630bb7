"""
Follows the storages that operations make, so that a test can say how many bytes were alive at once; the same figures of a tape.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from planner.dtypes import DType
from planner.ledger import Category
from planner.schedule import Tape
from planner.tensors import Tensor

torch = pytest.importorskip("torch")
modes = pytest.importorskip("torch.utils._python_dispatch")


class LiveStorages(modes.TorchDispatchMode):
    """
    Counts the storages born while it is active: the outputs of every operation, until they are collected.

    What a custom operation makes inside itself is not seen, only what it returns. CPU scalars that a CUDA run keeps on the host
    are counted only if they are asked for.
    """

    def __init__(self, *, scalars: bool = True) -> None:
        super().__init__()
        self.scalars = scalars
        self.nbytes = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = torch.utils._pytree.tree_leaves((args, kwargs))
        known = {t.untyped_storage()._cdata for t in given if isinstance(t, torch.Tensor)}
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(...): its argument is the new tensor itself
            known = set()
        out = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._born(leaf, known)
        return out

    def restart(self) -> None:
        """Count the peak from here."""
        self.peak = self.nbytes

    def _born(self, tensor: torch.Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._seen or (not self.scalars and tensor.numel() == 1):
            return
        self._seen[key] = size
        self.nbytes += size
        self.peak = max(self.peak, self.nbytes)
        weakref.finalize(storage, self._dead, key)

    def _dead(self, key: int) -> None:
        self.nbytes -= self._seen.pop(key)


class Figures(NamedTuple):
    """
    Bytes of one forward and backward, beside its inputs and parameters.

    Attributes:
        forward: The most that was alive in forward.
        kept: Alive when forward had returned: its output, and what is saved for backward.
        backward: The most that was alive in backward, the gradient that it starts from included.
        left: Alive when the graph is gone: the gradients of the leaves.
    """

    forward: int
    kept: int
    backward: int
    left: int


def of_torch(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Figures:
    """What the real operations make; tensors of one element are not counted."""
    live = LiveStorages(scalars=False)
    with live:
        out = function(*inputs)
        forward, kept = live.peak, live.nbytes
        live.restart()
        if out.requires_grad:
            grad = torch.ones_like(out)
            out.backward(grad)
            del grad
        del out
    return Figures(forward, kept, live.peak, live.nbytes)


def of_tape(function: Callable[..., Tensor], *inputs: Tensor, autocast: DType | None = None) -> Figures:
    """
    What the closed form makes of the same. A dispatch mode counts as a tensor subclass, for which gradients are never added in
    place; what kernels use inside themselves is not seen by it either.
    """
    tape = Tape()
    tape.accumulates_in_place = False
    with tape.autocasting(autocast):
        out = function(tape, *inputs)
    end_of_forward = len(tape.events)
    if out.requires_grad:
        seed = tape.new(out.numel, out.dtype, "gradient of the output")
        tape.backward(out, seed)
        del seed
    tape.free_graph()
    del out
    curve = live_curve(tape)
    middle = curve[end_of_forward - 1] if end_of_forward else 0
    return Figures(
        max(curve[:end_of_forward], default=0), middle, max([middle, *curve[end_of_forward:]]), curve[-1] if curve else 0
    )


def live_curve(tape: Tape) -> list[int]:
    """Live bytes after each of a tape's events; single elements and the insides of kernels left out."""
    counted = [
        nbytes if category is not Category.WORKSPACE and nbytes > 8 else 0 for nbytes, _, _, category in tape.storages
    ]
    live, curve = 0, []
    for event in tape.events:
        live += counted[event] if event >= 0 else -counted[~event]
        curve.append(live)
    return curve


TORCH = {DType.FP32: torch.float32, DType.BF16: torch.bfloat16, DType.FP16: torch.float16}


def pair(shape: Sequence[int], dtype: DType = DType.FP32, *, grad: bool = True) -> tuple[torch.Tensor, Tensor]:
    """The same leaf twice: real, and on the tape."""
    real = torch.randn(*shape).to(TORCH[dtype]).requires_grad_(grad)
    return real, Tensor(None, real.numel(), dtype, grad)


def leaf(parameter: torch.Tensor) -> Tensor:
    """A module's parameter on the tape."""
    dtype = next(ours for ours, theirs in TORCH.items() if theirs is parameter.dtype)
    return Tensor(None, parameter.numel(), dtype, parameter.requires_grad)

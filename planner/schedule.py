"""
When a tensor lives: a tape that allocates, saves for backward and frees as PyTorch's autograd does, without data.

Operations (`planner.operations`) write on the tape what they allocate and what they save. Lifetimes are not computed: a `Storage`
dies when the last Python reference to it goes, by the same reference counting that frees the real tensor, so a program written
like the modeling code frees at the same points. The tape knows no operation; an operation knows no clock.

Sizes may be integers or integer arrays of one shape: nothing here compares them.

Source:
    torch@2.13.0: torch/csrc/autograd/engine.cpp (order, validate_outputs, release_variables), input_buffer.cpp (accumulate),
    torch/utils/checkpoint.py (both flavours, early stop).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from planner.checkpointing import Frame, Rerun, StopRecomputation
from planner.dtypes import DType
from planner.ledger import Category, Phase
from planner.tensors import Backward, Grads, Leaf, Node, Saved, Segment, Storage, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


class Tape:
    """
    The record of one run.

    Attributes:
        storages: Bytes, scope, name and category of every storage, by its index.
        gradients: The storages that became a parameter's gradient.
        events: An index for a birth, its complement for a death, in order.
        grad_enabled: As `torch.is_grad_enabled()`.
        autocast: The dtype of CUDA autocast, None outside it.
        accumulates_in_place: Whether a second gradient is added in place where PyTorch's engine can. Real tensors do; tensor
            subclasses, such as fake tensors, never (`can_accumulate_inplace`).
        products: The event that follows the first matrix product of each thread: there cuBLAS takes that thread's workspace.
    """

    default_in_place = True

    def __init__(self) -> None:
        self.storages: list[tuple[int, str, str, Category]] = []
        self.gradients: set[int] = set()
        self.events: list[int] = []
        self.segments: list[Segment] = []
        self.grad_enabled = True
        self.autocast: DType | None = None
        self.accumulates_in_place = self.default_in_place
        self.products: dict[str, int] = {}
        self.thread = "forward"
        self.scope = ""
        self.category = Category.ACTIVATION
        self._nodes: list[Node | _Boundary] = []
        self._casts: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []
        self._shared: dict[int, Tensor | None] = {}
        self._frame: Frame | None = None
        self._recomputing = False
        self._phase = Phase.FORWARD
        self._begin = 0

    # What operations call

    def new(self, numel: int, dtype: DType, name: str, category: Category | None = None) -> Tensor:
        """A fresh tensor."""
        return Tensor(Storage(self, numel * dtype.num_bytes, name, category or self.category), numel, dtype)

    def scratch(self, name: str, *nbytes: int) -> None:
        """Buffers that live only inside a kernel: all at once, then gone."""
        held = [Storage(self, n, name, Category.WORKSPACE) for n in nbytes]
        del held

    def multiplies(self) -> None:
        """A matrix product runs; its output stands already."""
        if self.thread not in self.products:
            self.products[self.thread] = len(self.events)

    @property
    def drops_saved(self) -> bool:
        """Whether what is saved now is dropped, to be recomputed: inside a checkpoint's first forward."""
        return self._frame is not None and not self._recomputing

    def tracks(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> bool:
        """Whether an operation on these is recorded for backward."""
        if not self.grad_enabled:
            return False
        return a.requires_grad or (b is not None and b.requires_grad) or (c is not None and c.requires_grad)

    def save(self, *tensors: Tensor | None) -> Saved:
        """
        What an operation keeps for backward; call before its output is made if PyTorch saves inputs only.

        Raises:
            StopRecomputation: Nothing more is needed of this recomputation.
        """
        frame = self._frame
        if frame is not None and not self._recomputing:
            frame.total += 1
            return ()
        kept = tuple([x if x is None or x.node is None else x.detach() for x in tensors])
        if frame is not None:
            frame.recomputed.append(kept)
            if len(frame.recomputed) >= frame.total:
                raise StopRecomputation
        return kept

    def record(self, outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor | None], saved: Saved | None, run: Backward) -> None:
        """Put an operation on the graph. `saved` is what `save` returned; None if it saves nothing."""
        many = (outputs,) if isinstance(outputs, Tensor) else outputs
        if self._recomputing:
            for out in many:
                out.requires_grad = True
            return
        edges: list[tuple[Node | Tensor, int, DType] | None] = [
            (x.node or x, x.slot, x.dtype) if x is not None and x.requires_grad else None for x in inputs
        ]
        frame = self._frame if saved is not None else None
        node = Node(edges, saved or (), run, len(many), frame)
        if frame is not None:
            frame.nodes.append(node)
        for slot, out in enumerate(many):
            out.node, out.slot, out.requires_grad = node, slot, True
        self._nodes.append(node)

    def share(self, leaf: Tensor) -> None:
        """
        Say that two operations use a leaf: its gradient is accumulated once, when both have come.

        Source:
            torch@2.13.0, torch/csrc/autograd/engine.cpp, Engine::evaluate_function: a node runs when its dependencies are none.
        """
        if leaf.requires_grad:
            self._shared[id(leaf)] = None

    def keep(self, x: Tensor) -> None:
        """
        Hold a tensor that a custom function keeps as a plain attribute: it lives until the graph dies, whatever has run and whatever
        is checkpointed without reentering.
        """
        if not self._recomputing:
            self._kept.append(x)

    def cast(self, x: Tensor, dtype: DType, name: str = "cast", category: Category | None = None) -> Tensor:
        """`x.to(dtype)`: a copy, or x itself."""
        if x.dtype is dtype:
            return x
        out = self.new(x.numel, dtype, name, category)
        if self.tracks(x):
            self.record(out, (x,), None, _pass)  # validate_outputs casts the gradient back
        return out

    def lower(self, x: Tensor, name: str = "autocast copy") -> Tensor:
        """
        The operand that autocast hands to a product: x in the autocast dtype.

        Copies of trainable fp32 leaves are kept until autocast ends.

        Source:
            torch@2.13.0, aten/src/ATen/autocast_mode.cpp, cached_cast.
        """
        if self.autocast is None or x.dtype is self.autocast or x.dtype not in _FLOATS:
            return x
        is_leaf = x.node is None and (x.storage is None or isinstance(x, Leaf))
        if not (x.requires_grad and is_leaf and x.dtype is DType.FP32):
            return self.cast(x, self.autocast, name)
        key = id(x)
        if key not in self._casts:
            self._casts[key] = self.cast(x, self.autocast, "autocast copy of a leaf", Category.TEMPORARY)
        return self._casts[key]

    @contextmanager
    def autocasting(self, dtype: DType | None) -> Iterator[None]:
        """`torch.autocast("cuda", dtype)`; its cached copies go when the outermost one ends."""
        before, self.autocast = self.autocast, dtype or self.autocast
        try:
            yield
        finally:
            self.autocast = before
            if before is None:
                self._casts.clear()

    # Checkpointing

    def checkpoint(self, function: Callable[[Tensor], Tensor], x: Tensor, *, reentrant: bool) -> Tensor:
        """`torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)`."""
        return self._reentrant(function, x) if reentrant else self._non_reentrant(function, x)

    def _non_reentrant(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self._frame = Frame(function, x, self.autocast)
        try:
            return function(x)
        finally:
            self._frame = None

    def _reentrant(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.grad_enabled, before = False, self.grad_enabled
        try:
            out = function(x)
        finally:
            self.grad_enabled = before
        if self.tracks(x):
            self.record(out, (x,), self.save(x), Rerun(function, self.autocast))
        return out

    def _recompute(self, frame: Frame) -> None:
        """Run a region again, keep what it saves, and give it to the nodes of the first run."""
        self._frame, self._recomputing, self.grad_enabled = frame, True, True
        category, self.category = self.category, Category.ACTIVATION
        try:
            with self.autocasting(frame.autocast):
                x = frame.tensor
                frame.function(Leaf.of(x) if isinstance(x, Leaf) else x.detach(requires_grad=x.requires_grad))
        except StopRecomputation:
            pass
        finally:
            self._frame, self._recomputing, self.grad_enabled = None, False, False
            self.category = category
        for node, saved in zip(frame.nodes, frame.recomputed, strict=False):  # early stop: the last ones may be missing
            node.saved = saved
        frame.recomputed.clear()
        frame.nodes.clear()
        frame.done = True

    # Backward

    def backward(self, root: Tensor, grad: Tensor | None = None) -> None:
        """
        Run the graph from the last node to the first, as the engine does: by descending sequence number.

        Args:
            root: Where it begins.
            grad: The root's gradient; None for a loss, whose gradient of one is made here and dies with its first use.
        """
        assert root.node is not None
        root.node.grads[root.slot] = grad or self.new(root.numel, root.dtype, "gradient of the loss", Category.TEMPORARY)
        del grad, root
        enabled, self.grad_enabled = self.grad_enabled, False
        category, self.category = self.category, Category.TEMPORARY
        thread, self.thread = self.thread, "autograd"
        nodes = self._nodes
        while nodes:
            node = nodes.pop()
            if isinstance(node, _Boundary):
                node(self)
            elif node.grads[0] is not None or (len(node.grads) > 1 and any(node.grads)):
                self._run(node)
            else:  # without a gradient a node does nothing, but the engine visits it, and it lets go of what it saved
                node.saved, node.frame = (), None
        self.grad_enabled, self.category, self.thread = enabled, category, thread

    def _run(self, node: Node) -> None:
        if node.frame is not None and not node.frame.done:
            self._recompute(node.frame)
        grads, node.grads = node.grads, []
        edges = node.edges
        outputs = list(node.run(self, grads, node.saved))
        if node.frame is not None:  # torch/utils/checkpoint.py, unpack_hook: what was recomputed is handed over for good
            node.saved = ()
        for i, edge in enumerate(edges):
            grad = outputs[i]
            if grad is not None and edge is not None and grad.dtype is not edge[2]:
                outputs[i] = self.new(grad.numel, edge[2], "gradient cast")
        grad = None
        grads.clear()
        node.saved, node.frame = (), None
        for i, edge in enumerate(edges):
            grad, outputs[i] = outputs[i], None
            if grad is not None and edge is not None:
                self._deliver(edge[0], edge[1], grad)

    def _deliver(self, target: Node | Tensor, slot: int, grad: Tensor) -> None:
        if isinstance(target, Tensor):
            if id(target) in self._shared:
                held, self._shared[id(target)] = self._shared[id(target)], grad
                if held is None:
                    return  # the engine's buffer keeps it until the other user's gradient is there
                del self._shared[id(target)]
                # A view's base is a second reference to the storage, so that can_accumulate_inplace says no, for real tensors too.
                in_place = self.accumulates_in_place and not held.is_view and _is_last_reference(held)
                grad = held if in_place else self.new(grad.numel, grad.dtype, "gradient sum")
                del held
            if target.grad is None:
                target.grad = grad
                if grad.storage is not None and target.storage is None:
                    self.gradients.add(grad.storage.index)
            return
        held = target.grads[slot]
        if held is None:
            target.grads[slot] = grad
        elif not (self.accumulates_in_place and _is_last_reference(held)):
            total = self.new(held.numel, held.dtype, "gradient sum")
            target.grads[slot] = total

    @contextmanager
    def inner_graph(self) -> Iterator[None]:
        """A graph of its own, recorded with gradients on and gone afterwards: a backward inside a backward."""
        nodes, self._nodes = self._nodes, []
        kept, self._kept = self._kept, []
        enabled, self.grad_enabled = self.grad_enabled, True
        yield
        self._nodes, self._kept, self.grad_enabled = nodes, kept, enabled

    def free_graph(self) -> None:
        """The last reference to the loss goes, and with it the graph."""
        self._nodes.clear()
        self._kept.clear()

    # Segments

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Everything that happens inside belongs to this phase."""
        self._phase, self._begin = phase, len(self.events)
        yield
        self.close_segment(None, 1)

    @contextmanager
    def region(self, key: int, repeat: int) -> Iterator[None]:
        """
        One instance of a stretch of forward that the model repeats; its backward becomes a stretch of its own.

        Of a region that is repeated more than once, the first and the last instance are run.
        """
        self.close_segment(None, 1)
        self._nodes.append(_Boundary(key, repeat, opens=False))
        yield
        self.close_segment(key, repeat)
        self._nodes.append(_Boundary(key, repeat, opens=True))

    def close_segment(self, region: int | None, repeat: int) -> None:
        """What happened since the last close is one segment."""
        end = len(self.events)
        self.segments.append(Segment(self._phase, self._begin, end, region, repeat))
        self._begin = end


_FLOATS = (DType.FP32, DType.FP16, DType.BF16)


def _is_last_reference(held: Tensor) -> bool:
    """
    Whether nothing but the engine's buffer reads a gradient any more.

    Source:
        torch@2.13.0, torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace: both use counts are one.
    """
    tensor, storage = _references(held)
    return tensor <= _ALONE[0] and storage <= _ALONE[1]


def _references(held: Tensor) -> tuple[int, int]:
    """Python's counts of a gradient and of its memory; how many of them are its readers' depends on the interpreter."""
    return sys.getrefcount(held), sys.getrefcount(held.storage)


def _references_of_one() -> tuple[int, int]:
    """The counts where only a buffer holds a gradient, taken as `_deliver` takes them."""
    buffer = [Tape().new(1, DType.FP32, "gradient")]
    held = buffer[0]
    return _through(held)


def _through(held: Tensor) -> tuple[int, int]:
    return _references(held)


_ALONE = _references_of_one()


class _Boundary:
    """Stands between nodes where a repeated region begins or ends, so that backward's events are split there too."""

    def __init__(self, region: int, repeat: int, *, opens: bool) -> None:
        self.region, self.repeat, self.opens = region, repeat, opens

    def __call__(self, tape: Tape) -> None:
        tape.close_segment(None if self.opens else self.region, 1 if self.opens else self.repeat)


def _pass(tape: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    return (grads[0],)

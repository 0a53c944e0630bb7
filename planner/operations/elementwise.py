"""
Element by element: sums, products, activations, dropout, and the reshaping between them.

Source:
    torch@2.13.0, tools/autograd/derivatives.yaml: what each saves and how many tensors its backward makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.dtypes import DType, promote
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor


def add(t: Tape, a: Tensor, b: Tensor, name: str = "sum") -> Tensor:
    """a + b, of equal numel; saves nothing."""
    out = t.new(a.numel, promote(a.dtype, b.dtype), name)
    if t.tracks(a, b):
        t.record(out, (a, b), None, _to_both)
    return out


def add_constant(t: Tape, a: Tensor, dtype: DType | None = None, name: str = "sum") -> Tensor:
    """a plus something that is no part of the graph: a scalar, a mask, a position table."""
    out = t.new(a.numel, dtype or a.dtype, name)
    if t.tracks(a):
        t.record(out, (a,), None, _to_first)
    return out


def add_broadcast(t: Tape, a: Tensor, b: Tensor, copies: int, name: str = "sum") -> Tensor:
    """a + b where b is broadcast to so many copies, over which its gradient is summed."""
    out = t.new(a.numel, promote(a.dtype, b.dtype), name)
    if t.tracks(a, b):
        numel = b.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = _first(grads)
            return g, t.new(numel, g.dtype, "gradient of a broadcast term") if copies > 1 and b_wants else g

        b_wants = b.requires_grad
        t.record(out, (a, b), None, backward)
    return out


def subtract(t: Tape, a: Tensor, b: Tensor, name: str = "difference") -> Tensor:
    """a - b, of equal numel; saves nothing, and negates the gradient of b."""
    out = t.new(a.numel, promote(a.dtype, b.dtype), name)
    if t.tracks(a, b):
        wants = b.requires_grad

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = _first(grads)
            return g, t.new(g.numel, g.dtype, "negated gradient") if wants else None

        t.record(out, (a, b), None, backward)
    return out


def where(t: Tape, a: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """torch.where(mask, a, constant) or masked_fill: saves the mask (None: a buffer that rests); its gradient is filled in turn."""
    tracked = t.tracks(a)
    saved = t.save(mask) if tracked else None
    out = t.new(a.numel, a.dtype, name)
    if tracked:
        t.record(out, (a,), saved, _fresh)
    return out


def mul(t: Tape, a: Tensor, b: Tensor, name: str = "product") -> Tensor:
    """a * b, of equal numel; each is saved if the other needs a gradient."""
    tracked = t.tracks(a, b)
    saved = t.save(b if a.requires_grad else None, a if b.requires_grad else None) if tracked else None
    out = t.new(a.numel, promote(a.dtype, b.dtype), name)
    if tracked:
        t.record(out, (a, b), saved, _mul_backward)
    return out


def _mul_backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    g = _first(grads)
    b, a = saved
    da = None if b is None else t.new(g.numel, promote(g.dtype, b.dtype), "gradient of a product")
    db = None if a is None else t.new(g.numel, promote(g.dtype, a.dtype), "gradient of a product")
    return da, db


def mul_broadcast(t: Tape, a: Tensor, b: Tensor, name: str = "product") -> Tensor:
    """a * b where b is smaller and broadcast; b's gradient is a full product that is then summed."""
    tracked = t.tracks(a, b)
    saved = t.save(b if a.requires_grad else None, a if b.requires_grad else None) if tracked else None
    out = t.new(a.numel, promote(a.dtype, b.dtype), name)
    if tracked:
        numel = b.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = _first(grads)
            b, a = saved
            da = None if b is None else t.new(g.numel, promote(g.dtype, b.dtype), "gradient of a product")
            if a is None:
                return da, None
            full = t.new(g.numel, promote(g.dtype, a.dtype), "gradient of a product")
            db = t.new(numel, full.dtype, "gradient of a broadcast factor")
            return da, db

        t.record(out, (a, b), saved, backward)
    return out


def scale(t: Tape, a: Tensor, name: str = "scaled") -> Tensor:
    """a times a Python number; saves nothing."""
    out = t.new(a.numel, a.dtype, name)
    if t.tracks(a):
        t.record(out, (a,), None, _fresh)
    return out


def negative(t: Tape, a: Tensor) -> Tensor:
    """-a."""
    return scale(t, a, "negated")


def square(t: Tape, a: Tensor) -> Tensor:
    """
    a.pow(2): saves a; its backward holds three full tensors at once, `grad * (2 * a.pow(1))`. Autocast takes powers in fp32.

    Source:
        torch@2.13.0, aten/src/ATen/autocast_mode.h, fp32 list.
    """
    if t.autocast is not None:
        a = t.cast(a, DType.FP32, "base of a power in fp32")
    tracked = t.tracks(a)
    saved = t.save(a) if tracked else None
    out = t.new(a.numel, a.dtype, "square")
    if tracked:
        t.record(out, (a,), saved, _square_backward)
    return out


def _square_backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    g = _first(grads)
    power = t.new(g.numel, g.dtype, "power")
    twice = t.new(g.numel, g.dtype, "scaled power")
    out = t.new(g.numel, g.dtype, "gradient of a square")
    del power, twice
    return (out,)


def row_mean(t: Tape, a: Tensor, rows: int) -> Tensor:
    """a.mean(-1, keepdim=True): one value a row; its backward spreads and divides."""
    out = t.new(rows, a.dtype, "mean of rows")
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(numel, _first(grads).dtype, "gradient of a mean"),)

        t.record(out, (a,), None, backward)
    return out


def rsqrt(t: Tape, a: Tensor) -> Tensor:
    """1 / sqrt(a): saves its result; backward makes three tensors of its size."""
    out = t.new(a.numel, a.dtype, "reciprocal root")
    if t.tracks(a):
        t.record(out, (a,), t.save(out), _square_backward)
    return out


def activation(t: Tape, a: Tensor, name: str) -> Tensor:
    """
    One kernel forward and one backward, saving its input: silu, gelu in both forms, relu6.

    Source:
        transformers@5.23.0, activations.py, ACT2FN.
    """
    tracked = t.tracks(a)
    saved = t.save(a) if tracked else None
    out = t.new(a.numel, a.dtype, name)
    if tracked:
        t.record(out, (a,), saved, _fresh)
    return out


def activation_of_result(t: Tape, a: Tensor, name: str) -> Tensor:
    """One kernel each way, saving its result: relu, sigmoid, tanh."""
    out = t.new(a.numel, a.dtype, name)
    if t.tracks(a):
        t.record(out, (a,), t.save(out), _fresh)
    return out


def gelu_new(t: Tape, a: Tensor) -> Tensor:
    """
    GELU as Python spells it: 0.5 * a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a ** 3))).

    Source:
        transformers@5.23.0, activations.py, NewGELUActivation.forward.
    """
    half = scale(t, a, "half")
    return mul(t, half, add_constant(t, activation_of_result(t, scale(t, add(t, a, scale(t, square(t, a)))), "tanh")), "gelu")


def gelu_fast(t: Tape, a: Tensor) -> Tensor:
    """
    The same with the cube as products: 0.5 * a * (1 + tanh(a * sqrt(2 / pi) * (1 + 0.044715 * a * a))).

    Source:
        transformers@5.23.0, activations.py, FastGELUActivation.forward.
    """
    half = scale(t, a, "half")
    tanh = activation_of_result(t, mul(t, scale(t, a), add_constant(t, mul(t, scale(t, a), a))), "tanh")
    return mul(t, half, add_constant(t, tanh), "gelu")


def relu_squared(t: Tape, a: Tensor) -> Tensor:
    """torch.square(relu(a))."""
    return square(t, activation_of_result(t, a, "relu"))


_ACTIVATIONS: dict[str, Callable[[Tape, Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "relu2": relu_squared,
    "relu": lambda t, a: activation_of_result(t, a, "relu"),
}


def act_fn(t: Tape, a: Tensor, name: str) -> Tensor:
    """The activation that config.json names."""
    special = _ACTIVATIONS.get(name)
    return special(t, a) if special else activation(t, a, name)


def dropout(t: Tape, a: Tensor, p: float) -> Tensor:
    """
    `native_dropout`: a copy, and a mask of one byte an element which backward keeps. Nothing for p = 0 (PEFT puts an Identity there).
    """
    if not p:
        return a
    out = t.new(a.numel, a.dtype, "dropout")
    mask = t.new(a.numel, DType.BOOL, "dropout mask")
    if t.tracks(a):
        t.record(out, (a,), t.save(mask), _fresh)
    return out


def clamp(t: Tape, a: Tensor, bounds: int) -> Tensor:
    """a.clamp(min, max): saves a; backward compares with each bound and picks by the result."""
    tracked = t.tracks(a)
    saved = t.save(a) if tracked else None
    out = t.new(a.numel, a.dtype, "clamped")
    if tracked:

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = _first(grads)
            within = [t.new(g.numel, DType.BOOL, "inside the bounds") for _ in range(bounds)]
            out = t.new(g.numel, g.dtype, "gradient")
            del within
            return (out,)

        t.record(out, (a,), saved, backward)
    return out


def copy(t: Tape, a: Tensor, name: str = "copy") -> Tensor:
    """clone() or contiguous() of a strided view: a copy whose backward hands its gradient on."""
    out = t.new(a.numel, a.dtype, name)
    if t.tracks(a):
        t.record(out, (a,), None, _to_first)
    return out


def concatenate(t: Tape, parts: Sequence[Tensor], name: str = "concatenation") -> Tensor:
    """torch.cat: backward hands out views of one gradient."""
    numel = sum(p.numel for p in parts)
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = promote(dtype, part.dtype)
    out = t.new(numel, dtype, name)
    if t.tracks(*parts):
        sizes = [p.numel for p in parts]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = _first(grads)
            return [Tensor(g.storage, n, g.dtype) for n in sizes]

        t.record(out, tuple(parts), None, backward)
    return out


def part(t: Tape, a: Tensor, numel: int) -> Tensor:
    """a[..., i:j], a view: its backward makes a zero tensor of a's full size."""
    out = Tensor(a.storage, numel, a.dtype)
    if t.tracks(a):
        full = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(full, _first(grads).dtype, "gradient of a slice"),)

        t.record(out, (a,), None, backward)
    return out


def split(t: Tape, a: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """a.split or a.chunk: views; backward concatenates their gradients once."""
    outs = [Tensor(a.storage, n, a.dtype) for n in sizes]
    if t.tracks(a):
        full = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            dtype = next(g.dtype for g in grads if g is not None)
            zeros = [t.new(n, dtype, "zeros") for n, g in zip(sizes, grads, strict=True) if g is None]
            out = t.new(full, dtype, "gradient of a split")
            del zeros
            return (out,)

        t.record(outs, (a,), None, backward)
    return outs


def expand(t: Tape, a: Tensor, times: int) -> Tensor:
    """Broadcast to so many copies without making them: a view; backward sums over the copies."""
    if times == 1:
        return a
    out = Tensor(a.storage, a.numel * times, a.dtype)
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(numel, _first(grads).dtype, "gradient of a broadcast"),)

        t.record(out, (a,), None, backward)
    return out


def scale_in_place(t: Tape, a: Tensor) -> Tensor:
    """a *= a Python number: the same memory in another place of the graph."""
    out = Tensor(a.storage, a.numel, a.dtype)
    if t.tracks(a):
        t.record(out, (a,), None, _fresh)
    return out


def add_in_place(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """a += b: the same memory in another place of the graph."""
    out = Tensor(a.storage, a.numel, a.dtype)
    if t.tracks(a, b):
        t.record(out, (a, b), None, _to_both)
    return out


def repeat(t: Tape, a: Tensor, times: int) -> Tensor:
    """Expanded and made contiguous: `times` copies; backward sums them."""
    if times == 1:
        return a
    out = t.new(a.numel * times, a.dtype, "repeated")
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(numel, _first(grads).dtype, "gradient of a repetition"),)

        t.record(out, (a,), None, backward)
    return out


def _first(grads: Grads) -> Tensor:
    g = grads[0]
    assert g is not None
    return g


def _to_first(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    return (grads[0],)


def _to_both(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    return grads[0], grads[0]


def _fresh(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
    g = _first(grads)
    return (t.new(g.numel, g.dtype, "gradient"),)

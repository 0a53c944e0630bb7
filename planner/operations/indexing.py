"""
Rows picked, sorted and summed by index, as routing does.

Source:
    torch@2.13.0, torch/csrc/autograd/FunctionsManual.cpp: index_backward, value_selecting_reduction_backward and their kin scatter
    in place, but out of place into a second tensor where tensor subclasses are traced.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.schedule import Tape
from planner.tensors import Backward, Grads, Saved, Tensor


def take(t: Tape, a: Tensor, indices: Tensor, numel: int, name: str) -> Tensor:
    """a[indices], a copy: saves the indices; backward scatters into zeros of a's size."""
    tracked = t.tracks(a)
    saved = t.save(indices) if tracked else None
    out = t.new(numel, a.dtype, name)
    if tracked:
        t.record(out, (a,), saved, _scatter(a.numel))
    return out


def top_k(t: Tape, a: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """torch.topk: values and int64 indices; backward scatters into zeros of a's size."""
    values = t.new(numel, a.dtype, "values of the best")
    indices = t.new(numel, DType.INT64, "indices of the best")
    if t.tracks(a):
        t.record(values, (a,), t.save(indices), _scatter(a.numel))
    return values, indices


def gather(t: Tape, a: Tensor, indices: Tensor, name: str) -> Tensor:
    """a.gather(-1, indices): one value an index."""
    return take(t, a, indices, indices.numel, name)


def best(t: Tape, scores: Tensor, numel: int) -> Tensor:
    """torch.topk(scores, k)[1]: the values, and with them the graph behind them, are dropped."""
    values = t.new(numel, scores.dtype, "values of the best")
    del values
    return t.new(numel, DType.INT64, "indices of the best")


def masked(t: Tape, a: Tensor, mask: Tensor) -> Tensor:
    """a.masked_fill(mask, constant): saves the mask; backward fills the gradient."""
    return _filled(t, a, mask, "masked scores")


def scatter_constant(t: Tape, a: Tensor, indices: Tensor, name: str) -> Tensor:
    """a.scatter(-1, indices, constant), a copy: saves the indices."""
    return _filled(t, a, indices, name)


def _filled(t: Tape, a: Tensor, where: Tensor, name: str) -> Tensor:
    tracked = t.tracks(a)
    saved = t.save(where) if tracked else None
    out = t.new(a.numel, a.dtype, name)
    if tracked:
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (t.new(numel, g.dtype, "filled gradient"),)

        t.record(out, (a,), saved, backward)
    return out


def _scatter(numel: int) -> Backward:
    def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
        g = grads[0]
        assert g is not None
        zeros = t.new(numel, g.dtype, "scattered gradient")
        if not t.accumulates_in_place:
            zeros = t.new(numel, g.dtype, "scattered gradient")
        return (zeros,)

    return backward


def row_sum(t: Tape, a: Tensor, numel: int) -> Tensor:
    """
    a.view(T, k, d).sum(1), in fp32 under autocast; its backward spreads the gradient over the rows and copies it out.
    """
    dtype = a.dtype if t.autocast is None else DType.FP32
    out = t.new(numel, dtype, "sum of rows")
    if t.tracks(a):
        full, given = a.numel, a.dtype

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(full, given, "gradient of rows"),)

        t.record(out, (a,), None, backward)
    return out


def normalised(t: Tape, values: Tensor, rows: int, *, stabilised: bool = False) -> Tensor:
    """
    values /= values.sum(-1), in place; as the division keeps what it was given for backward, that is copied first.

    Args:
        t: The tape.
        values: Weights [T, k].
        rows: T.
        stabilised: Whether a small number is added to the sums.
    """
    total = t.new(rows, values.dtype if t.autocast is None else DType.FP32, "sums of the best")
    if stabilised:
        total = t.new(rows, total.dtype, "sums of the best")
    if not t.tracks(values):
        return values
    kept = t.new(values.numel, values.dtype, "values before division")
    out = Tensor(values.storage, values.numel, values.dtype)

    def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
        g = grads[0]
        assert g is not None
        return (t.new(g.numel, g.dtype, "gradient of a quotient"),)

    t.record(out, (values,), t.save(kept, total), backward)
    return out


def written(t: Tape, base: Tensor, source: Tensor) -> Tensor:
    """
    base[...] = source: the same memory. Its backward copies the whole gradient, and the part that was written once more.

    Source:
        torch@2.13.0, torch/csrc/autograd/functions/tensor.cpp, CopySlices::apply_impl.
    """
    out = Tensor(base.storage, base.numel, base.dtype)
    if t.tracks(base, source):
        whole, numel = base.numel, source.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            rest = t.new(whole, g.dtype, "gradient beside what was written")
            return rest, t.new(numel, g.dtype, "gradient of what was written")

        t.record(out, (base, source), None, backward)
    return out

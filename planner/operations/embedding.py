"""
Tables of embeddings, with and without an adapter.

Shapes: T looked-up rows of width d, out of V.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.operations.elementwise import add, scale
from planner.operations.linear import Lora, product
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor


def lookup(t: Tape, table: Tensor, rows: int, width: int, name: str = "embedding", *, transposed: bool = False) -> Tensor:
    """
    F.embedding: a row of the table for each of so many indices; its backward makes a gradient of the whole table.

    Args:
        t: The tape.
        table: V * d elements.
        rows: T.
        width: d.
        name: What the rows are.
        transposed: The table is a transposed view of the parameter: its gradient is copied into the parameter's own layout.

    Source:
        torch@2.13.0, native/cuda/Embedding.cu embedding_dense_backward_cuda; autograd/utils/grad_layout_contract.h.
    """
    out = t.new(rows * width, table.dtype, name)
    if t.tracks(table):
        numel, dtype = table.numel, table.dtype

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            grad = t.new(numel, dtype, "gradient of the embedding")
            return (t.new(numel, dtype, "gradient of the embedding, transposed") if transposed else grad,)

        t.record(out, (table,), None, backward)
    return out


def adapted_lookup(t: Tape, table: Tensor, rows: int, width: int, lora: Lora, *, scaled: bool) -> Tensor:
    """
    The rows plus B(A[indices]): no dropout, no cast before; the base module's own scale is applied to both.

    Source:
        peft@0.21.2, tuners/lora/layer.py, Embedding.forward.
    """
    result = lookup(t, table, rows, width)
    if scaled:
        result = scale(t, result, "scaled embedding")
    dtype = result.dtype
    after_a = lookup(t, lora.a, rows, lora.rank, "adapter bottleneck", transposed=True)
    output = scale(t, product(t, after_a, lora.b, None, lora.rank, width, "adapter output"), "scaled adapter output")
    if scaled:
        output = scale(t, output, "scaled adapter output")
    result = add(t, result, output, "embedding with adapter")
    return t.cast(result, dtype, "embedding with adapter, cast")

"""
Falcon's attention and layers: keys and values picked from a fused projection, a mask that is always there, kernels called directly.

As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention
from planner.dtypes import DType, promote
from planner.operations.attention import Shape, attend, batched, softmax_kernel
from planner.operations.elementwise import add, add_constant, add_in_place, copy, dropout, expand, part, scale_in_place
from planner.operations.indexing import take
from planner.operations.math_kernel import math_attention
from planner.operations.rotary import apply_rotary
from planner.tensors import Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def falcon_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module.

    Source:
        transformers@5.23.0, models/falcon/modeling_falcon.py, FalconAttention.forward.
    """
    t, batch, positions = run.t, run.batch, run.positions
    fused = run.linear(spec.fused, x)
    q, k, v = _split_heads(run, fused, spec)
    if positions.cos is not None and positions.sin is not None:
        q, k, _ = apply_rotary(t, q, k, positions.cos, positions.sin, spec)
    kv_heads = 1 if spec.fused_layout == "multi_query" else spec.heads
    shape = Shape(batch.size, batch.length, spec.heads, kv_heads, spec.head_dim, spec.head_dim)
    if batch.kernel == "eager":
        return _eager(run, q, k, v, shape, x.dtype)
    if kv_heads == 1 and batch.kernel != "flash_attention_2":
        assert positions.mask is not None
        out = copy(t, math_attention(t, q, k, v, shape, positions.mask), "attention output by tokens")
    else:
        out = attend(t, q, k, v, shape, positions, batch.kernel, spec)
    return run.linear(spec.out, out)


def _split_heads(run: Runner, fused: Tensor, spec: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """
    Queries, keys and values: views, but for what is picked by a list of indices, or broadcast to all heads and made whole.

    Source:
        transformers@5.23.0, models/falcon/modeling_falcon.py, FalconAttention._split_heads.
    """
    t, tokens = run.t, run.batch.size * run.batch.length
    q_numel, kv_numel = tokens * spec.heads * spec.head_dim, tokens * spec.kv_heads * spec.head_dim
    if spec.fused_layout == "slices":
        return part(t, fused, q_numel), part(t, fused, kv_numel), part(t, fused, kv_numel)
    q = part(t, fused, q_numel)
    k = take(t, fused, t.new(1, DType.INT64, "index"), kv_numel, "picked keys")
    v = take(t, fused, t.new(1, DType.INT64, "index"), kv_numel, "picked values")
    if spec.fused_layout == "multi_query":
        return q, k, v
    k, v = expand(t, k, spec.heads // spec.kv_heads), expand(t, v, spec.heads // spec.kv_heads)
    return copy(t, q, "queries"), copy(t, k, "keys"), copy(t, v, "values")


def _eager(run: Runner, q: Tensor, k: Tensor, v: Tensor, shape: Shape, dtype: DType) -> Tensor:
    """Scores as a tensor, scaled in place; softmax in the type of the layer's input, without dropout."""
    t, mask = run.t, run.positions.mask
    assert mask is not None
    scores = scale_in_place(t, batched(t, q, expand(t, t.lower(k), shape.groups), shape, shape.scores, strided=(True, True)))
    scores = _softmax(run, add_constant(t, scores, promote(scores.dtype, mask.dtype), "masked scores"), dtype)
    run.held.append(scores)
    return _merged(run, batched(t, scores, expand(t, t.lower(v), shape.groups), shape, _values(shape), strided=(False, True)))


def _softmax(run: Runner, x: Tensor, dtype: DType) -> Tensor:
    return softmax_kernel(run.t, run.t.cast(x, dtype, "scores in the type of the layer"), dtype)


def _values(shape: Shape) -> int:
    return shape.tokens * shape.heads * shape.value_dim


def _merged(run: Runner, x: Tensor) -> Tensor:
    """Heads put side by side, then the output projection."""
    return run.linear(run.layer.attention.out, copy(run.t, x, "attention output"))


def falcon(run: Runner, x: Tensor) -> Tensor:
    """
    x + (mlp(norm'(x)) + attention(norm(x))), where both may share one norm, and the inner sum is made in place.

    Source:
        transformers@5.23.0, models/falcon/modeling_falcon.py, FalconDecoderLayer.forward.
    """
    t, layer = run.t, run.layer
    attention_normed = run.norm(layer.norms[0], x)
    mlp_normed = run.norm(layer.norms[1], x) if len(layer.norms) > 1 else attention_normed
    attention = run.self_attention(attention_normed, layer.attention)
    mlp = run.feed_forward(mlp_normed)
    mlp = add_in_place(t, mlp, attention)
    return add(t, x, dropout(t, mlp, layer.dropout), "residual stream")

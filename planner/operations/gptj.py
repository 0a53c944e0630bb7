"""
GPT-J's and GPT-Neo's attention: queries and keys are taken to fp32 for their product, which only autocast undoes.

As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention
from planner.dtypes import DType, promote
from planner.operations.attention import Shape, attend, batched, plain_softmax
from planner.operations.elementwise import (
    add,
    add_constant,
    concatenate,
    copy,
    dropout,
    mul_broadcast,
    negative,
    part,
    scale,
    where,
)
from planner.tensors import Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def gptj_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module, but for its last dropout: tables of all positions are copied in every layer, and keys turn before queries.

    Source:
        transformers@5.23.0, models/gptj/modeling_gptj.py, GPTJAttention.forward.
    """
    t = run.t
    query, key, value = run.linear(spec.q, x), run.linear(spec.k, x), run.linear(spec.v, x)
    length, width = run.batch.length, spec.rotary_dim
    embed_positions = t.new(spec.rotary_positions * width, DType.FP32, "sines and cosines of all positions")
    position_ids = t.new(length * width, DType.INT64, "position ids")
    sincos = t.cast(t.new(length * width, DType.FP32, "sines and cosines"), key.dtype)
    held: tuple[Tensor, ...] = ()
    if width < spec.head_dim:
        k_rot, k_pass = _parts(run, key, spec)
        q_rot, q_pass = _parts(run, query, spec)
        k_rot = _turn(run, k_rot, sincos)
        q_rot = _turn(run, q_rot, sincos)
        key = concatenate(t, (k_rot, k_pass), "partly rotated")
        query = concatenate(t, (q_rot, q_pass), "partly rotated")
        held = (k_rot, k_pass, q_rot, q_pass)
    else:
        key = _turn(run, key, sincos)
        query = _turn(run, query, sincos)
    out = _product(run, query, key, value, spec)
    del embed_positions, position_ids, held
    return out


def gpt_neo_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module, but for its last dropout: no positions, and a causal mask by `where` before the mask that is added.

    Source:
        transformers@5.23.0, models/gpt_neo/modeling_gpt_neo.py, GPTNeoSelfAttention.forward.
    """
    query, key, value = run.linear(spec.q, x), run.linear(spec.k, x), run.linear(spec.v, x)
    return _product(run, query, key, value, spec)


def _product(run: Runner, query: Tensor, key: Tensor, value: Tensor, spec: Attention) -> Tensor:
    t, batch = run.t, run.batch
    shape = Shape(batch.size, batch.length, spec.heads, spec.heads, spec.head_dim, spec.head_dim)
    if batch.kernel == "eager":
        out = copy(t, _scores(run, query, key, value, shape, spec), "attention output")
    else:
        out = attend(t, query, key, value, shape, run.positions, batch.kernel, spec)
    return run.linear(spec.out, out)


def _scores(run: Runner, query: Tensor, key: Tensor, value: Tensor, shape: Shape, spec: Attention) -> Tensor:
    """GPTJAttention._attn, GPTNeoSelfAttention._attn."""
    t, mask = run.t, run.positions.mask
    assert mask is not None
    query, key = t.cast(query, DType.FP32, "query in fp32"), t.cast(key, DType.FP32, "key in fp32")
    weights = batched(t, query, key, shape, shape.scores, strided=(True, True))
    if spec.style == "gptj":
        weights = scale(t, weights, "scaled scores")
    else:
        weights = where(t, weights, None, "causal scores")
    weights = add_constant(t, weights, promote(weights.dtype, mask.dtype), "masked scores")
    weights = plain_softmax(t, weights)
    weights = t.cast(weights, value.dtype, "attention weights")
    weights = dropout(t, weights, spec.dropout)
    run.held.append(weights)
    return batched(t, weights, value, shape, shape.tokens * shape.heads * shape.value_dim, strided=(False, True))


def _parts(run: Runner, x: Tensor, spec: Attention) -> tuple[Tensor, Tensor]:
    turning = x.numel // spec.head_dim * spec.rotary_dim
    return part(run.t, x, turning), part(run.t, x, x.numel - turning)


def _turn(run: Runner, x: Tensor, sincos: Tensor) -> Tensor:
    """
    Positions turned into every two elements, with tables repeated for each call.

    Source:
        transformers@5.23.0, models/gptj/modeling_gptj.py, apply_rotary_pos_emb, rotate_every_two.
    """
    t = run.t
    sin, cos = t.new(sincos.numel, sincos.dtype, "repeated sines"), t.new(sincos.numel, sincos.dtype, "repeated cosines")
    return add(t, mul_broadcast(t, x, cos), mul_broadcast(t, _rotate_every_two(run, x), sin), "rotated")


def _rotate_every_two(run: Runner, x: Tensor) -> Tensor:
    t = run.t
    first, second = part(t, x, x.numel // 2), part(t, x, x.numel // 2)
    return concatenate(t, (negative(t, second), first), "every two rotated")


def gptj(run: Runner, x: Tensor) -> Tensor:
    """
    attention(norm(x)) + mlp(norm(x)) + x.

    Source:
        transformers@5.23.0, models/gptj/modeling_gptj.py, GPTJBlock.forward.
    """
    t = run.t
    normed = run.norm(run.layer.norms[0], x)
    attention = run.attention(normed)
    mlp = run.mlp(normed)
    return add(t, add(t, attention, mlp, "block outputs"), x, "residual stream")

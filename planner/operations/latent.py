"""
Multi-head latent attention: queries, keys and values come out of low-rank projections, and one small part of each key turns.

Shapes: queries and keys [B, H, S, n + r] with n still and r turning elements; values [B, H, S, v].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention, Latent
from planner.dtypes import DType
from planner.operations.attention import Shape, attend
from planner.operations.elementwise import add, concatenate, copy, expand, mul_broadcast, part, split, subtract
from planner.operations.indexing import written
from planner.operations.rotary import apply_rotary
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def latent_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module; every name lives until it returns.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, DeepseekV3Attention.forward; models/deepseek_v2.
    """
    t, batch, sizes = run.t, run.batch, spec.latent
    assert sizes is not None and spec.k_norm is not None
    tokens = batch.size * batch.length
    q_states = _queries(run, x, spec)
    q_pass, q_rot = split(t, q_states, (tokens * spec.heads * sizes.still, tokens * spec.heads * sizes.turning))
    compressed = run.linear(spec.k, x)
    kv_nope, k_rot = split(t, compressed, (tokens * sizes.rank, tokens * sizes.turning))
    kv_nope = run.norm(spec.k_norm, kv_nope)
    q_rot, k_rot = _turned(run, q_rot, k_rot, spec)
    query = concatenate(t, (q_pass, q_rot), "queries")
    key, value = _expanded(run, kv_nope, k_rot, spec, sizes, tokens)
    out = _attended(run, query, key, value, spec, sizes)
    return run.linear(spec.out, out)


def _queries(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    if spec.q_norm is None:
        return run.linear(spec.q, x)
    return run.linear(spec.q, run.norm(spec.q_norm, run.linear(spec.q_down, x)))


def _turned(run: Runner, q: Tensor, k: Tensor, spec: Attention) -> tuple[Tensor, Tensor]:
    t, cos, sin = run.t, run.positions.cos, run.positions.sin
    assert cos is not None and sin is not None
    if spec.rotary_style == "complex":
        return as_complex(t, q, cos), as_complex(t, k, cos)
    if spec.rotary_style == "pairs":
        return _by_pairs(t, q, cos, sin), _by_pairs(t, k, cos, sin)
    q, k, _ = apply_rotary(t, q, k, cos, sin, spec)
    return q, k


def _by_pairs(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    Even and odd elements turned apart, then put together.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, apply_rotary_pos_emb_interleave.
    """
    even, odd = part(t, x, x.numel // 2), part(t, x, x.numel // 2)
    first = subtract(t, mul_broadcast(t, even, cos), mul_broadcast(t, odd, sin), "even elements rotated")
    second = add(t, mul_broadcast(t, odd, cos), mul_broadcast(t, even, sin), "odd elements rotated")
    return concatenate(t, (first, second), "rotated")


def as_complex(t: Tape, x: Tensor, rotations: Tensor) -> Tensor:
    """
    Pairs read as complex fp32 numbers, times unit complex numbers.

    Source:
        transformers@5.23.0, models/deepseek_v2/modeling_deepseek_v2.py, apply_rotary_emb.
    """
    wide = t.cast(x, DType.FP32, "pairs in fp32")
    out = t.new(wide.numel, DType.FP32, "rotated pairs")
    if t.tracks(wide):
        numel = wide.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(numel, DType.FP32, "gradient of pairs"),)

        t.record(out, (wide,), t.save(rotations), backward)
    return t.cast(out, x.dtype, "rotated")


def _expanded(run: Runner, latent: Tensor, k_rot: Tensor, spec: Attention, sizes: Latent, tokens: int) -> tuple[Tensor, Tensor]:
    """
    Keys and values from the latent; the turning part, one for all heads, is written beside each head's still part.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, DeepseekV3Attention.expand_kv.
    """
    t = run.t
    both = run.linear(spec.v, latent)
    still, value = split(t, both, (tokens * spec.heads * sizes.still, tokens * spec.heads * sizes.value))
    k_rot = expand(t, k_rot, spec.heads)
    key = t.new(still.numel + k_rot.numel, both.dtype, "keys")
    return written(t, written(t, key, still), k_rot), value


def _attended(run: Runner, q: Tensor, k: Tensor, v: Tensor, spec: Attention, sizes: Latent) -> Tensor:
    """
    Scores and values; FlashAttention's package takes values that are padded to the width of the keys.

    Source:
        transformers@5.23.0, integrations/flash_attention.py, flash_attention_forward.
    """
    t, batch = run.t, run.batch
    pads = batch.kernel == "flash_attention_2" and sizes.value != spec.head_dim
    value_dim = spec.head_dim if pads else sizes.value
    shape = Shape(batch.size, batch.length, spec.heads, spec.heads, spec.head_dim, value_dim, heads_first=True)
    if not pads:
        return attend(t, q, k, v, shape, run.positions, batch.kernel, spec, run.held)
    numel = v.numel
    v = _padded(t, v, k.numel)
    out = attend(t, q, k, v, shape, run.positions, batch.kernel, spec, run.held)
    return copy(t, part(t, out, numel), "attention output")


def _padded(t: Tape, x: Tensor, numel: int) -> Tensor:
    """F.pad with zeros: a copy; backward is a view."""
    out = t.new(numel, x.dtype, "padded values")
    if t.tracks(x):
        given = x.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (Tensor(g.storage, given, g.dtype),)

        t.record(out, (x,), None, backward)
    return out

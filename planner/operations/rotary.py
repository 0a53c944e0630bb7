"""
Rotary positions, as each family spells `apply_rotary_pos_emb`.

What a family's attention keeps a name for while scores are computed is handed back as `held`.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.decoder import Attention
from planner.dtypes import DType
from planner.operations.elementwise import add, concatenate, mul_broadcast, negative, part, split, subtract
from planner.schedule import Tape
from planner.tensors import Tensor

Rotated = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""Queries, keys, and what else keeps a name."""


def rotary_tables(t: Tape, length: int, width: int, dtype: DType) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines [1, S, width], computed in fp32 and cast to the hidden states' dtype.

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, LlamaRotaryEmbedding.forward.
    """
    table = length * width
    positions = t.new(length, DType.FP32, "positions in fp32")
    freqs = t.new(table // 2, DType.FP32, "angles")
    t.multiplies()
    del positions
    emb = t.new(table, DType.FP32, "angles twice")
    raw = t.new(table, DType.FP32, "cosines")
    cos = t.new(table, DType.FP32, "cosines")
    del raw
    raw = t.new(table, DType.FP32, "sines")
    sin = t.new(table, DType.FP32, "sines")
    del raw
    cos, sin = t.cast(cos, dtype, "rotary cosines"), t.cast(sin, dtype, "rotary sines")
    del freqs, emb
    return cos, sin


def _single_tables(t: Tape, length: int, width: int, dtype: DType) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines of each angle once, [1, S, width / 2].

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssRotaryEmbedding.forward.
    """
    table = length * (width // 2)
    positions = t.new(length, DType.FP32, "positions in fp32")
    freqs = t.new(table, DType.FP32, "angles")
    t.multiplies()
    del positions
    raw = t.new(table, DType.FP32, "cosines")
    cos = t.new(table, DType.FP32, "cosines")
    raw = t.new(table, DType.FP32, "sines")
    sin = t.new(table, DType.FP32, "sines")
    del raw
    cos, sin = t.cast(cos, dtype, "rotary cosines"), t.cast(sin, dtype, "rotary sines")
    del freqs
    return cos, sin


def _complex_tables(t: Tape, length: int, width: int, dtype: DType) -> tuple[Tensor, Tensor]:
    """
    Unit complex numbers [1, S, width / 2], which are both cosines and sines.

    Source:
        transformers@5.23.0, models/deepseek_v2/modeling_deepseek_v2.py, DeepseekV2RotaryEmbedding.forward; models/llama4.
    """
    table = length * (width // 2)
    positions = t.new(length, DType.FP32, "positions in fp32")
    freqs = t.new(table, DType.FP32, "angles")
    t.multiplies()
    del positions
    ones = t.new(table, DType.FP32, "radii")
    raw = t.new(table, DType.COMPLEX64, "rotations")
    del ones
    freqs_cis = t.new(table, DType.COMPLEX64, "rotations")
    del raw, freqs
    return freqs_cis, freqs_cis


def _three_axes(t: Tape, length: int, width: int, dtype: DType) -> tuple[Tensor, Tensor]:
    """
    Cosines and sines [B, S, width] of positions along three axes, with a row for every token; the axes take turns by the channel.

    Source:
        transformers@5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VLRotaryEmbedding.forward; models/qwen3_vl.
    """
    half = length * width // 2
    positions = t.new(3 * length, DType.FP32, "positions in fp32")
    freqs = t.new(3 * half, DType.FP32, "angles")
    t.multiplies()
    del positions
    raw = t.new(3 * half, DType.FP32, "cosines")
    cos = t.new(3 * half, DType.FP32, "cosines")
    raw = t.new(3 * half, DType.FP32, "sines")
    sin = t.new(3 * half, DType.FP32, "sines")
    del raw
    sin = t.new(2 * half, DType.FP32, "sines of the axes")
    cos = t.new(2 * half, DType.FP32, "cosines of the axes")
    cos, sin = t.cast(cos, dtype, "rotary cosines"), t.cast(sin, dtype, "rotary sines")
    del freqs
    return cos, sin


TABLES: dict[str, Callable[[Tape, int, int, DType], tuple[Tensor, Tensor]]] = {
    "doubled": rotary_tables,
    "single": _single_tables,
    "complex": _complex_tables,
    "three_axes": _three_axes,
}


def apply_rotary(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    Positions turned into queries and keys.

    Args:
        t: The tape.
        q: Queries [B, H, S, h].
        k: Keys [B, K, S, h].
        cos: Cosines [1, S, r].
        sin: Sines [1, S, r].
        spec: The attention; r of the h elements of its heads turn.
    """
    return _STYLES[spec.rotary_style](t, q, k, cos, sin, spec)


def _whole(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    q * cos + rotate_half(q) * sin, and so for k.

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, apply_rotary_pos_emb.
    """
    q_embed = _turn(t, q, cos, sin)
    k_embed = _turn(t, k, cos, sin)
    return q_embed, k_embed, ()


def _cast_back(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The same with tables in fp32, then cast back.

    Source:
        transformers@5.23.0, models/olmo2/modeling_olmo2.py, apply_rotary_pos_emb.
    """
    q_type, k_type = q.dtype, k.dtype
    q_embed = _turn(t, q, cos, sin)
    k_embed = _turn(t, k, cos, sin)
    return t.cast(q_embed, q_type, "rotated, cast back"), t.cast(k_embed, k_type, "rotated, cast back"), ()


def _in_fp32(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    Queries and keys in fp32, turned, then cast back.

    Source:
        transformers@5.23.0, models/cohere/modeling_cohere.py, apply_rotary_pos_emb; its halves are interleaved, of the same sizes.
    """
    dtype = q.dtype
    q, k = t.cast(q, DType.FP32, "query in fp32"), t.cast(k, DType.FP32, "key in fp32")
    q_embed = _turn(t, q, cos, sin)
    k_embed = _turn(t, k, cos, sin)
    return t.cast(q_embed, dtype, "rotated, cast back"), t.cast(k_embed, dtype, "rotated, cast back"), ()


def _part_by_part(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The turning part of each head and the rest are sliced apart and put together again, even where nothing rests; q before k.

    Source:
        transformers@5.23.0, models/phi3/modeling_phi3.py, apply_rotary_pos_emb.
    """
    q_rot, q_pass = _sliced(t, q, spec)
    k_rot, k_pass = _sliced(t, k, spec)
    q_embed = concatenate(t, (_turn(t, q_rot, cos, sin), q_pass), "partly rotated")
    k_embed = concatenate(t, (_turn(t, k_rot, cos, sin), k_pass), "partly rotated")
    return q_embed, k_embed, ()


def _parts(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The same, but both are turned before any is put together.

    Source:
        transformers@5.23.0, models/gpt_neox/modeling_gpt_neox.py, apply_rotary_pos_emb.
    """
    q_rot, q_pass = _sliced(t, q, spec)
    k_rot, k_pass = _sliced(t, k, spec)
    q_embed = _turn(t, q_rot, cos, sin)
    k_embed = _turn(t, k_rot, cos, sin)
    q_embed = concatenate(t, (q_embed, q_pass), "partly rotated")
    k_embed = concatenate(t, (k_embed, k_pass), "partly rotated")
    return q_embed, k_embed, ()


def _parts_of_pairs(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The same with tables whose entries are repeated in each layer, one after the other.

    Source:
        transformers@5.23.0, models/glm/modeling_glm.py, apply_rotary_pos_emb.
    """
    cos = t.new(cos.numel, cos.dtype, "interleaved cosines")
    sin = t.new(sin.numel, sin.dtype, "interleaved sines")
    return _parts(t, q, k, cos, sin, spec)


def _parts_kept(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The parts are taken in the attention itself, where their names last until it returns.

    Source:
        transformers@5.23.0, models/phi/modeling_phi.py, PhiAttention.forward; models/stablelm.
    """
    query_rot, query_pass = _sliced(t, q, spec)
    key_rot, key_pass = _sliced(t, k, spec)
    query_rot, key_rot, _ = _whole(t, query_rot, key_rot, cos, sin, spec)
    q = concatenate(t, (query_rot, query_pass), "partly rotated")
    k = concatenate(t, (key_rot, key_pass), "partly rotated")
    return q, k, (query_rot, query_pass, key_rot, key_pass)


def _sliced(t: Tape, x: Tensor, spec: Attention) -> tuple[Tensor, Tensor]:
    """x[..., :r] and x[..., r:]; a slice of everything is no slice."""
    turning = x.numel // spec.head_dim * spec.rotary_dim
    first = x if spec.rotary_dim == spec.head_dim else part(t, x, turning)
    return first, part(t, x, x.numel - turning)


def _turn(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return add(t, mul_broadcast(t, x, cos), mul_broadcast(t, _rotate_half(t, x), sin), "rotated")


def _rotate_half(t: Tape, x: Tensor) -> Tensor:
    first, second = part(t, x, x.numel // 2), part(t, x, x.numel // 2)
    return concatenate(t, (negative(t, second), first), "half rotated")


def _halves(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, spec: Attention) -> Rotated:
    """
    The two halves of each head are turned apart, then put together.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, apply_rotary_pos_emb, _apply_rotary_emb.
    """
    return _turned_halves(t, q, cos, sin), _turned_halves(t, k, cos, sin), ()


def _turned_halves(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first_half, second_half = split(t, x, (x.numel // 2, x.numel // 2))
    first = subtract(t, mul_broadcast(t, first_half, cos), mul_broadcast(t, second_half, sin), "first half rotated")
    second = add(t, mul_broadcast(t, second_half, cos), mul_broadcast(t, first_half, sin), "second half rotated")
    return concatenate(t, (first, second), "rotated")


_STYLES: dict[str, Callable[[Tape, Tensor, Tensor, Tensor, Tensor, Attention], Rotated]] = {
    "whole": _whole,
    "cast_back": _cast_back,
    "in_fp32": _in_fp32,
    "part_by_part": _part_by_part,
    "parts": _parts,
    "parts_of_pairs": _parts_of_pairs,
    "parts_kept": _parts_kept,
    "halves": _halves,
}
JOINED = ("part_by_part", "parts", "parts_of_pairs", "parts_kept", "halves")
"""Styles whose results torch.cat lays out head by head."""

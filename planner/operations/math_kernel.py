"""
PyTorch's own fallback for scaled_dot_product_attention, where no fused kernel takes the operands.

Source:
    torch@2.13.0, aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math; its operations as a dispatch mode
    lists them. Falcon 7B ends here: its one key/value head is left to broadcasting, which no fused kernel does without `enable_gqa`
    (sdp_utils_cpp.h, check_batch_size_and_num_heads_dense).
"""

from __future__ import annotations

from planner.dtypes import DType
from planner.operations.attention import Shape, batched, softmax_kernel
from planner.operations.elementwise import expand, scale
from planner.schedule import Tape
from planner.tensors import Tensor


def math_attention(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor) -> Tensor:
    """
    Softmax(q k^T + mask) v in fp32, with k and v broadcast over the heads: q [B, H, S, h], k and v [B, K, S, h].
    """
    q, k, v = t.lower(q), t.lower(k), t.lower(v)
    autocast, t.autocast = t.autocast, None  # autocast lets the call itself choose no types
    try:
        return _attend(t, q, k, v, shape, mask)
    finally:
        t.autocast = autocast


def _attend(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape, mask: Tensor) -> Tensor:
    given = q.dtype
    bias = t.new(mask.numel, given, "attention bias") if mask.dtype is DType.BOOL else mask
    query_acc = t.cast(q, DType.FP32, "query in fp32")
    key_acc = t.cast(k, DType.FP32, "key in fp32")
    value_acc = t.cast(v, DType.FP32, "value in fp32")
    query = scale(t, query_acc, "scaled query")
    attn = batched(t, query, expand(t, scale(t, key_acc, "scaled key"), shape.groups), shape, shape.scores, strided=(True, True))
    attn = _safe_softmax(t, attn, shape.length)
    low = t.cast(attn, given, "attention weights")  # the call's second result, which nobody takes
    numel = shape.tokens * shape.heads * shape.value_dim
    out = batched(t, attn, expand(t, value_acc, shape.groups), shape, numel, strided=(False, True))
    out = t.cast(out, given, "attention output")
    del bias, low
    return out


def _safe_softmax(t: Tape, x: Tensor, length: int) -> Tensor:
    """
    Softmax whose rows are zero where all is masked: on CUDA a softmax, a mask, and a copy.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/attention.cpp, _safe_softmax; FunctionsManual.cpp, softmax_backward.
    """
    raw = t.new(x.numel, x.dtype, "softmax")
    masked = t.new(x.numel, DType.BOOL, "masked scores")
    rows = t.new(x.numel // length, DType.BOOL, "masked rows")
    out = softmax_kernel(t, x, x.dtype)
    del raw, masked, rows
    return out

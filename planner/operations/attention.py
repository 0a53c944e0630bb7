"""
Attention between its projections: positions, then scores by one of three kernels.

Shapes: q [B, H, S, h]; k and v [B, K, S, h] with K key/value heads. Only element counts matter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.architecture.decoder import Attention
from planner.dtypes import DType
from planner.formulas.workspace import Attention as AttentionSize
from planner.formulas.workspace import flash_backward
from planner.operations.elementwise import (
    add_constant,
    copy,
    dropout,
    expand,
    repeat,
    scale,
)
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.units import round_up
from planner.value import NamedTuple


class Shape(NamedTuple):
    """
    The sizes of one attention.

    Attributes:
        batch, length: B sequences of S tokens.
        heads, kv_heads: H query heads and K key/value heads.
        head_dim: Width of a query and key head.
        value_dim: Width of a value head.
        heads_first: Queries and keys lie head by head in memory, as torch.cat leaves them, not token by token as a projection does.
    """

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    heads_first: bool = False

    @property
    def tokens(self) -> int:
        """B * S."""
        return self.batch * self.length

    @property
    def scores(self) -> int:
        """Elements of the score matrix, B * H * S * S."""
        return self.batch * self.heads * self.length * self.length

    @property
    def groups(self) -> int:
        """Query heads to one key/value head."""
        return self.heads // self.kv_heads

    @property
    def expands(self) -> bool:
        """Whether several query heads share the only key/value head."""
        return self.kv_heads == 1 < self.heads


@dataclass(eq=False)
class Positions:
    """What a model computes once for all its layers of one kind: rotary cosines and sines, the mask, the position ids, ALiBi."""

    cos: Tensor | None = None
    sin: Tensor | None = None
    mask: Tensor | None = None
    ids: Tensor | None = None
    alibi: Tensor | None = None
    unpads: bool = False
    """Whether the flash-attn package is given sequences without their padding, and gathers and scatters to do so."""
    outputs: list[Tensor] | None = None
    """What the loop over the layers keeps of the last one's outputs, its attention weights, while `is_looping`."""
    is_looping: bool = True


def attend(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Shape,
    positions: Positions,
    kernel: str,
    spec: Attention,
    held: list[Tensor] | None = None,
) -> Tensor:
    """
    Softmax(q k^T) v by `eager`, `efficient`, `flash` (PyTorch's) or `flash_attention_2` (the package).

    Eager attention returns its weights too, and `hidden_states, _ = self.self_attn(...)` keeps them until the layer returns: they go
    into `held`.
    """
    if kernel == "eager":
        return _eager(t, q, k, v, shape, positions, spec, held)
    is_fp32 = q.dtype is DType.FP32 and t.autocast is None
    if kernel == "efficient" or (kernel == "flash" and is_fp32):  # flash has no fp32 kernel
        return _efficient(t, q, k, v, shape, positions)
    if kernel == "flash_attention_2" and q.dtype is DType.FP32:  # modeling_flash_attention_utils.fa_peft_integration_check
        q, k, v = (t.cast(x, t.autocast or DType.BF16, "attention input") for x in (q, k, v))
    if kernel == "flash_attention_2" and positions.unpads:
        q, k, v = (_gathered(t, x, "unpadded") for x in (q, k, v))
        return _gathered(t, _flash(t, q, k, v, shape), "padded again")
    return _flash(t, q, k, v, shape)


def _gathered(t: Tape, x: Tensor, name: str) -> Tensor:
    """
    Rows chosen by an index, or put back by it: a copy each way, counted for sequences that are all but full.

    Source:
        transformers@5.23.0, modeling_flash_attention_utils.py, _upad_input and _pad_input.
    """
    out = t.new(x.numel, x.dtype, name)
    if t.tracks(x):
        numel, dtype = x.numel, x.dtype
        t.record(out, (x,), None, lambda t, grads, saved: (t.new(numel, dtype, "gradient of a gather"),))
    return out


def _flash(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """
    FlashAttention-2 in PyTorch: keeps q, k, v, the output and a log-sum-exp a query; its backward needs fp32 room for dq.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_fwd; mha_bwd: formulas.workspace.
    """
    q, k, v = t.lower(q), t.lower(k), t.lower(v)
    out = t.new(shape.tokens * shape.heads * shape.value_dim, q.dtype, "attention output")
    lse = t.new(shape.tokens * shape.heads, DType.FP32, "log-sum-exp")
    seed, offset = t.new(2, DType.INT64, "random state"), t.new(1, DType.INT64, "random state")
    if t.tracks(q, k, v):
        scratch = flash_backward(AttentionSize(shape.batch, shape.length, shape.heads, shape.kv_heads, shape.head_dim, q.dtype))
        room = tuple(tensor.nbytes for tensor in scratch)
        if shape.heads_first:  # attention_backward.cu, _flash_attention_backward: `out.contiguous()`
            room = (*room, out.numel * out.dtype.num_bytes)
        t.record(out, (q, k, v), t.save(q, k, v, out, lse, seed, offset), _KernelBackward(q, k, v, room))
    # The kernel's output lies in memory as its queries do; `transpose(1, 2).contiguous()` is then a copy, or nothing.
    return copy(t, out, "attention output by tokens") if shape.heads_first else out


def _efficient(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape, positions: Positions) -> Tensor:
    """
    Memory-efficient attention: knows no grouped heads, so keys and values are expanded first; a mask becomes a bias of its own.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu; the bias:
        native/transformers/attention.cpp, convert_boolean_attn_mask.
    """
    if positions.mask is not None:  # transformers expands where there is a mask, before autocast sees the operands
        k, v = repeat_kv(t, k, shape), repeat_kv(t, v, shape)
        q, k, v = t.lower(q), t.lower(k), t.lower(v)
    else:
        q, k, v = t.lower(q), t.lower(k), t.lower(v)
        k, v = repeat(t, k, shape.groups), repeat(t, v, shape.groups)
    bias = None
    if positions.mask is not None:
        bias = t.new(positions.mask.numel, q.dtype, "attention bias")
        inverted = t.new(positions.mask.numel, DType.BOOL, "inverted mask")
        del inverted
    out = t.new(shape.tokens * shape.heads * shape.value_dim, q.dtype, "attention output")
    lse = t.new(shape.batch * shape.heads * round_up(shape.length, 32), DType.FP32, "log-sum-exp")
    seed, offset = t.new(1, DType.INT64, "random state"), t.new(1, DType.INT64, "random state")
    if t.tracks(q, k, v):
        delta = 4 * shape.tokens * shape.heads
        room = 4 * shape.batch * round_up(shape.length, 128) * shape.heads * round_up(shape.head_dim, 64)
        t.record(out, (q, k, v), t.save(q, k, v, bias, out, lse, seed, offset), _KernelBackward(q, k, v, (delta, room)))
    return out


class _KernelBackward:
    """One kernel that makes the three gradients and uses some room meanwhile."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, room: tuple[int, ...]) -> None:
        self.sizes = [(x.numel, x.dtype) if x.requires_grad else None for x in (q, k, v)]
        self.room = room

    def __call__(self, t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
        made = [None if s is None else t.new(s[0], s[1], "attention gradient") for s in self.sizes]
        t.scratch("attention backward workspace", *self.room)
        return made


def repeat_kv(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """
    Keys or values for every query head: copies, but where all heads share one, of which a view stands for all.

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, repeat_kv: `expand`, then `reshape`, which copies unless a dimension is 1.
    """
    return expand(t, x, shape.groups) if shape.expands else repeat(t, x, shape.groups)


def _eager(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape, positions: Positions, spec: Attention, held: list[Tensor] | None
) -> Tensor:
    """
    Scores as a tensor: product, scaling, mask, fp32 softmax, cast back, product with the values.

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, eager_attention_forward; softcap: models/gemma2.
    """
    k, v = repeat_kv(t, k, shape), repeat_kv(t, v, shape)
    keys_strided = (not shape.heads_first, shape.expands or (shape.groups == 1 and not shape.heads_first))
    weights = scale(t, batched(t, q, k, shape, shape.scores, strided=keys_strided), "scaled scores")
    if spec.softcap:
        from planner.operations.elementwise import activation_of_result

        weights = scale(t, weights)
        weights = activation_of_result(t, weights, "tanh")
        weights = scale(t, weights)
    if positions.mask is not None:
        weights = add_constant(t, weights, name="masked scores")
    if spec.plain_softmax:
        weights = t.cast(plain_softmax(t, weights), v.dtype, "attention weights")
    else:
        weights = t.cast(softmax(t, weights, DType.FP32), q.dtype, "attention weights")
    weights = dropout(t, weights, spec.dropout)
    if held is not None:
        held.append(weights)
    out = batched(t, weights, v, shape, shape.tokens * shape.heads * shape.value_dim, strided=(False, shape.groups == 1 or shape.expands))
    return copy(t, out, "attention output")


def batched(t: Tape, a: Tensor, b: Tensor, shape: Shape, numel: int, strided: tuple[bool, bool]) -> Tensor:
    """
    torch.matmul of 4-D operands: folded to bmm. An operand whose heads lie inside its tokens (strided) cannot be folded as a view
    for a batch above one, and is copied; bmm saves what it was given.
    """
    a, b = t.lower(a), t.lower(b)
    if shape.batch > 1:
        a = copy(t, a, "folded operand") if strided[0] else a
        b = copy(t, b, "folded operand") if strided[1] else b
    tracked = t.tracks(a, b)
    saved = t.save(a if b.requires_grad else None, b if a.requires_grad else None) if tracked else None
    out = t.new(numel, a.dtype, "batched product")
    if tracked:
        sizes = [x.numel if x.requires_grad else None for x in (a, b)]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return [None if n is None else t.new(n, g.dtype, "gradient of a product") for n in sizes]

        t.record(out, (a, b), saved, backward)
    return out


def softmax(t: Tape, x: Tensor, dtype: DType) -> Tensor:
    """
    `softmax(x, dtype=fp32)`: bf16 is copied to fp32 first, fp16 is read as it is. Its backward makes `grad * output` inside the kernel.

    Source:
        torch@2.13.0, aten/src/ATen/native/SoftMax.cpp softmax; native/cuda/SoftMax.cu softmax_backward_cuda_out.
    """
    given = x.dtype
    if given is not DType.FP16:
        x = t.cast(x, dtype, "scores in fp32")
    return softmax_kernel(t, x, dtype)


def plain_softmax(t: Tape, x: Tensor) -> Tensor:
    """
    softmax(x) without a dtype: in fp32 under autocast, else in its own.

    Source:
        torch@2.13.0, aten/src/ATen/autocast_mode.h, fp32 list.
    """
    if t.autocast is not None:
        x = t.cast(x, DType.FP32, "scores in fp32")
    return softmax_kernel(t, x, x.dtype)


def softmax_kernel(t: Tape, x: Tensor, dtype: DType) -> Tensor:
    """One kernel each way, keeping its result; backward makes `grad * output` inside itself."""
    out = t.new(x.numel, dtype, "softmax")
    if t.tracks(x):
        result = x.dtype

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            made = t.new(g.numel, result, "gradient of scores")
            t.scratch("softmax backward workspace", g.numel * g.dtype.num_bytes)
            return (made,)

        t.record(out, (x,), t.save(out), backward)
    return out



"""
BLOOM's and MPT's layers: positions as a bias on the scores, in attention that has no kernel but its own.

As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention, Mlp
from planner.dtypes import DType, promote
from planner.operations.attention import Shape, batched, softmax, softmax_kernel
from planner.operations.elementwise import act_fn, activation, add, add_constant, copy, dropout, part, scale, split, where
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def bloom(run: Runner, x: Tensor) -> Tensor:
    """
    x + attention(norm(x)), then that + mlp(norm'(that)), or from the norms instead (`bloom_from_norms`).

    Source:
        transformers@5.23.0, models/bloom/modeling_bloom.py, BloomBlock.forward.
    """
    layer = run.layer
    from_norms = layer.layout == "bloom_from_norms"
    normed = run.norm(layer.norms[0], x)
    residual = normed if from_norms else x
    attention = _bloom_attention(run, normed, residual, layer.attention)
    normed = run.norm(layer.norms[1], attention)
    residual = normed if from_norms else attention
    return _bloom_mlp(run, normed, residual)


def _bloom_attention(run: Runner, x: Tensor, residual: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module, with the residual sum.

    Source:
        transformers@5.23.0, models/bloom/modeling_bloom.py, BloomAttention.forward.
    """
    t, batch, positions = run.t, run.batch, run.positions
    assert positions.alibi is not None and positions.mask is not None
    shape = Shape(batch.size, batch.length, spec.heads, spec.heads, spec.head_dim, spec.head_dim)
    fused = run.linear(spec.fused, x)
    query, key, value = (part(t, fused, fused.numel // 3) for _ in range(3))
    if batch.size > 1:  # heads are folded into the batch
        query, key, value = copy(t, query, "queries"), copy(t, key, "keys"), copy(t, value, "values")
    scores = baddbmm(t, positions.alibi, query, key, shape.scores)
    weights = add_constant(t, scores, promote(scores.dtype, positions.mask.dtype), "masked scores")
    probs = t.cast(softmax(t, weights, DType.FP32), query.dtype, "attention weights")
    probs = dropout(t, probs, spec.dropout)
    run.held.append(probs)
    context = batched(t, probs, value, shape, x.numel, strided=(False, False))
    context = copy(t, context, "attention output")
    out = run.linear(spec.out, context)
    out = add(t, residual, dropout(t, out, run.layer.dropout), "residual stream")
    del scores, weights
    return out


def baddbmm(t: Tape, bias: Tensor, a: Tensor, b: Tensor, numel: int) -> Tensor:
    """bias + alpha * a b: saves what it was given; backward scales each product by alpha once it is made."""
    bias, a, b = t.lower(bias), t.lower(a), t.lower(b)
    tracked = t.tracks(a, b)
    saved = t.save(a if b.requires_grad else None, b if a.requires_grad else None) if tracked else None
    out = t.new(numel, a.dtype, "scores with positions")
    if tracked:
        sizes = [x.numel if x.requires_grad else None for x in (a, b)]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return [None if n is None else _scaled_gradient(t, n, g.dtype) for n in sizes]

        t.record(out, (a, b), saved, backward)
    return out


def _scaled_gradient(t: Tape, numel: int, dtype: DType) -> Tensor:
    product = t.new(numel, dtype, "gradient of a product")
    out = t.new(numel, dtype, "gradient of a scaled product")
    del product
    return out


def _bloom_mlp(run: Runner, x: Tensor, residual: Tensor) -> Tensor:
    """
    residual + down(gelu(up(x))).

    Source:
        transformers@5.23.0, models/bloom/modeling_bloom.py, BloomMLP.forward.
    """
    t, block = run.t, run.layer.mlp
    assert isinstance(block, Mlp)
    x = bloom_gelu(t, run.linear(block.up, x))
    out = run.linear(block.down, x)
    return add(t, residual, dropout(t, out, run.layer.dropout), "residual stream")


def bloom_gelu(t: Tape, x: Tensor) -> Tensor:
    """
    x * 0.5 * (1 + tanh(0.79788456 * x * (1 + 0.044715 * x * x))) in one custom function, which saves x alone.

    Source:
        transformers@5.23.0, models/bloom/modeling_bloom.py, GeLUFunction, bloom_gelu_forward, bloom_gelu_back.
    """
    numel, dtype = x.numel, x.dtype

    def new(*operands: Tensor) -> Tensor:
        return t.new(numel, dtype, "gelu step")

    tracked = t.tracks(x)
    saved = t.save(x) if tracked else None
    out = new(new(), new(new(new(new(), new(new(new()))))))
    if tracked:

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            tanh = new(new(new(), new(new(new()))))
            ff = new(new(new(), new(new(new(tanh)), new(new(new())))), new(new()))
            return (new(ff),)

        t.record(out, (x,), saved, backward)
    return out


def mpt(run: Runner, x: Tensor) -> Tensor:
    """
    attention(norm(x)) + x, then mlp(norm'(that)) + that.

    Source:
        transformers@5.23.0, models/mpt/modeling_mpt.py, MptBlock.forward, MptMLP.forward.
    """
    t, layer, block = run.t, run.layer, run.layer.mlp
    assert isinstance(block, Mlp)
    normed = run.norm(layer.norms[0], x)
    attention = _mpt_attention(run, normed, layer.attention)
    x = add(t, dropout(t, attention, layer.dropout), x, "residual stream")
    normed = run.norm(layer.norms[1], x)
    hidden = act_fn(t, run.linear(block.up, normed), block.act)
    out = run.linear(block.down, hidden)
    return add(t, dropout(t, out, layer.dropout), x, "residual stream")


def _mpt_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module: the bias is fp32, and so the scores are from there on; the mask fills them.

    Source:
        transformers@5.23.0, models/mpt/modeling_mpt.py, MptAttention.forward.
    """
    t, batch = run.t, run.batch
    shape = Shape(batch.size, batch.length, spec.heads, spec.heads, spec.head_dim, spec.head_dim)
    fused = run.linear(spec.fused, x)
    if spec.clips:
        fused = activation(t, fused, "clipped")
    query, key, value = split(t, fused, [fused.numel // 3] * 3)
    scores = scale(t, batched(t, query, key, shape, shape.scores, strided=(True, True)), "scaled scores")
    scores = add_constant(t, scores, DType.FP32, "scores with positions")
    scores = where(t, scores, run.positions.mask, "masked scores")
    weights = t.cast(softmax_kernel(t, scores, DType.FP32), value.dtype, "attention weights")
    weights = dropout(t, weights, spec.dropout)
    run.held.append(weights)
    context = batched(t, weights, value, shape, x.numel, strided=(False, True))
    context = copy(t, context, "attention output")
    out = run.linear(spec.out, context)
    del scores
    return out

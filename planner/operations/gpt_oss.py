"""gpt-oss's attention: eager, with a sink for every head beside the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention
from planner.dtypes import DType, promote
from planner.operations.attention import Shape, batched, softmax_kernel
from planner.operations.elementwise import add_constant, concatenate, copy, expand, part, repeat, scale
from planner.operations.rotary import apply_rotary
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def sink_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssAttention.forward, eager_attention_forward.
    """
    t, batch, positions = run.t, run.batch, run.positions
    assert positions.cos is not None and positions.sin is not None
    q, k, v = run.projections(x, spec, batch.size * batch.length)
    q, k, _ = apply_rotary(t, q, k, positions.cos, positions.sin, spec)
    shape = Shape(batch.size, batch.length, spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim, heads_first=True)
    out = _eager(run, q, k, v, shape)
    return run.linear(spec.out, out)


def _eager(run: Runner, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    t = run.t
    k, v = repeat(t, k, shape.groups), repeat(t, v, shape.groups)
    weights = scale(t, batched(t, q, k, shape, shape.scores, strided=(False, False)), "scaled scores")
    if run.positions.mask is not None:
        weights = add_constant(t, weights, name="masked scores")
    rows = shape.scores // shape.length
    sinks = expand(t, run.weights.parameters["self_attn.sinks"].weight, rows // shape.heads)
    combined = _beside(t, weights, sinks)
    combined = _below_maximum(t, combined, rows)
    probs = softmax_kernel(t, combined, combined.dtype)
    scores = part(t, probs, shape.scores)
    weights = t.cast(scores, v.dtype, "attention weights")
    run.held.append(weights)
    out = batched(t, weights, v, shape, shape.tokens * shape.heads * shape.value_dim, strided=(False, shape.groups == 1))
    return copy(t, out, "attention output")


def _beside(t: Tape, weights: Tensor, sinks: Tensor) -> Tensor:
    """torch.cat([weights, sinks]); autocast first brings both to the wider type of the two."""
    if t.autocast is not None:
        dtype = promote(weights.dtype, sinks.dtype)
        weights, sinks = t.cast(weights, dtype, "scores, promoted"), t.cast(sinks, dtype, "sinks, promoted")
    return concatenate(t, (weights, sinks), "scores and sinks")


def _below_maximum(t: Tape, x: Tensor, rows: int) -> Tensor:
    """x - x.max(-1).values: the maximum's gradient is scattered into zeros, and the two gradients meet."""
    values, places = t.new(rows, x.dtype, "highest scores"), t.new(rows, DType.INT64, "their places")
    tracked = t.tracks(x)
    saved = t.save(places) if tracked else None
    out = t.new(x.numel, x.dtype, "scores below the highest")
    if tracked:
        numel = x.numel

        def of_difference(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            negated = t.new(numel, g.dtype, "negated gradient")
            total = t.new(rows, g.dtype, "gradient of the highest")
            del negated
            return g, total

        def of_maximum(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            zeros = t.new(numel, g.dtype, "gradient of scores")
            if not t.accumulates_in_place:
                zeros = t.new(numel, g.dtype, "gradient of scores")
            return (zeros,)

        t.record(values, (x,), saved, of_maximum)
        t.record(out, (x, values), None, of_difference)
    return out

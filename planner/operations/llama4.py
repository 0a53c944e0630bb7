"""
Llama-4's attention and its experts, which all see every token.

Shapes: T tokens, E experts, residual stream d. As in `planner.operations.decoder`, a local name lives as long as it does in the
modeling code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention, Moe
from planner.dtypes import DType
from planner.operations.attention import Shape, attend
from planner.operations.elementwise import act_fn, activation_of_result, copy, mul, mul_broadcast, split
from planner.operations.experts import Context
from planner.operations.indexing import row_sum, top_k
from planner.operations.latent import as_complex
from planner.operations.linear import Parameter
from planner.operations.norm import Norm, norm
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def llama4_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole attention module: some layers turn (and norm) queries and keys, the others scale queries by their position.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4TextAttention.forward.
    """
    t, batch, positions = run.t, run.batch, run.positions
    assert positions.cos is not None
    q, k, v = run.projections(x, spec, batch.size * batch.length)
    if spec.rotary_dim:
        q, k = as_complex(t, q, positions.cos), as_complex(t, k, positions.cos)
    if spec.norms_each:
        unweighed = Norm("l2", spec.head_dim, None)
        q = norm(t, q, unweighed)
        k = norm(t, k, unweighed)
    if spec.scaled_by_position:
        scales = t.new(batch.length, DType.FP32, "scales of positions")
        q = t.cast(mul_broadcast(t, q, scales, "scaled queries"), q.dtype)
    shape = Shape(batch.size, batch.length, spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim)
    out = attend(t, q, k, v, shape, positions, batch.kernel, spec, run.held)
    return run.linear(spec.out, out)


def every_expert(t: Tape, x: Tensor, block: Moe, context: Context) -> Tensor:
    """
    Every token goes through every expert, times its score there (0 where it was not chosen): E * T rows.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4TextMoe.forward, Llama4Router.forward, Llama4TextExperts.forward.
    """
    assert block.shared is not None
    logits = context.linear(block.router, x)
    scores = _scores(t, logits, context.tokens * block.top_k)
    rows = _repeated(t, x, block.experts)
    rows = mul_broadcast(t, rows, copy(t, scores, "scores by row"), "scored rows")
    routed = _experts(t, rows, block, context)
    out = context.dense(x, block.shared)
    return _added_in_place(t, out, row_sum(t, routed, x.numel))


def _scores(t: Tape, logits: Tensor, chosen: int) -> Tensor:
    """sigmoid of the best logits among minus infinities."""
    values, indices = top_k(t, logits, chosen)
    spread = t.new(logits.numel, logits.dtype, "best logits in place")
    if t.tracks(values):
        t.record(spread, (values,), t.save(indices), lambda t, grads, saved: (t.new(chosen, logits.dtype, "gradient of the best"),))
    return t.cast(activation_of_result(t, t.cast(spread, DType.FP32, "logits in fp32"), "sigmoid"), logits.dtype, "scores")


def _repeated(t: Tape, x: Tensor, times: int) -> Tensor:
    """x.repeat(times, 1)."""
    out = t.new(x.numel * times, x.dtype, "rows of every expert")
    if t.tracks(x):
        numel = x.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (t.new(numel, g.dtype, "gradient of a repetition"),)

        t.record(out, (x,), None, backward)
    return out


def _experts(t: Tape, rows: Tensor, block: Moe, context: Context) -> Tensor:
    gate_up, down = context.parameters[block.gate_up], context.parameters[block.down]
    both = _batched(t, rows, gate_up, context.tokens * block.experts)
    gate, up = split(t, both, (both.numel // 2, both.numel // 2))
    return _batched(t, mul(t, up, act_fn(t, gate, block.act), "gated"), down, context.tokens * block.experts)


def _batched(t: Tape, x: Tensor, p: Parameter, rows: int) -> Tensor:
    """torch.bmm, which autocast lowers: of a frozen fp32 stack it makes a copy of its own, kept for backward."""
    x, weight = t.lower(x), t.lower(p.weight)
    tracked = t.tracks(x, weight)
    saved = t.save(x if weight.requires_grad else None, weight if x.requires_grad else None) if tracked else None
    out = t.new(rows * p.inputs, x.dtype, "output of experts")
    if tracked:
        wanted = [y.numel if y.requires_grad else None for y in (x, weight)]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return [None if n is None else t.new(n, g.dtype, "gradient of experts") for n in wanted]

        t.record(out, (x, weight), saved, backward)
    return out


def _added_in_place(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    out = Tensor(a.storage, a.numel, a.dtype)
    if t.tracks(a, b):
        t.record(out, (a, b), None, lambda t, grads, saved: (grads[0], grads[0]))
    return out

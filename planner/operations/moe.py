"""Routed feed-forward blocks: a router, its experts, and what stands beside them."""

from __future__ import annotations

from planner.architecture.decoder import Moe
from planner.operations.elementwise import activation_of_result, add, mul_broadcast
from planner.operations.experts import Context, experts
from planner.operations.llama4 import every_expert
from planner.operations.routers import ROUTERS
from planner.schedule import Tape
from planner.tensors import Tensor


def moe(t: Tape, x: Tensor, block: Moe, context: Context) -> Tensor:
    """
    The routed block: x [T, d] -> [T, d].

    Source:
        transformers@5.23.0, models/mixtral/modeling_mixtral.py, MixtralSparseMoeBlock.forward; models/qwen2_moe,
        Qwen2MoeSparseMoeBlock.forward; models/deepseek_v3, DeepseekV3MoE.forward.
    """
    before, t.scope = t.scope, block.gate_up.rpartition(".")[0]
    try:
        if block.routing == "every_expert":
            return every_expert(t, x, block, context)
        for _ in range(block.jitter):
            x = _shaken(t, x)
        shared = context.dense(x, block.shared) if block.shared is not None and block.shared_gate else None
        _logits, scores, indices = ROUTERS[block.routing](t, x, block, context)
        out = experts(t, x, indices, scores, block, context)
        if shared is not None:
            shared = _gated(t, x, shared, block, context)
        elif block.shared is not None:
            shared = context.dense(x, block.shared)
        return out if shared is None else add(t, out, shared, "experts and shared expert")
    finally:
        t.scope = before


def _shaken(t: Tape, x: Tensor) -> Tensor:
    """
    hidden_states *= noise, in place: the noise is saved.

    Source:
        transformers@5.23.0, models/phimoe/modeling_phimoe.py, PhimoeSparseMoeBlock.forward, PhimoeTopKRouter.forward.
    """
    noise = t.new(x.numel, x.dtype, "noise")
    out = Tensor(x.storage, x.numel, x.dtype)
    if t.tracks(x):
        t.record(out, (x,), t.save(noise), lambda t, grads, saved: (_like(t, grads[0]),))
    return out


def _like(t: Tape, g: Tensor | None) -> Tensor:
    assert g is not None
    return t.new(g.numel, g.dtype, "gradient")


def _gated(t: Tape, x: Tensor, shared: Tensor, block: Moe, context: Context) -> Tensor:
    """sigmoid(gate(x)) [T, 1] times the shared expert's output."""
    return mul_broadcast(t, shared, activation_of_result(t, context.linear(block.shared_gate, x), "gate"), "gated shared expert")

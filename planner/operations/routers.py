"""
Routers: from hidden states [T, d] to logits [T, E], weights [T, k] and expert indices [T, k]; one function a way of routing.

A router's logits are bound to a name in the block and live as long as it does.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.decoder import Moe
from planner.dtypes import DType
from planner.operations.attention import softmax
from planner.operations.indexing import normalised, top_k
from planner.operations.linear import product
from planner.operations.experts import Context, Parameter, read
from planner.schedule import Tape
from planner.tensors import Tensor

Routed = tuple[Tensor, Tensor, Tensor]


def _logits(t: Tape, x: Tensor, p: Parameter) -> tuple[Tensor, Tensor | None]:
    weight, held = read(t, p)
    return product(t, x, weight, None, p.inputs, p.outputs, "router logits"), held


def _mixtral(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Softmax of the logits in fp32, then the best, normalised; weights stay in fp32.

    Source:
        transformers@5.23.0, models/mixtral/modeling_mixtral.py, MixtralTopKRouter.forward.
    """
    logits, held = _logits(t, x, context.parameters[block.router])
    probs = softmax(t, t.cast(logits, DType.FP32, "logits in fp32"), DType.FP32)
    values, indices = top_k(t, probs, context.tokens * block.top_k)
    return logits, normalised(t, values, context.tokens), indices


def _softmax_then_best(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Softmax in fp32, then the best, normalised where the config says so; weights return to the logits' dtype.

    Source:
        transformers@5.23.0, models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeTopKRouter.forward, and its copies.
    """
    logits, held = _logits(t, x, context.parameters[block.router])
    probs = softmax(t, logits, DType.FP32)
    values, indices = top_k(t, probs, context.tokens * block.top_k)
    if block.normalised:
        values = normalised(t, values, context.tokens)
    return logits, t.cast(values, logits.dtype, "routing weights"), indices


ROUTERS: dict[str, Callable[[Tape, Tensor, Moe, Context], Routed]] = {
    "mixtral": _mixtral,
    "softmax": _softmax_then_best,
}

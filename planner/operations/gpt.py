"""
Layers as the families before Llama put them together: GPT-2 and its line, OPT, GPT-NeoX.

As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.architecture.decoder import Mlp
from planner.operations.elementwise import act_fn, add, dropout
from planner.tensors import Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def gpt2(run: Runner, x: Tensor) -> Tensor:
    """
    attention(norm(x)) + x, then x + mlp(norm(x)); each block's output keeps its name to the end.

    Source:
        transformers@5.23.0, models/gpt2/modeling_gpt2.py GPT2Block.forward; models/gpt_bigcode; models/gpt_neo.
    """
    first, second = run.layer.norms
    residual = x
    x = run.norm(first, x)
    attention = run.attention(x)
    x = add(run.t, attention, residual, "residual stream")
    residual = x
    x = run.norm(second, x)
    mlp = run.mlp(x)
    return add(run.t, residual, mlp, "residual stream")


def neox(run: Runner, x: Tensor) -> Tensor:
    """
    mlp(norm'(x)) + attention(norm(x)) + x: two norms, and dropout outside the blocks.

    Source:
        transformers@5.23.0, models/gpt_neox/modeling_gpt_neox.py, GPTNeoXLayer.forward, use_parallel_residual.
    """
    t, p = run.t, run.layer.dropout
    first, second = run.layer.norms
    attention = dropout(t, run.self_attention(run.norm(first, x), run.layer.attention), p)
    mlp = dropout(t, run.feed_forward(run.norm(second, x)), p)
    return add(t, add(t, mlp, attention, "block outputs"), x, "residual stream")


def neox_sequential(run: Runner, x: Tensor) -> Tensor:
    """
    x + attention(norm(x)), then x + mlp(norm'(x)).

    Source:
        transformers@5.23.0, models/gpt_neox/modeling_gpt_neox.py, GPTNeoXLayer.forward.
    """
    t, p = run.t, run.layer.dropout
    first, second = run.layer.norms
    attention = dropout(t, run.self_attention(run.norm(first, x), run.layer.attention), p)
    attention = add(t, attention, x, "residual stream")
    mlp = dropout(t, run.feed_forward(run.norm(second, attention)), p)
    return add(t, mlp, attention, "residual stream")


def opt(run: Runner, x: Tensor) -> Tensor:
    """
    x + attention(norm(x)), then x + mlp(norm(x)), or each norm after its sum (the 350M model); the mlp has no module to hold its input.

    Source:
        transformers@5.23.0, models/opt/modeling_opt.py, OPTDecoderLayer.forward, do_layer_norm_before.
    """
    t, layer = run.t, run.layer
    first, second = layer.norms
    block, norm_before = layer.mlp, layer.layout == "opt"
    assert isinstance(block, Mlp)
    residual = x
    if norm_before:
        x = run.norm(first, x)
    x = run.self_attention(x, layer.attention)
    x = dropout(t, x, layer.dropout)
    x = add(t, residual, x, "residual stream")
    if not norm_before:
        x = run.norm(first, x)
    residual = x
    if norm_before:
        x = run.norm(second, x)
    x = run.linear(block.up, x)
    x = act_fn(t, x, block.act)
    x = run.linear(block.down, x)
    x = dropout(t, x, layer.dropout)
    x = add(t, residual, x, "residual stream")
    if not norm_before:
        x = run.norm(second, x)
    return x

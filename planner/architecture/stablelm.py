"""StableLM: Llama's projections with LayerNorms, rotary positions on a part of each head, and (12B) a norm for every head."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import attention, gated_mlp, head, read_dims, rotary, whole_heads
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def stablelm(config: Fields, out: Table) -> None:
    """
    StableLmForCausalLM.

    Source:
        transformers@5.23.0, models/stablelm/modeling_stablelm.py, StableLmForCausalLM.
    """
    dims, model = read_dims(config, kv_heads=32), out.within("model.")
    head_dim = whole_heads(config, dims.hidden, dims.heads)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    # The attention takes its head's width from the heads, whatever a `head_dim` in the file says.
    attention(layer, replace(dims, head_dim=head_dim), bias=config.flag("use_qkv_bias", default=False), out_bias=False)
    if config.flag("qk_layernorm", default=False):
        for name, number in (("q_layernorm", dims.heads), ("k_layernorm", dims.kv_heads)):
            for i in range(number):
                layer.norm(f"self_attn.{name}.norms.{i}", head_dim)
    gated_mlp(layer, dims.hidden, dims.width)
    layer.norm("input_layernorm", dims.hidden, bias=True)
    if not config.flag("use_parallel_residual", default=False):
        layer.norm("post_attention_layernorm", dims.hidden, bias=True)
    model.norm("norm", dims.hidden, bias=True)
    rotary(model, config, dims.head_dim, partial=0.25)
    head(out, dims)


FAMILIES = {"stablelm": Family(stablelm)}

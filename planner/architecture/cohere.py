"""Cohere Command: parallel blocks behind one LayerNorm without bias."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, gated_mlp, head, layer_types, read_dims, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def _layout(config: Fields, model: Table, dims: Dims, *, qk_norm: bool) -> Dims:
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    if qk_norm:
        # Each head has weights of its own.
        layer.norm("self_attn.q_norm", (dims.heads, dims.head_dim))
        layer.norm("self_attn.k_norm", (dims.kv_heads, dims.head_dim))
    gated_mlp(layer, dims.hidden, dims.width)
    layer.norm("input_layernorm", dims.hidden)
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    return dims


def cohere(config: Fields, out: Table) -> None:
    """
    CohereForCausalLM.

    Source:
        transformers@5.23.0, models/cohere/modeling_cohere.py, CohereForCausalLM.
    """
    qk_norm = config.flag("use_qk_norm", default=False)
    head(out, _layout(config, out.within("model."), read_dims(config, tied=True), qk_norm=qk_norm))


def cohere2_text(config: Fields, model: Table) -> Dims:
    """
    Cohere2Model: three sliding layers to a full one, over the same tensors.

    Source:
        transformers@5.23.0, models/cohere2/modeling_cohere2.py, Cohere2Model.
    """
    dims = read_dims(config, tied=True)
    every = config.integer("sliding_window_pattern", default=4)
    layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=every)
    return _layout(config, model, dims, qk_norm=False)


def cohere2(config: Fields, out: Table) -> None:
    """Cohere2ForCausalLM."""
    head(out, cohere2_text(config, out.within("model.")))


FAMILIES = {"cohere": Family(cohere), "cohere2": Family(cohere2)}

"""OLMo: norms without weights (1), norms after each block and on query and key (2, 3), and experts (OLMoE)."""

from __future__ import annotations

from planner.architecture.blocks import (
    Dims,
    attention,
    experts,
    gated_mlp,
    head,
    layer_types,
    norms,
    read_dims,
    rotary,
    router,
    wide_norms,
)
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def olmo(config: Fields, out: Table) -> None:
    """
    OlmoForCausalLM: its LayerNorms have neither weight nor bias, so the table has none.

    Source:
        transformers@5.23.0, models/olmo/modeling_olmo.py, OlmoForCausalLM.
    """
    dims, model = read_dims(config), out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    gated_mlp(layer, dims.hidden, dims.width)
    rotary(model, config, dims.head_dim)
    head(out, dims)


def _normed_after(config: Fields, model: Table) -> Dims:
    dims = read_dims(config)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    wide_norms(layer, dims)
    gated_mlp(layer, dims.hidden, dims.width)
    norms(layer, dims.hidden, "post_attention_layernorm", "post_feedforward_layernorm")
    model.norm("norm", dims.hidden)
    return dims


def olmo2(config: Fields, out: Table) -> None:
    """
    Olmo2ForCausalLM.

    Source:
        transformers@5.23.0, models/olmo2/modeling_olmo2.py, Olmo2ForCausalLM.
    """
    model = out.within("model.")
    dims = _normed_after(config, model)
    rotary(model, config, dims.head_dim)
    head(out, dims)


def olmo3(config: Fields, out: Table) -> None:
    """
    Olmo3ForCausalLM: three sliding layers to a full one, each kind with rotary tables of its own.

    Source:
        transformers@5.23.0, models/olmo3/modeling_olmo3.py, Olmo3ForCausalLM, Olmo3RotaryEmbedding.
    """
    model = out.within("model.")
    dims = _normed_after(config, model)
    kinds = layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=4)
    rotary(model, config, dims.head_dim, kinds=sorted(set(kinds)))
    head(out, dims)


def olmoe(config: Fields, out: Table) -> None:
    """
    OlmoeForCausalLM.

    Source:
        transformers@5.23.0, models/olmoe/modeling_olmoe.py, OlmoeForCausalLM.
    """
    dims, number = read_dims(config), config.integer("num_experts", "num_local_experts", default=64)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    layer.norm("self_attn.q_norm", dims.hidden)
    layer.norm("self_attn.k_norm", dims.hidden // dims.heads * dims.kv_heads)
    router(layer, dims.hidden, number)
    experts(layer, dims.hidden, dims.width, number)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    head(out, dims)


FAMILIES = {
    "olmo": Family(olmo),
    "olmo2": Family(olmo2),
    "olmo3": Family(olmo3),
    "olmoe": Family(olmoe),
}

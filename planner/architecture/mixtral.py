"""Mixtral and others that replace every MLP of a Llama by experts: Granite MoE, MiniMax M2."""

from __future__ import annotations

from planner.architecture.blocks import attention, experts, head, norms, read_dims, rotary, router, wide_norms
from planner.architecture.decoder import Decoder, Moe
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import llama_like
from planner.architecture.table import Table


def mixtral(config: Fields, out: Table) -> None:
    """
    MixtralForCausalLM.

    Source:
        transformers@5.23.0, models/mixtral/modeling_mixtral.py, MixtralForCausalLM.
    """
    dims, number = read_dims(config, kv_heads=8), config.integer("num_local_experts", "num_experts", default=8)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims)
    router(layer, dims.hidden, number)
    experts(layer, dims.hidden, dims.width, number)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    head(out, dims)


def granitemoe(config: Fields, out: Table) -> None:
    """
    GraniteMoeForCausalLM.

    Source:
        transformers@5.23.0, models/granitemoe/modeling_granitemoe.py, GraniteMoeForCausalLM.
    """
    dims, number = read_dims(config), config.integer("num_local_experts", default=8)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    router(layer, dims.hidden, number, name="block_sparse_moe.router")
    experts(layer, dims.hidden, dims.width, number, name="block_sparse_moe.experts")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    head(out, dims)


def minimax_m2(config: Fields, out: Table) -> None:
    """
    MiniMaxM2ForCausalLM: norms across the heads of query and key, and the router's correction as a stored buffer.

    The class builds neither the multi-token-prediction modules nor a shared expert that published files mention.

    Source:
        transformers@5.23.0, models/minimax_m2/modeling_minimax_m2.py, MiniMaxM2ForCausalLM.
    """
    dims = read_dims(config, kv_heads=8, head_dim=128)
    number = config.integer("num_local_experts", "num_experts", default=256)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims)
    wide_norms(layer, dims)
    layer.buffer("mlp.e_score_correction_bias", (number,), None, persistent=True)
    router(layer, dims.hidden, number)
    experts(layer, dims.hidden, dims.width, number)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    # Published files give the part of a head that turns as `rotary_dim`.
    share = config.integer("rotary_dim", default=dims.head_dim, maximum=dims.head_dim) / dims.head_dim
    rotary(model, config, dims.head_dim, partial=share)
    head(out, dims)


def mixtral_decoder(config: Fields) -> Decoder:
    """MixtralForCausalLM's structure: experts in every layer."""
    dims, number = read_dims(config, kv_heads=8), config.integer("num_local_experts", "num_experts", default=8)
    act = config.text("hidden_act", default="silu")
    moe = Moe(number, config.integer("num_experts_per_tok", default=2), dims.width, act, routing="mixtral")
    window = config.optional_integer("sliding_window")
    return llama_like(dims, act=act, attention={"sliding_window": window}, layer={"mlp": moe})


FAMILIES = {
    "mixtral": Family(mixtral, mixtral_decoder),
    "granitemoe": Family(granitemoe),
    "minimax_m2": Family(minimax_m2),
}

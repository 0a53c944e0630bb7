"""Mixtral and others that replace every MLP of a Llama by experts: Granite MoE, MiniMax M2."""

from __future__ import annotations

from planner.architecture.blocks import attention, experts, head, norms, read_dims, rotary, rotary_frequencies, router, wide_norms
from planner.architecture.decoder import Decoder, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import with_experts
from planner.architecture.structures import attention_dropout, llama_like
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
    jitter = int(config.number("router_jitter_noise", default=0.0) > 0)
    moe = Moe(number, config.integer("num_experts_per_tok", default=2), dims.width, act, routing="mixtral", jitter=jitter)
    attention = {"sliding_window": config.optional_integer("sliding_window"), **attention_dropout(config)}
    return with_experts(llama_like(dims, act=act, attention=attention), moe)


def granitemoe_decoder(config: Fields) -> Decoder:
    """
    GraniteMoeForCausalLM's structure: constants times the embedding, each block's output and the logits.

    Source:
        transformers@5.23.0, models/granitemoe/modeling_granitemoe.py, GraniteMoeModel, GraniteMoeDecoderLayer.
    """
    dims, number = read_dims(config), config.integer("num_local_experts", default=8)
    act = config.text("hidden_act", default="silu")
    moe = Moe(
        number,
        config.integer("num_experts_per_tok", default=2),
        dims.width,
        act,
        router="block_sparse_moe.router.weight",
        gate_up="block_sparse_moe.experts.gate_up_proj",
        down="block_sparse_moe.experts.down_proj",
        routing="granitemoe",
    )
    dense = llama_like(
        dims,
        act=act,
        attention=attention_dropout(config),
        layer={"residual_scale": True},
        decoder={"embedding_multiplier": True, "logit_scale": True},
    )
    return with_experts(dense, moe)


def minimax_m2_decoder(config: Fields) -> Decoder:
    """
    MiniMaxM2ForCausalLM's structure: norms across the heads of query and key, part of each head turns, experts in every layer.

    Source:
        transformers@5.23.0, models/minimax_m2/modeling_minimax_m2.py, MiniMaxM2Attention, MiniMaxM2SparseMoeBlock.
    """
    dims = read_dims(config, kv_heads=8, head_dim=128)
    act = config.text("hidden_act", default="silu")
    share = config.integer("rotary_dim", default=dims.head_dim, maximum=dims.head_dim) / dims.head_dim
    dense = llama_like(
        dims,
        act=act,
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=share),
        attention={
            "q_norm": NormSpec("self_attn.q_norm", "rms", dims.heads * dims.head_dim),
            "k_norm": NormSpec("self_attn.k_norm", "rms", dims.kv_heads * dims.head_dim),
            "norms_each": True,
            "rotary_style": "parts",
            **attention_dropout(config),
        },
    )
    moe = Moe(
        config.integer("num_local_experts", "num_experts", default=256),
        config.integer("num_experts_per_tok", default=8),
        dims.width,
        act,
        routing="minimax_m2",
        jitter=int(config.number("router_jitter_noise", default=0.0) > 0),
    )
    return with_experts(dense, moe)


FAMILIES = {
    "mixtral": Family(mixtral, mixtral_decoder),
    "granitemoe": Family(granitemoe, granitemoe_decoder),
    "minimax_m2": Family(minimax_m2, minimax_m2_decoder),
}

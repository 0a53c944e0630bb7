"""GLM-4.5 and 4.6: grouped-query attention that turns half of each head, dense layers first and then experts."""

from __future__ import annotations

from planner.architecture.blocks import (
    attention,
    experts,
    gated_mlp,
    head,
    head_norms,
    norms,
    read_dims,
    rotary,
    rotary_frequencies,
    router,
)
from planner.architecture.decoder import Decoder, Moe
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.qwen import normed_heads
from planner.architecture.routed import shared_expert, with_experts
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/glm4_moe/modeling_glm4_moe.py, Glm4MoeForCausalLM.
    """
    dims = read_dims(config, kv_heads=8)
    first = min(config.integer("first_k_dense_replace", default=1, minimum=0), dims.layers)
    number = config.integer("n_routed_experts", "num_local_experts", default=128)
    width = config.integer("moe_intermediate_size", default=1408)
    model = out.within("model.")
    layer, moe = model.within("layers.*.", range(dims.layers)), model.within("layers.*.", range(first, dims.layers))

    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    attention(layer, dims, bias=config.flag("attention_bias", default=False), out_bias=False)
    if config.flag("use_qk_norm", default=False):
        head_norms(layer, dims)
    gated_mlp(model.within("layers.*.", range(first)), dims.hidden, dims.width)
    experts(moe, dims.hidden, width, number)
    router(moe, dims.hidden, number)
    moe.buffer("mlp.gate.e_score_correction_bias", (number,), persistent=True)
    gated_mlp(moe, dims.hidden, width * config.integer("n_shared_experts", default=1), name="mlp.shared_experts")
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim, partial=0.5)
    head(out, dims)


def decoder(config: Fields) -> Decoder:
    """
    Glm4MoeForCausalLM's structure: half of each head turns; dense layers, then experts beside one for all tokens.

    Source:
        transformers@5.23.0, models/glm4_moe/modeling_glm4_moe.py, Glm4MoeAttention, Glm4MoeMoE.
    """
    dims = read_dims(config, kv_heads=8)
    act, width = config.text("hidden_act", default="silu"), config.integer("moe_intermediate_size", default=1408)
    normed = normed_heads(dims) if config.flag("use_qk_norm", default=False) else {}
    dense = llama_like(
        dims,
        act=act,
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=0.5),
        attention={**normed, "norms_each": False, "rotary_style": "parts", **attention_dropout(config)},
    )
    moe = Moe(
        config.integer("n_routed_experts", "num_local_experts", default=128),
        config.integer("num_experts_per_tok", default=8),
        width,
        act,
        routing="deepseek_v3",
        normalised=config.flag("norm_topk_prob", default=True),
        groups=config.integer("n_group", default=1),
        open_groups=config.integer("topk_group", default=1),
        shared=shared_expert(width * config.integer("n_shared_experts", default=1), act, "mlp.shared_experts"),
    )
    first = config.integer("first_k_dense_replace", default=1, minimum=0)
    return with_experts(dense, moe, range(first, dims.layers))


FAMILIES = {"glm4_moe": Family(table, decoder)}

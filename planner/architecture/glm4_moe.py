"""GLM-4.5 and 4.6: grouped-query attention that turns half of each head, dense layers first and then experts."""

from __future__ import annotations

from planner.architecture.blocks import attention, experts, gated_mlp, head, head_norms, norms, read_dims, rotary, router
from planner.architecture.family import Family
from planner.architecture.fields import Fields
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


FAMILIES = {"glm4_moe": Family(table)}

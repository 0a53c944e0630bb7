"""Phi: parallel blocks with LayerNorms (1.5, 2), fused projections (3, 4), and experts (3.5-MoE)."""

from __future__ import annotations

from planner.architecture.blocks import (
    Dims,
    attention,
    experts,
    fused_mlp,
    head,
    norms,
    plain_mlp,
    read_dims,
    refusal,
    rotary,
    rotary_frequencies,
    whole_heads,
)
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import InvalidConfigError


def phi(config: Fields, out: Table) -> None:
    """
    PhiForCausalLM: attention and MLP read the same norm, and everything has a bias, the head too.

    Source:
        transformers@5.23.0, models/phi/modeling_phi.py, PhiForCausalLM.
    """
    dims = read_dims(config)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, out="dense", bias=True)
    if config.flag("qk_layernorm", default=False):
        width = whole_heads(config, dims.hidden, dims.heads)
        norms(layer, width, "self_attn.q_layernorm", "self_attn.k_layernorm", bias=True)
    plain_mlp(layer, dims.hidden, dims.width)
    layer.norm("input_layernorm", dims.hidden, bias=True)
    rotary(model, config, dims.head_dim, partial=0.5)
    model.norm("final_layernorm", dims.hidden, bias=True)
    head(out, dims, bias=True)


def phi3_text(config: Fields, model: Table) -> Dims:
    """
    Phi3Model: query, key and value in one projection, gate and up in another.

    Source:
        transformers@5.23.0, models/phi3/modeling_phi3.py, Phi3Model.
    """
    dims = read_dims(config)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    layer.linear("self_attn.o_proj", dims.heads * dims.head_dim, dims.hidden)
    layer.linear("self_attn.qkv_proj", dims.hidden, (dims.heads + 2 * dims.kv_heads) * dims.head_dim)
    fused_mlp(layer, dims.hidden, dims.width)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    _check_scaling(config, rotary_frequencies(config, dims.head_dim, partial=1.0))
    rotary(model, config, dims.head_dim, partial=1.0)
    return dims


def _check_scaling(config: Fields, frequencies: int) -> None:
    """Phi-3 scales by LongRoPE alone, under any of its names, with a factor for each frequency."""
    scaling = config.section("rope_scaling", default={})
    kind = scaling.text("rope_type", "type", default="default")
    if kind not in ("default", "longrope", "su", "yarn"):
        raise refusal(scaling, "rope_type" if "rope_type" in scaling else "type", "longrope, in this family")
    for name in ("short_factor", "long_factor"):
        factors = scaling.raw(name)
        if factors is not None and (not isinstance(factors, (list, tuple)) or len(factors) != frequencies):
            raise InvalidConfigError(
                f"{scaling.path}{name} in config.json must be a list of {frequencies} numbers, one a frequency"
            )


def phi3(config: Fields, out: Table) -> None:
    """Phi3ForCausalLM."""
    head(out, phi3_text(config, out.within("model.")))


def phimoe(config: Fields, out: Table) -> None:
    """
    PhimoeForCausalLM: LayerNorms, and a router that is a subclass of nn.Linear.

    Source:
        transformers@5.23.0, models/phimoe/modeling_phimoe.py, PhimoeForCausalLM.
    """
    dims, number = read_dims(config, kv_heads=8), config.integer("num_local_experts", "num_experts", default=16)
    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    layer.linear_subclass("mlp.router", dims.hidden, number)
    experts(layer, dims.hidden, dims.width, number)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    model.norm("norm", dims.hidden, bias=True)
    rotary(model, config, dims.head_dim)
    head(out, dims, bias=config.flag("lm_head_bias", default=False))


FAMILIES = {
    "phi": Family(phi),
    "phi3": Family(phi3),
    "phimoe": Family(phimoe),
}

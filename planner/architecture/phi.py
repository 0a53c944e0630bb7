"""Phi: parallel blocks with LayerNorms (1.5, 2), fused projections (3, 4), and experts (3.5-MoE)."""

from __future__ import annotations

from typing import Any

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
from planner.architecture.decoder import Decoder, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import with_experts
from planner.architecture.structures import attention_dropout, llama_like
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


def phi_decoder(config: Fields) -> Decoder:
    """
    PhiForCausalLM's structure: attention and a plain MLP side by side behind one norm; a part of each head turns.

    Source:
        transformers@5.23.0, models/phi/modeling_phi.py, PhiAttention, PhiDecoderLayer, PhiModel.
    """
    dims = read_dims(config)
    attention: dict[str, Any] = {"out": "self_attn.dense", "rotary_style": "parts_kept", **attention_dropout(config)}
    if config.flag("qk_layernorm", default=False):
        q_norm, k_norm = (NormSpec(f"self_attn.{name}", "layer", dims.head_dim) for name in ("q_layernorm", "k_layernorm"))
        attention |= {"q_norm": q_norm, "k_norm": k_norm}
    return llama_like(
        dims,
        act=config.text("hidden_act", default="gelu_new"),
        norm="layer",
        layout="parallel",
        norms=("input_layernorm",),
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=0.5),
        attention=attention,
        mlp={"gate": "", "up": "mlp.fc1", "down": "mlp.fc2"},
        layer={"dropout": config.number("resid_pdrop", default=0.0)},
        decoder={
            "norm": NormSpec("model.final_layernorm", "layer", dims.hidden),
            "dropout": config.number("embd_pdrop", default=0.0),
        },
    )


def phi3_decoder(config: Fields) -> Decoder:
    """
    Phi3ForCausalLM's structure: Llama's with fused projections, a window, and dropout on each block's output.

    Source:
        transformers@5.23.0, models/phi3/modeling_phi3.py, Phi3Attention, Phi3MLP, Phi3DecoderLayer.
    """
    dims = read_dims(config)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=1.0),
        attention={
            "fused": "self_attn.qkv_proj",
            "rotary_style": "part_by_part",
            "sliding_window": config.optional_integer("sliding_window"),
            **attention_dropout(config),
        },
        mlp={"fused": "mlp.gate_up_proj"},
        layer={"dropout": config.number("resid_pdrop", default=0.0)},
    )


def phimoe_decoder(config: Fields) -> Decoder:
    """
    PhimoeForCausalLM's structure: Llama's with LayerNorms, two sampled experts in every layer.

    Source:
        transformers@5.23.0, models/phimoe/modeling_phimoe.py, PhimoeDecoderLayer, PhimoeSparseMoeBlock; the jitter is applied twice.
    """
    dims = read_dims(config, kv_heads=8)
    act = config.text("hidden_act", default="silu")
    attention = {"sliding_window": config.optional_integer("sliding_window"), **attention_dropout(config)}
    moe = Moe(
        config.integer("num_local_experts", "num_experts", default=16),
        2,  # sparsemixer chooses two, whatever num_experts_per_tok says
        dims.width,
        act,
        router="mlp.router",
        routing="sparsemixer",
        jitter=2 * int(config.number("input_jitter_noise", default=0.0) > 0),
    )
    return with_experts(llama_like(dims, act=act, norm="layer", attention=attention), moe)


FAMILIES = {
    "phi": Family(phi, phi_decoder),
    "phi3": Family(phi3, phi3_decoder),
    "phimoe": Family(phimoe, phimoe_decoder),
}

"""Qwen: Llama's layout with biases on query, key and value (1.5, 2) or with norms on them (3), dense and with experts."""

from __future__ import annotations

from typing import Any

from planner.architecture.blocks import (
    Dims,
    attention,
    experts,
    gated_mlp,
    head,
    head_norms,
    layer_types,
    norms,
    read_dims,
    rotary,
    router,
)
from planner.architecture.decoder import Decoder, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.llama import layout
from planner.architecture.routed import shared_expert, with_experts
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, given, llama_like, windows
from planner.architecture.table import Table


def qwen2_text(config: Fields, model: Table) -> Dims:
    """
    Qwen2Model.

    Source:
        transformers@5.23.0, models/qwen2/modeling_qwen2.py, Qwen2Model.
    """
    return layout(config, model, read_dims(config, kv_heads=32), bias=True, out_bias=False)


def qwen3_text(config: Fields, model: Table) -> Dims:
    """
    Qwen3Model.

    Source:
        transformers@5.23.0, models/qwen3/modeling_qwen3.py, Qwen3Model.
    """
    bias = config.flag("attention_bias", default=False)
    return layout(config, model, read_dims(config, kv_heads=32, head_dim=128), bias=bias, qk_norm=True)


def sparse_layers(config: Fields, layers: int, number: int) -> tuple[list[int], list[int]]:
    """The layers with experts and the layers with an MLP: every `decoder_sparse_step`-th, but those of `mlp_only_layers`."""
    step, dense = config.integer("decoder_sparse_step", default=1), set(config.integers("mlp_only_layers", default=[]))
    sparse = [i for i in range(layers) if number and i not in dense and (i + 1) % step == 0]
    return sparse, sorted(set(range(layers)) - set(sparse))


def qwen2_moe_text(config: Fields, model: Table) -> Dims:
    """
    Qwen2MoeModel: experts beside one that every token passes, behind a gate of its own.

    Source:
        transformers@5.23.0, models/qwen2_moe/modeling_qwen2_moe.py, Qwen2MoeModel.
    """
    dims, number = read_dims(config, kv_heads=16), config.integer("num_experts", default=60, minimum=0)
    sparse, dense = sparse_layers(config, dims.layers, number)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("qkv_bias", default=True), out_bias=False)
    gated_mlp(model.within("layers.*.", dense), dims.hidden, dims.width)
    block = model.within("layers.*.", sparse)
    router(block, dims.hidden, number)
    experts(block, dims.hidden, config.integer("moe_intermediate_size", default=1408), number)
    shared = config.integer("shared_expert_intermediate_size", default=5632)
    gated_mlp(block, dims.hidden, shared, name="mlp.shared_expert")
    block.linear("mlp.shared_expert_gate", dims.hidden, 1)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    return dims


def qwen3_moe_text(config: Fields, model: Table) -> Dims:
    """
    Qwen3MoeModel: experts only.

    Source:
        transformers@5.23.0, models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeModel.
    """
    dims, number = read_dims(config, kv_heads=4), config.integer("num_experts", "num_local_experts", default=128, minimum=0)
    sparse, dense = sparse_layers(config, dims.layers, number)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    head_norms(layer, dims)
    gated_mlp(model.within("layers.*.", dense), dims.hidden, dims.width)
    block = model.within("layers.*.", sparse)
    experts(block, dims.hidden, config.integer("moe_intermediate_size", default=768), number)
    router(block, dims.hidden, number)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    return dims


def qwen2(config: Fields, out: Table) -> None:
    """Qwen2ForCausalLM."""
    head(out, qwen2_text(config, out.within("model.")))


def qwen3(config: Fields, out: Table) -> None:
    """Qwen3ForCausalLM."""
    head(out, qwen3_text(config, out.within("model.")))


def qwen2_moe(config: Fields, out: Table) -> None:
    """Qwen2MoeForCausalLM."""
    head(out, qwen2_moe_text(config, out.within("model.")))


def qwen3_moe(config: Fields, out: Table) -> None:
    """Qwen3MoeForCausalLM."""
    head(out, qwen3_moe_text(config, out.within("model.")))


def qwen2_decoder(config: Fields) -> Decoder:
    """Qwen2ForCausalLM's structure: Llama's, where later layers may have a window."""
    dims = read_dims(config, kv_heads=32)
    return llama_like(dims, act=config.text("hidden_act", default="silu"), attention=attention_dropout(config), **sliding(config, dims))


def qwen3_decoder(config: Fields) -> Decoder:
    """Qwen3ForCausalLM's structure: Qwen-2's, with a norm on each head of query and key."""
    dims = read_dims(config, kv_heads=32, head_dim=128)
    act = config.text("hidden_act", default="silu")
    return llama_like(dims, act=act, attention={**normed_heads(dims), **attention_dropout(config)}, **sliding(config, dims))


def qwen2_moe_decoder(config: Fields) -> Decoder:
    """
    Qwen2MoeForCausalLM's structure: Qwen-2's, with experts and a gated expert for all in most layers.

    Source:
        transformers@5.23.0, models/qwen2_moe/modeling_qwen2_moe.py, Qwen2MoeDecoderLayer, Qwen2MoeSparseMoeBlock.
    """
    dims, number = read_dims(config, kv_heads=16), config.integer("num_experts", default=60, minimum=0)
    act = config.text("hidden_act", default="silu")
    dense = llama_like(dims, act=act, attention=attention_dropout(config), **sliding(config, dims))
    moe = Moe(
        number,
        config.integer("num_experts_per_tok", default=4),
        config.integer("moe_intermediate_size", default=1408),
        act,
        normalised=config.flag("norm_topk_prob", default=False),
        shared=shared_expert(config.integer("shared_expert_intermediate_size", default=5632), act, "mlp.shared_expert"),
        shared_gate="mlp.shared_expert_gate",
    )
    return with_experts(dense, moe, sparse_layers(config, dims.layers, number)[0])


def qwen3_moe_decoder(config: Fields, *, prefix: str = "model.") -> Decoder:
    """
    Qwen3MoeForCausalLM's structure: Qwen-3's, with experts in most layers.

    Source:
        transformers@5.23.0, models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeDecoderLayer, Qwen3MoeModel.forward.
    """
    dims, number = read_dims(config, kv_heads=4), config.integer("num_experts", "num_local_experts", default=128, minimum=0)
    act = config.text("hidden_act", default="silu")
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window", default=False) else None
    attention = {"sliding_window": window, **normed_heads(dims), **attention_dropout(config)}
    dense = llama_like(dims, prefix=prefix, act=act, attention=attention)
    moe = Moe(
        number,
        config.integer("num_experts_per_tok", default=8),
        config.integer("moe_intermediate_size", default=768),
        act,
        normalised=config.flag("norm_topk_prob", default=False),
    )
    return with_experts(dense, moe, sparse_layers(config, dims.layers, number)[0])


def normed_heads(dims: Dims) -> dict[str, Any]:
    """
    Fields of an attention that norms each head of query and key behind its projection.

    Source:
        transformers@5.23.0, models/qwen3/modeling_qwen3.py, Qwen3Attention.forward.
    """
    q_norm, k_norm = (NormSpec(f"self_attn.{name}", "rms", dims.head_dim) for name in ("q_norm", "k_norm"))
    return {"q_norm": q_norm, "k_norm": k_norm, "norms_each": True}


def sliding(config: Fields, dims: Dims) -> dict[str, Any]:
    """
    The layers with a window, as `llama_like` takes them: by `layer_types`, or from `max_window_layers` on if windows are used at all.

    Source:
        transformers@5.23.0, models/qwen2/configuration_qwen2.py, Qwen2Config.__post_init__.
    """
    if not config.flag("use_sliding_window", default=False):
        return {}
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    first = config.integer("max_window_layers", default=28, minimum=0) if window is not None else dims.layers
    by_default = ["sliding_attention" if i >= first else "full_attention" for i in range(dims.layers)]
    kinds = layer_types(Fields({"layer_types": by_default, **given(config)}, path=config.path), dims, ATTENTION_TYPES)
    return {"kinds": kinds, "by_kind": windows(window)}


FAMILIES = {
    "qwen2": Family(qwen2, qwen2_decoder),
    "qwen3": Family(qwen3, qwen3_decoder),
    "qwen2_moe": Family(qwen2_moe, qwen2_moe_decoder),
    "qwen3_moe": Family(qwen3_moe, qwen3_moe_decoder),
}

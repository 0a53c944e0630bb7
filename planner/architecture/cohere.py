"""Cohere Command: parallel blocks behind one LayerNorm without bias."""

from __future__ import annotations

from typing import Any

from planner.architecture.blocks import Dims, attention, gated_mlp, head, layer_types, read_dims, rotary
from planner.architecture.decoder import Decoder, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, llama_like
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
    layer_types(config, dims, ATTENTION_TYPES, full_every=every)
    return _layout(config, model, dims, qk_norm=False)


def cohere2(config: Fields, out: Table) -> None:
    """Cohere2ForCausalLM."""
    head(out, cohere2_text(config, out.within("model.")))


def cohere_decoder(config: Fields) -> Decoder:
    """
    CohereForCausalLM's structure: attention and MLP side by side behind one norm, logits times a constant.

    Source:
        transformers@5.23.0, models/cohere/modeling_cohere.py, CohereAttention, CohereDecoderLayer, CohereForCausalLM.forward.
    """
    dims = read_dims(config, tied=True)
    normed: dict[str, Any] = {}
    if config.flag("use_qk_norm", default=False):
        q_norm, k_norm = (NormSpec(f"self_attn.{name}", "layer_fp32", dims.head_dim) for name in ("q_norm", "k_norm"))
        normed = {"q_norm": q_norm, "k_norm": k_norm}
    return _side_by_side(config, dims, attention=normed)


def cohere2_decoder(config: Fields) -> Decoder:
    """
    Cohere2ForCausalLM's structure: Cohere's, where layers either have a window and turn, or see everything and do not.

    Source:
        transformers@5.23.0, models/cohere2/modeling_cohere2.py, Cohere2Attention.forward.
    """
    dims = read_dims(config, tied=True)
    kinds = layer_types(config, dims, ATTENTION_TYPES, full_every=config.integer("sliding_window_pattern", default=4))
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    turning = dims.head_dim if window is not None else 0
    by_kind = {
        "full_attention": {"rotary_dim": 0},
        "sliding_attention": {"sliding_window": window, "rotary_dim": turning},
    }
    return _side_by_side(config, dims, kinds=kinds, by_kind=by_kind)


def _side_by_side(config: Fields, dims: Dims, *, attention: dict[str, Any] | None = None, **kinds: Any) -> Decoder:
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        norm="layer_fp32",
        layout="parallel_onto_residual",
        norms=("input_layernorm",),
        attention={"rotary_style": "in_fp32", **attention_dropout(config), **(attention or {})},
        decoder={"logit_scale": True},
        **kinds,
    )


FAMILIES = {"cohere": Family(cohere, cohere_decoder), "cohere2": Family(cohere2, cohere2_decoder)}

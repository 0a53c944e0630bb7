"""OLMo: norms without weights (1), norms after each block and on query and key (2, 3), and experts (OLMoE)."""

from __future__ import annotations

from typing import Any

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
from planner.architecture.decoder import Decoder, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import with_experts
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, llama_like, windows
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError


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
    kinds = layer_types(config, dims, ATTENTION_TYPES, full_every=4)
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


def olmoe_decoder(config: Fields) -> Decoder:
    """
    OlmoeForCausalLM's structure: Llama's, with norms across the heads of query and key, and experts in every layer.

    Source:
        transformers@5.23.0, models/olmoe/modeling_olmoe.py, OlmoeAttention, OlmoeSparseMoeBlock.
    """
    if config.raw("clip_qkv") is not None:
        raise UnsupportedModelError(
            "config.json sets clip_qkv, with which OLMoE clamps queries, keys and values in place; the closed form does not know that step"
        )
    dims, number = read_dims(config), config.integer("num_experts", "num_local_experts", default=64)
    act = config.text("hidden_act", default="silu")
    norms = {
        "q_norm": NormSpec("self_attn.q_norm", "rms", dims.hidden),
        "k_norm": NormSpec("self_attn.k_norm", "rms", dims.hidden // dims.heads * dims.kv_heads),
    }
    moe = Moe(
        number,
        config.integer("num_experts_per_tok", default=8),
        dims.width,
        act,
        normalised=config.flag("norm_topk_prob", default=False),
    )
    return with_experts(llama_like(dims, act=act, attention={**norms, **attention_dropout(config)}), moe)


_ROTARY: dict[str, Any] = {"rotary_style": "cast_back"}


def olmo_decoder(config: Fields) -> Decoder:
    """
    OlmoForCausalLM's structure: Llama's with norms that have no weights, and rotary tables in fp32.

    Source:
        transformers@5.23.0, models/olmo/modeling_olmo.py, OlmoDecoderLayer, OlmoRotaryEmbedding.

    Raises:
        UnsupportedModelError: Queries, keys and values are clipped in place, of which autograd keeps copies.
    """
    if "clip_qkv" in config:
        raise UnsupportedModelError(
            "this OLMo clips queries, keys and values in place (`clip_qkv`), a step that the closed form does not know",
            hint='pass --engine traced, which runs the installed libraries and needs `pip install "qplan[torch]"`',
        )
    dims = read_dims(config)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        norm="bare_layer",
        norms=("", ""),
        attention={**_ROTARY, **attention_dropout(config)},
        decoder={"norm": NormSpec("", "bare_layer", dims.hidden), "rotary_in_fp32": True},
    )


def olmo2_decoder(config: Fields) -> Decoder:
    """
    Olmo2ForCausalLM's structure: norms behind each block, and on all of query and key.

    Source:
        transformers@5.23.0, models/olmo2/modeling_olmo2.py, Olmo2Attention, Olmo2DecoderLayer.
    """
    return _normed_after_decoder(config, read_dims(config))


def olmo3_decoder(config: Fields) -> Decoder:
    """
    Olmo3ForCausalLM's structure: OLMo-2's, but that three of four layers have a window and rotary tables of their own.

    Source:
        transformers@5.23.0, models/olmo3/modeling_olmo3.py, Olmo3Model.forward.
    """
    dims = read_dims(config)
    kinds = layer_types(config, dims, ATTENTION_TYPES, full_every=4)
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    present = sorted(set(kinds))
    by_kind = {kind: {**own, "rotary_table": present.index(kind)} for kind, own in windows(window).items() if kind in present}
    return _normed_after_decoder(config, dims, kinds=kinds, by_kind=by_kind, rotary_tables=len(present))


def _normed_after_decoder(config: Fields, dims: Dims, *, rotary_tables: int = 1, **kinds: Any) -> Decoder:
    q_norm = NormSpec("self_attn.q_norm", "rms_fp32_weight", dims.heads * dims.head_dim)
    k_norm = NormSpec("self_attn.k_norm", "rms_fp32_weight", dims.kv_heads * dims.head_dim)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        norm="rms_fp32_weight",
        layout="post",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        attention={"q_norm": q_norm, "k_norm": k_norm, "norms_each": True, **_ROTARY, **attention_dropout(config)},
        decoder={"rotary_in_fp32": True, "rotary_tables": rotary_tables},
        **kinds,
    )


FAMILIES = {
    "olmo": Family(olmo, olmo_decoder),
    "olmo2": Family(olmo2, olmo2_decoder),
    "olmo3": Family(olmo3, olmo3_decoder),
    "olmoe": Family(olmoe, olmoe_decoder),
}

"""Llama and the families with its layout: RMSNorm, grouped-query attention with rotary positions, SwiGLU."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, gated_mlp, head, head_norms, layer_types, norms, read_dims, refusal, rotary
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, given, llama_like
from planner.architecture.table import Table


def layout(
    config: Fields,
    model: Table,
    dims: Dims,
    *,
    bias: bool = False,
    out_bias: bool | None = None,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> Dims:
    """
    A decoder of Llama's layout, without its head.

    Args:
        config: The config of the decoder.
        model: Where the decoder sits.
        dims: Its sizes.
        bias: Whether query, key and value have biases.
        out_bias: Whether the output projection has one; None for as the others.
        mlp_bias: Whether the MLP has biases.
        qk_norm: Whether each head of query and key is normalised.

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, LlamaModel.
    """
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=bias, out_bias=out_bias)
    if qk_norm:
        head_norms(layer, dims)
    gated_mlp(layer, dims.hidden, dims.width, bias=mlp_bias)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    return dims


def llama_text(config: Fields, model: Table) -> Dims:
    """LlamaModel."""
    bias, mlp_bias = config.flag("attention_bias", default=False), config.flag("mlp_bias", default=False)
    return layout(config, model, read_dims(config, strict=True), bias=bias, mlp_bias=mlp_bias)


def mistral_text(config: Fields, model: Table) -> Dims:
    """
    MistralModel: no biases.

    Source:
        transformers@5.23.0, models/mistral/modeling_mistral.py, MistralModel.
    """
    return layout(config, model, read_dims(config, kv_heads=8))


def granite_text(config: Fields, model: Table) -> Dims:
    """
    GraniteModel: Llama with multipliers, which are no tensors.

    Source:
        transformers@5.23.0, models/granite/modeling_granite.py, GraniteModel.
    """
    bias, mlp_bias = config.flag("attention_bias", default=False), config.flag("mlp_bias", default=False)
    return layout(config, model, read_dims(config), bias=bias, mlp_bias=mlp_bias)


def smollm3_text(config: Fields, model: Table) -> Dims:
    """
    SmolLM3Model: every fourth layer turns nothing, over the same tensors.

    Source:
        transformers@5.23.0, models/smollm3/modeling_smollm3.py, SmolLM3Model.
    """
    bias, mlp_bias = config.flag("attention_bias", default=False), config.flag("mlp_bias", default=False)
    return layout(config, model, read_dims(config, kv_heads=4, tied=True), bias=bias, mlp_bias=mlp_bias)


def llama(config: Fields, out: Table) -> None:
    """LlamaForCausalLM."""
    head(out, llama_text(config, out.within("model.")))


def mistral(config: Fields, out: Table) -> None:
    """MistralForCausalLM."""
    head(out, mistral_text(config, out.within("model.")))


def granite(config: Fields, out: Table) -> None:
    """GraniteForCausalLM."""
    head(out, granite_text(config, out.within("model.")))


def smollm3(config: Fields, out: Table) -> None:
    """SmolLM3ForCausalLM."""
    head(out, smollm3_text(config, out.within("model.")))


def llama_decoder(config: Fields) -> Decoder:
    """LlamaForCausalLM's structure."""
    return llama_like(read_dims(config, strict=True), act=config.text("hidden_act", default="silu"), attention=attention_dropout(config))


def mistral_decoder(config: Fields, *, prefix: str = "model.") -> Decoder:
    """MistralForCausalLM's structure: Llama's, with a window."""
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    act = config.text("hidden_act", default="silu")
    attention = {"sliding_window": window, **attention_dropout(config)}
    return llama_like(read_dims(config, kv_heads=8), prefix=prefix, act=act, attention=attention)


def granite_decoder(config: Fields) -> Decoder:
    """
    GraniteForCausalLM's structure: Llama's, with constants times the embedding, each block's output and the logits.

    Source:
        transformers@5.23.0, models/granite/modeling_granite.py, GraniteModel, GraniteDecoderLayer, GraniteForCausalLM.forward.
    """
    return llama_like(
        read_dims(config),
        act=config.text("hidden_act", default="silu"),
        attention=attention_dropout(config),
        layer={"residual_scale": True},
        decoder={"embedding_multiplier": True, "logit_scale": True},
    )


def smollm3_decoder(config: Fields) -> Decoder:
    """
    SmolLM3ForCausalLM's structure: Llama's, but that some layers turn nothing, and these may have a window.

    Source:
        transformers@5.23.0, models/smollm3/modeling_smollm3.py, SmolLM3Attention; configuration_smollm3.py.
    """
    dims = read_dims(config, kv_heads=4, tied=True)
    every = config.integer("no_rope_layer_interval", default=4)
    turns = config.integers("no_rope_layers", default=[int((i + 1) % every != 0) for i in range(dims.layers)])
    if len(turns) < dims.layers:
        raise refusal(config, "no_rope_layers", f"a list of {dims.layers} numbers, one a layer")
    turns = turns[: dims.layers]
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window", default=False) else None
    by_default = ["full_attention" if window is None or turns[i] else "sliding_attention" for i in range(dims.layers)]
    reach = layer_types(Fields({"layer_types": by_default, **given(config)}, path=config.path), dims, ATTENTION_TYPES)
    by_kind = {
        f"{kind} {turned}": {"sliding_window": window if kind == "sliding_attention" else None, "rotary_dim": dims.head_dim * turned}
        for kind in ATTENTION_TYPES
        for turned in (0, 1)
    }
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        attention=attention_dropout(config),
        kinds=[f"{kind} {int(bool(turned))}" for kind, turned in zip(reach, turns, strict=True)],
        by_kind=by_kind,
    )


FAMILIES = {
    "llama": Family(llama, llama_decoder),
    "mistral": Family(mistral, mistral_decoder),
    "granite": Family(granite, granite_decoder),
    "smollm3": Family(smollm3, smollm3_decoder),
}

"""Gemma: a large head dimension, a scaled embedding, and from the second generation on four norms a layer."""

from __future__ import annotations

from planner.architecture.blocks import (
    Dims,
    attention,
    gated_mlp,
    head,
    head_norms,
    layer_types,
    norms,
    read_dims,
    rotary,
)
from planner.architecture.decoder import Decoder, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, given, llama_like, windows
from planner.architecture.table import Table

# The published text configs of Gemma 3 leave out what equals the class's defaults.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def gemma_text(config: Fields, model: Table) -> Dims:
    """
    GemmaModel.

    Source:
        transformers@5.23.0, models/gemma/modeling_gemma.py, GemmaModel.
    """
    dims = read_dims(config, kv_heads=16, head_dim=256, tied=True)
    _layers(config, model, dims, "input_layernorm", "post_attention_layernorm")
    rotary(model, config, dims.head_dim)
    return dims


def gemma2_text(config: Fields, model: Table) -> Dims:
    """
    Gemma2Model.

    Source:
        transformers@5.23.0, models/gemma2/modeling_gemma2.py, Gemma2Model.
    """
    dims = read_dims(config, kv_heads=4, head_dim=256, tied=True, strict=True)
    layer_types(config, dims, ATTENTION_TYPES, full_every=2)
    _layers(config, model, dims, *_FOUR_NORMS)
    rotary(model, config, dims.head_dim)
    return dims


def gemma3_text(config: Fields, model: Table) -> Dims:
    """
    Gemma3TextModel: norms on query and key, and rotary tables for each kind of layer.

    Source:
        transformers@5.23.0, models/gemma3/modeling_gemma3.py, Gemma3TextModel, Gemma3RotaryEmbedding.
    """
    config, dims, kinds = _gemma3_config(config)
    _layers(config, model, dims, *_FOUR_NORMS, qk_norm=True)
    scaling = config.section("rope_scaling", default={}).values
    tables = config.section("rope_parameters", default={})
    for kind in sorted(set(kinds)):
        own = dict(tables.section(kind, default={}).values)
        # A scaling in the old place is for the layers that see the whole sequence.
        own.update(scaling if kind == "full_attention" else {})
        rotary(model, Fields({"rope_parameters": own}, path=config.path), dims.head_dim, kinds=[kind])
    return dims


def _gemma3_config(config: Fields) -> tuple[Fields, Dims, list[str]]:
    """The config with its class's defaults, its sizes, and the kind of each layer."""
    config = Fields({**_GEMMA3_DEFAULTS, **given(config)}, path=config.path)
    dims = read_dims(config, kv_heads=4, head_dim=256, tied=True, strict=True)
    every = config.integer("sliding_window_pattern", default=6)
    return config, dims, layer_types(config, dims, ATTENTION_TYPES, full_every=every)


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _layers(config: Fields, model: Table, dims: Dims, *norm_names: str, qk_norm: bool = False) -> None:
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    model.buffer("embed_tokens.embed_scale", (), None)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    if qk_norm:
        head_norms(layer, dims)
    gated_mlp(layer, dims.hidden, dims.width)
    norms(layer, dims.hidden, *norm_names)
    model.norm("norm", dims.hidden)


def gemma(config: Fields, out: Table) -> None:
    """GemmaForCausalLM."""
    head(out, gemma_text(config, out.within("model.")))


def gemma2(config: Fields, out: Table) -> None:
    """Gemma2ForCausalLM."""
    head(out, gemma2_text(config, out.within("model.")))


def gemma3(config: Fields, out: Table) -> None:
    """Gemma3ForCausalLM."""
    head(out, gemma3_text(config, out.within("model.")))


_ACT = "gelu_pytorch_tanh"


def gemma_decoder(config: Fields) -> Decoder:
    """GemmaForCausalLM's structure: Llama's with a scaled embedding and other norms."""
    dims = read_dims(config, kv_heads=16, head_dim=256, tied=True)
    return llama_like(dims, act=_ACT, norm="rms_plus_one", attention=attention_dropout(config), decoder={"embedding_scale": True})


def gemma2_decoder(config: Fields) -> Decoder:
    """
    Gemma2ForCausalLM's structure: norms around each block, every second layer with a window, capped scores and logits.

    Source:
        transformers@5.23.0, models/gemma2/modeling_gemma2.py, Gemma2DecoderLayer, Gemma2ForCausalLM; `_supports_sdpa` is False.
    """
    dims = read_dims(config, kv_heads=4, head_dim=256, tied=True, strict=True)
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    softcap = "attn_logit_softcapping" in config or "attn_logit_softcapping" not in config.values
    return llama_like(
        dims,
        act=config.text("hidden_activation", default=_ACT),
        norm="rms_plus_one",
        layout="sandwich",
        norms=_FOUR_NORMS,
        attention={"softcap": softcap, **attention_dropout(config)},
        decoder={"embedding_scale": True, "logit_softcap": _caps_logits(config, default=True), "supports_sdpa": False},
        kinds=layer_types(config, dims, ATTENTION_TYPES, full_every=2),
        by_kind=windows(window),
    )


def gemma3_decoder(config: Fields, *, prefix: str = "model.") -> Decoder:
    """
    Gemma3ForCausalLM's structure: Gemma-2's with normed heads instead of caps, and rotary tables for each kind of layer.

    Source:
        transformers@5.23.0, models/gemma3/modeling_gemma3.py, Gemma3Attention, Gemma3TextModel.forward.
    """
    config, dims, kinds = _gemma3_config(config)
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 4096
    both_ways = config.flag("use_bidirectional_attention", default=False)
    if both_ways and window is not None:
        window = window // 2 + 1
    q_norm, k_norm = (NormSpec(f"self_attn.{name}", "rms_plus_one", dims.head_dim) for name in ("q_norm", "k_norm"))
    present = sorted(set(kinds))
    by_kind = {kind: {**own, "rotary_table": present.index(kind)} for kind, own in windows(window).items() if kind in present}
    return llama_like(
        dims,
        prefix=prefix,
        act=config.text("hidden_activation", default=_ACT),
        norm="rms_plus_one",
        layout="sandwich",
        norms=_FOUR_NORMS,
        attention={"q_norm": q_norm, "k_norm": k_norm, **attention_dropout(config)},
        decoder={
            "embedding_scale": True,
            "logit_softcap": _caps_logits(config, default=False),
            "rotary_tables": len(present),
            "always_masked": both_ways,
        },
        kinds=kinds,
        by_kind=by_kind,
    )


def _caps_logits(config: Fields, *, default: bool) -> bool:
    """Whether logits pass through tanh; `null` says no, where the class's default says yes."""
    name = "final_logit_softcapping"
    return name in config or (default and name not in config.values)


FAMILIES = {
    "gemma": Family(gemma, gemma_decoder),
    "gemma2": Family(gemma2, gemma2_decoder),
    "gemma3_text": Family(gemma3, gemma3_decoder),
}

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
from planner.architecture.family import Family
from planner.architecture.fields import Fields
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
    layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=2)
    _layers(config, model, dims, *_FOUR_NORMS)
    rotary(model, config, dims.head_dim)
    return dims


def gemma3_text(config: Fields, model: Table) -> Dims:
    """
    Gemma3TextModel: norms on query and key, and rotary tables for each kind of layer.

    Source:
        transformers@5.23.0, models/gemma3/modeling_gemma3.py, Gemma3TextModel, Gemma3RotaryEmbedding.
    """
    given = {name: value for name, value in config.values.items() if value is not None}
    config = Fields({**_GEMMA3_DEFAULTS, **given}, path=config.path)
    dims = read_dims(config, kv_heads=4, head_dim=256, tied=True, strict=True)
    every = config.integer("sliding_window_pattern", default=6)
    kinds = layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=every)
    _layers(config, model, dims, *_FOUR_NORMS, qk_norm=True)
    scaling = config.section("rope_scaling", default={}).values
    tables = config.section("rope_parameters", default={})
    for kind in sorted(set(kinds)):
        own = dict(tables.section(kind, default={}).values)
        # A scaling in the old place is for the layers that see the whole sequence.
        own.update(scaling if kind == "full_attention" else {})
        rotary(model, Fields({"rope_parameters": own}, path=config.path), dims.head_dim, kinds=[kind])
    return dims


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


FAMILIES = {
    "gemma": Family(gemma),
    "gemma2": Family(gemma2),
    "gemma3_text": Family(gemma3),
}

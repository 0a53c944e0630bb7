"""Gemma 3n: parallel residual streams (AltUp), low-rank side paths (Laurel), and inputs of their own for each layer."""

from __future__ import annotations

from planner.architecture import gemma3n_audio, mobilenet
from planner.architecture.blocks import Dims, gated_mlp, head, layer_types, norms, read_dims, refusal, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import filled, grouped, shared_head
from planner.architecture.table import Table

_NEEDS = "AltUp's parallel streams, Laurel's side paths, inputs for each layer, and keys and values that layers share"
# Widths of the towers' outputs, as their config classes have them.
_IMAGE_WIDTH, _AUDIO_WIDTH = 2048, 1536


def table(config: Fields, out: Table) -> None:
    """
    The module table; a config may be empty, for its class's defaults are the published model.

    Source:
        transformers@5.23.0, models/gemma3n/modeling_gemma3n.py, Gemma3nForConditionalGeneration.
    """
    image, audio = config.section("vision_config", default={}), config.section("audio_config", default={})
    mobilenet.tower(image, out.within("model.vision_tower.timm_model."))
    dims = decoder(config.section("text_config", default={}), out.within("model.language_model."))
    gemma3n_audio.tower(audio, out.within("model.audio_tower."))
    _embedder(image, out.within("model.embed_vision."), _IMAGE_WIDTH, dims.hidden)
    _embedder(audio, out.within("model.embed_audio."), _AUDIO_WIDTH, dims.hidden)
    shared_head(config, out, dims, tied=True)


def text_model(config: Fields, out: Table) -> None:
    """
    The module table of the text model alone.

    Source:
        transformers@5.23.0, models/gemma3n/modeling_gemma3n.py, Gemma3nForCausalLM.
    """
    head(out, decoder(config, out.within("model.")))


def decoder(config: Fields, model: Table) -> Dims:
    """
    The text decoder, without its head.

    Source:
        transformers@5.23.0, models/gemma3n/modeling_gemma3n.py, Gemma3nTextModel.
    """
    config = filled(config, vocab_size=262_400, hidden_size=2048, num_hidden_layers=35, num_attention_heads=8)
    widths = _widths(config)
    sizes = Fields({**config.values, "intermediate_size": max(widths)}, path=config.path)
    dims = read_dims(sizes, kv_heads=2, head_dim=256, tied=True, strict=True)
    kinds = layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=5)
    shared = config.integer("num_kv_shared_layers", default=15, minimum=0, maximum=dims.layers - 1)
    if set(kinds[: dims.layers - shared]) != set(kinds):
        raise refusal(config, "num_kv_shared_layers", "so small that each kind of layer has one that computes keys and values")
    own, streams = config.integer("hidden_size_per_layer_input", default=256), config.layers("altup_num_inputs", default=4)

    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    model.buffer("embed_tokens.embed_scale", (), None)
    _attention(config, dims, model, dims.layers - shared)
    for width, chosen in grouped(widths).items():
        gated_mlp(model.within("layers.*.", chosen), dims.hidden, width)
    _layer(config, dims, model.within("layers.*.", range(dims.layers)), own, streams)
    model.norm("norm", dims.hidden)
    tables = config.section("rope_parameters", default={})
    for kind in sorted(set(kinds)):
        values = tables.section(kind, default={}).values
        rotary(model, Fields({"rope_parameters": values}, path=config.path), dims.head_dim, kinds=[kind])
    model.embedding("embed_tokens_per_layer", config.integer("vocab_size_per_layer_input", default=262_144), dims.layers * own)
    model.buffer("embed_tokens_per_layer.embed_scale", (), None)
    model.linear("per_layer_model_projection", dims.hidden, dims.layers * own)
    model.norm("per_layer_projection_norm", own)
    for name in ("altup_projections", "altup_unembed_projections"):
        model.within(f"{name}.*", range(streams - 1)).linear("", dims.hidden, dims.hidden)
    model.buffer("per_layer_projection_scale", (), None)
    model.buffer("per_layer_input_scale", (), None)
    return dims


def _attention(config: Fields, dims: Dims, model: Table, computing: int) -> None:
    """The first layers compute keys and values, which the later ones reuse."""
    bias = config.flag("attention_bias", default=False)
    keys = dims.kv_heads * dims.head_dim
    at = model.within("layers.*.self_attn.", range(dims.layers))
    at.linear("q_proj", dims.hidden, dims.heads * dims.head_dim, bias=bias)
    at.norm("q_norm", dims.head_dim)
    first = model.within("layers.*.self_attn.", range(computing))
    first.linear("k_proj", dims.hidden, keys, bias=bias)
    first.linear("v_proj", dims.hidden, keys, bias=bias)
    first.norm("k_norm", dims.head_dim)
    at.linear("o_proj", dims.heads * dims.head_dim, dims.hidden, bias=bias)


def _layer(config: Fields, dims: Dims, layer: Table, own: int, streams: int) -> None:
    """The norms of a layer, its AltUp, its Laurel, and its own input."""
    rank = config.integer("laurel_rank", default=64)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    norms(layer, dims.hidden, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    layer.parameter("altup.correct_output_scale", (dims.hidden,))
    layer.buffer("altup.router_input_scale", (), None)
    layer.linear("altup.correction_coefs", streams, streams)
    layer.linear("altup.prediction_coefs", streams, streams**2)
    layer.linear("altup.modality_router", dims.hidden, streams)
    layer.norm("altup.router_norm", dims.hidden)
    layer.linear("laurel.linear_left", dims.hidden, rank)
    layer.linear("laurel.linear_right", rank, dims.hidden)
    layer.norm("laurel.post_laurel_norm", dims.hidden)
    layer.linear("per_layer_input_gate", dims.hidden, own)
    layer.linear("per_layer_projection", own, dims.hidden)
    layer.norm("post_per_layer_input_norm", dims.hidden)


def _widths(config: Fields) -> list[int]:
    """Inner width of each layer's MLP: one number for all, or a list."""
    layers = config.layers("num_hidden_layers")
    if not isinstance(config.raw("intermediate_size"), (list, tuple)):
        return [config.integer("intermediate_size", default=16_384)] * layers
    widths = config.integers("intermediate_size", minimum=1)
    if len(widths) != layers:
        raise refusal(config, "intermediate_size", f"one number, or a list of {layers}, one for each layer")
    return widths


def _embedder(config: Fields, out: Table, width: int, hidden: int) -> None:
    """From a tower's width to the decoder's, with an embedding for the tokens that stand for images or sound."""
    width = config.integer("hidden_size", default=width)
    out.embedding("embedding", config.integer("vocab_size", default=128), width)
    norms(out, width, "hard_embedding_norm", "soft_embedding_norm")
    out.linear("embedding_projection", width, hidden)


FAMILIES = {"gemma3n": Family(table, needs=_NEEDS), "gemma3n_text": Family(text_model, needs=_NEEDS)}

"""Gemma 4: two head sizes, late layers that reuse keys and values, inputs for each layer, and experts beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture import gemma4_towers
from planner.architecture.blocks import Dims, experts, gated_mlp, head, norms, read_dims, refusal, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import filled, grouped, kinds_of, shared_head
from planner.architecture.table import Table
from planner.value import Value

_SLIDING, _FULL = "sliding_attention", "full_attention"
_NEEDS = "inputs of their own for each layer, keys and values that layers share, and experts beside the MLP"


class _Attention(Value):
    """What the attention of a layer is built from."""

    kind: str
    head_dim: int
    kv_heads: int
    reuses: bool


def table(config: Fields, out: Table) -> None:
    """
    The module table; the towers are there where the file describes them.

    Source:
        transformers@5.23.0, models/gemma4/modeling_gemma4.py, Gemma4ForConditionalGeneration.
    """
    image = config.section("vision_config") if "vision_config" in config else None
    audio = config.section("audio_config") if "audio_config" in config else None
    if image:
        gemma4_towers.image(image, out.within("model.vision_tower."))
    dims = decoder(config.section("text_config", default={}), out.within("model.language_model."))
    if audio:
        gemma4_towers.audio(audio, out.within("model.audio_tower."))
    if image:
        out.linear("model.embed_vision.embedding_projection", image.integer("hidden_size", default=768), dims.hidden)
    if audio:
        out.linear("model.embed_audio.embedding_projection", audio.integer("output_proj_dims", default=1536), dims.hidden)
    shared_head(config, out, dims, tied=True)


def text_model(config: Fields, out: Table) -> None:
    """
    The module table of the text model alone.

    Source:
        transformers@5.23.0, models/gemma4/modeling_gemma4.py, Gemma4ForCausalLM.
    """
    head(out, decoder(config, out.within("model.")))


def decoder(config: Fields, model: Table) -> Dims:
    """
    The text decoder, without its head.

    Source:
        transformers@5.23.0, models/gemma4/modeling_gemma4.py, Gemma4TextModel.
    """
    config = filled(
        config,
        vocab_size=262_144,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=30,
        num_attention_heads=8,
    )
    dims = read_dims(config, kv_heads=4, head_dim=256, tied=True)
    layers = _layers(config, dims)
    own = config.integer("hidden_size_per_layer_input", default=256, minimum=0)

    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    model.buffer("embed_tokens.embed_scale", (), None)
    layer = model.within("layers.*.", range(dims.layers))
    layer.buffer("layer_scalar", (1,), None, persistent=True)
    for attention, chosen in grouped(layers).items():
        _attention(config, dims, model.within("layers.*.", chosen), attention)
    wider = config.flag("use_double_wide_mlp", default=False)
    for factor, chosen in grouped([2 if wider and one.reuses else 1 for one in layers]).items():
        gated_mlp(model.within("layers.*.", chosen), dims.hidden, factor * dims.width)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    norms(layer, dims.hidden, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    if own:
        layer.linear("per_layer_input_gate", dims.hidden, own)
        layer.linear("per_layer_projection", own, dims.hidden)
        layer.norm("post_per_layer_input_norm", dims.hidden)
    if config.flag("enable_moe_block", default=False):
        _experts(config, dims, layer)
    model.norm("norm", dims.hidden)
    _rotary(config, model, layers)
    if own:
        _own_inputs(config, dims, model, own)
    return dims


def _own_inputs(config: Fields, dims: Dims, model: Table, own: int) -> None:
    """The embedding that gives every layer an input of its own, and the projection that mixes in the common one."""
    rows = config.integer("vocab_size_per_layer_input", default=262_144)
    model.embedding("embed_tokens_per_layer", rows, dims.layers * own)
    model.buffer("embed_tokens_per_layer.embed_scale", (), None)
    model.linear("per_layer_model_projection", dims.hidden, dims.layers * own)
    model.norm("per_layer_projection_norm", own)


def _attention(config: Fields, dims: Dims, layer: Table, attention: _Attention) -> None:
    bias, keys = config.flag("attention_bias", default=False), attention.kv_heads * attention.head_dim
    at = layer.within("self_attn.")
    at.linear("q_proj", dims.hidden, dims.heads * attention.head_dim, bias=bias)
    at.norm("q_norm", attention.head_dim)
    if not attention.reuses:
        at.norm("k_norm", attention.head_dim)
        at.linear("k_proj", dims.hidden, keys, bias=bias)
        if not (attention.kind == _FULL and config.flag("attention_k_eq_v", default=False)):
            at.linear("v_proj", dims.hidden, keys, bias=bias)
    at.linear("o_proj", dims.heads * attention.head_dim, dims.hidden, bias=bias)


def _experts(config: Fields, dims: Dims, layer: Table) -> None:
    number = config.integer("num_experts")
    layer.parameter("router.scale", (dims.hidden,))
    layer.parameter("router.per_expert_scale", (number,))
    layer.linear("router.proj", dims.hidden, number)
    experts(layer, dims.hidden, config.integer("moe_intermediate_size"), number, name="experts")
    norms(layer, dims.hidden, "post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")


def _rotary(config: Fields, model: Table, layers: list[_Attention]) -> None:
    tables = config.section("rope_parameters", default={})
    for kind in sorted({one.kind for one in layers}):
        head_dim = next(one.head_dim for one in layers if one.kind == kind)
        own = Fields({"rope_parameters": tables.section(kind, default={}).values}, path=config.path)
        rotary(model, own, head_dim, kinds=[kind])


def _layers(config: Fields, dims: Dims) -> list[_Attention]:
    """
    The attention of each layer.

    Source:
        transformers@5.23.0, models/gemma4/configuration_gemma4.py, Gemma4TextConfig.__post_init__, kv_sharing_modes.
    """
    pattern = [_SLIDING if (i + 1) % 6 else _FULL for i in range(dims.layers)]
    kinds = kinds_of(config, "layer_types", pattern, (_SLIDING, _FULL))
    kinds[-1] = _FULL  # the class insists
    shared = config.integer("num_kv_shared_layers", default=0, minimum=0, maximum=dims.layers - 1)
    first = dims.layers - shared
    if set(kinds[:first]) != set(kinds):
        raise refusal(config, "num_kv_shared_layers", "so small that each kind of layer has one that computes keys and values")
    sizes = [_sizes(config, dims, index, kind) for index, kind in enumerate(kinds)]
    return [_Attention(kind, *sizes[index], index >= first) for index, kind in enumerate(kinds)]


def _sizes(config: Fields, dims: Dims, index: int, kind: str) -> tuple[int, int]:
    """Head dimension and number of key heads of a layer."""
    overrides = config.raw("per_layer_config")
    if isinstance(overrides, Mapping):  # as transformers 5 saves it
        by_layer = {str(layer): values for layer, values in overrides.items()}
        own = Fields(by_layer, path=f"{config.path}per_layer_config.").section(str(index), default={})
        return own.integer("head_dim", default=dims.head_dim), own.integer("num_key_value_heads", default=dims.kv_heads)
    if kind == _SLIDING:
        return dims.head_dim, dims.kv_heads
    kv_heads = dims.kv_heads
    if config.flag("attention_k_eq_v", default=False):
        kv_heads = config.integer("num_global_key_value_heads", default=kv_heads)
    return config.integer("global_head_dim", default=512), kv_heads


FAMILIES = {"gemma4": Family(table, needs=_NEEDS), "gemma4_text": Family(text_model, needs=_NEEDS)}

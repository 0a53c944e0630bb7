"""Qwen3-Next and Qwen3.5: layers of gated delta networks between layers of gated attention; dense or with experts."""

from __future__ import annotations

from planner.architecture import vision
from planner.architecture.blocks import Dims, experts, gated_mlp, head, head_norms, norms, read_dims, rotary, rotary_frequencies, router
from planner.architecture.decoder import Decoder, Delta, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.qwen import sparse_layers
from planner.architecture.routed import shared_expert, with_experts
from planner.architecture.sections import TEXT, filled, kinds_of, section, shared_head, where
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table

_LINEAR, _FULL = "linear_attention", "full_attention"

_SMALL = {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "vocab_size": 248_320,
}
# The MoE classes of Qwen3.5 have no plain MLP, and no width for one.
_SPARSE = {
    "hidden_size": 2048,
    "intermediate_size": 1,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "vocab_size": 248_320,
    "num_experts": 256,
}


def qwen3_next(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/qwen3_next/modeling_qwen3_next.py, Qwen3NextForCausalLM.
    """
    dims = read_dims(config, kv_heads=2, head_dim=256)
    number = config.integer("num_experts", default=512, minimum=0)
    model = out.within("model.")
    linear = _mixers(config, dims, model)
    key, value, heads = _delta_sizes(config)
    linear.linear("in_proj_qkvz", dims.hidden, 2 * key + 2 * value)
    linear.linear("in_proj_ba", dims.hidden, 2 * heads)
    _delta_end(config, dims, linear)
    sparse, plain = sparse_layers(config, dims.layers, number)
    gated_mlp(model.within("layers.*.", plain), dims.hidden, dims.width)
    _experts(config, dims, model.within("layers.*.", sparse), number)
    _rest(config, dims, model)
    head(out, dims)


def qwen3_5_decoder(config: Fields, model: Table, *, sparse: bool) -> Dims:
    """
    The text decoder of Qwen3.5, without its head.

    Source:
        transformers@5.23.0, models/qwen3_5/modeling_qwen3_5.py, Qwen3_5TextModel; models/qwen3_5_moe, Qwen3_5MoeTextModel.
    """
    config = filled(config, **(_SPARSE if sparse else _SMALL))
    dims = read_dims(config, kv_heads=2 if sparse else 4, head_dim=256)
    linear = _mixers(config, dims, model)
    key, value, heads = _delta_sizes(config)
    _delta_end(config, dims, linear)
    linear.linear("in_proj_qkv", dims.hidden, 2 * key + value)
    linear.linear("in_proj_z", dims.hidden, value)
    linear.linear("in_proj_b", dims.hidden, heads)
    linear.linear("in_proj_a", dims.hidden, heads)
    layer = model.within("layers.*.", range(dims.layers))
    if sparse:
        _experts(config, dims, layer, config.integer("num_experts"))
    else:
        gated_mlp(layer, dims.hidden, dims.width)
    _rest(config, dims, model)
    return dims


def _mixers(config: Fields, dims: Dims, model: Table) -> Table:
    """The embedding, the attention layers, and the start of the delta layers, whose projections the caller adds."""
    kinds = _kinds(config, dims)
    bias = config.flag("attention_bias", default=False)
    key, value, heads = _delta_sizes(config)

    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    at = model.within("layers.*.self_attn.", where(kinds, _FULL))
    at.linear("q_proj", dims.hidden, 2 * dims.heads * dims.head_dim, bias=bias)  # the query, and the gate of the output
    at.linear("k_proj", dims.hidden, dims.kv_heads * dims.head_dim, bias=bias)
    at.linear("v_proj", dims.hidden, dims.kv_heads * dims.head_dim, bias=bias)
    at.linear("o_proj", dims.heads * dims.head_dim, dims.hidden, bias=bias)
    head_norms(model.within("layers.*.", where(kinds, _FULL)), dims)
    linear = model.within("layers.*.linear_attn.", where(kinds, _LINEAR))
    linear.parameter("dt_bias", (heads,))
    linear.parameter("A_log", (heads,))
    linear.convolution("conv1d", (2 * key + value, 1, config.integer("linear_conv_kernel_dim", default=4)))
    return linear


def _delta_sizes(config: Fields) -> tuple[int, int, int]:
    """Widths of all keys and of all values of a delta layer, and its number of value heads."""
    heads = config.integer("linear_num_value_heads", default=32)
    key = config.integer("linear_num_key_heads", default=16) * config.integer("linear_key_head_dim", default=128)
    return key, heads * config.integer("linear_value_head_dim", default=128), heads


def _delta_end(config: Fields, dims: Dims, linear: Table) -> None:
    linear.norm("norm", config.integer("linear_value_head_dim", default=128))
    linear.linear("out_proj", _delta_sizes(config)[1], dims.hidden)


def _experts(config: Fields, dims: Dims, layer: Table, number: int) -> None:
    router(layer, dims.hidden, number)
    experts(layer, dims.hidden, config.integer("moe_intermediate_size", default=512), number)
    gated_mlp(layer, dims.hidden, config.integer("shared_expert_intermediate_size", default=512), name="mlp.shared_expert")
    layer.linear("mlp.shared_expert_gate", dims.hidden, 1)


def _rest(config: Fields, dims: Dims, model: Table) -> None:
    norms(model.within("layers.*.", range(dims.layers)), dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim, partial=0.25)


def multimodal(config: Fields, out: Table, *, sparse: bool) -> None:
    """
    The module table of Qwen3.5 with its image tower.

    Source:
        transformers@5.23.0, models/qwen3_5/modeling_qwen3_5.py, Qwen3_5ForConditionalGeneration; the same names in qwen3_5_moe.
    """
    vision.qwen3_vl(config.section("vision_config", default={}), out.within("model.visual."), deepstack=False)
    dims = qwen3_5_decoder(section(config, "text_config"), out.within("model.language_model."), sparse=sparse)
    shared_head(config, out, dims, tied=False)


def text_model(config: Fields, out: Table, *, sparse: bool) -> None:
    """
    The module table of the text model alone.

    Source:
        transformers@5.23.0, models/qwen3_5/modeling_qwen3_5.py, Qwen3_5ForCausalLM; the same names in qwen3_5_moe.
    """
    head(out, qwen3_5_decoder(config, out.within("model."), sparse=sparse))


def _structure(config: Fields, dims: Dims, *, prefix: str, fused: bool, table_style: str) -> Decoder:
    """
    The structure without experts: delta networks and gated attention, norms that multiply by 1 + weight.

    Source:
        transformers@5.23.0, models/qwen3_next/modeling_qwen3_next.py, Qwen3NextDecoderLayer, Qwen3NextModel.forward; models/qwen3_5.
    """
    heads, key_heads = config.integer("linear_num_value_heads", default=32), config.integer("linear_num_key_heads", default=16)
    key_dim, value_dim = config.integer("linear_key_head_dim", default=128), config.integer("linear_value_head_dim", default=128)
    norms = {name: NormSpec(f"self_attn.{name}", "rms_plus_one", dims.head_dim) for name in ("q_norm", "k_norm")}
    delta = {
        "style": "delta_net",
        "delta": Delta(key_heads, heads, key_dim, value_dim),
        "convolution": "linear_attn.conv1d",
        "taps": config.integer("linear_conv_kernel_dim", default=4),
        "fused": "linear_attn.in_proj_qkvz" if fused else "",
        "out": "linear_attn.out_proj",
        "q_norm": NormSpec("linear_attn.norm", "rms", value_dim),
    }
    return llama_like(
        dims,
        prefix=prefix,
        act=config.text("hidden_act", default="silu"),
        norm="rms_plus_one",
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=0.25),
        attention=attention_dropout(config),
        decoder={"table_style": table_style},
        kinds=_kinds(config, dims),
        by_kind={_LINEAR: delta, _FULL: {"style": "gated", "rotary_style": "parts", **norms}},
    )


def _kinds(config: Fields, dims: Dims) -> list[str]:
    every = config.integer("full_attention_interval", default=4)
    return kinds_of(config, "layer_types", [_LINEAR if (i + 1) % every else _FULL for i in range(dims.layers)], (_LINEAR, _FULL))


def _moe(config: Fields, number: int, *, normalised: bool, top_k: int) -> Moe:
    act = config.text("hidden_act", default="silu")
    width = config.integer("shared_expert_intermediate_size", default=512)
    return Moe(
        number,
        config.integer("num_experts_per_tok", default=top_k),
        config.integer("moe_intermediate_size", default=512),
        act,
        normalised=normalised,
        shared=shared_expert(width, act, "mlp.shared_expert"),
        shared_gate="mlp.shared_expert_gate",
    )


def next_decoder(config: Fields) -> Decoder:
    """Qwen3NextForCausalLM's structure."""
    dims = read_dims(config, kv_heads=2, head_dim=256)
    number = config.integer("num_experts", default=512, minimum=0)
    moe = _moe(config, number, normalised=config.flag("norm_topk_prob", default=True), top_k=10)
    dense = _structure(config, dims, prefix="model.", fused=True, table_style="doubled")
    return with_experts(dense, moe, sparse_layers(config, dims.layers, number)[0])


def qwen3_5_structure(config: Fields, *, prefix: str, sparse: bool) -> Decoder:
    """
    Qwen3.5's text decoder, for batches without images.

    Source:
        transformers@5.23.0, models/qwen3_5/modeling_qwen3_5.py, Qwen3_5TextModel; models/qwen3_5_moe, Qwen3_5MoeTopKRouter.
    """
    config = filled(config, **(_SPARSE if sparse else _SMALL))
    dims = read_dims(config, kv_heads=2 if sparse else 4, head_dim=256)
    dense = _structure(config, dims, prefix=prefix, fused=False, table_style="three_axes")
    if not sparse:
        return dense
    return with_experts(dense, _moe(config, config.integer("num_experts"), normalised=True, top_k=8))


FAMILIES = {
    "qwen3_next": Family(qwen3_next, next_decoder),
    "qwen3_5": Family(
        lambda config, out: multimodal(config, out, sparse=False),
        lambda config: qwen3_5_structure(section(config, "text_config"), prefix=TEXT, sparse=False),
    ),
    "qwen3_5_text": Family(
        lambda config, out: text_model(config, out, sparse=False),
        lambda config: qwen3_5_structure(config, prefix="model.", sparse=False),
    ),
    "qwen3_5_moe": Family(
        lambda config, out: multimodal(config, out, sparse=True),
        lambda config: qwen3_5_structure(section(config, "text_config"), prefix=TEXT, sparse=True),
    ),
    "qwen3_5_moe_text": Family(
        lambda config, out: text_model(config, out, sparse=True),
        lambda config: qwen3_5_structure(config, prefix="model.", sparse=True),
    ),
}

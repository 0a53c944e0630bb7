"""Llama 4: an image tower without a convolution, and a decoder that interleaves dense layers with experts."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, gated_mlp, head, norms, plain_mlp, read_dims, rotary, whole_heads
from planner.architecture.decoder import Decoder, Moe
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import shared_expert, with_experts
from planner.architecture.sections import filled, section
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table
from planner.dtypes import DType

_FLASH = "transformers refuses: Llama4ForCausalLM does not support Flash Attention 2 yet"
_TEXT = {
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "vocab_size": 202_048,
}


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4ForConditionalGeneration.
    """
    text, image = section(config, "text_config", **_TEXT), config.section("vision_config", default={})
    dims = read_dims(text, kv_heads=8, head_dim=128)
    _tower(image, out.within("vision_model."))
    out.linear("multi_modal_projector.linear_1", image.integer("vision_output_dim", default=7680), dims.hidden)
    inner = out.within("language_model.")
    decoder(text, dims, inner.within("model."))
    # The text section's own flag ties: the head belongs to the text model inside the composite.
    head(inner, dims, tied_to="language_model.model.embed_tokens")


def text_model(config: Fields, out: Table) -> None:
    """
    The module table of the text model alone.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4ForCausalLM.
    """
    config = filled(config, **_TEXT)
    dims = read_dims(config, kv_heads=8, head_dim=128)
    decoder(config, dims, out.within("model."))
    head(out, dims)


def decoder(config: Fields, dims: Dims, model: Table) -> None:
    """The text decoder; the experts are stored [experts, in, out], the transpose of what other families do."""
    number, step = config.integer("num_local_experts", default=16), config.integer("interleave_moe_layer_step", default=1)
    chosen = set(config.integers("moe_layers", default=list(range(step - 1, dims.layers, step))))
    moe = model.within("layers.*.", [i for i in range(dims.layers) if i in chosen])
    dense = model.within("layers.*.", [i for i in range(dims.layers) if i not in chosen])
    layer = model.within("layers.*.", range(dims.layers))

    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    attention(layer, dims, bias=config.flag("attention_bias", default=False))
    moe.experts("feed_forward.experts.gate_up_proj", (number, dims.hidden, 2 * dims.width))
    moe.experts("feed_forward.experts.down_proj", (number, dims.width, dims.hidden))
    moe.linear_subclass("feed_forward.router", dims.hidden, number)
    gated_mlp(moe, dims.hidden, dims.width, name="feed_forward.shared_expert")
    gated_mlp(dense, dims.hidden, config.integer("intermediate_size_mlp", default=16_384), name="feed_forward")
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)


def _tower(config: Fields, out: Table) -> None:
    hidden, width = config.integer("hidden_size", default=768), config.integer("intermediate_size", default=5632)
    patch, channels = config.integer("patch_size", default=14), config.integer("num_channels", default=3)
    head_dim = whole_heads(config, hidden, config.integer("num_attention_heads", default=16))
    positions = (config.integer("image_size", default=448) // patch) ** 2 + 1
    shuffled = config.integer("projector_input_dim", default=4096)
    projected = config.integer("projector_output_dim", default=4096)

    out.parameter("class_embedding", (hidden,))
    out.parameter("positional_embedding_vlm", (positions, hidden))
    out.linear("patch_embedding.linear", channels * patch * patch, hidden)
    out.buffer("rotary_embedding.freqs_ci", (positions, 1, head_dim // 4 * 2), DType.COMPLEX64)
    norms(out, hidden, "layernorm_pre", "layernorm_post", bias=True)
    layer = out.within("model.layers.*.", range(config.layers("num_hidden_layers", default=34)))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layer.linear(f"self_attn.{name}", hidden, hidden, bias=True)
    plain_mlp(layer, hidden, width)
    norms(layer, hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    out.linear("vision_adapter.mlp.fc1", width, shuffled)
    out.linear("vision_adapter.mlp.fc2", projected, projected)


def structure(config: Fields, *, prefix: str, head_name: str) -> Decoder:
    """
    The text decoder's structure, for batches without images.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4TextDecoderLayer, Llama4TextAttention; configuration_llama4.py.
    """
    dims = read_dims(config, kv_heads=8, head_dim=128)
    act, step = config.text("hidden_act", default="silu"), config.integer("interleave_moe_layer_step", default=1)
    every = config.integer("no_rope_layer_interval", default=4)
    turns = config.integers("no_rope_layers", default=[]) or [int((i + 1) % every != 0) for i in range(dims.layers)]
    tuned, normed = config.flag("attn_temperature_tuning", default=True), config.flag("use_qk_norm", default=True)
    chunk = config.integer("attention_chunk_size", default=8192)
    feed = "feed_forward"
    dense = llama_like(
        dims,
        prefix=prefix,
        head=head_name,
        act=act,
        attention={"style": "llama4", "plain_softmax": True, **attention_dropout(config)},
        mlp={
            "width": config.integer("intermediate_size_mlp", default=16_384),
            "gate": f"{feed}.gate_proj",
            "up": f"{feed}.up_proj",
            "down": f"{feed}.down_proj",
        },
        decoder={"table_style": "complex", "flash_refusal": _FLASH},
        kinds=["turning" if turn else "still" for turn in turns],
        by_kind={
            "turning": {"norms_each": normed, "sliding_window": chunk},
            "still": {"rotary_dim": 0, "scaled_by_position": tuned},
        },
    )
    moe = Moe(
        config.integer("num_local_experts", default=16),
        config.integer("num_experts_per_tok", default=1),
        dims.width,
        act,
        router=f"{feed}.router",
        gate_up=f"{feed}.experts.gate_up_proj",
        down=f"{feed}.experts.down_proj",
        routing="every_expert",
        transposed=True,
        shared=shared_expert(dims.width, act, f"{feed}.shared_expert"),
    )
    sparse = config.integers("moe_layers", default=list(range(step - 1, dims.layers, step)))
    return with_experts(dense, moe, set(sparse))


def decoder_of_both(config: Fields) -> Decoder:
    """Llama4ForConditionalGeneration's structure."""
    text = section(config, "text_config", **_TEXT)
    return structure(text, prefix="language_model.model.", head_name="language_model.lm_head")


def decoder_of_text(config: Fields) -> Decoder:
    """Llama4ForCausalLM's structure."""
    return structure(filled(config, **_TEXT), prefix="model.", head_name="lm_head")


FAMILIES = {"llama4": Family(table, decoder_of_both), "llama4_text": Family(text_model, decoder_of_text)}

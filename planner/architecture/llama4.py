"""Llama 4: an image tower without a convolution, and a decoder that interleaves dense layers with experts."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, gated_mlp, head, norms, plain_mlp, read_dims, rotary, whole_heads
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import filled, section
from planner.architecture.table import Table
from planner.dtypes import DType

_NEEDS = "experts that all see every token, and attention in chunks"

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


FAMILIES = {"llama4": Family(table, needs=_NEEDS), "llama4_text": Family(text_model, needs=_NEEDS)}

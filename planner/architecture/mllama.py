"""Llama 3.2 Vision: a tiled image tower with local and global layers, and a Llama decoder with layers of cross attention."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, gated_mlp, head_norms, norms, plain_mlp, read_dims, rotary, whole_heads
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import section
from planner.architecture.table import Table

_CROSS = [3, 8, 13, 18, 23, 28, 33, 38]
_ASPECT_RATIOS = 8
# The embedding has rows for eight special tokens that the head lacks, which is why the two are never tied.
_SPECIAL_TOKENS = 8


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/mllama/modeling_mllama.py, MllamaForConditionalGeneration.
    """
    text = section(
        config,
        "text_config",
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=40,
        num_attention_heads=32,
        vocab_size=128_256,
    )
    dims = read_dims(text, kv_heads=8, strict=True)
    image = config.section("vision_config", default={})
    _tower(image, out.within("model.vision_model."))
    _decoder(text, dims, out.within("model.language_model."))
    out.linear("model.multi_modal_projector", image.integer("vision_output_dim", default=7680), dims.hidden, bias=True)
    out.linear("lm_head", dims.hidden, dims.vocab)


def _decoder(config: Fields, dims: Dims, model: Table) -> None:
    cross = set(config.integers("cross_attention_layers", default=_CROSS))
    crossed = model.within("layers.*.", [i for i in range(dims.layers) if i in cross])
    plain = model.within("layers.*.", [i for i in range(dims.layers) if i not in cross])

    model.embedding("embed_tokens", dims.vocab + _SPECIAL_TOKENS, dims.hidden)
    attention(plain, dims)
    gated_mlp(plain, dims.hidden, dims.width)
    norms(plain, dims.hidden, "input_layernorm", "post_attention_layernorm")
    crossed.parameter("cross_attn_attn_gate", (1,))
    crossed.parameter("cross_attn_mlp_gate", (1,))
    attention(crossed, dims, name="cross_attn")
    head_norms(crossed, dims, name="cross_attn")
    crossed.norm("input_layernorm", dims.hidden)
    gated_mlp(crossed, dims.hidden, dims.width)
    crossed.norm("post_attention_layernorm", dims.hidden)
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)


def _tower(config: Fields, out: Table) -> None:
    hidden, patch = config.integer("hidden_size", default=1280), config.integer("patch_size", default=14)
    tiles, channels = config.integer("max_num_tiles", default=4), config.integer("num_channels", default=3)
    whole_heads(config, hidden, config.integer("attention_heads", "num_attention_heads", default=16))
    positions = (config.integer("image_size", default=448) // patch) ** 2 + 1
    ratios = config.raw("supported_aspect_ratios")
    kinds = (len(ratios) if isinstance(ratios, (list, tuple)) else _ASPECT_RATIOS) + 1

    out.parameter("class_embedding", (hidden,))
    out.convolution("patch_embedding", (hidden, channels, patch, patch))
    out.parameter("gated_positional_embedding.gate", (1,))
    out.parameter("gated_positional_embedding.embedding", (positions, hidden))
    out.embedding("gated_positional_embedding.tile_embedding", kinds, tiles * positions * hidden)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        out.parameter(f"{name}.gate", (1,))
        out.embedding(f"{name}.embedding", kinds, tiles * hidden)
    norms(out, hidden, "layernorm_pre", "layernorm_post", bias=True)
    width = config.integer("intermediate_size", default=5120)
    local, far = config.layers("num_hidden_layers", default=32), config.layers("num_global_layers", default=8)
    _layer(out.within("transformer.layers.*.", range(local)), hidden, width)
    gated = out.within("global_transformer.layers.*.", range(far))
    gated.parameter("gate_attn", (1,))
    gated.parameter("gate_ffn", (1,))
    _layer(gated, hidden, width)


def _layer(layer: Table, hidden: int, width: int) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layer.linear(f"self_attn.{name}", hidden, hidden)
    plain_mlp(layer, hidden, width)
    norms(layer, hidden, "input_layernorm", "post_attention_layernorm", bias=True)


FAMILIES = {"mllama": Family(table, needs="layers of cross attention to image states")}

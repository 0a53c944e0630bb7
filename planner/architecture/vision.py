"""Image towers that sit before a text decoder: SigLIP, Pixtral, and the three generations of Qwen's."""

from __future__ import annotations

from planner.architecture.blocks import gated_mlp, plain_mlp, whole_heads
from planner.architecture.fields import Fields
from planner.architecture.sections import frequencies
from planner.architecture.table import Table
from planner.dtypes import DType


def siglip(config: Fields, out: Table) -> None:
    """
    SigLIP's tower.

    Source:
        transformers@5.23.0, models/siglip/modeling_siglip.py, SiglipVisionModel.
    """
    hidden, width = config.integer("hidden_size", default=768), config.integer("intermediate_size", default=3072)
    patch, channels = config.integer("patch_size", default=16), config.integer("num_channels", default=3)
    whole_heads(config, hidden, config.integer("num_attention_heads", default=12))
    positions = (config.integer("image_size", default=224) // patch) ** 2

    out.convolution("embeddings.patch_embedding", (hidden, channels, patch, patch), bias=True)
    out.embedding("embeddings.position_embedding", positions, hidden)
    out.buffer("embeddings.position_ids", (1, positions), DType.INT64)
    layer = out.within("encoder.layers.*.", range(config.layers("num_hidden_layers", default=12)))
    layer.norm("layer_norm1", hidden, bias=True)
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer.linear(f"self_attn.{name}", hidden, hidden, bias=True)
    layer.norm("layer_norm2", hidden, bias=True)
    plain_mlp(layer, hidden, width)
    out.norm("post_layernorm", hidden, bias=True)
    if config.flag("vision_use_head", default=True):
        _siglip_head(out, hidden, width)


def _siglip_head(out: Table, hidden: int, width: int) -> None:
    """Attention pooling; `nn.MultiheadAttention` keeps its input projections in a bare parameter."""
    out.parameter("head.probe", (1, 1, hidden))
    out.parameter("head.attention.in_proj_weight", (3 * hidden, hidden))
    out.parameter("head.attention.in_proj_bias", (3 * hidden,))
    out.linear_subclass("head.attention.out_proj", hidden, hidden, bias=True)
    out.norm("head.layernorm", hidden, bias=True)
    plain_mlp(out, hidden, width, name="head.mlp")


def pixtral(config: Fields, out: Table) -> None:
    """
    Pixtral's tower.

    Source:
        transformers@5.23.0, models/pixtral/modeling_pixtral.py, PixtralVisionModel.
    """
    hidden, width = config.integer("hidden_size", default=1024), config.integer("intermediate_size", default=4096)
    patch, channels = config.integer("patch_size", default=16), config.integer("num_channels", default=3)
    head_dim = whole_heads(config, hidden, config.integer("num_attention_heads", default=16))

    out.convolution("patch_conv", (hidden, channels, patch, patch))
    out.norm("ln_pre", hidden)
    layer = out.within("transformer.layers.*.", range(config.layers("num_hidden_layers", default=24)))
    layer.norm("attention_norm", hidden)
    gated_mlp(layer, hidden, width, name="feed_forward")
    for name in ("k_proj", "v_proj", "q_proj", "o_proj"):
        layer.linear(f"attention.{name}", hidden, hidden)
    layer.norm("ffn_norm", hidden)
    frequencies(out, "patch_positional_embedding", (head_dim + 1) // 2)


def qwen2_vl(config: Fields, out: Table) -> None:
    """
    Qwen2-VL's tower; `hidden_size` is the width that it hands to the text decoder.

    Source:
        transformers@5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VisionTransformerPretrainedModel.
    """
    width, outputs = config.integer("embed_dim", default=1280), config.integer("hidden_size", default=3584)
    inner = width * config.integer("mlp_ratio", default=4)
    _qwen_patches(config, out, width)
    block = _qwen_blocks(config, out, 32)
    block.norm("norm1", width, bias=True)
    block.norm("norm2", width, bias=True)
    block.linear("attn.qkv", width, 3 * width, bias=True)
    block.linear("attn.proj", width, width, bias=True)
    plain_mlp(block, width, inner)
    _qwen2_merger(config, out, width, outputs, norm_bias=True)


def qwen2_5_vl(config: Fields, out: Table) -> None:
    """
    Qwen2.5-VL's tower: RMSNorm and a gated MLP.

    Source:
        transformers@5.23.0, models/qwen2_5_vl/modeling_qwen2_5_vl.py, Qwen2_5_VisionTransformerPretrainedModel.
    """
    width, outputs = config.integer("hidden_size", default=3584), config.integer("out_hidden_size", default=3584)
    inner = config.integer("intermediate_size", default=3420)
    _qwen_patches(config, out, width)
    block = _qwen_blocks(config, out, 32)
    block.norm("norm1", width)
    block.norm("norm2", width)
    block.linear("attn.qkv", width, 3 * width, bias=True)
    block.linear("attn.proj", width, width, bias=True)
    gated_mlp(block, width, inner, bias=True)
    _qwen2_merger(config, out, width, outputs, norm_bias=False)


def qwen3_vl(config: Fields, out: Table, *, deepstack: bool = True) -> None:
    """
    Qwen3-VL's tower, with learned positions; Qwen3.5's is the same without the deepstack mergers.

    Source:
        transformers@5.23.0, models/qwen3_vl/modeling_qwen3_vl.py, Qwen3VLVisionModel.
    """
    width, outputs = config.integer("hidden_size", default=1152), config.integer("out_hidden_size", default=3584)
    inner = config.integer("intermediate_size", default=4304)
    merged = width * config.integer("spatial_merge_size", default=2) ** 2
    _qwen_patches(config, out, width, patch=16, bias=True)
    out.embedding("pos_embed", config.integer("num_position_embeddings", default=2304), width)
    block = _qwen_blocks(config, out, 27)
    block.norm("norm1", width, bias=True)
    block.norm("norm2", width, bias=True)
    block.linear("attn.qkv", width, 3 * width, bias=True)
    block.linear("attn.proj", width, width, bias=True)
    plain_mlp(block, width, inner, up="linear_fc1", down="linear_fc2")
    _qwen3_merger(out.within("merger."), width, merged, outputs)
    if deepstack:
        mergers = config.integers("deepstack_visual_indexes", default=[8, 16, 24])
        _qwen3_merger(out.within("deepstack_merger_list.*.", range(len(mergers))), merged, merged, outputs)


def _qwen_patches(config: Fields, out: Table, width: int, *, patch: int = 14, bias: bool = False) -> None:
    """The patch embedding, and the rotary positions over half a head for each axis."""
    channels, frames = config.integer("in_channels", default=3), config.integer("temporal_patch_size", default=2)
    patch = config.integer("patch_size", default=patch)
    heads = config.integer("num_heads", "num_attention_heads", default=16)
    head_dim = whole_heads(config, width, heads, "embed_dim" if "embed_dim" in config else "hidden_size")
    out.convolution("patch_embed.proj", (width, channels, frames, patch, patch), bias=bias)
    frequencies(out, "rotary_pos_emb", (head_dim // 2 + 1) // 2)


def _qwen_blocks(config: Fields, out: Table, default: int) -> Table:
    return out.within("blocks.*.", range(config.layers("depth", "num_hidden_layers", default=default)))


def _qwen2_merger(config: Fields, out: Table, width: int, outputs: int, *, norm_bias: bool) -> None:
    merged = width * config.integer("spatial_merge_size", default=2) ** 2
    out.norm("merger.ln_q", width, bias=norm_bias)
    out.linear("merger.mlp.0", merged, merged, bias=True)
    out.linear("merger.mlp.2", merged, outputs, bias=True)


def _qwen3_merger(merger: Table, normed: int, merged: int, outputs: int) -> None:
    merger.norm("norm", normed, bias=True)
    merger.linear("linear_fc1", merged, merged, bias=True)
    merger.linear("linear_fc2", merged, outputs, bias=True)

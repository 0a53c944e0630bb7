"""Gemma 3n's audio tower: two convolutions, and a conformer."""

from __future__ import annotations

from typing import Any

from planner.architecture.blocks import refusal, whole_heads
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.dtypes import DType


def tower(config: Fields, out: Table) -> None:
    """
    The audio tower.

    Source:
        transformers@5.23.0, models/gemma3n/modeling_gemma3n.py, Gemma3nAudioEncoder.
    """
    hidden = config.integer("hidden_size", default=1536)
    _subsampling(config, out.within("subsample_conv_projection."), hidden)
    block = out.within("conformer.*.", range(config.layers("conf_num_hidden_layers", default=12)))
    _feed_forward(block, "ffw_layer_start", hidden)
    _attention(config, block, hidden)
    block.norm("lconv1d.pre_layer_norm", hidden)
    block.linear("lconv1d.linear_start", hidden, 2 * hidden)
    block.convolution("lconv1d.depthwise_conv1d", (hidden, 1, config.integer("conf_conv_kernel_size", default=5)))
    block.buffer("lconv1d.gradient_clipping", (), None)
    block.norm("lconv1d.conv_norm", hidden)
    block.linear("lconv1d.linear_end", hidden, hidden)
    _feed_forward(block, "ffw_layer_end", hidden)
    block.buffer("gradient_clipping", (), None)
    block.norm("norm", hidden)


def _subsampling(config: Fields, out: Table, hidden: int) -> None:
    channels = config.integers("sscp_conv_channel_size", default=[128, 32], minimum=1)
    if len(channels) != 2:
        raise refusal(config, "sscp_conv_channel_size", "a list of two numbers")
    bands, inputs = config.integer("input_feat_size", default=128), 1
    kernels, strides = _pairs(config, "sscp_conv_kernel_size", 3), _pairs(config, "sscp_conv_stride_size", 2)
    for index, outputs in enumerate(channels):
        (kernel_time, kernel_band), (_, stride) = kernels[index], strides[index]
        out.convolution(f"conv_{index}.conv", (outputs, inputs, kernel_time, kernel_band))
        out.norm(f"conv_{index}.norm", outputs)
        # One band of padding at either end.
        bands, inputs = (bands + 2 - kernel_band) // stride + 1, outputs
    out.linear("input_proj_linear", inputs * bands, hidden)


def _pairs(config: Fields, name: str, default: int) -> list[tuple[int, int]]:
    """Two pairs of sizes, in time and in bands, one for each convolution."""
    pairs: Any = config.raw(name, [[default, default], [default, default]])
    if not isinstance(pairs, (list, tuple)) or len(pairs) != 2:
        raise refusal(config, name, "a list of two pairs of numbers")
    sizes = [Fields({name: pair}, path=config.path).integers(name, minimum=1) for pair in pairs]
    if any(len(pair) != 2 for pair in sizes):
        raise refusal(config, name, "a list of two pairs of numbers")
    return [(pair[0], pair[1]) for pair in sizes]


def _feed_forward(block: Table, name: str, hidden: int) -> None:
    block.buffer(f"{name}.gradient_clipping", (), None)
    block.norm(f"{name}.pre_layer_norm", hidden)
    block.linear(f"{name}.ffw_layer_1", hidden, 4 * hidden)
    block.linear(f"{name}.ffw_layer_2", 4 * hidden, hidden)
    block.norm(f"{name}.post_layer_norm", hidden)


def _attention(config: Fields, block: Table, hidden: int) -> None:
    """Attention in chunks, with relative positions; its mask of valid places is a buffer."""
    head_dim = whole_heads(config, hidden, config.integer("conf_num_attention_heads", default=8))
    chunk = config.integer("conf_attention_chunk_size", default=12)
    past = max(0, config.integer("conf_attention_context_left", default=13, minimum=0) - 1)
    context = chunk + past + config.integer("conf_attention_context_right", default=0, minimum=0)
    block.buffer("attention.gradient_clipping", (), None)
    block.norm("attention.pre_attn_norm", hidden)
    at = block.within("attention.attn.")
    at.parameter("per_dim_scale", (head_dim,))
    at.buffer("q_scale", (), None)
    at.buffer("local_causal_valid_mask", (chunk, context), DType.BOOL)
    at.buffer("softcap", ())
    at.buffer("relative_position_embedding.inv_timescales", (1, 1, hidden // 2))
    for name in ("relative_position_embedding.pos_proj", "q_proj", "k_proj", "v_proj"):
        at.linear(name, hidden, hidden)
    block.linear("attention.post", hidden, hidden)
    block.norm("attention.post_norm", hidden)

"""Gemma 4's towers: an image encoder with two-dimensional positions, and an audio conformer."""

from __future__ import annotations

from planner.architecture.blocks import norms, refusal, whole_heads
from planner.architecture.fields import Fields
from planner.architecture.sections import frequencies
from planner.architecture.table import Table

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def clippable(at: Table, name: str, inputs: int, outputs: int, *, clipped: bool) -> None:
    """A linear inside a module that can hold four scalar bounds."""
    if clipped:
        for bound in _BOUNDS:
            at.buffer(f"{name}.{bound}", (), None, persistent=True)
    at.linear(f"{name}.linear", inputs, outputs)


def image(config: Fields, out: Table) -> None:
    """
    The image tower.

    Source:
        transformers@5.23.0, models/gemma4/modeling_gemma4.py, Gemma4VisionModel.
    """
    hidden, width = config.integer("hidden_size", default=768), config.integer("intermediate_size", default=3072)
    heads, head_dim = config.integer("num_attention_heads", default=12), config.integer("head_dim", default=64)
    kv_heads, patch = config.integer("num_key_value_heads", default=12), config.integer("patch_size", default=16)
    clipped = config.flag("use_clipped_linears", default=False)

    if config.flag("standardize", default=False):
        out.buffer("std_bias", (hidden,), None, persistent=True)
        out.buffer("std_scale", (hidden,), None, persistent=True)
    positions = config.integer("position_embedding_size", default=10_240)
    out.parameter("patch_embedder.position_embedding_table", (2, positions, hidden))
    out.linear("patch_embedder.input_proj", 3 * patch**2, hidden)
    frequencies(out, "encoder.rotary_emb", (head_dim // 2 + 1) // 2)
    layer = out.within("encoder.layers.*.", range(config.layers("num_hidden_layers", default=16)))
    for name, inputs, outputs in (
        ("q_proj", hidden, heads * head_dim),
        ("k_proj", hidden, kv_heads * head_dim),
        ("v_proj", hidden, kv_heads * head_dim),
        ("o_proj", heads * head_dim, hidden),
    ):
        clippable(layer, f"self_attn.{name}", inputs, outputs, clipped=clipped)
    norms(layer, head_dim, "self_attn.q_norm", "self_attn.k_norm")
    for name, inputs, outputs in (("gate_proj", hidden, width), ("up_proj", hidden, width), ("down_proj", width, hidden)):
        clippable(layer, f"mlp.{name}", inputs, outputs, clipped=clipped)
    norms(layer, hidden, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def audio(config: Fields, out: Table) -> None:
    """
    The audio tower.

    Source:
        transformers@5.23.0, models/gemma4/modeling_gemma4.py, Gemma4AudioModel.
    """
    hidden = config.integer("hidden_size", default=1024)
    head_dim = whole_heads(config, hidden, config.integer("num_attention_heads", default=8))
    channels = config.integers("subsampling_conv_channels", default=[128, 32], minimum=1)
    if len(channels) != 2:
        raise refusal(config, "subsampling_conv_channels", "a list of two numbers")
    first, second = channels

    out.convolution("subsample_conv_projection.layer0.conv", (first, 1, 3, 3))
    out.norm("subsample_conv_projection.layer0.norm", first)
    out.convolution("subsample_conv_projection.layer1.conv", (second, first, 3, 3))
    out.norm("subsample_conv_projection.layer1.norm", second)
    out.linear("subsample_conv_projection.input_proj_linear", first // 4 * second, hidden)
    out.buffer("rel_pos_enc.inv_timescales", (1, 1, hidden // 2), None)
    layer = out.within("layers.*.", range(config.layers("num_hidden_layers", default=12)))
    _conformer(config, layer, hidden, head_dim)
    out.linear("output_proj", hidden, config.integer("output_proj_dims", default=1536), bias=True)


def _conformer(config: Fields, layer: Table, hidden: int, head_dim: int) -> None:
    """Two half-step MLPs around attention and a depthwise convolution."""
    clipped = config.flag("use_clipped_linears", default=True)
    for name in ("feed_forward1", "feed_forward2"):
        clippable(layer, f"{name}.ffw_layer_1", hidden, 4 * hidden, clipped=clipped)
        clippable(layer, f"{name}.ffw_layer_2", 4 * hidden, hidden, clipped=clipped)
        norms(layer, hidden, f"{name}.pre_layer_norm", f"{name}.post_layer_norm")
    layer.parameter("self_attn.per_dim_scale", (head_dim,))
    layer.buffer("self_attn.softcap", (), None)
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        clippable(layer, f"self_attn.{name}", hidden, hidden, clipped=clipped)
    layer.linear("self_attn.relative_k_proj", hidden, hidden)
    clippable(layer, "lconv1d.linear_start", hidden, 2 * hidden, clipped=clipped)
    clippable(layer, "lconv1d.linear_end", hidden, hidden, clipped=clipped)
    layer.convolution("lconv1d.depthwise_conv1d", (hidden, 1, config.integer("conv_kernel_size", default=5)))
    norms(layer, hidden, "lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out")

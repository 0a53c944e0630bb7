"""gpt-oss: experts with biases, a sink for every head, biases on the attention."""

from __future__ import annotations

from planner.architecture.blocks import attention, head, layer_types, norms, read_dims, rotary
from planner.architecture.decoder import Decoder, Moe
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import with_experts
from planner.architecture.structures import ATTENTION_TYPES, attention_dropout, llama_like, windows
from planner.architecture.table import Table

_FLASH = "transformers puts FlashAttention-3 in its place for gpt_oss, whose sinks it knows; that kernel's step is not known here"


def gpt_oss(config: Fields, out: Table) -> None:
    """
    GptOssForCausalLM: its experts are stored [experts, in, out], the other way round than elsewhere.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssForCausalLM.
    """
    dims = read_dims(config, kv_heads=8, head_dim=64)
    number = config.integer("num_local_experts", "num_experts", default=128)
    layer_types(config, dims, ("full_attention", "sliding_attention"), full_every=2)

    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    layer.parameter("self_attn.sinks", (dims.heads,))
    attention(layer, dims, bias=config.flag("attention_bias", default=True))
    layer.parameter("mlp.router.weight", (number, dims.hidden))
    layer.parameter("mlp.router.bias", (number,))
    layer.experts("mlp.experts.gate_up_proj", (number, dims.hidden, 2 * dims.width))
    layer.parameter("mlp.experts.gate_up_proj_bias", (number, 2 * dims.width))
    layer.experts("mlp.experts.down_proj", (number, dims.width, dims.hidden))
    layer.parameter("mlp.experts.down_proj_bias", (number, dims.hidden))
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim)
    head(out, dims)


def decoder(config: Fields) -> Decoder:
    """
    GptOssForCausalLM's structure: windows in every other layer, a sink beside the scores, experts with biases in every layer.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssAttention, GptOssMLP; it supports eager and FlashAttention-3.
    """
    dims = read_dims(config, kv_heads=8, head_dim=64)
    kinds = layer_types(config, dims, ATTENTION_TYPES, full_every=2)
    window = config.optional_integer("sliding_window") if "sliding_window" in config.values else 128
    dense = llama_like(
        dims,
        norm="rms_fp32_weight",
        attention={"style": "gpt_oss", "rotary_style": "halves", **attention_dropout(config)},
        decoder={"supports_sdpa": False, "table_style": "single", "flash_refusal": _FLASH},
        kinds=kinds,
        by_kind=windows(window),
    )
    moe = Moe(
        config.integer("num_local_experts", "num_experts", default=128),
        config.integer("num_experts_per_tok", default=4),
        dims.width,
        "silu",
        router="mlp.router.weight",
        gate_up_bias="mlp.experts.gate_up_proj_bias",
        down_bias="mlp.experts.down_proj_bias",
        routing="gpt_oss",
        gating="gpt_oss",
        transposed=True,
    )
    return with_experts(dense, moe)


FAMILIES = {"gpt_oss": Family(gpt_oss, decoder)}

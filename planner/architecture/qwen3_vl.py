"""Qwen3-VL, dense and MoE: an image tower with deepstack mergers and a Qwen3 decoder."""

from __future__ import annotations

from planner.architecture import vision
from planner.architecture.blocks import read_dims
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.llama import layout
from planner.architecture.qwen import normed_heads, qwen3_moe_decoder, qwen3_moe_text
from planner.architecture.sections import PLAIN_POSITIONS, TEXT, filled, section, shared_head, without
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table


def dense(config: Fields, out: Table) -> None:
    """
    The module table of the dense models.

    Source:
        transformers@5.23.0, models/qwen3_vl/modeling_qwen3_vl.py, Qwen3VLForConditionalGeneration.
    """
    text = _dense_text(config)
    dims = read_dims(text, kv_heads=32, head_dim=128)
    vision.qwen3_vl(config.section("vision_config", default={}), out.within("model.visual."))
    bias = text.flag("attention_bias", default=False)
    layout(PLAIN_POSITIONS, out.within("model.language_model."), dims, bias=bias, qk_norm=True)
    shared_head(config, out, dims, tied=False)


def _dense_text(config: Fields) -> Fields:
    """The config of the text decoder with its class's defaults."""
    return section(
        config,
        "text_config",
        hidden_size=4096,
        intermediate_size=22_016,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=151_936,
    )


def decoder(config: Fields) -> Decoder:
    """
    The structure of the dense text decoder, for batches without images: Qwen-3's, with positions along three axes.

    Source:
        transformers@5.23.0, models/qwen3_vl/modeling_qwen3_vl.py, Qwen3VLTextModel.forward, Qwen3VLTextRotaryEmbedding.
    """
    text = _dense_text(config)
    dims = read_dims(text, kv_heads=32, head_dim=128)
    return llama_like(
        dims,
        prefix=TEXT,
        act=text.text("hidden_act", default="silu"),
        attention={**normed_heads(dims), **attention_dropout(text)},
        decoder={"table_style": "three_axes"},
    )


def sparse(config: Fields, out: Table) -> None:
    """
    The module table of the MoE models.

    Source:
        transformers@5.23.0, models/qwen3_vl_moe/modeling_qwen3_vl_moe.py, Qwen3VLMoeForConditionalGeneration.
    """
    text = _sparse_text(config)
    vision.qwen3_vl(config.section("vision_config", default={}), out.within("model.visual."))
    dims = qwen3_moe_text(without(text, "rope_scaling", "rope_parameters"), out.within("model.language_model."))
    shared_head(config, out, dims, tied=False)


def _sparse_text(config: Fields) -> Fields:
    text = section(
        config,
        "text_config",
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=151_936,
        moe_intermediate_size=1408,
    )
    return filled(text, num_experts=text.integer("num_local_experts", default=60))


def sparse_decoder(config: Fields) -> Decoder:
    """
    The structure of the MoE text decoder, for batches without images: Qwen-3-MoE's, with positions along three axes.

    Source:
        transformers@5.23.0, models/qwen3_vl_moe/modeling_qwen3_vl_moe.py, Qwen3VLMoeTextModel.forward, Qwen3VLMoeTextTopKRouter.
    """
    text = filled(_sparse_text(config), num_experts_per_tok=4)
    text = Fields({**text.values, "norm_topk_prob": True}, path=text.path)  # its router always divides
    return qwen3_moe_decoder(text, prefix=TEXT)._replace(table_style="three_axes")


FAMILIES = {"qwen3_vl": Family(dense, decoder), "qwen3_vl_moe": Family(sparse, sparse_decoder)}

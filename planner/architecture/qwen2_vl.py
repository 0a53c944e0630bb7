"""Qwen2-VL and Qwen2.5-VL: an image tower and a Qwen2 decoder, whose fields older files keep at the top of the config."""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture import vision
from planner.architecture.blocks import Dims, read_dims
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.llama import layout
from planner.architecture.qwen import sliding
from planner.architecture.sections import PLAIN_POSITIONS, TEXT, filled, shared_head
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table


def table(config: Fields, out: Table, tower: Callable[[Fields, Table], None]) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/qwen2_5_vl/modeling_qwen2_5_vl.py, Qwen2_5_VLForConditionalGeneration; models/qwen2_vl has the
        same names.
    """
    text, dims = _text(config)
    tower(config.section("vision_config", default={}), out.within("model.visual."))
    layout(PLAIN_POSITIONS, out.within("model.language_model."), dims, bias=True, out_bias=False)
    # The config class forwards a flag of the text section to the top.
    shared_head(config if config.flag("tie_word_embeddings", default=False) else text, out, dims, tied=False)


def _text(config: Fields) -> tuple[Fields, Dims]:
    """The config of the text decoder with its class's defaults, and its sizes."""
    text = filled(
        config.section("text_config") if "text_config" in config else config,
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        vocab_size=152_064,
        max_window_layers=80,
    )
    dims = read_dims(text, kv_heads=8, strict=True)
    return text, dims._replace(head_dim=dims.hidden // dims.heads)  # the attention class reads no head_dim


def decoder(config: Fields) -> Decoder:
    """
    The structure of the text decoder, for batches without images: Qwen-2's, with positions along three axes.

    Source:
        transformers@5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VLTextModel.forward, Qwen2VLRotaryEmbedding; models/qwen2_5_vl.
    """
    text, dims = _text(config)
    return llama_like(
        dims,
        prefix=TEXT,
        act=text.text("hidden_act", default="silu"),
        attention=attention_dropout(text),
        decoder={"table_style": "three_axes"},
        **sliding(text, dims),
    )


FAMILIES = {
    "qwen2_vl": Family(lambda config, out: table(config, out, vision.qwen2_vl), decoder),
    "qwen2_5_vl": Family(lambda config, out: table(config, out, vision.qwen2_5_vl), decoder),
}

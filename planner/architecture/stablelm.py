"""StableLM: Llama's projections with LayerNorms, rotary positions on a part of each head, and (12B) a norm for every head."""

from __future__ import annotations

from planner.architecture.blocks import attention, gated_mlp, head, read_dims, rotary, rotary_frequencies, whole_heads
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError


def stablelm(config: Fields, out: Table) -> None:
    """
    StableLmForCausalLM.

    Source:
        transformers@5.23.0, models/stablelm/modeling_stablelm.py, StableLmForCausalLM.
    """
    dims, model = read_dims(config, kv_heads=32), out.within("model.")
    head_dim = whole_heads(config, dims.hidden, dims.heads)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    # The attention takes its head's width from the heads, whatever a `head_dim` in the file says.
    attention(layer, dims._replace(head_dim=head_dim), bias=config.flag("use_qkv_bias", default=False), out_bias=False)
    if config.flag("qk_layernorm", default=False):
        for name, number in (("q_layernorm", dims.heads), ("k_layernorm", dims.kv_heads)):
            for i in range(number):
                layer.norm(f"self_attn.{name}.norms.{i}", head_dim)
    gated_mlp(layer, dims.hidden, dims.width)
    layer.norm("input_layernorm", dims.hidden, bias=True)
    if not config.flag("use_parallel_residual", default=False):
        layer.norm("post_attention_layernorm", dims.hidden, bias=True)
    model.norm("norm", dims.hidden, bias=True)
    rotary(model, config, dims.head_dim, partial=0.25)
    head(out, dims)


def decoder(config: Fields) -> Decoder:
    """
    StableLmForCausalLM's structure.

    Source:
        transformers@5.23.0, models/stablelm/modeling_stablelm.py, StableLmAttention, StableLmDecoderLayer.

    Raises:
        UnsupportedModelError: It norms each head of query and key by a module of its own (12B).
    """
    if config.flag("qk_layernorm", default=False):
        raise UnsupportedModelError(
            "this StableLM norms each head of query and key by a module of its own (`qk_layernorm`), which the closed form does not know",
            hint='pass --engine traced, which runs the installed libraries and needs `pip install "qplan[torch]"`',
        )
    dims = read_dims(config, kv_heads=32)
    dims = dims._replace(head_dim=whole_heads(config, dims.hidden, dims.heads))
    parallel = config.flag("use_parallel_residual", default=False)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        norm="layer",
        layout="parallel_onto_residual" if parallel else "stablelm",
        norms=("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm"),
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=0.25),
        attention={"rotary_style": "parts_kept", **attention_dropout(config)},
        mlp={"dropout": config.number("hidden_dropout", default=0.0)},
    )


FAMILIES = {"stablelm": Family(stablelm, decoder)}

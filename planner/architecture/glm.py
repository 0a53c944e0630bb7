"""GLM-4: gate and up in one projection, half of each head turns; the 0414 generation norms after each block too."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, fused_mlp, head, norms, read_dims, rotary, rotary_frequencies
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table


def _layout(config: Fields, model: Table, *norm_names: str) -> Dims:
    dims = read_dims(config, kv_heads=2, head_dim=128)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=config.flag("attention_bias", default=True), out_bias=False)
    fused_mlp(layer, dims.hidden, dims.width)
    norms(layer, dims.hidden, *norm_names)
    model.norm("norm", dims.hidden)
    rotary(model, config, dims.head_dim, partial=0.5)
    return dims


def glm(config: Fields, out: Table) -> None:
    """
    GlmForCausalLM.

    Source:
        transformers@5.23.0, models/glm/modeling_glm.py, GlmForCausalLM.
    """
    head(out, _layout(config, out.within("model."), "input_layernorm", "post_attention_layernorm"))


def glm4(config: Fields, out: Table) -> None:
    """
    Glm4ForCausalLM.

    Source:
        transformers@5.23.0, models/glm4/modeling_glm4.py, Glm4ForCausalLM.
    """
    names = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    head(out, _layout(config, out.within("model."), *names))


def glm_decoder(config: Fields) -> Decoder:
    """GlmForCausalLM's structure."""
    return _decoder(config, "pre", "input_layernorm", "post_attention_layernorm")


def glm4_decoder(config: Fields) -> Decoder:
    """Glm4ForCausalLM's structure: GLM's, with norms behind each block too."""
    names = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    return _decoder(config, "sandwich", *names)


def _decoder(config: Fields, layout: str, *norm_names: str) -> Decoder:
    """
    Llama's structure with gate and up in one projection; half of each head turns.

    Source:
        transformers@5.23.0, models/glm/modeling_glm.py and models/glm4/modeling_glm4.py: GlmAttention, GlmMLP, GlmDecoderLayer.
    """
    dims = read_dims(config, kv_heads=2, head_dim=128)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="silu"),
        layout=layout,
        norms=norm_names,
        rotary_dim=2 * rotary_frequencies(config, dims.head_dim, partial=0.5),
        attention={"rotary_style": "parts_of_pairs", **attention_dropout(config)},
        mlp={"fused": "mlp.gate_up_proj"},
    )


FAMILIES = {"glm": Family(glm, glm_decoder), "glm4": Family(glm4, glm4_decoder)}

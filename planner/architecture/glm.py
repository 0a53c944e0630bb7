"""GLM-4: gate and up in one projection, half of each head turns; the 0414 generation norms after each block too."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, fused_mlp, head, norms, read_dims, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
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


FAMILIES = {"glm": Family(glm), "glm4": Family(glm4)}

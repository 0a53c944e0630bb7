"""StarCoder 2: LayerNorms, biases everywhere, grouped-query attention, a plain MLP."""

from __future__ import annotations

from planner.architecture.blocks import attention, head, norms, plain_mlp, read_dims, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def starcoder2(config: Fields, out: Table) -> None:
    """
    Starcoder2ForCausalLM.

    Source:
        transformers@5.23.0, models/starcoder2/modeling_starcoder2.py, Starcoder2ForCausalLM.
    """
    dims, model = read_dims(config, kv_heads=2, tied=True), out.within("model.")
    bias = config.flag("use_bias", default=True)
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer = model.within("layers.*.", range(dims.layers))
    attention(layer, dims, bias=bias)
    plain_mlp(layer, dims.hidden, dims.width, up="c_fc", down="c_proj", bias=bias)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    model.norm("norm", dims.hidden, bias=True)
    rotary(model, config, dims.head_dim)
    head(out, dims)


FAMILIES = {"starcoder2": Family(starcoder2)}

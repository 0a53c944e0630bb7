"""gpt-oss: experts with biases, a sink for every head, biases on the attention."""

from __future__ import annotations

from planner.architecture.blocks import attention, head, layer_types, norms, read_dims, rotary
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


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


FAMILIES = {"gpt_oss": Family(gpt_oss)}

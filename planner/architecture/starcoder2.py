"""StarCoder 2: LayerNorms, biases everywhere, grouped-query attention, a plain MLP."""

from __future__ import annotations

from planner.architecture.blocks import attention, head, norms, plain_mlp, read_dims, rotary
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.structures import attention_dropout, llama_like
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


def decoder(config: Fields) -> Decoder:
    """
    Starcoder2ForCausalLM's structure.

    Source:
        transformers@5.23.0, models/starcoder2/modeling_starcoder2.py, Starcoder2Attention, Starcoder2MLP, Starcoder2Model.
    """
    dims = read_dims(config, kv_heads=2, tied=True)
    return llama_like(
        dims,
        act=config.text("hidden_act", default="gelu_pytorch_tanh"),
        norm="layer",
        attention={"sliding_window": config.optional_integer("sliding_window"), **attention_dropout(config)},
        mlp={"gate": "", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        layer={"dropout": config.number("residual_dropout", default=0.0)},
        decoder={"dropout": config.number("embedding_dropout", default=0.0)},
    )


FAMILIES = {"starcoder2": Family(starcoder2, decoder)}

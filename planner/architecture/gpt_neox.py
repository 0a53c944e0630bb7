"""GPT-NeoX and Pythia: parallel blocks, fused query-key-value, rotary positions on a part of each head."""

from __future__ import annotations

from planner.architecture.blocks import norms, plain_mlp, rotary, whole_heads
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def gpt_neox(config: Fields, out: Table) -> None:
    """
    GPTNeoXForCausalLM.

    Source:
        transformers@5.23.0, models/gpt_neox/modeling_gpt_neox.py, GPTNeoXForCausalLM.
    """
    hidden, layers = config.integer("hidden_size"), config.layers("num_hidden_layers")
    head_dim = whole_heads(config, hidden, config.integer("num_attention_heads"))
    width, vocab = config.integer("intermediate_size"), config.integer("vocab_size")
    bias = config.flag("attention_bias", default=True)
    tied = config.flag("tie_word_embeddings", default=False)

    model = out.within("gpt_neox.")
    model.embedding("embed_in", vocab, hidden)
    layer = model.within("layers.*.", range(layers))
    norms(layer, hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    layer.linear("attention.query_key_value", hidden, 3 * hidden, bias=bias)
    layer.linear("attention.dense", hidden, hidden, bias=bias)
    plain_mlp(layer, hidden, width, up="dense_h_to_4h", down="dense_4h_to_h")
    model.norm("final_layer_norm", hidden, bias=True)
    # `rotary_pct` is this family's word for the share of a head that turns.
    share = config.number("rotary_pct", default=0.25)
    rotary(model, Fields({"partial_rotary_factor": share, **_rope(config)}, path=config.path), head_dim, partial=share)
    out.linear("lm_head", hidden, vocab, tied_to="gpt_neox.embed_in" if tied else None)


def _rope(config: Fields) -> dict[str, object]:
    return {name: config.values[name] for name in ("rope_scaling", "rope_parameters") if name in config}


FAMILIES = {"gpt_neox": Family(gpt_neox)}

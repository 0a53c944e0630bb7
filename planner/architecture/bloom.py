"""BLOOM: ALiBi instead of positions, LayerNorms, biases everywhere, a fused query-key-value projection."""

from __future__ import annotations

from planner.architecture.blocks import plain_mlp, whole_heads
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def bloom(config: Fields, out: Table) -> None:
    """
    BloomForCausalLM.

    Source:
        transformers@5.23.0, models/bloom/modeling_bloom.py, BloomForCausalLM.
    """
    hidden, layers = config.integer("n_embed", "hidden_size"), config.layers("n_layer", "num_hidden_layers")
    whole_heads(config, hidden, config.integer("n_head", "num_attention_heads"))
    vocab, tied = config.integer("vocab_size"), config.flag("tie_word_embeddings", default=True)

    model = out.within("transformer.")
    model.embedding("word_embeddings", vocab, hidden)
    model.norm("word_embeddings_layernorm", hidden, bias=True)
    layer = model.within("h.*.", range(layers))
    layer.norm("input_layernorm", hidden, bias=True)
    layer.linear("self_attention.query_key_value", hidden, 3 * hidden, bias=True)
    layer.linear("self_attention.dense", hidden, hidden, bias=True)
    layer.norm("post_attention_layernorm", hidden, bias=True)
    plain_mlp(layer, hidden, 4 * hidden, up="dense_h_to_4h", down="dense_4h_to_h")
    model.norm("ln_f", hidden, bias=True)
    out.linear("lm_head", hidden, vocab, tied_to="transformer.word_embeddings" if tied else None)


FAMILIES = {"bloom": Family(bloom)}

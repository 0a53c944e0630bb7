"""MPT: ALiBi instead of positions, LayerNorms and linears without biases."""

from __future__ import annotations

from planner.architecture.blocks import plain_mlp
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table


def mpt(config: Fields, out: Table) -> None:
    """
    MptForCausalLM: the class builds an MLP of four times the width and no biases, whatever `expansion_ratio` and `no_bias` say.

    Source:
        transformers@5.23.0, models/mpt/modeling_mpt.py, MptForCausalLM.
    """
    hidden, layers = config.integer("d_model", "hidden_size"), config.layers("n_layers", "num_hidden_layers")
    vocab, tied = config.integer("vocab_size"), config.flag("tie_word_embeddings", default=True)

    model = out.within("transformer.")
    model.embedding("wte", vocab, hidden)
    layer = model.within("blocks.*.", range(layers))
    layer.norm("norm_1", hidden)
    layer.linear("attn.Wqkv", hidden, 3 * hidden)
    layer.linear("attn.out_proj", hidden, hidden)
    layer.norm("norm_2", hidden)
    plain_mlp(layer, hidden, 4 * hidden, name="ffn", up="up_proj", down="down_proj", bias=False)
    model.norm("norm_f", hidden)
    out.linear("lm_head", hidden, vocab, tied_to="transformer.wte" if tied else None)


FAMILIES = {"mpt": Family(mpt)}

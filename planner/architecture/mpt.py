"""MPT: ALiBi instead of positions, LayerNorms and linears without biases."""

from __future__ import annotations

from planner.architecture.blocks import plain_mlp, whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
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


def decoder(config: Fields) -> Decoder:
    """MptForCausalLM's structure; one dropout, `attn_pdrop`, serves everywhere."""
    hidden, heads = config.integer("d_model", "hidden_size"), config.integer("n_heads", "num_attention_heads")
    attention = config.section("attn_config", default={})
    dropout = attention.number("attn_pdrop", default=0.0)
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            whole_heads(config, hidden, heads, "d_model"),
            fused="attn.Wqkv",
            out="attn.out_proj",
            clips=bool(attention.number("clip_qkv", default=0.0)),
            dropout=dropout,
            alibi=True,
            alibi_length=config.integer("max_seq_len", default=2048),
        ),
        mlp=Mlp(4 * hidden, "gelu", gate="", up="ffn.up_proj", down="ffn.down_proj"),
        layout="mpt",
        norms=(NormSpec("norm_1", "layer", hidden), NormSpec("norm_2", "layer", hidden)),
        dropout=dropout,
        returns_weights=True,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("n_layers", "num_hidden_layers"),
        layer_prefix="transformer.blocks.*.",
        embedding="transformer.wte",
        norm=NormSpec("transformer.norm_f", "layer", hidden),
        boolean_mask=True,
        supports_sdpa=False,
    )


FAMILIES = {"mpt": Family(mpt, decoder)}

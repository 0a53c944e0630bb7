"""GPT-NeoX and Pythia: parallel blocks, fused query-key-value, rotary positions on a part of each head."""

from __future__ import annotations

from planner.architecture.blocks import norms, plain_mlp, rotary, rotary_frequencies, whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
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
    rotary(model, _turning(config), head_dim, partial=_share(config))
    out.linear("lm_head", hidden, vocab, tied_to="gpt_neox.embed_in" if tied else None)


def _share(config: Fields) -> float:
    """`rotary_pct` is this family's word for the share of a head that turns."""
    return config.number("rotary_pct", default=0.25)


def _turning(config: Fields) -> Fields:
    rope = {name: config.values[name] for name in ("rope_scaling", "rope_parameters") if name in config}
    return Fields({"partial_rotary_factor": _share(config), **rope}, path=config.path)


def decoder(config: Fields) -> Decoder:
    """GPTNeoXForCausalLM's structure."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = whole_heads(config, hidden, heads)
    rotary_dim = 2 * rotary_frequencies(_turning(config), head_dim, partial=_share(config))
    dropout = config.number("hidden_dropout", default=0.0)
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            head_dim,
            fused="attention.query_key_value",
            fused_layout="split",
            out="attention.dense",
            rotary_dim=rotary_dim,
            rotary_style="parts",
            dropout=config.number("attention_dropout", default=0.0),
        ),
        mlp=Mlp(
            config.integer("intermediate_size"),
            config.text("hidden_act", default="gelu"),
            gate="",
            up="mlp.dense_h_to_4h",
            down="mlp.dense_4h_to_h",
        ),
        layout="neox" if config.flag("use_parallel_residual", default=True) else "neox_sequential",
        norms=(NormSpec("input_layernorm", "layer", hidden), NormSpec("post_attention_layernorm", "layer", hidden)),
        dropout=dropout,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("num_hidden_layers"),
        layer_prefix="gpt_neox.layers.*.",
        embedding="gpt_neox.embed_in",
        norm=NormSpec("gpt_neox.final_layer_norm", "layer", hidden),
        dropout=dropout,
        rotary_dim=rotary_dim,
    )


FAMILIES = {"gpt_neox": Family(gpt_neox, decoder)}

"""OPT: learned positions, LayerNorms, biases everywhere, ReLU."""

from __future__ import annotations

from planner.architecture.blocks import whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table

# OPTLearnedPositionalEmbedding begins its positions at 2.
_POSITION_OFFSET = 2


def opt(config: Fields, out: Table) -> None:
    """
    OPTForCausalLM: the 350M model has a narrower embedding, with projections in and out.

    Source:
        transformers@5.23.0, models/opt/modeling_opt.py, OPTForCausalLM.
    """
    hidden, layers = config.integer("hidden_size"), config.layers("num_hidden_layers")
    whole_heads(config, hidden, config.integer("num_attention_heads"))
    width, vocab = config.integer("ffn_dim"), config.integer("vocab_size")
    narrow = config.integer("word_embed_proj_dim", default=hidden)
    positions = config.integer("max_position_embeddings", default=2048)
    bias = config.flag("enable_bias", default=True)
    normed = config.flag("layer_norm_elementwise_affine", default=True)
    before, removed = config.flag("do_layer_norm_before", default=True), config.flag("_remove_final_layer_norm", default=False)
    tied = config.flag("tie_word_embeddings", default=True)

    model = out.within("model.decoder.")
    model.embedding("embed_tokens", vocab, narrow)
    model.embedding("embed_positions", positions + _POSITION_OFFSET, hidden)
    if narrow != hidden:
        model.linear("project_out", hidden, narrow)
        model.linear("project_in", narrow, hidden)
    if before and not removed and normed:
        model.norm("final_layer_norm", hidden, bias=True)
    layer = model.within("layers.*.", range(layers))
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer.linear(f"self_attn.{name}", hidden, hidden, bias=bias)
    if normed:
        layer.norm("self_attn_layer_norm", hidden, bias=True)
    layer.linear("fc1", hidden, width, bias=bias)
    layer.linear("fc2", width, hidden, bias=bias)
    if normed:
        layer.norm("final_layer_norm", hidden, bias=True)
    out.linear("lm_head", narrow, vocab, tied_to="model.decoder.embed_tokens" if tied else None)


def decoder(config: Fields) -> Decoder:
    """OPTForCausalLM's structure; dropout is 0.1 unless the file says otherwise."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    projected = config.integer("word_embed_proj_dim", default=hidden) != hidden
    before, removed = config.flag("do_layer_norm_before", default=True), config.flag("_remove_final_layer_norm", default=False)
    normed = config.flag("layer_norm_elementwise_affine", default=True)
    dropout = config.number("dropout", default=0.1)
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            whole_heads(config, hidden, heads),
            out="self_attn.out_proj",
            scales_queries=True,
            dropout=config.number("attention_dropout", default=0.0),
        ),
        mlp=Mlp(config.integer("ffn_dim"), config.text("activation_function", default="relu"), gate="", up="fc1", down="fc2"),
        layout="opt" if before else "opt_post",
        norms=tuple(NormSpec(name if normed else "", "layer", hidden) for name in ("self_attn_layer_norm", "final_layer_norm")),
        dropout=dropout,
    )
    # Where norms follow the sums, autocast leaves fp32 behind the first layer whatever came in: that one is a kind of its own.
    first = layer if before else layer._replace()
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(first,) + (layer,) * (config.layers("num_hidden_layers") - 1),
        layer_prefix="model.decoder.layers.*.",
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        positions_by_token=True,
        project_in="model.decoder.project_in" if projected else "",
        project_out="model.decoder.project_out" if projected else "",
        norm=NormSpec("model.decoder.final_layer_norm" if normed else "", "layer", hidden) if before and not removed else None,
    )


FAMILIES = {"opt": Family(opt, decoder)}

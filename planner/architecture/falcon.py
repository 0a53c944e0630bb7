"""Falcon 7B, 40B and 180B: parallel blocks, and projections of a class that bitsandbytes does not replace."""

from __future__ import annotations

from planner.architecture.blocks import norms, rotary, whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError


def falcon(config: Fields, out: Table) -> None:
    """
    FalconForCausalLM: FalconLinear is a subclass of nn.Linear.

    Source:
        transformers@5.23.0, models/falcon/modeling_falcon.py, FalconForCausalLM, FalconLinear.
    """
    hidden, layers = config.integer("n_embed", "hidden_size"), config.layers("num_hidden_layers")
    heads = config.integer("num_attention_heads")
    head_dim, vocab = whole_heads(config, hidden, heads), config.integer("vocab_size")
    width, bias = config.integer("ffn_hidden_size", default=4 * hidden), config.flag("bias", default=False)
    tied = config.flag("tie_word_embeddings", default=True)

    model = out.within("transformer.")
    model.embedding("word_embeddings", vocab, hidden)
    layer = model.within("h.*.", range(layers))
    layer.linear_subclass("self_attention.query_key_value", hidden, _qkv_width(config, heads, head_dim), bias=bias)
    layer.linear_subclass("self_attention.dense", hidden, hidden, bias=bias)
    layer.linear_subclass("mlp.dense_h_to_4h", hidden, width, bias=bias)
    layer.linear_subclass("mlp.dense_4h_to_h", width, hidden, bias=bias)
    norms(layer, hidden, *_norm_names(config), bias=True)
    model.norm("ln_f", hidden, bias=True)
    rotary(model, config, head_dim)
    out.linear("lm_head", hidden, vocab, tied_to="transformer.word_embeddings" if tied else None)


def _qkv_width(config: Fields, heads: int, head_dim: int) -> int:
    if config.flag("new_decoder_architecture", default=False):
        return (2 * config.integer("num_kv_heads", default=heads) + heads) * head_dim
    if config.flag("multi_query", default=True):
        return (heads + 2) * head_dim
    return 3 * heads * head_dim


def _norm_names(config: Fields) -> tuple[str, ...]:
    if not config.flag("parallel_attn", default=True):
        return ("post_attention_layernorm", "input_layernorm")
    two = 2 if config.flag("new_decoder_architecture", default=False) else 1
    if config.integer("num_ln_in_parallel_attn", default=two) == 2:
        return ("ln_attn", "ln_mlp")
    return ("input_layernorm",)


def decoder(config: Fields) -> Decoder:
    """
    FalconForCausalLM's structure.

    Raises:
        UnsupportedModelError: The model is of Falcon-RW's kind: ALiBi, blocks one after the other, or biases added apart.
    """
    for name, known in (("alibi", False), ("bias", False), ("parallel_attn", True)):
        if config.flag(name, default=known) is not known:
            raise UnsupportedModelError(
                f"{name} is {str(not known).lower()} in config.json, as in Falcon-RW, whose step the closed form does not know",
                hint="Falcon 7B, 40B and 180B are known",
            )
    hidden, heads = config.integer("n_embed", "hidden_size"), config.integer("num_attention_heads")
    head_dim, is_new = whole_heads(config, hidden, heads), config.flag("new_decoder_architecture", default=False)
    multi_query = not is_new and config.flag("multi_query", default=True)
    kv_heads = config.integer("num_kv_heads", default=heads) if is_new else 1 if multi_query else heads
    layer = Layer(
        attention=Attention(
            heads,
            kv_heads,
            head_dim,
            fused="self_attention.query_key_value",
            fused_layout="picked" if is_new else "multi_query" if multi_query else "slices",
            out="self_attention.dense",
            rotary_dim=head_dim,
            dropout=config.number("attention_dropout", default=0.0),
            style="falcon",
        ),
        mlp=Mlp(
            config.integer("ffn_hidden_size", default=4 * hidden),
            config.text("activation", default="gelu"),
            gate="",
            up="mlp.dense_h_to_4h",
            down="mlp.dense_4h_to_h",
        ),
        layout="falcon",
        norms=tuple(NormSpec(name, "layer", hidden) for name in _norm_names(config)),
        dropout=config.number("hidden_dropout", default=0.0),
        returns_weights=True,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("num_hidden_layers"),
        layer_prefix="transformer.h.*.",
        embedding="transformer.word_embeddings",
        norm=NormSpec("transformer.ln_f", "layer", hidden),
        rotary_dim=head_dim,
        always_masked=True,
    )


FAMILIES = {"falcon": Family(falcon, decoder)}

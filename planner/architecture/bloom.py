"""BLOOM: ALiBi instead of positions, LayerNorms, biases everywhere, a fused query-key-value projection."""

from __future__ import annotations

from planner.architecture.blocks import plain_mlp, whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError


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


def decoder(config: Fields) -> Decoder:
    """
    BloomForCausalLM's structure.

    Raises:
        UnsupportedModelError: The file asks for slices as of tensor-parallel pretraining.
    """
    if config.flag("slow_but_exact", default=False) and config.integer("pretraining_tp", default=1) > 1:
        raise UnsupportedModelError(
            "slow_but_exact is true in config.json; the closed form does not know products in slices",
            hint="set slow_but_exact to false",
        )
    hidden, heads = config.integer("n_embed", "hidden_size"), config.integer("n_head", "num_attention_heads")
    from_norms = config.flag("apply_residual_connection_post_layernorm", default=False)
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            whole_heads(config, hidden, heads),
            fused="self_attention.query_key_value",
            out="self_attention.dense",
            dropout=config.number("attention_dropout", default=0.0),
            alibi=True,
        ),
        mlp=Mlp(4 * hidden, "bloom_gelu", gate="", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
        layout="bloom_from_norms" if from_norms else "bloom",
        norms=(NormSpec("input_layernorm", "layer", hidden), NormSpec("post_attention_layernorm", "layer", hidden)),
        dropout=config.number("hidden_dropout", default=0.0),
        returns_weights=True,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("n_layer", "num_hidden_layers"),
        layer_prefix="transformer.h.*.",
        embedding="transformer.word_embeddings",
        embedding_norm=NormSpec("transformer.word_embeddings_layernorm", "layer", hidden),
        norm=NormSpec("transformer.ln_f", "layer", hidden),
        supports_sdpa=False,
    )


FAMILIES = {"bloom": Family(bloom, decoder)}

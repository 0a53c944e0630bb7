"""LFM2: short convolutions with an attention layer now and then."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, head, norms, read_dims, refusal, rotary
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import filled, kinds_of, where
from planner.architecture.table import Table

# Published models have 1; beyond this the factor is a mistake.
_LARGEST_FACTOR = 1024


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/lfm2/modeling_lfm2.py, Lfm2ForCausalLM.
    """
    config, dims, kinds = _read(config)
    bias, width = config.flag("conv_bias", default=False), _width(config, dims)

    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    layer, full = model.within("layers.*.", range(dims.layers)), model.within("layers.*.", where(kinds, "full_attention"))
    attention(full, dims, out="out_proj")
    norms(full, dims.head_dim, "self_attn.q_layernorm", "self_attn.k_layernorm")
    short = model.within("layers.*.conv.", where(kinds, "conv"))
    short.convolution("conv", (dims.hidden, 1, config.integer("conv_L_cache", default=3)), bias=bias)
    short.linear("in_proj", dims.hidden, 3 * dims.hidden, bias=bias)
    short.linear("out_proj", dims.hidden, dims.hidden, bias=bias)
    layer.linear("feed_forward.w1", dims.hidden, width)
    layer.linear("feed_forward.w3", dims.hidden, width)
    layer.linear("feed_forward.w2", width, dims.hidden)
    norms(layer, dims.hidden, "operator_norm", "ffn_norm")
    rotary(model, config, dims.head_dim)
    model.norm("embedding_norm", dims.hidden)
    head(out, dims)


def _read(given: Fields) -> tuple[Fields, Dims, list[str]]:
    """The config with its class's defaults, its sizes, and the kind of each layer."""
    config = filled(
        given,
        tie_word_embeddings=given.flag("tie_embedding", "tie_word_embeddings", default=True),
        intermediate_size=given.integer("block_ff_dim", default=12_288),
    )
    dims = read_dims(config, kv_heads=8)
    attending = set(config.integers("full_attn_idxs", default=list(range(dims.layers))))
    pattern = ["full_attention" if i in attending else "conv" for i in range(dims.layers)]
    kinds = kinds_of(config, "layer_types", pattern, ("full_attention", "conv"))
    return config, dims, kinds


def _width(config: Fields, dims: Dims) -> int:
    """
    Inner width of the MLP: two thirds of the given one, scaled and rounded up, unless the file says that it is final.

    Source:
        transformers@5.23.0, models/lfm2/modeling_lfm2.py, Lfm2MLP.__init__.
    """
    width = config.integer("block_ff_dim", default=dims.width)
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return width
    factor = config.number("block_ffn_dim_multiplier", default=1.0)
    if not 0 < factor <= _LARGEST_FACTOR:
        raise refusal(config, "block_ffn_dim_multiplier", f"above 0 and at most {_LARGEST_FACTOR}")
    width = int(factor * (2 * width // 3))
    step = config.integer("block_multiple_of", default=256)
    return step * -(-width // step)


def decoder(config: Fields) -> Decoder:
    """Lfm2ForCausalLM's structure."""
    config, dims, kinds = _read(config)
    mlp = Mlp(_width(config, dims), "silu", gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2")
    norms = (NormSpec("operator_norm", "rms", dims.hidden), NormSpec("ffn_norm", "rms", dims.hidden))
    full = Attention(
        dims.heads,
        dims.kv_heads,
        dims.head_dim,
        out="self_attn.out_proj",
        rotary_dim=dims.head_dim,
        q_norm=NormSpec("self_attn.q_layernorm", "rms", dims.head_dim),
        k_norm=NormSpec("self_attn.k_layernorm", "rms", dims.head_dim),
        norms_each=True,
    )
    conv = Attention(
        dims.heads,
        dims.kv_heads,
        dims.head_dim,
        fused="conv.in_proj",
        out="conv.out_proj",
        convolution="conv.conv",
        taps=config.integer("conv_L_cache", default=3),
        style="short_convolution",
    )
    layers = {"full_attention": Layer(full, mlp, "pre", norms), "conv": Layer(conv, mlp, "pre", norms)}
    return Decoder(
        hidden_size=dims.hidden,
        vocab_size=dims.vocab,
        layers=tuple(layers[kind] for kind in kinds),
        norm=NormSpec("model.embedding_norm", "rms", dims.hidden),
        rotary_dim=dims.head_dim,
    )


FAMILIES = {"lfm2": Family(table, decoder)}

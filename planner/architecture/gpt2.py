"""GPT-2 and StarCoder 1: learned positions, LayerNorms, a fused query-key-value projection."""

from __future__ import annotations

from planner.architecture.blocks import whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.dtypes import DType
from planner.errors import UnsupportedModelError
from planner.value import Value


class _Sizes(Value):
    hidden: int
    layers: int
    head_dim: int
    inner: int
    vocab: int
    positions: int
    tied: bool


def _sizes(config: Fields) -> _Sizes:
    if config.flag("add_cross_attention", default=False):
        raise UnsupportedModelError(
            "add_cross_attention is true in config.json; a GPT-2 with cross-attention is the decoder of another model",
            hint="use the config.json of the decoder alone",
        )
    hidden, heads = config.integer("n_embd", "hidden_size"), config.integer("n_head", "num_attention_heads")
    return _Sizes(
        hidden=hidden,
        layers=config.layers("n_layer", "num_hidden_layers"),
        head_dim=whole_heads(config, hidden, heads, "n_embd"),
        inner=config.integer("n_inner", default=4 * hidden),
        vocab=config.integer("vocab_size"),
        positions=config.integer("n_positions", "max_position_embeddings", default=1024),
        tied=config.flag("tie_word_embeddings", default=True),
    )


def gpt2(config: Fields, out: Table) -> None:
    """
    GPT2LMHeadModel: its projections are transformers' Conv1D.

    Source:
        transformers@5.23.0, models/gpt2/modeling_gpt2.py, GPT2LMHeadModel.
    """
    sizes, model = _sizes(config), out.within("transformer.")
    model.embedding("wte", sizes.vocab, sizes.hidden)
    model.embedding("wpe", sizes.positions, sizes.hidden)
    layer = model.within("h.*.", range(sizes.layers))
    layer.norm("ln_1", sizes.hidden, bias=True)
    layer.conv1d("attn.c_attn", sizes.hidden, 3 * sizes.hidden)
    layer.conv1d("attn.c_proj", sizes.hidden, sizes.hidden)
    layer.norm("ln_2", sizes.hidden, bias=True)
    layer.conv1d("mlp.c_fc", sizes.hidden, sizes.inner)
    layer.conv1d("mlp.c_proj", sizes.inner, sizes.hidden)
    model.norm("ln_f", sizes.hidden, bias=True)
    out.linear("lm_head", sizes.hidden, sizes.vocab, tied_to="transformer.wte" if sizes.tied else None)


def gpt_bigcode(config: Fields, out: Table) -> None:
    """
    GPTBigCodeForCausalLM: one key and value head for all, and a causal mask of all positions as a buffer.

    Source:
        transformers@5.23.0, models/gpt_bigcode/modeling_gpt_bigcode.py, GPTBigCodeForCausalLM.
    """
    sizes, model = _sizes(config), out.within("transformer.")
    key_width = sizes.head_dim if config.flag("multi_query", default=True) else sizes.hidden
    model.embedding("wte", sizes.vocab, sizes.hidden)
    model.embedding("wpe", sizes.positions, sizes.hidden)
    layer = model.within("h.*.", range(sizes.layers))
    layer.norm("ln_1", sizes.hidden, bias=True)
    layer.linear("attn.c_attn", sizes.hidden, sizes.hidden + 2 * key_width, bias=True)
    layer.linear("attn.c_proj", sizes.hidden, sizes.hidden, bias=True)
    layer.norm("ln_2", sizes.hidden, bias=True)
    layer.linear("mlp.c_fc", sizes.hidden, sizes.inner, bias=True)
    layer.linear("mlp.c_proj", sizes.inner, sizes.hidden, bias=True)
    model.norm("ln_f", sizes.hidden, bias=True)
    model.buffer("bias", (sizes.positions, sizes.positions), DType.BOOL)
    out.linear("lm_head", sizes.hidden, sizes.vocab, tied_to="transformer.wte" if sizes.tied else None)


def gpt2_decoder(config: Fields) -> Decoder:
    """
    GPT2LMHeadModel's structure.

    Raises:
        UnsupportedModelError: `reorder_and_upcast_attn` is set.
    """
    if config.flag("reorder_and_upcast_attn", default=False):
        raise UnsupportedModelError(
            "reorder_and_upcast_attn is true in config.json; the closed form does not know that attention",
            hint="no published GPT-2 sets it; set it to false",
        )
    return _decoder(config, kv_heads=None, plain_softmax=True, act="gelu_new")


def bigcode_decoder(config: Fields) -> Decoder:
    """GPTBigCodeForCausalLM's structure."""
    kv_heads = 1 if config.flag("multi_query", default=True) else None
    return _decoder(config, kv_heads=kv_heads, plain_softmax=False, act="gelu_pytorch_tanh")


def _decoder(config: Fields, *, kv_heads: int | None, plain_softmax: bool, act: str) -> Decoder:
    """Blocks of GPT-2's layout; every dropout is 0.1 unless the file says otherwise."""
    sizes, heads = _sizes(config), config.integer("n_head", "num_attention_heads")
    attention = Attention(
        heads,
        kv_heads or heads,
        sizes.head_dim,
        fused="attn.c_attn",
        fused_layout="split",
        out="attn.c_proj",
        dropout=config.number("attn_pdrop", default=0.1),
        plain_softmax=plain_softmax,
    )
    act = config.text("activation_function", default=act)
    layer = Layer(
        attention=attention,
        mlp=Mlp(sizes.inner, act, gate="", up="mlp.c_fc", down="mlp.c_proj"),
        layout="gpt2",
        norms=(NormSpec("ln_1", "layer", sizes.hidden), NormSpec("ln_2", "layer", sizes.hidden)),
        dropout=config.number("resid_pdrop", default=0.1),
    )
    return Decoder(
        hidden_size=sizes.hidden,
        vocab_size=sizes.vocab,
        layers=(layer,) * sizes.layers,
        layer_prefix="transformer.h.*.",
        embedding="transformer.wte",
        positions="transformer.wpe",
        dropout=config.number("embd_pdrop", default=0.1),
        norm=NormSpec("transformer.ln_f", "layer", sizes.hidden),
    )


FAMILIES = {"gpt2": Family(gpt2, gpt2_decoder), "gpt_bigcode": Family(gpt_bigcode, bigcode_decoder)}

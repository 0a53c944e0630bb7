"""GPT-Neo and GPT-J: separate projections without biases, in GPT-2's frame."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.blocks import plain_mlp, refusal, whole_heads
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import MAX_LAYERS, Fields
from planner.architecture.table import Table
from planner.dtypes import DType


def gpt_neo(config: Fields, out: Table) -> None:
    """
    GPTNeoForCausalLM: every layer keeps a causal mask of all positions as a buffer.

    Source:
        transformers@5.23.0, models/gpt_neo/modeling_gpt_neo.py, GPTNeoForCausalLM.
    """
    hidden, layers = config.integer("hidden_size"), config.layers("num_layers", "num_hidden_layers")
    whole_heads(config, hidden, config.integer("num_heads", "num_attention_heads"))
    if _kinds_listed(config) != layers:
        raise refusal(config, "attention_types", f"groups of kinds, global or local, that come to {layers} layers")
    inner, vocab = config.integer("intermediate_size", default=4 * hidden), config.integer("vocab_size")
    positions = config.integer("max_position_embeddings", default=2048)
    tied = config.flag("tie_word_embeddings", default=True)

    model = out.within("transformer.")
    model.embedding("wte", vocab, hidden)
    model.embedding("wpe", positions, hidden)
    layer = model.within("h.*.", range(layers))
    layer.norm("ln_1", hidden, bias=True)
    layer.buffer("attn.attention.bias", (1, 1, positions, positions), DType.BOOL)
    for name in ("k_proj", "v_proj", "q_proj"):
        layer.linear(f"attn.attention.{name}", hidden, hidden)
    layer.linear("attn.attention.out_proj", hidden, hidden, bias=True)
    layer.norm("ln_2", hidden, bias=True)
    plain_mlp(layer, hidden, inner, up="c_fc", down="c_proj")
    model.norm("ln_f", hidden, bias=True)
    out.linear("lm_head", hidden, vocab, tied_to="transformer.wte" if tied else None)


def _kinds_listed(config: Fields) -> int | None:
    """How many layers `attention_types` describes, such as [[["global", "local"], 12]]; None where it has another form."""
    groups = config.raw("attention_types", [[["global", "local"], 12]])
    count = 0
    for group in groups if isinstance(groups, (list, tuple)) else [None]:
        if not isinstance(group, (list, tuple)) or len(group) != 2:
            return None
        kinds, repeats = group
        known = isinstance(kinds, Sequence) and all(kind in ("global", "local") for kind in kinds)
        if not known or isinstance(repeats, bool) or not isinstance(repeats, int) or not 0 <= repeats <= MAX_LAYERS:
            return None
        count += len(kinds) * repeats
    return count


def gptj(config: Fields, out: Table) -> None:
    """
    GPTJForCausalLM: attention and MLP read the same norm, and every layer keeps the sines and cosines of all positions.

    Source:
        transformers@5.23.0, models/gptj/modeling_gptj.py, GPTJForCausalLM, create_sinusoidal_positions.
    """
    hidden, layers = config.integer("n_embd", "hidden_size"), config.layers("n_layer", "num_hidden_layers")
    whole_heads(config, hidden, config.integer("n_head", "num_attention_heads"), "n_embd")
    inner, vocab = config.integer("n_inner", default=4 * hidden), config.integer("vocab_size")
    positions = config.integer("n_positions", "max_position_embeddings", default=2048)
    rotary_dim = config.integer("rotary_dim", default=64, minimum=0) or hidden
    tied = config.flag("tie_word_embeddings", default=False)

    model = out.within("transformer.")
    model.embedding("wte", vocab, hidden)
    layer = model.within("h.*.", range(layers))
    layer.norm("ln_1", hidden, bias=True)
    layer.buffer("attn.embed_positions", (positions, rotary_dim + rotary_dim % 2))
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer.linear(f"attn.{name}", hidden, hidden)
    plain_mlp(layer, hidden, inner, up="fc_in", down="fc_out")
    model.norm("ln_f", hidden, bias=True)
    out.linear("lm_head", hidden, vocab, bias=True, tied_to="transformer.wte" if tied else None)


def gpt_neo_decoder(config: Fields) -> Decoder:
    """GPTNeoForCausalLM's structure: layers that look at all tokens and those that look at some allocate the same."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_heads", "num_attention_heads")
    resid = config.number("resid_dropout", default=0.0)
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            whole_heads(config, hidden, heads),
            q="attn.attention.q_proj",
            k="attn.attention.k_proj",
            v="attn.attention.v_proj",
            out="attn.attention.out_proj",
            dropout=config.number("attention_dropout", default=0.0),
            style="gpt_neo",
        ),
        mlp=Mlp(
            config.integer("intermediate_size", default=4 * hidden),
            config.text("activation_function", default="gelu_new"),
            gate="",
            up="mlp.c_fc",
            down="mlp.c_proj",
        ),
        layout="gpt2",
        norms=(NormSpec("ln_1", "layer", hidden), NormSpec("ln_2", "layer", hidden)),
        dropout=resid,
        returns_weights=True,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("num_layers", "num_hidden_layers"),
        layer_prefix="transformer.h.*.",
        embedding="transformer.wte",
        positions="transformer.wpe",
        dropout=config.number("embed_dropout", default=0.0),
        norm=NormSpec("transformer.ln_f", "layer", hidden),
        supports_sdpa=False,
    )


def gptj_decoder(config: Fields) -> Decoder:
    """GPTJForCausalLM's structure."""
    hidden, heads = config.integer("n_embd", "hidden_size"), config.integer("n_head", "num_attention_heads")
    head_dim = whole_heads(config, hidden, heads, "n_embd")
    layer = Layer(
        attention=Attention(
            heads,
            heads,
            head_dim,
            q="attn.q_proj",
            k="attn.k_proj",
            v="attn.v_proj",
            out="attn.out_proj",
            rotary_dim=config.integer("rotary_dim", default=64, minimum=0) or head_dim,
            rotary_positions=config.integer("n_positions", "max_position_embeddings", default=2048),
            dropout=config.number("attn_pdrop", default=0.0),
            style="gptj",
        ),
        mlp=Mlp(
            config.integer("n_inner", default=4 * hidden),
            config.text("activation_function", default="gelu_new"),
            gate="",
            up="mlp.fc_in",
            down="mlp.fc_out",
        ),
        layout="gptj",
        norms=(NormSpec("ln_1", "layer", hidden),),
        dropout=config.number("resid_pdrop", default=0.0),
        returns_weights=True,
    )
    return Decoder(
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        layers=(layer,) * config.layers("n_layer", "num_hidden_layers"),
        layer_prefix="transformer.h.*.",
        embedding="transformer.wte",
        dropout=config.number("embd_pdrop", default=0.0),
        norm=NormSpec("transformer.ln_f", "layer", hidden),
        supports_sdpa=False,
    )


FAMILIES = {"gpt_neo": Family(gpt_neo, gpt_neo_decoder), "gptj": Family(gptj, gptj_decoder)}

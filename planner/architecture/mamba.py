"""Mamba, its second generation, and Falcon Mamba: layers of one state-space mixer each."""

from __future__ import annotations

from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import InvalidConfigError

_NEEDS = "the state-space scan and the causal convolution before it"


def mamba(config: Fields, out: Table, *, weightless_norms: bool = False) -> None:
    """
    The module table of Mamba and of Falcon Mamba, which adds norms whose weights are buffers of ones.

    Source:
        transformers@5.23.0, models/mamba/modeling_mamba.py, MambaForCausalLM; models/falcon_mamba, FalconMambaForCausalLM.
    """
    hidden, state = config.integer("hidden_size"), config.integer("state_size", default=16)
    mixer = _stack(config, out, tied=True)
    # The class computes the width from `expand`, but an intermediate_size in the file wins, as Falcon Mamba's does over its
    # `expand` of 16.
    inner = config.integer("intermediate_size", default=expanded(config, hidden))
    scan(
        mixer,
        hidden,
        inner,
        state,
        time_rank(config, hidden),
        config.integer("conv_kernel", default=4),
        bias=config.flag("use_bias", default=False),
        conv_bias=config.flag("use_conv_bias", default=True),
    )
    if weightless_norms:
        mixer.buffer("dt_layernorm.weight", (inner,), None)
        mixer.buffer("b_layernorm.weight", (state,), None)
        mixer.buffer("c_layernorm.weight", (state,), None)


def scan(mixer: Table, hidden: int, inner: int, state: int, rank: int, kernel: int, *, bias: bool, conv_bias: bool) -> None:
    """The mixer of the first generation."""
    mixer.parameter("A_log", (inner, state))
    mixer.parameter("D", (inner,))
    mixer.convolution("conv1d", (inner, 1, kernel), bias=conv_bias)
    mixer.linear("in_proj", hidden, 2 * inner, bias=bias)
    mixer.linear("x_proj", inner, rank + 2 * state)
    mixer.linear("dt_proj", rank, inner, bias=True)
    mixer.linear("out_proj", inner, hidden, bias=bias)


def mamba2(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/mamba2/modeling_mamba2.py, Mamba2ForCausalLM.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_heads", default=128)
    inner, head_dim = expanded(config, hidden), config.integer("head_dim", default=64)
    if inner != heads * head_dim:
        raise InvalidConfigError(
            f"num_heads x head_dim is {heads * head_dim} in config.json; it must equal expand x hidden_size ({inner})"
        )
    scan2(
        _stack(config, out, tied=False),
        hidden,
        inner,
        heads,
        groups=config.integer("n_groups", default=8),
        state=config.integer("state_size", default=128),
        kernel=config.integer("conv_kernel", default=4),
        bias=config.flag("use_bias", default=False),
        conv_bias=config.flag("use_conv_bias", default=True),
    )


def scan2(
    mixer: Table,
    hidden: int,
    inner: int,
    heads: int,
    *,
    groups: int,
    state: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
) -> None:
    """The mixer of the second generation: scalars a head, and one projection for everything that the scan takes."""
    convolved = inner + 2 * groups * state
    for name in ("dt_bias", "A_log", "D"):
        mixer.parameter(name, (heads,))
    mixer.convolution("conv1d", (convolved, 1, kernel), bias=conv_bias)
    mixer.linear("in_proj", hidden, inner + convolved + heads, bias=bias)
    mixer.norm("norm", inner)
    mixer.linear("out_proj", inner, hidden, bias=bias)


def expanded(config: Fields, hidden: int, name: str = "expand") -> int:
    """Inner width of a mixer."""
    return hidden * config.integer(name, default=2)


def time_rank(config: Fields, hidden: int, name: str = "time_step_rank") -> int:
    """Rank of the time step's projection: a sixteenth of the residual stream, rounded up, where the file says `auto`."""
    if config.raw(name, "auto") == "auto":
        return -(-hidden // 16)
    return config.integer(name)


def _stack(config: Fields, out: Table, *, tied: bool) -> Table:
    """Embedding, norms and head; gives the place of the mixers."""
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    model, layers = out.within("backbone."), range(config.layers("num_hidden_layers"))
    model.embedding("embeddings", vocab, hidden)
    model.within("layers.*.", layers).norm("norm", hidden)
    tied = config.flag("tie_word_embeddings", default=tied)
    mixer = model.within("layers.*.mixer.", layers)
    model.norm("norm_f", hidden)
    out.linear("lm_head", hidden, vocab, tied_to="backbone.embeddings" if tied else None)
    return mixer


FAMILIES = {
    "mamba": Family(mamba, needs=_NEEDS),
    "falcon_mamba": Family(lambda config, out: mamba(config, out, weightless_norms=True), needs=_NEEDS),
    "mamba2": Family(mamba2, needs=_NEEDS),
}

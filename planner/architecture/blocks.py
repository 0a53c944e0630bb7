"""What decoders have in common: their dimensions, and the blocks that most families build a layer from."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import InvalidConfigError
from planner.value import NamedTuple

# The ways to scale rotary positions that transformers@5.23.0 knows (modeling_rope_utils.py, ROPE_INIT_FUNCTIONS), and none.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


class Dims(NamedTuple):
    """
    The sizes of a decoder.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of layers.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head_dim: Width of a head.
        width: Inner width of the MLP.
        vocab: Rows of the embedding.
        tied: Whether the head shares the embedding's weight.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocab: int
    tied: bool


def refusal(config: Fields, name: str, rule: str) -> InvalidConfigError:
    """The error for a field whose value does not go with the others."""
    shown = repr(config.raw(name))
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return InvalidConfigError(f"{config.path}{name} is {shown} in config.json; it must be {rule}")


def whole_heads(config: Fields, hidden: int, heads: int, name: str = "hidden_size") -> int:
    """
    Width of a head where heads share the residual stream.

    Raises:
        InvalidConfigError: The heads do not divide it.
    """
    if hidden % heads:
        raise refusal(config, name, f"a multiple of the {heads} attention heads")
    return hidden // heads


def read_dims(
    config: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    strict: bool = False,
) -> Dims:
    """
    The sizes under the names that most families use.

    Args:
        config: The config of the decoder.
        kv_heads: The config class's default; None for as many as query heads.
        head_dim: The config class's default; None for the share of a head in the residual stream.
        tied: The config class's default.
        strict: Whether the class refuses heads that do not divide the residual stream even where head_dim is given.

    Raises:
        InvalidConfigError: A size is missing, or does not go with the others.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if strict:
        whole_heads(config, hidden, heads)
    if "head_dim" not in config and head_dim is None and hidden < heads:
        raise refusal(config, "hidden_size", f"at least the number of attention heads, {heads}")
    # `null` is not the class's default: the classes read it as one key head for each query head.
    given_null = "num_key_value_heads" in config.values
    num_kv = config.integer("num_key_value_heads", default=heads if kv_heads is None or given_null else kv_heads)
    if heads % num_kv:
        raise refusal(config, "num_attention_heads", f"a multiple of the {num_kv} key and value heads")
    return Dims(
        hidden=hidden,
        layers=config.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=num_kv,
        head_dim=config.integer("head_dim", default=head_dim or hidden // heads),
        width=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        tied=config.flag("tie_word_embeddings", default=tied),
    )


def attention(
    layer: Table,
    dims: Dims,
    *,
    name: str = "self_attn",
    out: str = "o_proj",
    bias: bool = False,
    out_bias: bool | None = None,
) -> None:
    """Separate projections for query, key, value and output; `out_bias` where the output's differs."""
    at = layer.within(f"{name}.")
    at.linear("q_proj", dims.hidden, dims.heads * dims.head_dim, bias=bias)
    at.linear("k_proj", dims.hidden, dims.kv_heads * dims.head_dim, bias=bias)
    at.linear("v_proj", dims.hidden, dims.kv_heads * dims.head_dim, bias=bias)
    at.linear(out, dims.heads * dims.head_dim, dims.hidden, bias=bias if out_bias is None else out_bias)


def head_norms(layer: Table, dims: Dims, *, name: str = "self_attn") -> None:
    """RMSNorms on each head of the query and of the key."""
    layer.norm(f"{name}.q_norm", dims.head_dim)
    layer.norm(f"{name}.k_norm", dims.head_dim)


def wide_norms(layer: Table, dims: Dims, *, name: str = "self_attn") -> None:
    """RMSNorms on the query and the key across their heads."""
    layer.norm(f"{name}.q_norm", dims.heads * dims.head_dim)
    layer.norm(f"{name}.k_norm", dims.kv_heads * dims.head_dim)


def gated_mlp(layer: Table, hidden: int, width: int, *, name: str = "mlp", bias: bool = False) -> None:
    """`down(act(gate(x)) * up(x))` with three projections."""
    layer.linear(f"{name}.gate_proj", hidden, width, bias=bias)
    layer.linear(f"{name}.up_proj", hidden, width, bias=bias)
    layer.linear(f"{name}.down_proj", width, hidden, bias=bias)


def fused_mlp(layer: Table, hidden: int, width: int, *, name: str = "mlp") -> None:
    """The same with gate and up in one projection."""
    layer.linear(f"{name}.gate_up_proj", hidden, 2 * width)
    layer.linear(f"{name}.down_proj", width, hidden)


def plain_mlp(
    layer: Table, hidden: int, width: int, *, name: str = "mlp", up: str = "fc1", down: str = "fc2", bias: bool = True
) -> None:
    """`down(act(up(x)))`."""
    layer.linear(f"{name}.{up}", hidden, width, bias=bias)
    layer.linear(f"{name}.{down}", width, hidden, bias=bias)


def experts(layer: Table, hidden: int, width: int, number: int, *, name: str = "mlp.experts") -> None:
    """Experts in two stacked parameters: gate and up [number, 2 width, hidden], down [number, hidden, width]."""
    layer.experts(f"{name}.gate_up_proj", (number, 2 * width, hidden))
    layer.experts(f"{name}.down_proj", (number, hidden, width))


def router(layer: Table, hidden: int, number: int, *, name: str = "mlp.gate") -> None:
    """A router whose weight is a bare parameter, so that nothing quantises or wraps it."""
    layer.parameter(f"{name}.weight", (number, hidden))


def norms(layer: Table, width: int, *names: str, bias: bool = False) -> None:
    """Normalisations of one width."""
    for name in names:
        layer.norm(name, width, bias=bias)


def head(out: Table, dims: Dims, *, tied_to: str = "model.embed_tokens", bias: bool = False) -> None:
    """The head over the vocabulary."""
    out.linear("lm_head", dims.hidden, dims.vocab, bias=bias, tied_to=tied_to if dims.tied else None)


def rotary(model: Table, config: Fields, head_dim: int, *, partial: float | None = None, kinds: Iterable[str] = ("",)) -> None:
    """
    The frequencies of rotary positions, which the module keeps twice: as used, and as first computed.

    Args:
        model: Where `rotary_emb` sits.
        config: The config of the decoder.
        head_dim: Width of a head.
        partial: Default share of the head that turns, for a class that reads `partial_rotary_factor` without scaling too; None
            for one that then turns the whole head.
        kinds: The kinds of layer that have tables of their own.

    Raises:
        InvalidConfigError: The scaling is of no known type, or the turning part of a head is odd.
    """
    frequencies = rotary_frequencies(config, head_dim, partial=partial)
    for kind in kinds:
        prefix = f"rotary_emb.{kind}_" if kind else "rotary_emb."
        model.buffer(f"{prefix}inv_freq", (frequencies,))
        model.buffer(f"{prefix}original_inv_freq", (frequencies,))


def rotary_frequencies(config: Fields, head_dim: int, *, partial: float | None = None) -> int:
    """
    Number of frequencies: half of the part of a head that turns.

    Source:
        transformers@5.23.0, modeling_rope_utils.py, convert_rope_params_to_dict and ROPE_INIT_FUNCTIONS.
    """
    rope = config.section("rope_scaling", default=config.section("rope_parameters", default={}).values)
    kind = rope.text("rope_type", "type", default="default")
    if kind == "su":  # an early name in Phi-3's files
        kind = "longrope"
    if kind not in ROPE_TYPES:
        raise refusal(rope, "rope_type" if "rope_type" in rope else "type", f"one of {', '.join(ROPE_TYPES)}")
    if kind == "proportional" or (kind == "default" and partial is None):
        turning = head_dim
    else:
        share = rope.number("partial_rotary_factor", default=config.number("partial_rotary_factor", default=partial or 1.0))
        if not 0 < share <= 1:
            raise refusal(config, "partial_rotary_factor", "above 0 and at most 1")
        turning = int(head_dim * share)
    if head_dim % 2 and turning == head_dim:
        raise InvalidConfigError(
            f"{config.path}head_dim comes to {head_dim} in config.json; it must be even, for rotary positions"
        )
    return (turning + 1) // 2


def layer_types(config: Fields, dims: Dims, allowed: Collection[str], *, full_every: int = 1) -> list[str]:
    """
    What kind of attention each layer has: `layer_types`, or every so many layers a full one between sliding ones.

    Raises:
        InvalidConfigError: The list has another length than there are layers, or names a kind that is not allowed.
    """
    pattern = ["sliding_attention" if (i + 1) % full_every else "full_attention" for i in range(dims.layers)]
    kinds = config.texts("layer_types", default=pattern)
    if len(kinds) != dims.layers:
        raise InvalidConfigError(
            f"{config.path}layer_types lists {len(kinds)} layers in config.json; it must list {dims.layers}, as many as there are"
        )
    unknown = sorted(set(kinds) - set(allowed))
    if unknown:
        raise InvalidConfigError(
            f"{config.path}layer_types has '{unknown[0][:40]}' in config.json; it must be one of {', '.join(sorted(allowed))}"
        )
    return kinds

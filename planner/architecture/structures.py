"""Decoders of common structure, for families to declare with a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.architecture.blocks import Dims
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec
from planner.architecture.fields import Fields

ATTENTION_TYPES = ("full_attention", "sliding_attention")


def given(config: Fields) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in config.values.items() if value is not None}


def attention_dropout(config: Fields) -> dict[str, Any]:
    """Dropout on the attention weights, under the name that most families use."""
    return {"dropout": config.number("attention_dropout", default=0.0)}


def windows(window: int | None) -> dict[str, dict[str, Any]]:
    """What differs between layers that see everything and layers with a window, of families that alternate them."""
    return {"full_attention": {}, "sliding_attention": {"sliding_window": window}}


def llama_like(
    dims: Dims,
    *,
    prefix: str = "model.",
    head: str = "lm_head",
    act: str = "silu",
    norm: str = "rms",
    layout: str = "pre",
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
    rotary_dim: int | None = None,
    attention: dict[str, Any] | None = None,
    mlp: dict[str, Any] | None = None,
    layer: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
    kinds: Sequence[str] | None = None,
    by_kind: Mapping[str, dict[str, Any]] | None = None,
) -> Decoder:
    """
    A decoder whose layers are named as Llama's, and alike but for their attention.

    Args:
        dims: Its sizes.
        prefix: Where the decoder sits in the model.
        head: Path of the head.
        act: Activation.
        norm: Kind of its norms.
        layout: Of its layers.
        norms: Names of a layer's norms, in the order of use.
        rotary_dim: Rotated elements of a head; None for all.
        attention: Fields of its attention that differ.
        mlp: Fields of its feed-forward block that differ.
        layer: Fields of its layers that differ.
        decoder: Fields of the decoder itself that differ.
        kinds: The kind of each layer; None where there is one.
        by_kind: Fields of the attention that differ by kind.
    """
    rotated = dims.head_dim if rotary_dim is None else rotary_dim
    block = Layer(
        attention=Attention(dims.heads, dims.kv_heads, dims.head_dim, rotary_dim=rotated)._replace(**(attention or {})),
        mlp=Mlp(dims.width, act)._replace(**(mlp or {})),
        layout=layout,
        norms=tuple(NormSpec(name, norm, dims.hidden) for name in norms),
    )
    block = block._replace(**(layer or {}))
    of_kind = {kind: block._replace(attention=block.attention._replace(**own)) for kind, own in (by_kind or {}).items()}
    structure = Decoder(
        hidden_size=dims.hidden,
        vocab_size=dims.vocab,
        layers=tuple(of_kind[kind] for kind in kinds) if kinds else (block,) * dims.layers,
        layer_prefix=prefix + "layers.*.",
        embedding=prefix + "embed_tokens",
        norm=NormSpec(prefix + "norm", norm, dims.hidden),
        head=head,
        rotary_dim=rotated,
        text_prefix="" if prefix == "model." else prefix,
    )
    return structure._replace(**(decoder or {}))

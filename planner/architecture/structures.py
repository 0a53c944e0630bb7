"""Decoders of common structure, for families to declare with a few words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.architecture.blocks import Dims
from planner.architecture.decoder import Attention, Decoder, Layer, Mlp, NormSpec


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
) -> Decoder:
    """
    A decoder whose layers are all alike and named as Llama's.

    Args:
        dims: Its sizes.
        prefix: Where the decoder sits in the model.
        head: Path of the head.
        act: Activation.
        norm: Kind of its norms.
        layout: Of its layers.
        norms: Names of a layer's norms, in the order of use.
        rotary_dim: Rotated elements of a head; None for all.
        attention, mlp, layer, decoder: Fields of the respective structure that differ.
    """
    rotated = dims.head_dim if rotary_dim is None else rotary_dim
    block = Layer(
        attention=replace(Attention(dims.heads, dims.kv_heads, dims.head_dim, rotary_dim=rotated), **(attention or {})),
        mlp=replace(Mlp(dims.width, act), **(mlp or {})),
        layout=layout,
        norms=tuple(NormSpec(name, norm, dims.hidden) for name in norms),
    )
    structure = Decoder(
        hidden_size=dims.hidden,
        vocab_size=dims.vocab,
        layers=(replace(block, **(layer or {})),) * dims.layers,
        layer_prefix=prefix + "layers.*.",
        embedding=prefix + "embed_tokens",
        norm=NormSpec(prefix + "norm", norm, dims.hidden),
        head=head,
        rotary_dim=rotated,
    )
    return replace(structure, **(decoder or {}))

"""Decoders whose layers have experts, all of them or some."""

from __future__ import annotations

from collections.abc import Collection

from planner.architecture.decoder import Decoder, Layer, Mlp, Moe


def shared_expert(width: int, act: str, name: str) -> Mlp:
    """A dense block beside the experts, with the usual three projections below `name`."""
    return Mlp(width, act, f"{name}.gate_proj", f"{name}.up_proj", f"{name}.down_proj")


def with_experts(decoder: Decoder, moe: Moe, sparse: Collection[int] | None = None) -> Decoder:
    """
    The decoder with a routed block in place of some layers' MLP.

    Args:
        decoder: With dense layers.
        moe: The routed block.
        sparse: The layers that have it; None for all.
    """
    made: dict[int, Layer] = {}
    layers = []
    for i, layer in enumerate(decoder.layers):
        is_routed = sparse is None or i in sparse
        layers.append(made.setdefault(id(layer), layer._replace(mlp=moe)) if is_routed else layer)
    return decoder._replace(layers=tuple(layers))

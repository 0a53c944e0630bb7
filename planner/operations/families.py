"""
Attention modules and layers that are a family's own, by the names that structures give them.

A family's file is imported when a layer asks for it, so that an estimate of one model does not pay for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

_ATTENTIONS = {
    "falcon": "falcon:falcon_attention",
    "gptj": "gptj:gptj_attention",
    "gpt_neo": "gptj:gpt_neo_attention",
    "gpt_oss": "gpt_oss:sink_attention",
    "latent": "latent:latent_attention",
    "llama4": "llama4:llama4_attention",
    "delta_net": "delta_net:delta_net",
    "gated": "delta_net:gated_attention",
    "short_convolution": "short_convolution:short_convolution",
}
_LAYOUTS = {
    "parallel": "parallel:parallel",
    "parallel_onto_residual": "parallel:parallel_onto_residual",
    "stablelm": "parallel:stablelm",
    "bloom": "alibi:bloom",
    "bloom_from_norms": "alibi:bloom",
    "falcon": "falcon:falcon",
    "gpt2": "gpt:gpt2",
    "gptj": "gptj:gptj",
    "mpt": "alibi:mpt",
    "neox": "gpt:neox",
    "neox_sequential": "gpt:neox_sequential",
    "opt": "gpt:opt",
    "opt_post": "gpt:opt",
}


def attention_of(style: str) -> Callable[..., Any]:
    """The attention module of that style: (runner, input, structure) -> output."""
    return _found(_ATTENTIONS[style])


def layout_of(name: str) -> Callable[..., Any]:
    """The layer of that layout: (runner, input) -> output."""
    return _found(_LAYOUTS[name])


@cache
def _found(place: str) -> Callable[..., Any]:
    module, function = place.split(":")
    found: Callable[..., Any] = getattr(import_module(f"planner.operations.{module}"), function)
    return found

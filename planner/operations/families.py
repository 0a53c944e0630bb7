"""Attention modules and layers that are a family's own, by the names that structures give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention
from planner.operations.alibi import bloom, mpt
from planner.operations.delta_net import delta_net, gated_attention
from planner.operations.falcon import falcon, falcon_attention, falcon_sequential
from planner.operations.gpt import gpt2, neox, neox_sequential, opt
from planner.operations.gpt_oss import sink_attention
from planner.operations.gptj import gpt_neo_attention, gptj, gptj_attention
from planner.operations.latent import latent_attention
from planner.operations.short_convolution import short_convolution
from planner.tensors import Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner

ATTENTIONS: dict[str, Callable[[Runner, Tensor, Attention], Tensor]] = {
    "falcon": falcon_attention,
    "gptj": gptj_attention,
    "gpt_neo": gpt_neo_attention,
    "gpt_oss": sink_attention,
    "latent": latent_attention,
    "delta_net": delta_net,
    "gated": gated_attention,
    "short_convolution": short_convolution,
}
LAYOUTS: dict[str, Callable[[Runner, Tensor], Tensor]] = {
    "bloom": bloom,
    "bloom_from_norms": bloom,
    "falcon": falcon,
    "falcon_sequential": falcon_sequential,
    "gpt2": gpt2,
    "gptj": gptj,
    "mpt": mpt,
    "neox": neox,
    "neox_sequential": neox_sequential,
    "opt": opt,
    "opt_post": opt,
}

"""Jamba: Mamba layers with an attention layer now and then, and experts in every other MLP."""

from __future__ import annotations

from planner.architecture.blocks import attention, experts, gated_mlp, head, norms, read_dims, refusal, router
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.mamba import expanded, scan, time_rank
from planner.architecture.table import Table


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/jamba/modeling_jamba.py, JambaForCausalLM.
    """
    dims, number = read_dims(config, kv_heads=8), config.integer("num_experts", "num_local_experts", default=16)
    attending = _every(config, "attn_layer", dims.layers, period=8, offset=4)
    routed = _every(config, "expert_layer", dims.layers, period=2, offset=1) if number > 1 else []
    scanning, plain = sorted(set(range(dims.layers)) - set(attending)), sorted(set(range(dims.layers)) - set(routed))
    state, rank = config.integer("mamba_d_state", default=16), time_rank(config, dims.hidden, "mamba_dt_rank")

    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    attention(model.within("layers.*.", attending), dims)
    mixer = model.within("layers.*.mamba.", scanning)
    scan(
        mixer,
        dims.hidden,
        expanded(config, dims.hidden, "mamba_expand"),
        state,
        rank,
        config.integer("mamba_d_conv", default=4),
        bias=config.flag("mamba_proj_bias", default=False),
        conv_bias=config.flag("mamba_conv_bias", default=True),
    )
    mixer.norm("dt_layernorm", rank)
    mixer.norm("b_layernorm", state)
    mixer.norm("c_layernorm", state)
    gated_mlp(model.within("layers.*.", plain), dims.hidden, dims.width, name="feed_forward")
    moe = model.within("layers.*.", routed)
    router(moe, dims.hidden, number, name="feed_forward.router")
    experts(moe, dims.hidden, dims.width, number, name="feed_forward.experts")
    norms(model.within("layers.*.", range(dims.layers)), dims.hidden, "input_layernorm", "pre_ff_layernorm")
    model.norm("final_layernorm", dims.hidden)
    head(out, dims)


def _every(config: Fields, what: str, layers: int, *, period: int, offset: int) -> list[int]:
    """The layers that a period and an offset below it choose."""
    step = config.integer(f"{what}_period", default=period)
    first = config.integer(f"{what}_offset", default=offset, minimum=0)
    if first >= step:
        raise refusal(config, f"{what}_offset", f"smaller than {what}_period ({step})")
    return [i for i in range(layers) if i % step == first]


FAMILIES = {"jamba": Family(table, needs="the state-space scan of the Mamba layers")}

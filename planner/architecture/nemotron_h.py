"""Nemotron-H: one mixer a layer, which is a Mamba-2 scan, attention, an MLP, or experts."""

from __future__ import annotations

from planner.architecture.blocks import Dims, attention, plain_mlp, read_dims, router
from planner.architecture.family import Family
from planner.architecture.fields import MAX_LAYERS, Fields
from planner.architecture.mamba import scan2
from planner.architecture.sections import filled, where
from planner.architecture.table import Table
from planner.errors import InvalidConfigError

_OF_LETTER = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
# How older files of this family spell the kinds.
_RENAMED = {"mamba": "linear_attention", "attention": "full_attention"}


def table(config: Fields, out: Table) -> None:
    """
    The module table; the head is never tied.

    Source:
        transformers@5.23.0, models/nemotron_h/modeling_nemotron_h.py, NemotronHForCausalLM.
    """
    kinds = _kinds(config)
    config = filled(config, intermediate_size=21_504, num_attention_heads=32)
    dims = read_dims(Fields({**config.values, "num_hidden_layers": len(kinds)}), kv_heads=8, head_dim=128)
    heads, bias = config.integer("mamba_num_heads", default=128), config.flag("mlp_bias", default=False)

    model = out.within("model.")
    model.embedding("embeddings", dims.vocab, dims.hidden)
    model.within("layers.*.", range(dims.layers)).norm("norm", dims.hidden)
    scan2(
        model.within("layers.*.mixer.", where(kinds, "linear_attention")),
        dims.hidden,
        heads * config.integer("mamba_head_dim", default=64),
        heads,
        groups=config.integer("mamba_n_groups", "n_groups", default=8),
        state=config.integer("ssm_state_size", default=128),
        kernel=config.integer("mamba_d_conv", "conv_kernel", default=4),
        bias=config.flag("use_bias", default=False),
        conv_bias=config.flag("mamba_conv_bias", "use_conv_bias", default=True),
    )
    attention(model.within("layers.*.", where(kinds, "full_attention")), dims, name="mixer")
    plain = model.within("layers.*.", where(kinds, "mlp"))
    plain_mlp(plain, dims.hidden, dims.width, name="mixer", up="up_proj", down="down_proj", bias=bias)
    _experts(config, dims, model.within("layers.*.", where(kinds, "moe")), bias)
    model.norm("norm_f", dims.hidden)
    out.linear("lm_head", dims.hidden, dims.vocab)


def _experts(config: Fields, dims: Dims, layer: Table, bias: bool) -> None:
    """Experts without a gate of their own, in a smaller space where the config gives one."""
    number = config.integer("n_routed_experts", "num_local_experts", default=8)
    width = config.integer("moe_intermediate_size", default=7688)
    latent = config.optional_integer("moe_latent_size", minimum=1)
    inputs = dims.hidden if latent is None else latent
    layer.experts("mixer.experts.up_proj", (number, width, inputs))
    layer.experts("mixer.experts.down_proj", (number, inputs, width))
    router(layer, dims.hidden, number, name="mixer.gate")
    layer.buffer("mixer.gate.e_score_correction_bias", (number,), persistent=True)
    shared = config.integer("moe_shared_expert_intermediate_size", default=7688)
    plain_mlp(layer, dims.hidden, shared, name="mixer.shared_experts", up="up_proj", down="down_proj", bias=bias)
    if latent is not None:
        layer.linear("mixer.fc1_latent_proj", dims.hidden, latent, bias=bias)
        layer.linear("mixer.fc2_latent_proj", latent, dims.hidden, bias=bias)


def _kinds(config: Fields) -> list[str]:
    """
    The kind of each layer: a list, or one letter a layer; their number overrides `num_hidden_layers`.

    Source:
        transformers@5.23.0, models/nemotron_h/configuration_nemotron_h.py, NemotronHConfig.__post_init__.
    """
    name = "layer_types" if "layer_types" in config else "layers_block_type"
    if name in config:
        kinds = [_RENAMED.get(kind, kind) for kind in config.texts(name)]
    else:
        name = "hybrid_override_pattern"
        kinds = [_OF_LETTER.get(letter, letter) for letter in config.text(name)]
    for kind in kinds:
        if kind not in _OF_LETTER.values():
            known = ", ".join(_OF_LETTER.values())
            raise InvalidConfigError(f"{name} has '{kind[:40]}' in config.json; it must be one of {known}")
    if not 1 <= len(kinds) <= MAX_LAYERS:
        raise InvalidConfigError(f"{name} lists {len(kinds)} layers in config.json; it must list from 1 to {MAX_LAYERS}")
    return kinds


FAMILIES = {"nemotron_h": Family(table, needs="the state-space scan of the Mamba-2 layers")}

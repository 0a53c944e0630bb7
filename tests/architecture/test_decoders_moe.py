"""The structures that families with experts declare, over every bundled checkpoint of theirs."""

from __future__ import annotations

from typing import Any

import pytest

import model_specs
from planner.architecture import build_spec
from planner.architecture.decoder import Layer, Mlp, Moe
from planner.dtypes import DType
from planner.engines.analytic import Analysis, analyse
from planner.errors import UnsupportedRecipeError
from planner.recipe import make_recipe
from planner.stack import LATEST, resolve
from tests.architecture.declared import checkpoints_of, declared

FAMILIES = {
    "mixtral", "granitemoe", "minimax_m2", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "olmoe", "phimoe", "gpt_oss", "glm4_moe",
    "deepseek_v2", "deepseek_v3", "kimi_k2", "qwen3_next", "qwen3_5", "qwen3_5_moe", "llama4",
}  # fmt: skip
CHECKPOINTS = checkpoints_of(FAMILIES)
ADAPTED_BY_PEFT = FAMILIES - {
    "gpt_oss", "granitemoe", "qwen2_moe", "qwen3_vl_moe", "kimi_k2", "phimoe", "qwen3_5", "qwen3_5_moe", "llama4",
}  # fmt: skip
"""Families whose experts `all-linear` turns into bare parameters: peft@0.21.2, utils/transformers_weight_conversion.py."""


def paths(layer: Layer) -> set[str]:
    """Every path that one layer names, below it."""
    attention, block = layer.attention, layer.mlp
    if attention.delta:
        inputs = {"in_proj_ba"} if attention.fused else {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}
        found = {attention.fused, attention.convolution, attention.out}
        found |= {f"linear_attn.{name}" for name in inputs | {"dt_bias", "A_log"}}
    else:
        found = {attention.q, attention.q_down, attention.k, attention.v, attention.out}
    found |= {norm.name for norm in (*layer.norms, attention.q_norm, attention.k_norm) if norm is not None}
    found |= {"self_attn.sinks", "mlp.router.bias"} if attention.style == "gpt_oss" else set()
    if isinstance(block, Moe):
        found |= {block.router, block.gate_up, block.down, block.gate_up_bias, block.down_bias, block.shared_gate}
    dense = block if isinstance(block, Mlp) else block.shared
    if dense is not None:
        found |= {dense.gate, dense.up, dense.down}
    return found - {""}


def planned(config: dict[str, Any], name: str, **knobs: Any) -> Analysis:
    """What the closed form says."""
    spec = build_spec(config, id=name)
    return analyse(spec, resolve(make_recipe(**knobs), LATEST, spec.dtype or DType.BF16), LATEST)


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_each_layer_names_the_modules_that_it_has(config: dict[str, Any], name: str):
    """Layer by layer, the structure's paths are those of the module table, dense layers and routed ones apart."""
    spec, decoder = build_spec(config, id=name), declared(config)
    table: dict[int, set[str]] = {}
    for module in spec.modules:
        if module.name.startswith(decoder.layer_prefix):
            for layer in module.layers or ():
                table.setdefault(layer, set()).add(module.name.removeprefix(decoder.layer_prefix))

    assert table == {i: paths(layer) for i, layer in enumerate(decoder.layers)}


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_default_recipe_is_planned_or_refused_with_pefts_reason(config: dict[str, Any], name: str):
    """Its dropout is what ParamWrapper refuses; the hint leads to a plan."""
    kind = config["model_type"]
    if kind in ADAPTED_BY_PEFT:
        with pytest.raises(UnsupportedRecipeError, match="does not work with lora_dropout != 0") as refusal:
            planned(config, name)
        assert "--dropout 0" in str(refusal.value.hint)
        assert planned(config, name, dropout=0.0).ledger.peak().nbytes > 0
    elif kind in ("phimoe", "llama4"):
        with pytest.raises(UnsupportedRecipeError, match="'tuple' object has no attribute 'dtype'") as refusal:
            planned(config, name)
        targets = str(refusal.value.hint).rsplit(" ", 1)[-1].split(",")
        assert planned(config, name, targets=targets).ledger.peak().nbytes > 0
    else:
        found = planned(config, name)
        assert found.ledger.peak().nbytes > found.steady_bytes > 0


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "meta-llama/Llama-4-Scout-17B-16E-Instruct"])
def test_flash_attention_2_is_refused_where_it_does_not_run(name: str):
    """The reason is named, and eager is offered."""
    facts = model_specs.checkpoint(name)
    assert facts is not None

    with pytest.raises(UnsupportedRecipeError, match="attn is flash_attention_2") as refusal:
        planned(facts["config"], name, attn="flash_attention_2", targets=["q_proj"])

    assert refusal.value.hint == "pass --attn eager"


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_full_fine_tuning_is_planned(config: dict[str, Any], name: str):
    """With trained experts, routers and biases; a step needs more than what rests."""
    found = planned(config, name, method="full", quantization="none")

    assert found.ledger.peak().nbytes > found.steady_bytes > 0

"""Which modules PEFT adapts and refuses, against the real PEFT on tiny real models."""

from __future__ import annotations

from typing import Any

import pytest

from planner.dtypes import DType
from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.preparation import prepare
from planner.recipe import Recipe
from planner.spec import ModelSpec, Module, ModuleKind
from planner.stack import LATEST, behaviours, parse_stack, resolve
from planner.targeting import OLD_EXPERT_NAMES
from tests.real_models import FAMILIES, FUSED, build, layered_llama, predicted_table, prepared_for, real_table, run_real, spec_of

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "knobs",
    [
        {"targets": ("q_proj", "v_proj")},
        {"targets": ("layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")},
        {"targets": r".*layers\.1\..*_proj"},
        {"targets": ("embed_tokens", "q_proj")},
        {"targets": ("lm_head", "q_proj")},
        {"rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 2, "self_attn.v_proj": 8}},
        {"modules_to_save": ("lm_head", "embed_tokens")},
        {"modules_to_save": ("norm",)},
        {"method": "lora", "modules_to_save": ("layers.0.mlp",)},
        {"method": "lora", "targets": ("q_proj", "c_attn")},
        {"method": "lora", "rank": 3, "rslora": True},
    ],
    ids=str,
)
def test_targets_match_as_peft_matches_them(knobs: dict[str, Any]) -> None:
    """
    Suffixes, whole names, regexes, rank patterns and saved modules hit what PEFT hits.
    """
    prepared, recipe = prepared_for(build("llama"), **knobs)

    assert predicted_table(prepared) == real_table(run_real(build("llama"), recipe))


def adapter_numbers(model: Any) -> dict[str, int]:
    """Elements of the LoRA tensors inside each layer of a real model."""
    counts: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            layer = name.partition(".layers.")[2].partition(".")[0]
            counts[layer] = counts.get(layer, 0) + p.numel()
    return counts


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"method": "lora"},
        {"targets": ("q_proj", "o_proj")},
        {"rank_pattern": {"down_proj": 4}},
        {"targets": r".*(experts.*|q_proj|gate)"},
    ],
    ids=str,
)
def test_fused_experts_are_adapted_as_peft_converts_them(family: str, knobs: dict[str, Any]) -> None:
    """
    Old-style targets and all-linear become stacked adapters of the shapes that PEFT makes, fused pairs with twice the rank.
    """
    if family == "mixtral" and "experts" in str(knobs):
        knobs = {"targets": r".*(w[123]|q_proj)"}
    elif "experts" in str(knobs):
        knobs = {"targets": r".*(experts\..*_proj|q_proj|q_a_proj|gate)"}
    if family == "deepseek_v3" and "o_proj" in knobs.get("targets", ""):
        knobs = {"targets": ("q_a_proj", "o_proj")}
    prepared, recipe = prepared_for(build(family), dropout=0.0, **knobs)
    real = run_real(build(family), recipe)
    counts: dict[str, int] = {}
    for row in prepared.modules:
        if row.num_trainable:
            layer = row.name.partition(".layers.")[2].partition(".")[0]
            counts[layer] = counts.get(layer, 0) + row.num_trainable
    own = {name: entry for name, entry in real_table(real).items() if "lora_" not in name}
    expected = {name: entry for name, entry in predicted_table(prepared).items() if "lora_" not in name}

    assert counts == adapter_numbers(real)
    assert expected == own


@pytest.mark.parametrize("family", [*FAMILIES, *FUSED])
def test_default_dropout_is_refused_exactly_where_peft_refuses_it(family: str) -> None:
    """
    Adapters on bare parameters cannot have dropout: the canonical recipe is refused where, and only where, PEFT raises.
    """
    recipe = Recipe(dtype="bf16", kbit_prepare=True)
    try:
        run_real(build(family), recipe)
    except ValueError:
        with pytest.raises(UnsupportedRecipeError, match="lora_dropout") as caught:
            prepared_for(build(family))
        assert "--dropout 0" in str(caught.value.hint)
    else:
        assert prepared_for(build(family))


@pytest.mark.parametrize(
    ("family", "knobs", "reason"),
    [
        ("llama", {"targets": ("q_prj",)}, "not found in the base model"),
        ("llama", {"targets": "q_proj"}, "not found in the base model"),
        ("llama", {"targets": ("mlp",)}, "is not supported"),
        ("llama", {"targets": ("input_layernorm",)}, "normalisation"),
        ("mixtral", {"targets": ("w1",), "dropout": 0.0}, "without also targeting"),
        ("mixtral", {"dora": True, "dropout": 0.0}, "DoRA"),
        ("llama", {"modules_to_save": ("q_proj",)}, "floating point"),
    ],
)
def test_what_peft_refuses_is_refused(family: str, knobs: dict[str, Any], reason: str) -> None:
    """
    The real library raises on these too, and the message carries its reason.
    """
    with pytest.raises(UnsupportedRecipeError, match=reason):
        prepared_for(build(family), **knobs)
    with pytest.raises((ValueError, RuntimeError)):
        run_real(build(family), Recipe(**{"dtype": "bf16", "kbit_prepare": True, **knobs}))


def test_rewritten_families_are_those_that_peft_rewrites() -> None:
    """
    Every model_type whose experts PEFT rewrites is known, with the same names.
    """
    from peft.utils import transformers_weight_conversion as conversion

    real = {
        model_type: conversion._MOE_TARGET_MODULE_MAPPING[style]
        for model_type, style in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if style in conversion._MOE_TARGET_MODULE_MAPPING and model_type in transformers.CONFIG_MAPPING
    }

    assert real == {name: names for name, names in OLD_EXPERT_NAMES.items() if name in transformers.CONFIG_MAPPING}


def test_mamba_out_proj_is_refused_with_targets_that_work() -> None:
    """
    all-linear on nemotron_h raises in PEFT over out_proj; the hint names what can be adapted.
    """
    rows = (
        Module("model.layers.0.mixer.in_proj", ModuleKind.LINEAR, (8, 8)),
        Module("model.layers.0.mixer.out_proj", ModuleKind.LINEAR, (8, 8)),
    )
    recipe = resolve(Recipe(), LATEST, DType.BF16)
    with pytest.raises(UnsupportedRecipeError, match="Mamba") as caught:
        prepare(ModelSpec("m", "nemotron_h", {}, rows), recipe, behaviours(LATEST, recipe))

    assert caught.value.hint == "pass --targets in_proj"


@pytest.mark.parametrize("knobs", [{"targets": "q_proj("}, {"modules_to_save": ("[",)}, {"rank_pattern": {"(?P<": 4}}], ids=str)
def test_a_broken_pattern_is_refused_in_a_sentence(knobs: dict[str, Any]) -> None:
    """
    Names are matched as regular expressions; one that is none is the user's fault, told as such.
    """
    recipe = resolve(Recipe(**knobs), LATEST, DType.BF16)
    with pytest.raises(InvalidRecipeError, match="regular expression"):
        prepare(layered_llama(2), recipe, behaviours(LATEST, recipe))


def test_all_linear_leaves_out_a_head_inside_a_language_model() -> None:
    """
    Composite models such as Llama-4 keep their output embedding one level down; it is still left out.
    """
    rows = tuple(Module(f"language_model.{name}", ModuleKind.LINEAR, (8, 8)) for name in ("model.layers.0.q_proj", "lm_head"))
    recipe = resolve(Recipe(), LATEST, DType.BF16)
    prepared = prepare(ModelSpec("m", "llama4", {}, rows), recipe, behaviours(LATEST, recipe))

    assert [row.adapter is not None for row in prepared.modules] == [True, False]


@pytest.mark.parametrize(
    ("peft_version", "outcome"), [("0.18.1", "attention"), ("0.19.1", "letters"), ("0.20.0", "lora_dropout")]
)
def test_all_linear_on_fused_experts_hangs_on_peft(peft_version: str, outcome: str) -> None:
    """
    PEFT 0.18 adapts attention alone, 0.19 splits the word all-linear into letters, 0.20 wraps the experts.
    """
    stack = parse_stack(f"peft=={peft_version}")
    recipe = resolve(Recipe(), stack, DType.BF16)
    known = behaviours(stack, recipe)
    if outcome == "attention":
        adapted = [row.name for row in prepare(spec_of(build("mixtral")), recipe, known).modules if row.adapter]
        assert all("self_attn" in name for name in adapted)
        assert len(adapted) == 8
    else:
        with pytest.raises(UnsupportedRecipeError, match=outcome):
            prepare(spec_of(build("mixtral")), recipe, known)

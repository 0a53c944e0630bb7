"""The prepared model against what transformers, bitsandbytes and PEFT make of tiny real ones."""

from __future__ import annotations

import time
from typing import Any

import pytest

from planner.dtypes import DType
from planner.errors import UnsupportedModelError, UnsupportedRecipeError
from planner.preparation import _KEPT_FROM_FP16, _KEPT_FROM_HALF, Preparation, prepare
from planner.recipe import Recipe
from planner.spec import ModuleKind
from planner.stack import LATEST, behaviours, parse_stack, resolve
from tests.real_models import (
    FAMILIES,
    LLAMA,
    LONG,
    build,
    layered_llama,
    predicted_table,
    prepared_for,
    real_table,
    run_real,
    spec_of,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "knobs",
    [{}, {"kbit_prepare": False}, {"quantization": "int8"}, {"method": "lora"}, {"method": "full"}],
    ids=["qlora", "no-kbit", "int8", "lora", "full"],
)
def test_every_parameter_rests_as_in_the_real_model(family: str, knobs: dict[str, Any]) -> None:
    """
    Quantised names, dtypes, shapes and requires_grad equal the real libraries', parameter by parameter.
    """
    prepared, recipe = prepared_for(build(family), **knobs)

    assert predicted_table(prepared) == real_table(run_real(build(family), recipe))


def test_tied_modules_are_saved_as_copies_of_their_own() -> None:
    """
    A saved head that shares its weight with the embedding becomes a matrix of its own.
    """
    prepared, recipe = prepared_for(build("qwen3"), modules_to_save=("lm_head",))

    assert predicted_table(prepared) == real_table(run_real(build("qwen3"), recipe))


def test_dora_magnitudes_have_peft_shapes() -> None:
    """
    DoRA adds one magnitude an output of a linear and one a column of an embedding, in fp32.
    """
    config = AutoConfig.for_model("llama", **LLAMA)
    knobs: dict[str, Any] = {"method": "lora", "dora": True, "targets": ("q_proj", "down_proj", "embed_tokens")}
    prepared, recipe = prepared_for(build("llama"), **knobs)
    real = run_real(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), recipe)

    assert predicted_table(prepared) == real_table(real)


def trl_0_13_casting(model: Any) -> None:
    """trl@0.13.0, trainer/utils.py, peft_module_casting_to_bf16."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(x in name for x in ["lm_head", "embed_tokens", "wte", "wpe"]):
            if hasattr(module, "weight") and module.weight.dtype == torch.float32:
                module.to(torch.bfloat16)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "phi"])
def test_old_trl_leaves_only_norms_and_unknown_names_in_fp32(family: str) -> None:
    """
    TRL 0.13 casts back by name: norms stay fp32, and so do embeddings whose name it does not know.
    """
    stack = parse_stack("trl==0.13.0,transformers==5.23.0")
    recipe = resolve(Recipe(dtype="bf16"), stack, DType.BF16)
    prepared = prepare(spec_of(build(family)), recipe, behaviours(stack, recipe))
    real = run_real(build(family), recipe)
    trl_0_13_casting(real)

    assert predicted_table(prepared) == real_table(real)


def test_a_real_load_agrees_with_modules_replaced_by_hand(tmp_path: Any) -> None:
    """
    from_pretrained in fp16 keeps gpt_oss's norms in fp32, quantises from fp16, and leaves biases and experts in fp16.
    """
    config = AutoConfig.for_model("gpt_oss", **FAMILIES["gpt_oss"])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    real = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.float16, device_map="cpu")
    real.requires_grad_(False)
    recipe = resolve(Recipe(entry_point="loop", kbit_prepare=False, dtype="fp16"), LATEST, DType.BF16)
    prepared = prepare(spec_of(build("gpt_oss")), recipe, behaviours(LATEST, recipe))
    own = {name: entry for name, entry in predicted_table(prepared).items() if "lora_" not in name}
    handed = {f"{row.name}.weight": LONG[row.dtype] for row in prepared.modules if row.quantization}

    assert own == real_table(real)
    assert handed == {
        name: str(p.quant_state.dtype).removeprefix("torch.") for name, p in real.named_parameters() if hasattr(p, "quant_state")
    }


@pytest.mark.parametrize(
    "family", ["afmoe", "deepseek_v32", "deepseek_v4", "ernie4_5_moe", "glm_moe_dsa", "gpt_oss", "longcat_flash"]
)
def test_kept_in_fp32_names_are_the_families_own(family: str) -> None:
    """
    The names that a family keeps in fp32 are those of its class.
    """
    model = getattr(transformers, transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])

    assert set(_KEPT_FROM_FP16.get(family, ())) == set(model._keep_in_fp32_modules or ())
    if family in _KEPT_FROM_HALF:
        assert set(_KEPT_FROM_HALF[family]) == set(model._keep_in_fp32_modules_strict or ())


def test_vision_towers_are_quantised_and_adapted() -> None:
    """
    all-linear reaches the linear layers of a vision tower, and bitsandbytes replaces them.
    """
    text = {**LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {
        "depth": 1,
        "hidden_size": 64,
        "out_hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 96,
        "fullatt_block_indexes": [0],
    }
    config = AutoConfig.for_model("qwen2_5_vl", text_config=text, vision_config=vision)

    def made() -> Any:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)

    prepared, recipe = prepared_for(made())

    assert predicted_table(prepared) == real_table(run_real(made(), recipe))
    assert any("visual" in row.name and row.adapter and row.quantization for row in prepared.modules)


def one_row_a_module(prepared: Preparation) -> dict[str, tuple[Any, ...]]:
    """Every occurrence by its full name, with its treatment."""
    return {
        path: (row.quantization, row.dtype, row.adapter, row.saved_copy, row.upcast_from)
        for row in prepared.modules
        for path in row.module.paths()
    }


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"targets": ("layers.1.self_attn.q_proj", "down_proj")},
        {"targets": r".*layers\.[01]\..*(q|v)_proj"},
        {"rank_pattern": {r"layers\.1\.mlp\.up_proj": 2}},
        {"method": "lora", "modules_to_save": ("layers.1.mlp.up_proj",)},
    ],
    ids=str,
)
def test_layered_rows_are_split_only_where_layers_differ(knobs: dict[str, Any]) -> None:
    """
    A collapsed table is prepared as the same table written out module by module, and stays collapsed where nothing differs.
    """
    recipe = resolve(Recipe(entry_point="trainer", **knobs), LATEST, DType.BF16)
    known = behaviours(LATEST, recipe)
    collapsed = prepare(layered_llama(2), recipe, known)

    assert one_row_a_module(collapsed) == one_row_a_module(prepare(spec_of(build("llama")), recipe, known))
    assert all(row.module.layers is None or row.count == 2 or knobs for row in collapsed.modules)
    assert collapsed.num_trainable_parameters == prepare(spec_of(build("llama")), recipe, known).num_trainable_parameters


def test_a_row_is_found_by_name_and_layer() -> None:
    """
    `at` gives the treatment of one layer where layers differ, and None for a module that is not there.
    """
    recipe = resolve(Recipe(targets=("layers.1.self_attn.q_proj",)), LATEST, DType.BF16)
    prepared = prepare(layered_llama(3), recipe, behaviours(LATEST, recipe))
    name = "model.layers.*.self_attn.q_proj"

    assert [prepared.at(name, layer).adapter is not None for layer in range(3)] == [False, True, False]  # type: ignore[union-attr]
    assert prepared.at("model.layers.*.mlp.gate") is None
    assert len(prepared.by_name[name]) == 2


def test_an_adapter_on_the_head_is_refused_by_trl_alone() -> None:
    """
    TRL's fused head would ignore an adapter on lm_head and raises; the Trainer takes it.
    """
    for entry_point in ("trl", "trainer"):
        recipe = resolve(Recipe(targets=("lm_head", "q_proj"), entry_point=entry_point), LATEST, DType.BF16)  # type: ignore[arg-type]
        if entry_point == "trl":
            with pytest.raises(UnsupportedRecipeError, match="lm_head"):
                prepare(layered_llama(2), recipe, behaviours(LATEST, recipe))
        else:
            assert prepare(layered_llama(2), recipe, behaviours(LATEST, recipe)).at("lm_head").adapter is not None  # type: ignore[union-attr]


def test_a_stack_before_fused_experts_is_refused_for_them() -> None:
    """
    transformers 4 builds a mixture from linear experts, which this table does not have.
    """
    stack = parse_stack("transformers==4.57.1")
    recipe = resolve(Recipe(dropout=0.0), stack, DType.BF16)
    with pytest.raises(UnsupportedModelError, match="transformers 5"):
        prepare(spec_of(build("mixtral")), recipe, behaviours(stack, recipe))


def test_an_eighty_layer_table_is_prepared_in_under_a_millisecond() -> None:
    """
    Rows are decided once, not once a layer; an estimate has 2 ms in all, and this is a part of it.
    """
    recipe = resolve(Recipe(), LATEST, DType.BF16)
    known, spec = behaviours(LATEST, recipe), layered_llama(80)
    spent = []
    for _ in range(20):
        begin = time.perf_counter()
        prepare(spec, recipe, known)
        spent.append(time.perf_counter() - begin)

    assert min(spent) < 1e-3


def test_a_tied_head_is_the_last_parameter_all_the_same(tmp_path: Any) -> None:
    """
    A tied OLMo has norms without weights; from_pretrained ties after it has quantised, so its last layer's down_proj is quantised too.
    """
    AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo", **FAMILIES["olmo"]), dtype=torch.bfloat16).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    real = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu")
    prepared, _ = prepared_for(build("olmo"))

    assert [row.name for row in prepared.modules if row.quantization is None and row.module.kind is ModuleKind.LINEAR] == [
        name for name, module in real.named_modules() if type(module) is torch.nn.Linear
    ]

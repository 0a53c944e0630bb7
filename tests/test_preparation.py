"""The prepared model against what transformers, bitsandbytes and PEFT make of tiny real ones."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest

from planner.dtypes import DType
from planner.errors import UnsupportedModelError, UnsupportedRecipeError
from planner.preparation import Preparation, prepare
from planner.recipe import Recipe
from planner.spec import ModelSpec, Module, ModuleKind
from planner.stack import LATEST, behaviours, parse_stack, resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig  # noqa: E402
from transformers.integrations.bitsandbytes import replace_with_bnb_linear  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402
from transformers.quantizers.base import HfQuantizer  # noqa: E402

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
LLAMA = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
MOE = {**LLAMA, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 32},
    "gemma2": {**LLAMA, "head_dim": 16},
    "falcon": {**SMALL, "alibi": False},
    "gpt_neox": {**SMALL, "intermediate_size": 96},
    "phi": {**LLAMA},
    "qwen3": {**LLAMA, "head_dim": 16, "tie_word_embeddings": True},
    "opt": {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "gpt_oss": {**LLAMA, "num_local_experts": 4, "head_dim": 16},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 48},
    "granitemoe": {**LLAMA, "num_local_experts": 4},
}  # fmt: skip
FUSED: dict[str, dict[str, Any]] = {
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "qwen3_moe": {**MOE, "head_dim": 16},
    "olmoe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **MOE,
        "n_routed_experts": 4, "n_shared_experts": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "num_hidden_layers": 3,
    },
}  # fmt: skip


def build(model_type: str, dtype: str = "bfloat16", **changes: Any) -> Any:
    """A real model on the meta device."""
    config = AutoConfig.for_model(model_type, **{**{**FAMILIES, **FUSED}[model_type], **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def spec_of(model: Any) -> ModelSpec:
    """The module table read straight off a real model: one row a module, nothing collapsed."""
    rows, owners = [], {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        kind = kind_of(module)
        if kind is None:
            rows += [
                Module(f"{name}.{key}", ModuleKind.EXPERTS if p.dim() == 3 else ModuleKind.PARAMETER, tuple(p.shape))
                for key, p in own.items()
            ]
        elif own:
            bias = own["bias"].numel() if "bias" in own else 0
            tied = owners.setdefault(id(module.weight), name)
            rows.append(Module(name, kind, tuple(module.weight.shape), bias, tied_to=None if tied == name else tied))
    return ModelSpec("tiny", model.config.model_type, {}, tuple(rows))


def kind_of(module: Any) -> ModuleKind | None:
    """What class of module it is; None where it only holds bare parameters."""
    if isinstance(module, torch.nn.Linear):
        return ModuleKind.LINEAR if type(module) is torch.nn.Linear else ModuleKind.LINEAR_SUBCLASS
    if isinstance(module, Conv1D):
        return ModuleKind.CONV1D
    if isinstance(module, torch.nn.Embedding):
        return ModuleKind.EMBEDDING
    if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        return ModuleKind.CONVOLUTION
    return ModuleKind.NORM if "Norm" in type(module).__name__ else None


def quantize(model: Any, kind: str = "nf4") -> Any:
    """Replace modules as a load with that quantisation would."""
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.bfloat16)
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)  # as from_pretrained does while it builds
    try:
        model = replace_with_bnb_linear(model, skipped, config)
    finally:
        torch.set_default_dtype(before)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind != "int8", kind == "int8"
    return model


def run_real(model: Any, recipe: Recipe) -> Any:
    """What the canonical script does to a freshly built model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if recipe.is_quantized:
            model = quantize(model, recipe.quantization or "nf4")
        if recipe.kbit_prepare:
            model = peft.prepare_model_for_kbit_training(model)
        if recipe.method == "full":
            return model
        targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
        config = peft.LoraConfig(
            r=recipe.rank, target_modules=targets, lora_dropout=recipe.dropout, use_dora=recipe.dora, use_rslora=recipe.rslora,
            rank_pattern=dict(recipe.rank_pattern), modules_to_save=list(recipe.modules_to_save) or None,
        )  # fmt: skip
        return peft.get_peft_model(model, config)


def real_table(model: Any) -> dict[str, tuple[Any, ...]]:
    """Every parameter of a real model: name -> (dtype or how it is quantised, shape, trained)."""
    table = {}
    for name, p in model.named_parameters():
        short = (
            name.removeprefix("base_model.model.")
            .replace(".default", "")
            .replace(".base_layer", "")
            .replace(".original_module", "")
        )
        if ".modules_to_save" in short:  # the wrapper may sit further up
            owner, _, end = short.replace(".modules_to_save", "").rpartition(".")
            short = f"{owner}.modules_to_save.{end}"
        quantized = type(p).__name__ if type(p).__name__ in ("Params4bit", "Int8Params") else None
        shape = None if quantized else tuple(p.shape)
        table[short] = (quantized or str(p.dtype).removeprefix("torch."), shape, p.requires_grad)
    return table


LONG = {DType.FP32: "float32", DType.BF16: "bfloat16", DType.FP16: "float16"}


def predicted_table(prepared: Preparation) -> dict[str, tuple[Any, ...]]:
    """The same table as the preparation has it; names of wrapped parameters as PEFT nests them are left to `adapters`."""
    table: dict[str, tuple[Any, ...]] = {}
    for row in prepared.modules:
        module, name = row.module, row.module.name
        if module.kind in (ModuleKind.EXPERTS, ModuleKind.PARAMETER):
            table[name] = (LONG[row.dtype], module.shape, row.trainable)
            continue
        how = {None: LONG[row.dtype], "int8": "Int8Params"}.get(row.quantization, "Params4bit")
        if not module.tied_to:
            table[f"{name}.weight"] = (how, None if row.quantization else module.shape, row.trainable)
        if module.bias:
            table[f"{name}.bias"] = (LONG[row.bias_dtype], (module.bias,), row.trainable)
        if row.saved_copy:
            table[f"{name}.modules_to_save.weight"] = (LONG[row.saved_copy], module.shape, True)
            if module.bias:
                table[f"{name}.modules_to_save.bias"] = (LONG[row.saved_copy], (module.bias,), True)
        if row.adapter is None:
            continue
        a, b = ("lora_embedding_A", "lora_embedding_B") if row.adapter.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
        dtype = LONG[row.adapter.dtype]
        table[f"{name}.{a}"], table[f"{name}.{b}"] = (dtype, row.adapter.a_shape, True), (dtype, row.adapter.b_shape, True)
        if row.adapter.has_magnitude:
            magnitude = (LONG[row.adapter.magnitude_dtype], (row.adapter.magnitude,), True)
            table[f"{name}.lora_magnitude_vector.weight"] = magnitude
    return table


def prepared_for(model: Any, **knobs: Any) -> tuple[Preparation, Recipe]:
    """The preparation of a real model's own table under PEFT's dtypes (entry point `trainer`)."""
    recipe = resolve(Recipe(**{"entry_point": "trainer", "dtype": "bf16", **knobs}), LATEST, DType.BF16)
    return prepare(spec_of(model), recipe, behaviours(LATEST, recipe)), recipe


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
    from planner.preparation import _KEPT_FROM_FP16, _KEPT_FROM_HALF

    model = getattr(transformers, transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])

    assert set(_KEPT_FROM_FP16.get(family, ())) == set(model._keep_in_fp32_modules or ())
    if family in _KEPT_FROM_HALF:
        assert set(_KEPT_FROM_HALF[family]) == set(model._keep_in_fp32_modules_strict or ())


def test_rewritten_families_are_those_that_peft_rewrites() -> None:
    """
    Every model_type whose experts PEFT rewrites is known, with the same names.
    """
    from peft.utils import transformers_weight_conversion as conversion

    from planner.targeting import OLD_EXPERT_NAMES

    real = {
        model_type: conversion._MOE_TARGET_MODULE_MAPPING[style]
        for model_type, style in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if style in conversion._MOE_TARGET_MODULE_MAPPING and model_type in transformers.CONFIG_MAPPING
    }

    assert real == {name: names for name, names in OLD_EXPERT_NAMES.items() if name in transformers.CONFIG_MAPPING}


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


def layered_llama(layers: int) -> ModelSpec:
    """The llama table with one row a kind of module, for any depth."""
    stack = tuple(range(layers))
    rows = [Module("model.embed_tokens", ModuleKind.EMBEDDING, (128, 64))]
    shapes = {
        "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
    }  # fmt: skip
    rows += [Module(f"model.layers.*.{name}", ModuleKind.LINEAR, shape, layers=stack) for name, shape in shapes.items()]
    rows += [
        Module(f"model.layers.*.{name}", ModuleKind.NORM, (64,), layers=stack)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    rows += [Module("model.norm", ModuleKind.NORM, (64,)), Module("lm_head", ModuleKind.LINEAR, (128, 64))]
    return ModelSpec("layered", "llama", {}, tuple(rows))


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

"""Tiny real models on the meta device, the module table read off them, and what the real libraries make of them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from planner.dtypes import DType
from planner.preparation import Preparation, prepare
from planner.recipe import Recipe
from planner.spec import ModelSpec, Module, ModuleKind
from planner.stack import LATEST, behaviours, resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    initialization,
)
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
    "olmo": {**LLAMA, "tie_word_embeddings": True},
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
    with torch.device("meta"), initialization.no_tie_weights():  # as from_pretrained has it when it chooses
        untied = type(model)(model.config)
    skipped = HfQuantizer.get_modules_to_not_convert(untied, None, model._keep_in_fp32_modules)
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

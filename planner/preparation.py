"""
The model as a recipe leaves it, before the first step: what is quantised, what each tensor rests in, what is adapted and trained.

The stages follow the real script: transformers loads and bitsandbytes replaces, `prepare_model_for_kbit_training` casts, PEFT
adapts, and the entry point casts once more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from planner.dtypes import DType
from planner.errors import UnsupportedModelError, UnsupportedRecipeError
from planner.formulas.adapters import lora_embedding, lora_experts, lora_linear
from planner.formulas.blocks import TensorShape
from planner.recipe import Recipe
from planner.spec import ModelSpec, Module, ModuleKind
from planner.stack import Behaviours
from planner.targeting import OLD_EXPERT_NAMES, Targeting, find_targets, leaf, output_embedding, parameter_paths
from planner.value import NamedTuple, Value, replace

# transformers@5.23.0, `_keep_in_fp32_modules` of each family: not quantised, and fp32 where the load dtype is fp16.
_KEPT_FROM_FP16 = {
    "afmoe": (
        "input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm",
        "q_norm", "k_norm", "norm", "expert_bias",
    ),
    "deepseek_v32": ("indexer.weights_proj",),
    "deepseek_v4": (
        "self_attn.compressor.kv_proj", "self_attn.compressor.gate_proj", "self_attn.compressor.indexer.kv_proj",
        "self_attn.compressor.indexer.gate_proj", "self_attn.compressor.indexer.scorer.weights_proj",
    ),
    "glm_moe_dsa": ("indexer.weights_proj",),
    "gpt_oss": ("post_attention_layernorm", "input_layernorm", "norm"),
    "longcat_flash": ("classifier.weight",),
}  # fmt: skip
# transformers@5.23.0, `_keep_in_fp32_modules_strict`: fp32 whatever the load dtype; families that only name buffers are left out.
_KEPT_FROM_HALF = {
    "deepseek_v4": (
        "attn_hc", "ffn_hc", "hc_head", "sinks", "position_bias", "e_score_correction_bias",
        "q_a_norm", "kv_norm", "input_layernorm", "post_attention_layernorm", "norm",
    ),
    "ernie4_5_moe": ("gate.weight", "moe_statics"),
}  # fmt: skip

# trl@0.13.0, trainer/utils.py, `peft_module_casting_to_bf16`
_TRL_CASTS_BACK = ("lm_head", "embed_tokens", "wte", "wpe")


class Adapter(NamedTuple):
    """
    The LoRA tensors of one module.

    Attributes:
        kind: What they wrap: a `linear`, an `embedding`, or bare parameters (`experts`; a router's weight too).
        rank: Rank of the product; of stacked experts, of each.
        a_shape: lora_A's weight: [rank, in]; embeddings [rank, rows]; experts [rank * experts, in].
        b_shape: lora_B's weight: [out, rank]; embeddings [width, rank]; experts [out, rank * experts].
        dtype: What both rest in.
        has_magnitude: Whether DoRA adds a magnitude vector.
        magnitude: Its elements; 0 without.
        magnitude_dtype: What it rests in.
    """

    kind: Literal["linear", "embedding", "experts"]
    rank: int
    a_shape: tuple[int, int]
    b_shape: tuple[int, int]
    dtype: DType
    has_magnitude: bool = False
    magnitude: int = 0
    magnitude_dtype: DType = DType.FP32

    @property
    def numel(self) -> int:
        """Trainable elements: A, B and the magnitude."""
        return math.prod(self.a_shape) + math.prod(self.b_shape) + self.magnitude


class PreparedModule(Value):
    """
    One row of the module table, or those of its layers that were treated alike.

    Attributes:
        module: The row; its `layers` are the ones that this treatment holds for.
        quantization: How bitsandbytes stores the weight; None where it is dense.
        dtype: What a dense weight rests in; of a quantised one, the type handed to quantisation (`quant_state.dtype`).
        bias_dtype: What the bias rests in.
        upcast_from: What kbit-prepare cast the dense weight from; None where it did not.
        trainable: Whether the module's own parameters are trained (never those of `adapter`, which always are).
        adapter: Its LoRA tensors.
        saved_copy: What the trainable deep copy of `modules_to_save` rests in; None where there is none.
    """

    module: Module
    quantization: Literal["nf4", "fp4", "int8"] | None
    dtype: DType
    bias_dtype: DType
    upcast_from: DType | None = None
    trainable: bool = False
    adapter: Adapter | None = None
    saved_copy: DType | None = None

    @property
    def name(self) -> str:
        """The row's name, `*` for the layer."""
        return self.module.name

    @property
    def count(self) -> int:
        """How often it occurs."""
        return self.module.count

    @property
    def num_trainable(self) -> int:
        """Trained elements of all occurrences."""
        own = self.module.num_parameters if self.trainable else 0
        copied = self.module.weight_numel + self.module.bias if self.saved_copy else 0
        return own + self.count * (copied + (self.adapter.numel if self.adapter else 0))


class Preparation(Value, eq=False):
    """
    Every module as it stands before the first step, in registration order.

    Attributes:
        modules: The prepared rows.
    """

    modules: tuple[PreparedModule, ...]

    @cached_property
    def by_name(self) -> dict[str, tuple[PreparedModule, ...]]:
        """The rows of each name; several where layers differ."""
        rows: dict[str, tuple[PreparedModule, ...]] = {}
        for row in self.modules:
            rows[row.name] = (*rows.get(row.name, ()), row)
        return rows

    def at(self, name: str, layer: int | None = None) -> PreparedModule | None:
        """The row of a name for one layer (any layer where none is named); None where there is no such module."""
        for row in self.by_name.get(name, ()):
            if layer is None or row.module.layers is None or layer in row.module.layers:
                return row
        return None

    @cached_property
    def num_trainable_parameters(self) -> int:
        """Trained elements of the whole model."""
        return sum(row.num_trainable for row in self.modules)

    @cached_property
    def num_quantized_parameters(self) -> int:
        """Elements that bitsandbytes stores."""
        return sum(row.count * row.module.weight_numel for row in self.modules if row.quantization)


def prepare(spec: ModelSpec, recipe: Recipe, known: Behaviours) -> Preparation:
    """
    The model as the recipe leaves it before the first step.

    Args:
        spec: The checkpoint's module table.
        recipe: A resolved recipe (`stack.resolve`).
        known: What the stack does (`stack.behaviours`).

    Raises:
        UnsupportedModelError: The stack builds this model from other modules than the table has.
        UnsupportedRecipeError: PEFT, TRL or bitsandbytes refuses the recipe on this model.

    Source:
        transformers@5.23.0, integrations/bitsandbytes.py, `replace_with_bnb_linear`; peft@0.21.2, utils/other.py,
        `prepare_model_for_kbit_training`, and mapping_func.py, `get_peft_model`; trl@1.16.0, trainer/sft_trainer.py,
        `SFTTrainer.__init__`.
    """
    if not known.experts_fused and any(module.kind is ModuleKind.EXPERTS for module in spec.modules):
        raise UnsupportedModelError(
            f"{spec.id} has fused experts from transformers 5.0 on; before, each was a module, which no table here describes",
            hint="pass --stack latest",
        )
    targeting = find_targets(spec, recipe, known) if recipe.method != "full" else None
    builder = _Builder(spec, recipe, known, targeting)
    return Preparation(tuple(row for module in spec.modules for row in builder.rows(module)))


_Facts = tuple[bool, bool, bool, int, tuple[str, ...]]


class _Builder:
    """Decides, row by row, with everything that is the same for all rows at hand."""

    def __init__(self, spec: ModelSpec, recipe: Recipe, known: Behaviours, targeting: Targeting | None) -> None:
        self.spec, self.recipe, self.known, self.targeting = spec, recipe, known, targeting
        self.load = DType(recipe.dtype)
        self.head = output_embedding(spec)
        keys = _keys_not_to_convert(spec, self.head)
        self.skipped = re.compile("|".join(rf"(?:{key})(?:(?<=\.)|(?=\.|$))" for key in keys)) if keys else None
        self.skipped_ends = tuple(keys)
        kept = _KEPT_FROM_HALF.get(spec.model_type, ()) if self.load.is_half else ()
        self.kept = kept + (_KEPT_FROM_FP16.get(spec.model_type, ()) if self.load is DType.FP16 else ())
        names_layers = any(re.search(r"\d", key) for key in keys)
        self.is_uniform = (targeting is None or targeting.is_uniform) and not (recipe.is_quantized and names_layers)

    def rows(self, module: Module) -> Iterator[PreparedModule]:
        """The row, split where its layers are treated differently."""
        if self.is_uniform or module.layers is None:
            yield self._prepared(module, self._facts(module, module.path))
            return
        groups: dict[_Facts, list[int]] = {}
        for layer, path in zip(module.layers, module.paths(), strict=True):
            groups.setdefault(self._facts(module, path), []).append(layer)
        for facts, layers in groups.items():
            yield self._prepared(replace(module, layers=tuple(layers)), facts)

    def _facts(self, module: Module, path: str) -> _Facts:
        """What can differ between the layers of a row: quantised, saved, adapted, rank, and the parameters that are wrapped."""
        quantized = self.recipe.is_quantized and self._is_replaced(module, path)
        if self.targeting is None:
            return quantized, False, False, 0, ()
        is_parameter = module.kind in (ModuleKind.EXPERTS, ModuleKind.PARAMETER)
        saved = self.targeting.saves(path, is_parameter)
        adapted = not is_parameter and self.targeting.adapts(path, module)
        wrapped = tuple(name for name in parameter_paths(module, path) if self.targeting.adapts_parameter(name))
        rank = self.targeting.rank_of(wrapped[0] if wrapped else path) if adapted or wrapped else 0
        return quantized, saved, adapted, rank, wrapped

    def _is_replaced(self, module: Module, path: str) -> bool:
        """
        Whether bitsandbytes takes the module's place.

        Source:
            transformers@5.23.0, integrations/bitsandbytes.py, `replace_with_bnb_linear`; quantizers/quantizers_utils.py,
            `should_convert_module`.
        """
        is_candidate = module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D) or (
            module.kind is ModuleKind.LINEAR_SUBCLASS and self.known.quantizes_linear_subclasses
        )
        if not is_candidate or self.skipped is None:
            return is_candidate
        return not (path.endswith(self.skipped_ends) or self.skipped.match(path))

    def _prepared(self, module: Module, facts: _Facts) -> PreparedModule:
        quantized, saved, adapted, rank, wrapped = facts
        stored = DType.FP32 if any(name in parameter_paths(module, module.name)[0] for name in self.kept) else self.load
        rest = self._after_kbit_prepare(module, stored)
        how: Literal["nf4", "fp4", "int8"] | None = None
        handed = rest
        if quantized and self.recipe.quantization != "none":
            how = self.recipe.quantization
            handed = DType.FP16 if how == "int8" else stored  # Int8Params.to casts to fp16 first
        if saved and how:
            raise UnsupportedRecipeError(
                f"modules_to_save matches `{module.name}`, which is quantised; torch refuses: "
                "only Tensors of floating point dtype can require gradients",
                hint="leave it out, or adapt it with --targets",
            )
        return PreparedModule(
            module=module,
            quantization=how,
            dtype=handed,
            bias_dtype=rest,
            upcast_from=stored if how is None and rest is not stored else None,
            trainable=self.recipe.method == "full",
            adapter=self._adapter(module, adapted, rank, wrapped, how is not None),
            saved_copy=(self.known.trains_quantized_in or rest) if saved else None,
        )

    def _after_kbit_prepare(self, module: Module, stored: DType) -> DType:
        """What an unquantised 16-bit parameter rests in after kbit-prepare and, in old TRL, the cast that follows it."""
        if self.known.kbit_upcast == "none" or not stored.is_half:
            return stored
        if self.known.kbit_upcast == "all" or "norm" in module.name:
            return DType.FP32
        is_module = module.kind not in (ModuleKind.EXPERTS, ModuleKind.PARAMETER)
        return DType.BF16 if is_module and any(name in module.name for name in _TRL_CASTS_BACK) else DType.FP32

    def _adapter(self, module: Module, adapted: bool, rank: int, wrapped: tuple[str, ...], quantized: bool) -> Adapter | None:
        dtype = DType(self.recipe.adapter_dtype or self.known.adapter_dtype)
        if wrapped:
            self._refuse_wrapped(module, adapted, quantized)
            return _parameter_adapter(module, rank, dtype)
        if not adapted:
            return None
        if module.kind is ModuleKind.LINEAR_SUBCLASS and leaf(module.name) == "router":
            # phimoe and llama4: the router's forward returns a tuple, which lora.Linear.forward (peft@0.21.2) asks for its dtype
            raise UnsupportedRecipeError(
                f"targets match `{module.name}`, whose forward returns several tensors; PEFT cannot adapt it and fails in the first step: "
                "'tuple' object has no attribute 'dtype'",
                hint=f"pass --targets {self._attention_targets(leaf(module.name))}",
            )
        if module.name == self.head and self.known.has_fused_head:
            raise UnsupportedRecipeError(
                f"targets match `{module.name}`; TRL refuses: Applying a PEFT adapter to `lm_head` is not supported, "
                "its fused head uses the weight directly, so the adapter would never be trained",
                hint="leave it out of --targets, or pass --entry-point trainer",
            )
        dora = self.recipe.dora
        if module.kind is ModuleKind.EMBEDDING:
            rows, width = module.shape
            a, b, *magnitude = lora_embedding(rows, width, rank, dora=dora)
        else:
            a, b, *magnitude = lora_linear(module.in_features, module.out_features, rank, dora=dora)
        kind: Literal["linear", "embedding"] = "embedding" if module.kind is ModuleKind.EMBEDDING else "linear"
        numel = sum(vector.numel for vector in magnitude)
        return Adapter(kind, rank, _pair(a), _pair(b), dtype, dora, numel, self.known.magnitude_dtype)

    def _refuse_wrapped(self, module: Module, adapted: bool, quantized: bool) -> None:
        """
        What `lora.ParamWrapper` cannot do.

        Source:
            peft@0.21.2, tuners/lora/layer.py, `ParamWrapper.__init__`; tuners/tuners_utils.py, `_inject_parameters`.
        """
        what = f"PEFT adapts `{module.name}` as a bare parameter on a `{self.spec.model_type}`"
        others = self._attention_targets()
        if self.recipe.dropout:
            raise UnsupportedRecipeError(
                f"{what} and refuses dropout {self.recipe.dropout:g}: lora.ParamWrapper does not work with lora_dropout != 0",
                hint=f"pass --dropout 0, or leave the experts out with --targets {others}",
            )
        if self.recipe.dora:
            raise UnsupportedRecipeError(
                f"{what} and refuses DoRA: lora.ParamWrapper does not work with use_dora=True", hint=f"pass --targets {others}"
            )
        if adapted or quantized:
            raise UnsupportedRecipeError(
                f"{what}, but it is {'also a target' if adapted else 'quantised, and its packed weight has another shape'}",
                hint=f"pass --targets {others}",
            )

    def _attention_targets(self, *without: str) -> str:
        old = OLD_EXPERT_NAMES.get(self.spec.model_type, {})
        names = dict.fromkeys(leaf(module.name) for module in self.spec.modules if module.is_linear and module.name != self.head)
        return ",".join(name for name in names if name not in old and name not in without)


def _keys_not_to_convert(spec: ModelSpec, head: str | None) -> list[str]:
    """
    Names that bitsandbytes skips: both sides of a tie, the last named parameter's owner, the output embedding, the family's own.

    Weights are not tied yet when it chooses, so a tied head is the last of them all the same.

    Source:
        transformers@5.23.0, quantizers/base.py, `get_keys_to_not_convert` and `get_modules_to_not_convert`; modeling_utils.py,
        `get_init_context` (no_tie_weights).
    """
    keys = {head} if head else set()
    for module in spec.modules:
        if module.tied_to:
            keys.update(module.paths())
            keys.add(module.tied_to)
    last = spec.modules[-1] if spec.modules else None
    if last is not None and last.is_linear:  # the owner of anything else is not replaced anyway
        keys.add(parameter_paths(last, last.paths()[-1])[-1].removesuffix(".weight"))
    return sorted(keys | set(_KEPT_FROM_FP16.get(spec.model_type, ())))


def _parameter_adapter(module: Module, rank: int, dtype: DType) -> Adapter:
    """
    The tensors of `lora.ParamWrapper` around a weight [out, in] or stacked experts [experts, out, in].

    The families that PEFT converts all store their experts so; it never wraps the transposed ones (gpt_oss, llama4) by itself.
    """
    experts = module.shape[0] if len(module.shape) == 3 else 1
    outputs, inputs = module.shape[-2:]
    a, b = lora_experts(experts, inputs, outputs, rank)
    return Adapter("experts", rank, _pair(a), _pair(b), dtype)


def _pair(matrix: TensorShape) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns

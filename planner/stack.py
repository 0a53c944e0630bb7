"""
Versions of the libraries, and what each version does to a training step.

A `Stack` is a set of versions. `behaviours` maps it, for one entry point, to a few named facts; every fact names the version
range and the file it was read from. Nothing here imports the libraries: versions come from the environment's metadata.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cached_property
from typing import Literal

from planner.dtypes import DType
from planner.errors import UnknownStackError, UnsupportedRecipeError
from planner.recipe import FloatName, Loss, Optimizer, Recipe
from planner.value import Value

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")

_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[A-Za-z0-9.]+)?", re.ASCII)
_FLOATS: dict[DType, FloatName] = {DType.BF16: "bf16", DType.FP16: "fp16", DType.FP32: "fp32"}


class Stack(Value):
    """
    Versions of the libraries of one environment.

    Attributes:
        versions: Package to version, for every name in `PACKAGES`.
        source: Where the versions come from, in words for the report.
    """

    versions: dict[str, str]
    source: str

    @cached_property
    def _releases(self) -> dict[str, tuple[int, ...]]:
        return {package: _release(version) for package, version in self.versions.items()}

    def at_least(self, package: str, *release: int) -> bool:
        """Whether a package's release is `release` or newer; pre-releases and local labels count as their release."""
        return self._releases[package] >= release


LATEST = Stack(
    versions={
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "peft": "0.21.2",
        "trl": "1.16.0",
        "bitsandbytes": "0.50.2",
        "accelerate": "1.15.0",
    },
    source="newest profile",
)


def _told(missing: list[str]) -> str:
    if len(missing) == len(PACKAGES):
        return "none of it is installed here"
    who = f"{missing[0]} is" if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more are"
    return f"{who} not installed here"


def detect() -> Stack:
    """
    The installed versions, from metadata alone; the newest profile where the environment is not complete.

    A mixture of installed and assumed versions would describe an environment that exists nowhere, so it is never returned.
    Only the names of the metadata folders are read: `importlib.metadata` gives the same answer, but its import is a third of a
    cold start.
    """
    versions = installed()
    missing = [package for package in PACKAGES if package not in versions]
    if missing:
        return Stack(dict(LATEST.versions), f"newest profile; {_told(missing)}")
    return Stack(versions, "this environment")


def installed() -> dict[str, str]:
    """The version of each of `PACKAGES` that is installed here, in that order; those that are not are left out."""
    versions = _installed()
    return {package: versions[package] for package in PACKAGES if package in versions}


def _installed() -> dict[str, str]:
    """The versions of `PACKAGES` on the import path; the first folder that has one wins, as for an import."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - pathlib builds a path object for each of hundreds of names
        except OSError:  # a path that is no folder, or that may not be read, holds no metadata for an import either
            continue
        for name in names:
            stem, dot, kind = name.rpartition(".")
            package, dash, version = stem.partition("-")
            if kind == "dist-info" and dot and dash and package.lower() in PACKAGES and _VERSION.fullmatch(version):
                found.setdefault(package.lower(), version)
    return found


def parse_stack(text: str) -> Stack:
    """
    The stack that `--stack` names: `auto`, `latest`, or `PKG==VERSION,...`; packages left out take the newest profile's version.

    Raises:
        UnknownStackError: A package that no behaviour depends on, or a version that cannot be read.
    """
    words = text.strip().strip(",")
    if words.lower() == "auto":
        return detect()
    if words.lower() in ("latest", "newest"):
        return LATEST
    if not words:
        raise UnknownStackError("stack is empty; it must be auto, latest or PACKAGE==VERSION,...", hint="pass --stack latest")
    versions = dict(LATEST.versions)
    for word in words.split(","):
        package, separator, version = (part.strip() for part in word.partition("=="))
        package = package.lower()
        if not separator or package not in versions:
            raise UnknownStackError(
                f"stack has `{_short(word.strip())}`; it must be PACKAGE==VERSION with a package of {', '.join(PACKAGES)}",
                hint="pass --stack auto, --stack latest, or for example --stack transformers==5.23.0,trl==1.16.0",
            )
        if len(version) > 64 or not _VERSION.fullmatch(version):
            raise UnknownStackError(
                f"stack has {package}=={_short(version)}; a version must be numbers with dots, such as {versions[package]}",
                hint=f"pip show {package} prints the version that is installed",
            )
        versions[package] = version
    return Stack(versions, "as given")


Reading = Literal["ahead", "in_turn", "in_doubt"]
"""How a loader reads what it quantises: by threads that race, one after the other, or nobody is sure."""


class Behaviours(Value):
    """
    What the libraries of one stack do on the path of one entry point, as far as memory can see it.

    Attributes:
        use_reentrant: Which checkpointing runs where the recipe does not say. transformers >= 5.0, modeling_utils.py,
            `_activation_checkpointing_enable`: no kwargs become use_reentrant False; before, `gradient_checkpointing_enable`
            made them True. `prepare_model_for_kbit_training` passes {} (peft, utils/other.py), so torch's default, True,
            holds until a trainer with its flag set enables checkpointing again when training starts. TRL < 0.26 clears that
            flag after preparing a quantised base, so True stays; TRL >= 0.28 sets False below transformers 5
            (trainer/sft_trainer.py).
        loss: How the loss is computed where the recipe does not say. TRL >= 1.6 chunks it (trainer/sft_config.py,
            `loss_type`).
        has_fused_head: TRL >= 1.15 patches the model with a head and loss in one that never builds the logits
            (`add_fused_lm_head`).
        has_chunked_loss: Whether there is a chunked loss: TRL >= 1.4, or what a loop brings itself; transformers' Trainer has
            none.
        adapter_dtype: What LoRA's A and B rest in. PEFT >= 0.12 casts half-precision adapters to fp32
            (tuners/tuners_utils.py, `cast_adapter_dtype`); TRL >= 0.26 casts all that is trainable over a quantised base to
            bf16 (trainer/sft_trainer.py, `__init__`).
        adapters_in_compute_dtype: Whether A and B come onto the card, over a 4-bit base, in its compute dtype, before that cast:
            PEFT >= 0.19 (tuners/tuners_utils.py, `_get_base_layer_device_and_dtype`); before, as they are made, in fp32.
        magnitude_dtype: What DoRA's magnitudes rest in: TRL >= 1.15 leaves them out of that cast.
        trains_quantized_in: The type that the entry point casts every other trainable parameter over a quantised base to, if
            any.
        kbit_upcast: What is left in fp32 before the first step. `all`: every 16-bit parameter that is not quantised (peft,
            utils/other.py, `prepare_model_for_kbit_training`). `norms`: TRL < 0.26 over a 4-bit base under bf16 casts modules
            named lm_head, embed_tokens, wte or wpe back (trainer/utils.py, `peft_module_casting_to_bf16`): norms, and what
            those names miss, stay in fp32. `none`: it was not called.
        empty_cache_after_kbit_prepare: peft >= 0.20 ends kbit-prepare with `torch.cuda.empty_cache()` (`auto_clear_cache`).
        loss_extra_copies: 1 for transformers < 4.49, which shifted the logits, not the labels (loss/loss_utils.py,
            `ForCausalLMLoss`). In forward, the fp32 logits [B,S,V] and their shifted contiguous copy [B,S-1,V] in fp32 are
            both alive, beside the 16-bit logits and the last hidden states, while log_softmax writes its own fp32 output: 14
            bytes an element of the logits, not 10; both copies die when the loss returns. In backward the slice's gradient is
            a new zero-filled fp32 [B,S,V] beside [B,S-1,V]. A batch of one makes no copy: its slice is contiguous.
        outputs_to_fp32: accelerate wraps forward under mixed precision and copies its half-precision outputs, the logits
            among them, to fp32 after the loss is computed (utils/operations.py, `convert_outputs_to_fp32`).
        output_alive_in_backward: A hand-written loop keeps the model's output until the step ends; a trainer drops it
            (transformers, trainer.py, `compute_loss`).
        linear4bit_saves_input: Whether a frozen 4-bit linear saves its input for backward: no (bitsandbytes 0.50.2,
            autograd/_functions.py, `MatMul4Bit`).
        rotary_is_product: Whether the angles of rotary embeddings are a matrix product, the first of the step, which takes cuBLAS's
            workspace: transformers < 5.19; later they are multiplied element by element (models/llama/modeling_llama.py,
            `LlamaRotaryEmbedding.forward`).
        experts_fused: transformers >= 5.0 stacks the experts of a layer in bare 3-D parameters, which bitsandbytes leaves
            alone.
        quantizes_linear_subclasses: transformers < 5.6 replaces whatever `isinstance(module, nn.Linear)`, later versions only
            the exact class (integrations/bitsandbytes.py, `replace_with_bnb_linear`).
        converts_moe_targets: Which targets PEFT rewrites for fused experts (utils/transformers_weight_conversion.py): `all`
            from 0.20, `names` (neither all-linear nor a regex) in 0.19, `none` before.
        optim: AdamW where the recipe does not say: fused in the trainers with torch >= 2.8 and transformers >= 4.54
            (training_args.py, `default_optim`); in a loop torch.optim.AdamW's own choice.
        max_grad_norm: Clipping where the recipe does not say: 1.0 in the trainers (training_args.py), 0 in a loop.
        loads_on: Where `from_pretrained` puts the checkpoint: a quantised one straight on the card (transformers,
            quantizers/quantizer_bnb_4bit.py, `update_device_map`), a 16-bit one without a device_map on the CPU, from where
            it is moved.
        warms_up_allocator: transformers >= 5.0 asks the allocator for the whole checkpoint before it loads a tensor, and lets go of it
            (modeling_utils.py, `caching_allocator_warmup`; read in 5.23.0, earlier versions are taken to do without).
        reading: How tensors that are quantised on the card are read. `ahead`: transformers 5.0 to 5.3, by four threads that run ahead
            of the quantising one by chance (core_model_loading.py, `GLOBAL_WORKERS`). `in_turn`: before 5.0, and from 5.4 on, whose
            `has_on_the_fly_quantization` leaves the threads out. `in_doubt`: 5.4 to 5.22 read in turn by their source, but published
            runs that name 5.17.0 and PEFT 0.20.0 did what 5.0 to 5.3 and PEFT before 0.20 do (tests/measurements/, T4): planned in
            turn, with a range over both.
    """

    use_reentrant: bool
    loss: Loss
    has_fused_head: bool
    has_chunked_loss: bool
    adapter_dtype: DType
    adapters_in_compute_dtype: bool
    magnitude_dtype: DType
    trains_quantized_in: DType | None
    kbit_upcast: Literal["all", "norms", "none"]
    empty_cache_after_kbit_prepare: bool
    loss_extra_copies: int
    outputs_to_fp32: bool
    output_alive_in_backward: bool
    linear4bit_saves_input: bool
    rotary_is_product: bool
    experts_fused: bool
    quantizes_linear_subclasses: bool
    converts_moe_targets: Literal["all", "names", "none"]
    optim: Optimizer
    max_grad_norm: float
    loads_on: Literal["cuda", "cpu"]
    warms_up_allocator: bool
    reading: Reading


def behaviours(stack: Stack, recipe: Recipe) -> Behaviours:
    """
    What the libraries of a stack do on the path of a recipe; the recipe need not be resolved.

    Source:
        Each field of `Behaviours` names its own.
    """
    is_trl, is_loop = recipe.entry_point == "trl", recipe.entry_point == "loop"
    prepared = recipe.is_quantized if recipe.kbit_prepare is None else recipe.kbit_prepare
    trl_prepares = is_trl and prepared and not stack.at_least("trl", 0, 26)
    casts_back = trl_prepares and recipe.mixed_precision == "bf16" and recipe.quantization != "int8"
    casts_adapters = is_trl and recipe.is_quantized and stack.at_least("trl", 0, 26)
    casts_magnitudes = casts_adapters and not stack.at_least("trl", 1, 15)
    fused_adamw = not is_loop and stack.at_least("torch", 2, 8) and stack.at_least("transformers", 4, 54)
    return Behaviours(
        use_reentrant=_use_reentrant(stack, recipe, prepared=prepared, trl_prepares=trl_prepares),
        loss="chunked" if is_trl and stack.at_least("trl", 1, 6) else "full",
        has_fused_head=is_trl and stack.at_least("trl", 1, 15),
        has_chunked_loss=is_loop or (is_trl and stack.at_least("trl", 1, 4)),
        adapter_dtype=DType.BF16 if casts_adapters else DType.FP32,
        adapters_in_compute_dtype=stack.at_least("peft", 0, 19),
        magnitude_dtype=DType.BF16 if casts_magnitudes else DType.FP32,
        trains_quantized_in=DType.BF16 if casts_adapters else None,
        kbit_upcast="none" if not prepared else "norms" if casts_back else "all",
        empty_cache_after_kbit_prepare=prepared and stack.at_least("peft", 0, 20),
        loss_extra_copies=0 if stack.at_least("transformers", 4, 49) else 1,
        outputs_to_fp32=not is_loop and recipe.mixed_precision != "no",
        output_alive_in_backward=is_loop,
        linear4bit_saves_input=False,
        rotary_is_product=not stack.at_least("transformers", 5, 19),
        experts_fused=stack.at_least("transformers", 5, 0),
        quantizes_linear_subclasses=not stack.at_least("transformers", 5, 6),
        converts_moe_targets="all" if stack.at_least("peft", 0, 20) else "names" if stack.at_least("peft", 0, 19) else "none",
        optim="adamw_torch_fused" if fused_adamw else "adamw_torch",
        max_grad_norm=0.0 if is_loop else 1.0,
        loads_on="cuda" if recipe.is_quantized else "cpu",
        warms_up_allocator=stack.at_least("transformers", 5, 0),
        reading=_reading(stack) if recipe.is_quantized else "in_turn",
    )


def _reading(stack: Stack) -> Reading:
    if not stack.at_least("transformers", 5, 0) or stack.at_least("transformers", 5, 23):
        return "in_turn"
    return "in_doubt" if stack.at_least("transformers", 5, 4) else "ahead"


def _use_reentrant(stack: Stack, recipe: Recipe, *, prepared: bool, trl_prepares: bool) -> bool:
    if prepared and (recipe.entry_point == "loop" or trl_prepares):
        return True
    if stack.at_least("transformers", 5, 0):
        return False
    return not (recipe.entry_point == "trl" and stack.at_least("trl", 0, 28))


def resolve(recipe: Recipe, stack: Stack, checkpoint_dtype: DType) -> Recipe:
    """
    The recipe with every knob filled as the entry point of the stack fills it.

    Args:
        recipe: As the user gave it.
        stack: The versions that run it.
        checkpoint_dtype: What the checkpoint is stored in; `dtype="auto"` becomes this.

    Raises:
        UnsupportedRecipeError: The real stack refuses the combination, with its reason.
    """
    known = behaviours(stack, recipe)
    quantization = recipe.quantization or ("nf4" if recipe.method == "qlora" else "none")
    resolved = recipe.model_copy(
        update={
            "quantization": quantization,
            "dtype": _FLOATS.get(checkpoint_dtype, "bf16") if recipe.dtype == "auto" else recipe.dtype,
            "kbit_prepare": _given(recipe.kbit_prepare, quantization != "none"),
            "adapter_dtype": recipe.adapter_dtype or _FLOATS[known.adapter_dtype],
            "optim": recipe.optim or ("paged_adamw_8bit" if recipe.method == "qlora" else known.optim),
            "max_grad_norm": known.max_grad_norm if recipe.max_grad_norm is None else recipe.max_grad_norm,
            "padding": _given(recipe.padding, recipe.batch_size > 1 and not recipe.packing),
            "use_reentrant": _given(recipe.use_reentrant, known.use_reentrant),
            "loss": recipe.loss or known.loss,
            "lora_alpha": recipe.lora_alpha or 2 * recipe.rank,
        }
    )
    _refuse_losses(resolved, stack, known)
    _refuse_unscaling(resolved)
    if resolved.attn == "flash_attention_2" and resolved.dtype == "fp32" and resolved.mixed_precision == "no":
        raise UnsupportedRecipeError(
            "attn is `flash_attention_2` but queries would be fp32; FlashAttention only supports fp16 and bf16",
            hint="pass --attn sdpa, --dtype bf16 or --mixed-precision bf16",
        )
    return resolved


def _given(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value


def _refuse_losses(recipe: Recipe, stack: Stack, known: Behaviours) -> None:
    if recipe.loss == "liger" and known.has_fused_head:
        raise UnsupportedRecipeError(
            f"loss is `liger` but TRL {stack.versions['trl']} refuses Liger's fused linear cross entropy: "
            "it replaces the model's forward, which SFTTrainer patches with a fused head of its own",
            hint="pass --loss chunked, which saves as much, or --entry-point trainer",
        )
    if recipe.loss == "chunked" and not known.has_chunked_loss:
        where = f"TRL {stack.versions['trl']}, before 1.4," if recipe.entry_point == "trl" else "transformers' Trainer"
        raise UnsupportedRecipeError(f"loss is `chunked` but {where} has no chunked loss", hint="pass --loss full, or --loss liger")


def _refuse_unscaling(recipe: Recipe) -> None:
    """
    What `GradScaler` refuses: under fp16 the trainers scale the loss, and unscale gradients before they clip or step.

    Source:
        torch@2.13.0, amp/grad_scaler.py, `_unscale_grads_` ("Attempting to unscale FP16 gradients."), and
        aten/src/ATen/native/cuda/AmpKernels.cu, which has kernels for fp16 and fp32 alone.
    """
    if recipe.mixed_precision != "fp16" or recipe.entry_point == "loop":
        return
    knob, trained = ("dtype", recipe.dtype) if recipe.method == "full" else ("adapter_dtype", recipe.adapter_dtype)
    reasons = {
        "fp16": "Attempting to unscale FP16 gradients",
        "bf16": "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'",
    }
    if trained in reasons:
        raise UnsupportedRecipeError(
            f"{knob} is `{trained}` under fp16 mixed precision; torch's GradScaler refuses: {reasons[trained]}",
            hint=f"pass --{knob.replace('_', '-')} fp32, or --mixed-precision bf16",
        )


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise UnknownStackError(f"`{_short(version)}` is no version", hint="a version is numbers with dots, such as 5.23.0")
    return tuple(int(part) for part in match.group(1).split("."))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

"""
Versions of the libraries, and what each version does to a training step.

A `Stack` is a set of versions. `behaviours` maps it, for one entry point, to a few named facts; every fact names the version range
and the file that it was read from. Nothing here imports the libraries: versions come from the environment's metadata.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.dtypes import DType
from planner.errors import UnknownStackError, UnsupportedRecipeError
from planner.recipe import Loss, Optimizer, Recipe

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")

_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[A-Za-z0-9.]+)?", re.ASCII)


@dataclass(frozen=True)
class Stack:
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
    {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0"},
    "newest profile",
)  # fmt: skip


def detect() -> Stack:
    """
    The installed versions, from metadata alone; the newest profile where the environment is not complete.

    A mixture of installed and assumed versions would describe an environment that exists nowhere, so it is never returned.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions, missing = {}, []
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = None
        if found is not None and _VERSION.fullmatch(found):
            versions[package] = found
        else:
            missing.append(package)
    if missing:
        return Stack(dict(LATEST.versions), f"newest profile ({', '.join(missing)} not installed here)")
    return Stack(versions, "this environment")


def parse_stack(text: str) -> Stack:
    """
    The stack that `--stack` names: `auto`, `latest`, or `PKG==VERSION,...`; packages left out take the newest profile's version.

    Raises:
        UnknownStackError: A package that no behaviour depends on, or a version that cannot be read.
    """
    words = text.strip()
    if words.lower() == "auto":
        return detect()
    if words.lower() in ("latest", "newest"):
        return LATEST
    versions = dict(LATEST.versions)
    for word in filter(None, (part.strip() for part in words.split(","))):
        package, separator, version = (part.strip() for part in word.partition("=="))
        package = package.lower()
        if not separator or package not in versions:
            raise UnknownStackError(
                f"stack is `{_short(text)}`; `{_short(word)}` must be PACKAGE==VERSION with a package of {', '.join(PACKAGES)}",
                hint="pass --stack auto, --stack latest, or for example --stack transformers==5.23.0,trl==1.16.0",
            )
        if len(version) > 64 or not _VERSION.fullmatch(version):
            raise UnknownStackError(
                f"stack has {package}=={_short(version)}; a version must be numbers with dots, such as {versions[package]}",
                hint=f"pip show {package} prints the version that is installed",
            )
        versions[package] = version
    if words.strip(",") == "":
        raise UnknownStackError("stack is empty; it must be auto, latest or PACKAGE==VERSION,...", hint="pass --stack latest")
    return Stack(versions, "as given")


@dataclass(frozen=True)
class Behaviours:
    """
    What the libraries of one stack do on the path of one entry point, as far as memory can see it.

    Attributes:
        use_reentrant: Which checkpointing runs where the recipe does not say.
            transformers >= 5.0, modeling_utils.py, `_activation_checkpointing_enable`: kwargs None becomes use_reentrant False;
            before, `gradient_checkpointing_enable` made it True. `prepare_model_for_kbit_training` passes {} instead (peft, utils/other.py),
            so torch's own default True holds until a trainer whose flag is set enables it again. TRL < 0.26 clears that flag after
            preparing a quantised base, so True stays; TRL >= 0.28 sets False below transformers 5 (trainer/sft_trainer.py).
        loss: How the loss is computed where the recipe does not say. TRL >= 1.6 chunks it (trainer/sft_config.py, `loss_type`).
        has_fused_head: TRL >= 1.15 patches the model with a fused head and loss that never builds the logits (`add_fused_lm_head`).
        has_chunked_loss: TRL >= 1.4 offers a chunked loss; transformers' Trainer has none.
        adapter_dtype: What LoRA's A and B rest in. PEFT >= 0.12 casts half-precision adapters to fp32 (tuners/tuners_utils.py,
            `cast_adapter_dtype`); TRL >= 0.26 then casts what is trainable over a quantised base to bf16 (trainer/sft_trainer.py, `__init__`).
        magnitude_dtype: What DoRA's magnitudes rest in: TRL >= 1.15 leaves them out of that cast.
        trains_quantized_in: The type that the entry point casts every trainable parameter over a quantised base to; None: none.
        kbit_upcast: What is left in fp32 before the first step: `all` 16-bit parameters that are not quantised
            (peft, utils/other.py, `prepare_model_for_kbit_training`); `norms`: TRL < 0.26 over a 4-bit base under bf16 casts modules named
            lm_head, embed_tokens, wte or wpe back to bf16 (trainer/utils.py, `peft_module_casting_to_bf16`), and only the norms, and what those
            names miss, stay in fp32; `none`: it was not called.
        empty_cache_after_kbit_prepare: peft >= 0.20: kbit-prepare ends with `torch.cuda.empty_cache()` (`auto_clear_cache`).
        loss_extra_copies: 1 for transformers < 4.49 (loss/loss_utils.py, `ForCausalLMLoss`): it shifted the logits, not the labels.
            In forward, `logits.float()` [B,S,V] fp32 and its shifted contiguous copy [B,S-1,V] fp32 are both alive, beside the 16-bit logits
            and the last hidden states, while log_softmax writes its own fp32 output (14 instead of 10 bytes an element of the logits); both
            copies die when the loss returns. In backward the slice's gradient is a new zero-filled [B,S,V] fp32 beside [B,S-1,V].
            A batch of one makes no copy: its slice is contiguous.
        outputs_to_fp32: accelerate wraps forward under mixed precision and copies half-precision outputs, so logits, to fp32
            (utils/operations.py, `convert_outputs_to_fp32`), after the loss is computed.
        output_alive_in_backward: A hand-written loop keeps the model's output until the step ends; a trainer drops it
            (transformers, trainer.py, `compute_loss`).
        linear4bit_saves_input: Whether a frozen 4-bit linear saves its input for backward: no in bitsandbytes >= 0.41
            (autograd/_functions.py, `MatMul4Bit`).
        experts_fused: transformers >= 5.0 stacks the experts of a layer in bare 3-D parameters, which bitsandbytes leaves alone.
        quantizes_linear_subclasses: transformers that ask `isinstance(module, nn.Linear)` (integrations/bitsandbytes.py), not for
            the exact class.
        converts_moe_targets: Which targets PEFT rewrites for fused experts (utils/transformers_weight_conversion.py): `all` from 0.20,
            `names` (not all-linear, no regex) in 0.19, `none` before.
        optim: AdamW where the recipe does not say. The trainers: fused with torch >= 2.8 and transformers >= 4.54
            (training_args.py, `default_optim`); a loop: torch.optim.AdamW's own choice.
        max_grad_norm: Clipping where the recipe does not say: 1.0 in the trainers (training_args.py), 0 in a loop.
        loads_on: Where `from_pretrained` puts the checkpoint: a quantised one goes straight to the card, a 16-bit one without a
            device_map is read on the CPU and moved (transformers, quantizers/quantizer_bnb_4bit.py, `update_device_map`).
    """

    use_reentrant: bool
    loss: Loss
    has_fused_head: bool
    has_chunked_loss: bool
    adapter_dtype: DType
    magnitude_dtype: DType
    trains_quantized_in: DType | None
    kbit_upcast: Literal["all", "norms", "none"]
    empty_cache_after_kbit_prepare: bool
    loss_extra_copies: int
    outputs_to_fp32: bool
    output_alive_in_backward: bool
    linear4bit_saves_input: bool
    experts_fused: bool
    quantizes_linear_subclasses: bool
    converts_moe_targets: Literal["all", "names", "none"]
    optim: Optimizer
    max_grad_norm: float
    loads_on: Literal["cuda", "cpu"]


def behaviours(stack: Stack, recipe: Recipe) -> Behaviours:
    """
    What the libraries of a stack do on the path of a recipe; the recipe need not be resolved.

    Source:
        Each field of `Behaviours` names its own.
    """
    is_trl, is_loop = recipe.entry_point == "trl", recipe.entry_point == "loop"
    prepared = recipe.is_quantized if recipe.kbit_prepare is None else recipe.kbit_prepare
    trl_prepares = is_trl and prepared and not stack.at_least("trl", 0, 26)
    casts_adapters = is_trl and recipe.is_quantized and stack.at_least("trl", 0, 26)
    keeps_magnitude = not casts_adapters or stack.at_least("trl", 1, 15)
    bf16_over_4bit = recipe.mixed_precision == "bf16" and recipe.quantization != "int8"
    fused_adamw = not is_loop and stack.at_least("torch", 2, 8) and stack.at_least("transformers", 4, 54)
    return Behaviours(
        use_reentrant=_use_reentrant(stack, recipe, prepared, trl_prepares),
        loss="chunked" if is_trl and stack.at_least("trl", 1, 6) else "full",
        has_fused_head=is_trl and stack.at_least("trl", 1, 15),
        has_chunked_loss=is_loop or (is_trl and stack.at_least("trl", 1, 4)),
        adapter_dtype=DType.BF16 if casts_adapters else DType.FP32,
        magnitude_dtype=DType.FP32 if keeps_magnitude else DType.BF16,
        trains_quantized_in=DType.BF16 if casts_adapters else None,
        kbit_upcast="none" if not prepared else "norms" if trl_prepares and bf16_over_4bit else "all",
        empty_cache_after_kbit_prepare=prepared and stack.at_least("peft", 0, 20),
        loss_extra_copies=0 if stack.at_least("transformers", 4, 49) else 1,
        outputs_to_fp32=not is_loop and recipe.mixed_precision != "no",
        output_alive_in_backward=is_loop,
        linear4bit_saves_input=False,
        experts_fused=stack.at_least("transformers", 5, 0),
        quantizes_linear_subclasses=not stack.at_least("transformers", *_EXACT_CLASS_SINCE),
        converts_moe_targets="all" if stack.at_least("peft", 0, 20) else "names" if stack.at_least("peft", 0, 19) else "none",
        optim="adamw_torch_fused" if fused_adamw else "adamw_torch",
        max_grad_norm=0.0 if is_loop else 1.0,
        loads_on="cuda" if recipe.is_quantized else "cpu",
    )


_EXACT_CLASS_SINCE = (5, 6)


def _use_reentrant(stack: Stack, recipe: Recipe, prepared: bool, trl_prepares: bool) -> bool:
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
    adapter_dtype = known.adapter_dtype if recipe.method != "full" else DType.FP32
    resolved = recipe.model_copy(update={
        "quantization": quantization,
        "dtype": _float_name(checkpoint_dtype) if recipe.dtype == "auto" else recipe.dtype,
        "kbit_prepare": _given(recipe.kbit_prepare, quantization != "none"),
        "adapter_dtype": recipe.adapter_dtype or adapter_dtype.value,
        "optim": recipe.optim or ("paged_adamw_8bit" if recipe.method == "qlora" else known.optim),
        "max_grad_norm": known.max_grad_norm if recipe.max_grad_norm is None else recipe.max_grad_norm,
        "padding": _given(recipe.padding, recipe.batch_size > 1 and not recipe.packing),
        "use_reentrant": _given(recipe.use_reentrant, known.use_reentrant),
        "loss": recipe.loss or known.loss,
        "lora_alpha": recipe.lora_alpha or 2 * recipe.rank,
    })  # fmt: skip
    _refuse_what_the_stack_refuses(resolved, stack, known)
    return resolved


def _given(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value


def _float_name(dtype: DType) -> str:
    return dtype.value if dtype in (DType.BF16, DType.FP16, DType.FP32) else DType.BF16.value


def _refuse_what_the_stack_refuses(recipe: Recipe, stack: Stack, known: Behaviours) -> None:
    if recipe.loss == "liger" and known.has_fused_head:
        raise UnsupportedRecipeError(
            f"loss is `liger` but TRL {stack.versions['trl']} refuses Liger's fused linear cross entropy: it replaces the model's forward, "
            "which SFTTrainer patches with a fused head of its own",
            hint="pass --loss chunked, which saves as much, or --entry-point trainer",
        )
    if recipe.loss == "chunked" and not known.has_chunked_loss:
        raise UnsupportedRecipeError(
            f"loss is `chunked` but the entry point `{recipe.entry_point}` of this stack has no chunked loss"
            + (f" (TRL {stack.versions['trl']}; it came with 1.4)" if recipe.entry_point == "trl" else ""),
            hint="pass --loss full, or --loss liger",
        )
    if recipe.attn == "flash_attention_2" and recipe.dtype == "fp32" and recipe.mixed_precision == "no":
        raise UnsupportedRecipeError(
            "attn is `flash_attention_2` but queries would be fp32; FlashAttention only supports fp16 and bf16",
            hint="pass --attn sdpa, --dtype bf16 or --mixed-precision bf16",
        )
    _refuse_unscaling(recipe)


def _refuse_unscaling(recipe: Recipe) -> None:
    """
    What `GradScaler` refuses: the trainers scale the loss under fp16 and unscale gradients before they clip or step.

    Source:
        torch@2.13, amp/grad_scaler.py, `_unscale_grads_` ("Attempting to unscale FP16 gradients.") and
        aten/src/ATen/native/cuda/AmpKernels.cu, which has kernels for fp16 and fp32 alone.
    """
    if recipe.mixed_precision != "fp16" or recipe.entry_point == "loop":
        return
    trained = recipe.dtype if recipe.method == "full" else recipe.adapter_dtype
    if trained == "fp16":
        what = "dtype is `fp16`" if recipe.method == "full" else "adapter_dtype is `fp16`"
        raise UnsupportedRecipeError(
            f"{what} under fp16 mixed precision; torch's GradScaler refuses: Attempting to unscale FP16 gradients",
            hint="pass --dtype fp32 to train fp32 weights, or --mixed-precision bf16"
            if recipe.method == "full"
            else "pass --adapter-dtype fp32",
        )
    if trained == "bf16":
        raise UnsupportedRecipeError(
            f"trainable weights are bf16 under fp16 mixed precision (entry point `{recipe.entry_point}`); torch's GradScaler has no kernel "
            "to unscale BFloat16 gradients",
            hint="pass --mixed-precision bf16, or --dtype fp32" if recipe.method == "full" else "pass --mixed-precision bf16, or --adapter-dtype fp32",
        )


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    if match is None:  # profiles and detect() hold only versions that match
        raise UnknownStackError(f"`{_short(version)}` is no version", hint="a version is numbers with dots, such as 5.23.0")
    return tuple(int(part) for part in match.group(1).split("."))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

"""A trainer's run in the planner's words: model, recipe and stack, read off the objects that the trainer has."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from planner import stack as stacks
from planner.architecture import build_spec
from planner.catalog import HUB_ID
from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.recipe import CHOICES, Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.value import Value

MOST_SAMPLES = 10_000
"""How many samples are looked at for the longest one."""

_FLOATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Other names of the same; source: transformers@5.23.0, training_args.py, OptimizerNames.
_OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}
_CLASSES = {"adamw": "AdamW", "lion": "Lion", "sgd": "SGD", "adafactor": "Adafactor"}


class Run(Value):
    """
    What a trainer is about to run.

    Attributes:
        spec: The model, from its config.
        recipe: Every knob that could be read.
        stack: What is installed.
        notes: What had to be assumed, a sentence each.
    """

    spec: ModelSpec
    recipe: Recipe
    stack: Stack
    notes: tuple[str, ...] = ()


def derive(model: Any, args: Any, optimizer: Any = None, dataloader: Any = None, *, seq_len: int | None = None) -> Run:
    """
    Read a run off a trainer's objects.

    Args:
        model: A `PreTrainedModel`, or a `PeftModel` around one.
        args: `TrainingArguments`, or what derives from it.
        optimizer: The optimizer, if there is one already.
        dataloader: What gives the batches: its samples say how long they are.
        seq_len: Tokens in the longest batch; None reads it off the samples and `max_length`.

    Raises:
        QplanError: Something of it cannot be planned; which is said.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    notes: list[str] = []
    _refuse_shards(args, notes)
    name = str(getattr(base.config, "_name_or_path", "") or base.config.model_type)
    is_published = HUB_ID.fullmatch(name) is not None and "/" in name and not Path(name).exists()
    config = {key: value for key, value in base.config.to_dict().items() if key != "quantization_config"}
    dtype = _dtype(base)
    spec = build_spec({**config, "dtype": dtype}, id=name, source="hub" if is_published else "config")
    quantization = _quantization(base)
    knobs: dict[str, Any] = {
        **_adapter(model, is_quantized=quantization["quantization"] != "none"),
        **quantization,
        **_precision(args, base, dtype, is_quantized=quantization["quantization"] != "none"),
        **_step(args, base),
        "optim": _optimizer(args, optimizer, notes),
        **_batches(args, dataloader, notes, seq_len),
        **_entry_point(args),
    }
    return Run(spec, make_recipe(**{name: knob for name, knob in knobs.items() if knob is not None}), stacks.detect(), tuple(notes))


def _refuse_shards(args: Any, notes: list[str]) -> None:
    """What spreads a model over cards is not planned; copies of it are, each as if alone."""
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name, None):
            raise UnsupportedRecipeError(f"{name} is on; a run on one card is what can be planned", hint="run without it to compare")
    if getattr(args, "world_size", 1) > 1:
        notes.append("several processes train: each is planned as if alone, without the buckets that gradients are exchanged in")
    if getattr(args, "n_gpu", 1) > 1:
        notes.append("nn.DataParallel copies the model at every step, which is not planned: set CUDA_VISIBLE_DEVICES to one card")


def _dtype(base: Any) -> str:
    """What the weights were loaded in."""
    named = getattr(base.config, "dtype", None)
    if named is None:
        named = next((p.dtype for p in base.parameters() if p.is_floating_point()), "float32")
    return str(named).removeprefix("torch.")


def _adapter(model: Any, *, is_quantized: bool) -> dict[str, Any]:
    """What PEFT was told."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {"method": "full"}
    active = getattr(model, "active_adapter", None)
    config = configs.get(active) if isinstance(active, str) else None
    config = config or next(iter(configs.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise UnsupportedRecipeError(f"the adapter is {kind}; LoRA is what can be planned", hint="use a LoraConfig to compare")
    targets = config.target_modules
    lora = next((p for name, p in model.named_parameters() if "lora_A" in name), None)
    return {
        "method": "qlora" if is_quantized else "lora",
        "rank": config.r,
        "lora_alpha": int(config.lora_alpha) or None,
        "targets": targets if isinstance(targets, str) else _short(model, targets),
        "rank_pattern": dict(config.rank_pattern or {}),
        "modules_to_save": tuple(config.modules_to_save or ()),
        "rslora": bool(config.use_rslora),
        "dora": bool(config.use_dora),
        "dropout": float(config.lora_dropout),
        "adapter_dtype": None if lora is None else _FLOATS.get(str(lora.dtype).removeprefix("torch.")),
    }


def _short(model: Any, targets: Any) -> tuple[str, ...]:
    """Names of targets by their ends, where these match the same modules: PEFT spells `all-linear` out, layer by layer."""
    ends = {name.rpartition(".")[2] for name in targets}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    matched = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in ends}
    return tuple(sorted(ends if matched == set(targets) else targets))


def _quantization(base: Any) -> dict[str, Any]:
    """What bitsandbytes was told."""
    given = getattr(base.config, "quantization_config", None)
    if given is None:
        return {"quantization": "none"}
    config = given if isinstance(given, dict) else given.to_dict()
    if config.get("load_in_8bit"):
        return {"quantization": "int8"}
    if not config.get("load_in_4bit"):
        method = config.get("quant_method", "unknown")
        raise UnsupportedRecipeError(f"the weights are quantised by {method}; bitsandbytes is what can be planned")
    compute = str(config.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    return {
        "quantization": config.get("bnb_4bit_quant_type", "fp4"),
        "double_quant": bool(config.get("bnb_4bit_use_double_quant")),
        "compute_dtype": _FLOATS.get(compute, "fp32"),
    }


def _precision(args: Any, base: Any, dtype: str, *, is_quantized: bool) -> dict[str, Any]:
    """Autocast, the weights' own type, and whether they were prepared for k-bit training."""
    norms = [p for p in base.parameters() if p.ndim == 1 and p.is_floating_point()]
    upcast = bool(norms) and all(str(p.dtype) == "torch.float32" for p in norms) and dtype != "float32"
    return {
        "dtype": _FLOATS.get(dtype),
        "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no",
        "kbit_prepare": upcast if is_quantized else None,
    }


def _step(args: Any, base: Any) -> dict[str, Any]:
    """Batch, accumulation, checkpointing, attention."""
    kwargs = getattr(args, "gradient_checkpointing_kwargs", None) or {}
    attention = str(getattr(base.config, "_attn_implementation", None) or "sdpa")
    if attention not in CHOICES["attn"] and "flash" in attention:
        attention = "flash_attention_2"
    checkpoints = bool(args.gradient_checkpointing) or any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    return {
        "batch_size": args.per_device_train_batch_size,
        "grad_accum": args.gradient_accumulation_steps,
        "max_grad_norm": float(args.max_grad_norm or 0),
        "gradient_checkpointing": checkpoints,
        "use_reentrant": kwargs.get("use_reentrant"),
        "attn": attention,
    }


def _optimizer(args: Any, optimizer: Any, notes: list[str]) -> str:
    """The optimizer as the arguments name it; that the trainer was given another is said."""
    named = str(getattr(args.optim, "value", args.optim))
    name = _OPTIMIZERS.get(named, named)
    inner = getattr(optimizer, "optimizer", optimizer)
    if name == "sgd" and inner is not None and inner.defaults.get("momentum"):
        name = "sgd_momentum"
    if name not in CHOICES["optim"]:
        raise InvalidRecipeError(f"optim is `{named}`; what can be planned is {', '.join(CHOICES['optim'])}")
    expected = next(cls for kind, cls in _CLASSES.items() if kind in name)
    if inner is not None and not type(inner).__name__.startswith(expected):
        notes.append(f"the optimizer is {type(inner).__name__}, but optim is {named}, which is what is planned")
    return name


def _entry_point(args: Any) -> dict[str, Any]:
    """Whose trainer it is, by the class of its arguments; the loss and packing that it was told."""
    is_trl = any(cls.__name__ == "SFTConfig" for cls in type(args).__mro__)
    packs = is_trl and bool(getattr(args, "packing", False) or getattr(args, "padding_free", False))
    loss = "liger" if getattr(args, "use_liger_kernel", False) else "full" if getattr(args, "loss_type", "nll") == "dft" else None
    return {"entry_point": "trl" if is_trl else "trainer", "loss": loss, "packing": packs}


def _batches(args: Any, dataloader: Any, notes: list[str], seq_len: int | None) -> dict[str, Any]:
    """Tokens in the longest batch: those of the longest sample, at most `max_length`; samples of one length need no padding."""
    limit: int | None = getattr(args, "max_length", None)
    lengths = None if getattr(args, "packing", False) and limit else _lengths(dataloader, notes)
    cut = {min(length, limit or length) for length in lengths or ()}
    padding = False if len(cut) == 1 else None
    if seq_len is not None or cut:
        return {"seq_len": seq_len or max(cut), "padding": padding}
    if limit is None:
        raise InvalidRecipeError(
            "seq_len is not known: the samples do not say how long they are", hint="pass MemoryPlanCallback(seq_len=2048)"
        )
    return {"seq_len": limit}


def _lengths(dataloader: Any, notes: list[str]) -> set[int] | None:
    """How long the samples' input_ids are; None where they have none, or come as a stream."""
    samples: Any = getattr(dataloader, "dataset", None)
    if not hasattr(samples, "__len__") or not hasattr(samples, "__getitem__") or not len(samples):
        return None
    if len(samples) > MOST_SAMPLES:
        notes.append(f"only the first {MOST_SAMPLES:,} samples were looked at for the longest one")
    try:
        return {len(samples[index]["input_ids"]) for index in islice(range(len(samples)), MOST_SAMPLES)}
    except (KeyError, TypeError, IndexError):
        return None

"""Every knob of a fine-tuning run, as Hugging Face spells them, and what they may be together."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import field
from operator import index
from typing import Any, Literal, get_args

from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.value import Value, plain, replace

Method = Literal["qlora", "lora", "full"]
Quantization = Literal["nf4", "fp4", "int8", "none"]
FloatName = Literal["bf16", "fp16", "fp32"]
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_torch_foreach", "adamw_8bit", "adamw_32bit",
    "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit",
    "adafactor", "adafactor_torch", "sgd", "sgd_momentum",
]  # fmt: skip
Attention = Literal["eager", "sdpa", "flash_attention_2"]
Loss = Literal["full", "chunked", "liger"]
EntryPoint = Literal["trl", "trainer", "loop"]

CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "quantization": get_args(Quantization),
    "compute_dtype": get_args(FloatName),
    "dtype": ("auto", *get_args(FloatName)),
    "mixed_precision": ("bf16", "fp16", "no"),
    "adapter_dtype": get_args(FloatName),
    "optim": get_args(Optimizer),
    "attn": get_args(Attention),
    "loss": get_args(Loss),
    "entry_point": get_args(EntryPoint),
}
"""What the knobs of few values may be, in the order in which help texts show them."""

RANGES: dict[str, tuple[int, int]] = {
    "rank": (1, 1 << 16),
    "lora_alpha": (1, 1 << 30),
    "batch_size": (1, 1 << 20),
    "seq_len": (1, 1 << 26),
    "grad_accum": (1, 1 << 20),
}
"""The smallest and the largest value of the knobs that are whole numbers."""

_SWITCHES = ("rslora", "dora", "double_quant", "kbit_prepare", "padding", "packing", "gradient_checkpointing", "use_reentrant")


def module_names(text: str) -> str | tuple[str, ...]:
    """`all-linear` and a regular expression as they are; names separated by commas as names."""
    if text.strip() == "all-linear" or set(text) & set("\\*+?()[]{}|^$"):
        return text.strip()
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Recipe(Value, kw_only=True):
    """
    One training run. A field left at None takes what the entry point, the method and the stack give; `stack.resolve` fills them.

    The defaults are the canonical QLoRA script: `from_pretrained` without a dtype, NF4 with double quantisation, bf16 compute,
    `prepare_model_for_kbit_training`, r=16 on all linear layers with dropout 0.05, TRL's SFTTrainer with bf16,
    paged_adamw_8bit, gradient checkpointing, one sample of 512 tokens.

    A plain value: a validation library's import and schema would cost a cold start more than the whole estimate does.

    Raises:
        InvalidRecipeError: A knob has a value that it cannot have.
        UnsupportedRecipeError: The knobs contradict each other.

    >>> Recipe(rank=8, seq_len=2048).tokens
    2048
    """

    method: Method = "qlora"
    rank: int = 16
    lora_alpha: int | None = None
    """LoRA's alpha: scales, never allocates."""
    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear`, or names as `LoraConfig.target_modules` matches them (whole, or the end after a dot); one text is a regex."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """As in `LoraConfig`: a module name (or the regex of its end) to its own rank."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are copied and trained whole, as in `LoraConfig`."""
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.05
    quantization: Quantization | None = None
    """Of the base weights. None: nf4 for qlora, none otherwise."""
    double_quant: bool = True
    compute_dtype: FloatName = "bf16"
    """`bnb_4bit_compute_dtype`."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What the checkpoint is loaded in; `auto` is its own."""
    mixed_precision: Literal["bf16", "fp16", "no"] = "bf16"
    """Autocast, as accelerate spells it."""
    kbit_prepare: bool | None = None
    """Whether `prepare_model_for_kbit_training` is called. None: yes where the base is quantised."""
    adapter_dtype: FloatName | None = None
    """None: as PEFT and the entry point leave it."""
    optim: Optimizer | None = None
    """None: paged_adamw_8bit for qlora, the entry point's default otherwise."""
    batch_size: int = 1
    """Sequences in one micro-batch on one device (`per_device_train_batch_size`)."""
    seq_len: int = 512
    """Tokens in every sequence."""
    grad_accum: int = 1
    max_grad_norm: float | None = None
    """Clipping; 0 is off. None: 1.0 as the trainers do, off in a hand-written loop."""
    padding: bool | None = None
    """Whether an attention mask reaches the model. None: yes for batches above one that are not packed."""
    packing: bool = False
    gradient_checkpointing: bool = True
    use_reentrant: bool | None = None
    """None: as the stack's entry point has it."""
    attn: Attention = "sdpa"
    loss: Loss | None = None
    """None: as the entry point of the stack computes it."""
    entry_point: EntryPoint = "trl"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (value is None and name in _MAY_BE_NONE):
                raise InvalidRecipeError(f"{name} is {_shown(value)}; it must be one of {', '.join(choices)}", hint=_near(value, choices))
        for name, (low, high) in RANGES.items():
            self._check_integer(name, low, high)
        for name in _SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name in _MAY_BE_NONE):
                raise InvalidRecipeError(f"{name} is {_shown(value)}; it must be true or false")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise InvalidRecipeError(f"dropout is {_shown(self.dropout)}; it must be a number from 0 up to, not including, 1")
        if self.max_grad_norm is not None and not (_is_number(self.max_grad_norm) and 0 <= self.max_grad_norm < float("inf")):
            raise InvalidRecipeError(f"max_grad_norm is {_shown(self.max_grad_norm)}; it must be a number from 0 (off) up")
        self._check_modules()
        self._check_together()

    @property
    def is_quantized(self) -> bool:
        """Whether the base weights are quantised."""
        return (self.quantization or ("nf4" if self.method == "qlora" else "none")) != "none"

    @property
    def tokens(self) -> int:
        """Tokens in one micro-batch."""
        return self.batch_size * self.seq_len

    def model_dump(self) -> dict[str, Any]:
        """Every knob by its name, as JSON can hold it."""
        found: dict[str, Any] = plain(self)
        return found

    def model_copy(self, *, update: Mapping[str, Any]) -> Recipe:
        """
        The same run with some knobs changed.

        Raises:
            InvalidRecipeError: A knob has a value that it cannot have.
        """
        return replace(self, **update)

    def unchecked(self, **knobs: Any) -> Recipe:
        """The same run with some knobs changed to what need not be a value that they can have: a size that is yet to be known."""
        changed = copy(self)
        for name, value in knobs.items():
            object.__setattr__(changed, name, value)
        return changed

    def __hash__(self) -> int:
        return hash(tuple(tuple(sorted(v.items())) if isinstance(v, dict) else v for v in (getattr(self, n) for n in KNOBS)))

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if value is None and name in _MAY_BE_NONE:
            return
        if not isinstance(value, (int, str)) and hasattr(value, "__index__"):  # an integer of another library
            object.__setattr__(self, name, value := index(value))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRecipeError(f"{name} is {_shown(value)}; it must be a whole number from {low} to {high}")

    def _check_modules(self) -> None:
        for name in ("targets", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, value := tuple(value))
            if isinstance(value, str) and name == "targets":
                if "," in value:  # no comma: PEFT takes one text as a regular expression
                    object.__setattr__(self, name, module_names(value))
                elif not value.strip():
                    raise InvalidRecipeError(
                        "targets is empty; it must name modules", hint="pass all-linear, or names such as q_proj,v_proj"
                    )
            elif not isinstance(value, tuple) or not all(isinstance(v, str) and v.strip() for v in value):
                raise InvalidRecipeError(f"{name} is {_shown(value)}; it must be names of modules")
            elif name == "targets" and not value:
                raise InvalidRecipeError("targets is empty; it must name modules", hint="pass all-linear, or names such as q_proj,v_proj")
        ranks = self.rank_pattern
        if not isinstance(ranks, dict) or not all(isinstance(k, str) and type(r) is int and 1 <= r <= 1 << 16 for k, r in ranks.items()):
            raise InvalidRecipeError(f"rank_pattern is {_shown(ranks)}; it must map names of modules to ranks from 1 to 65536")

    def _check_together(self) -> None:
        if self.method == "qlora" and self.quantization == "none":
            raise UnsupportedRecipeError(
                "method is `qlora` but quantization is `none`; qlora trains over a quantised base",
                hint="pass --quantization nf4, or --method lora to keep the base in 16 bits",
            )
        if self.method == "full" and self.is_quantized:
            raise UnsupportedRecipeError(
                f"method is `full` but quantization is `{self.quantization}`; quantised weights cannot be trained",
                hint="pass --quantization none, or --method qlora to train adapters over the quantised base",
            )
        if self.kbit_prepare and not self.is_quantized:
            raise UnsupportedRecipeError(
                "kbit-prepare is on but nothing is quantised; prepare_model_for_kbit_training is for quantised bases",
                hint="pass --no-kbit-prepare, or --quantization nf4",
            )


KNOBS: tuple[str, ...] = Recipe._fields
"""The names of all knobs, in the order in which they are declared."""

_MAY_BE_NONE = frozenset(name for name, default in Recipe._field_defaults.items() if default is None)


def make_recipe(**knobs: Any) -> Recipe:
    """
    A `Recipe`, with every fault told in one sentence.

    Raises:
        InvalidRecipeError: There is no knob of that name, or a knob has a value that it cannot have.
        UnsupportedRecipeError: The knobs contradict each other.
    """
    for name in knobs:
        if name not in KNOBS:
            raise InvalidRecipeError(f"{name} is no knob of a recipe", hint=_near(name, KNOBS) or f"the knobs are {', '.join(KNOBS)}")
    return Recipe(**knobs)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(value: object, choices: tuple[str, ...]) -> str | None:
    import difflib

    near = difflib.get_close_matches(str(value), choices, n=3)
    return f"did you mean {' or '.join(near)}?" if near else None

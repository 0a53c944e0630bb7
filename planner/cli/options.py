"""The knobs of a recipe as options: one table for every command that plans a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from planner.cli import completion
from planner.recipe import CHOICES, RANGES, module_names
from planner.value import Value

METHOD, PRECISION, STEP, STACK, OUTPUT = "What is trained", "Precision", "The step", "Where it runs", "Output"
SEARCH = "What is looked for"


class Knob(Value):
    """
    One knob of the recipe on the command line.

    Attributes:
        name: The recipe's field; the option is spelled with dashes.
        help: What it does, and its default.
        panel: The group that `--help` shows it in.
        read: From the text to the value; None for an on/off switch. What cannot be read is passed on: the recipe refuses it.
        metavar: What stands for the value in `--help`; None for the choices, or the type.
    """

    name: str
    help: str
    panel: str
    read: Callable[[str], Any] | None = str
    metavar: str | None = None

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")


def whole_number(text: str) -> Any:
    """An integer, or the text where it is none."""
    try:
        return int(text)
    except ValueError:
        return text


def number(text: str) -> Any:
    """A number, or the text where it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def ranks(text: str) -> dict[str, Any]:
    """`NAME=RANK,...`."""
    pairs = (part.rpartition("=") for part in text.split(",") if part.strip())
    return {name.strip(): whole_number(rank) for name, _, rank in pairs}


_OPTIMIZERS = ", ".join(CHOICES["optim"])

KNOBS: tuple[Knob, ...] = (
    Knob("method", "qlora: adapters over a quantised base; lora: over a 16-bit base; full: all weights. Default: qlora.", METHOD),
    Knob("rank", "Rank of the LoRA adapters. Default: 16.", METHOD, whole_number),
    Knob("lora_alpha", "LoRA's alpha; it scales and allocates nothing. Default: twice the rank.", METHOD, whole_number),
    Knob("targets", "all-linear, names (q_proj,v_proj), or one regular expression. Default: all-linear.", METHOD,
         module_names, "all-linear|NAMES"),
    Knob("rank_pattern", "Other ranks for some modules, as in LoraConfig: q_proj=8,v_proj=32.", METHOD, ranks, "NAME=RANK,..."),
    Knob("modules_to_save", "Modules trained whole, as in LoraConfig: lm_head,embed_tokens.", METHOD, names, "NAMES"),
    Knob("dropout", "lora_dropout. Default: 0.05.", METHOD, number, "FLOAT"),
    Knob("dora", "DoRA: a trained magnitude for each output. Default: off.", METHOD, None),
    Knob("rslora", "Rank-stabilised scaling; it allocates nothing. Default: off.", METHOD, None),
    Knob("quantization", "How the base weights are quantised. Default: nf4 for qlora, none otherwise.", PRECISION),
    Knob("double_quant", "Quantise the scales of 4-bit weights too. Default: on.", PRECISION, None),
    Knob("compute_dtype", "bnb_4bit_compute_dtype: what 4-bit weights are multiplied in. Default: bf16.", PRECISION),
    Knob("dtype", "What from_pretrained loads; auto is the checkpoint's own. Default: auto.", PRECISION),
    Knob("mixed_precision", "Autocast of the training step. Default: bf16.", PRECISION),
    Knob("kbit_prepare", "prepare_model_for_kbit_training: upcasts to fp32. Default: on over a quantised base.", PRECISION, None),
    Knob("adapter_dtype", "What the adapters are stored in. Default: as PEFT and the entry point leave them.", PRECISION),
    Knob("optim", f"The optimizer: {_OPTIMIZERS}. Default: paged_adamw_8bit for qlora, else the entry point's.", STEP,
         str, "NAME"),
    Knob("batch_size", "Sequences in one micro-batch (per_device_train_batch_size). Default: 1.", STEP, whole_number),
    Knob("seq_len", "Tokens in every sequence. Default: 512.", STEP, whole_number),
    Knob("grad_accum", "Micro-batches in one optimizer step. Default: 1.", STEP, whole_number),
    Knob("max_grad_norm", "Gradient clipping; 0 is off. Default: 1.0, off in a loop.", STEP, number, "FLOAT"),
    Knob("padding", "Whether batches have an attention mask. Default: for batches above 1 that are not packed.", STEP, None),
    Knob("packing", "Samples packed to full sequences. Default: off.", STEP, None),
    Knob("gradient_checkpointing", "Keep each layer's input only, and run it again in backward. Default: on.", STEP, None),
    Knob("use_reentrant", "Which kind of checkpointing. Default: as the stack's entry point has it.", STEP, None),
    Knob("attn", "attn_implementation. Default: sdpa.", STEP),
    Knob("loss", "How head and loss are computed. Default: as the stack's entry point does.", STEP),
    Knob("entry_point", "trl: SFTTrainer; trainer: transformers' Trainer; loop: a hand-written loop. Default: trl.", STACK),
)  # fmt: skip


def metavar(knob: Knob) -> str | None:
    """What stands for a knob's value in `--help`."""
    if knob.metavar or knob.read is None:
        return knob.metavar
    return "|".join(CHOICES[knob.name]) if knob.name in CHOICES else "INTEGER" if knob.name in RANGES else None


def takes_recipe(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """
    Give a command the options of a recipe; it gets those that were typed as one dict, `knobs`.

    Args:
        without: Knobs that the command sets itself.
    """
    knobs = tuple(knob for knob in KNOBS if knob.name not in without)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def parsed(**given: Any) -> int:
            typed = {knob.name: given.pop(knob.name) for knob in knobs}
            values = {knob.name: _value(knob, typed[knob.name]) for knob in knobs if typed[knob.name] is not None}
            return command(**given, knobs=values)

        own = inspect.signature(command, eval_str=True).parameters
        arguments = [p for p in own.values() if p.name != "knobs"]
        options = [_parameter(knob) for knob in knobs]
        parsed.__doc__, parsed.__name__ = command.__doc__, command.__name__
        parsed.__annotations__ = {}  # the signature has them; resolving them once more takes 4 ms of a cold start
        parsed.__signature__ = inspect.Signature(arguments[:1] + options + arguments[1:])  # type: ignore[attr-defined]
        return parsed

    return decorate


def _value(knob: Knob, typed: Any) -> Any:
    return typed if knob.read is None else knob.read(typed)


def _parameter(knob: Knob) -> inspect.Parameter:
    if knob.read is None:
        declared = typer.Option(f"{knob.option}/--no-{knob.option[2:]}", help=knob.help, rich_help_panel=knob.panel, show_default=False)
        annotation: Any = Annotated[bool | None, declared]
    else:
        declared = typer.Option(
            knob.option, help=knob.help, rich_help_panel=knob.panel, metavar=metavar(knob), show_default=False,
            autocompletion=completion.choices(CHOICES[knob.name]) if knob.name in CHOICES else None,
        )  # fmt: skip
        annotation = Annotated[str | None, declared]
    return inspect.Parameter(knob.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


Model = Annotated[
    str,
    typer.Argument(
        help="A bundled id, a Hub id, a folder with config.json, or a config.json.",
        metavar="MODEL",
        autocompletion=completion.models,
        show_default=False,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help="A card's name, loosely (a6000, A100-80GB), or a size (80GiB). Default: the local card, else the common ones.",
        metavar="NAME|SIZE",
        rich_help_panel=STACK,
        autocompletion=completion.gpus,
        show_default=False,
    ),
]
Stack = Annotated[
    str,
    typer.Option(
        "--stack",
        help="Library versions: auto (this environment's), latest, or PKG==VERSION,...",
        metavar="auto|latest|PKG==VERSION,...",
        rich_help_panel=STACK,
        autocompletion=completion.choices(("auto", "latest")),
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a Hub id.", metavar="REV", rich_help_panel=STACK, show_default=False),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="How the estimate is made: in closed form; by the installed libraries' own code, run without data (needs qplan[torch]); or by "
        "both, side by side.",
        metavar="analytic|traced|both",
        rich_help_panel=STACK,
        autocompletion=completion.choices(("analytic", "traced", "both")),
    ),
]
EveryLayer = Annotated[
    bool,
    typer.Option(
        "--every-layer",
        help="Trace all layers, rather than three instances of what repeats, of which the others are copies.",
        rich_help_panel=STACK,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes, and nothing else.", rich_help_panel=OUTPUT)]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Also print what makes up the numbers, and where each comes from.", rich_help_panel=OUTPUT),
]
Timeline = Annotated[
    list[str] | None,
    typer.Option(
        "--timeline",
        help="Draw memory over one step: FILE.html (a page), FILE.png (needs qplan[plot]) or FILE.json (numbers). May be repeated.",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
WholeRun = Annotated[
    bool,
    typer.Option("--whole-run", help="Draw the timeline from the loading on, rather than over one step.", rich_help_panel=OUTPUT),
]
Snapshot = Annotated[
    str | None,
    typer.Option(
        "--snapshot",
        help="Write the run as FILE.pickle, which https://pytorch.org/memory_viz opens.",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]

"""A recipe as a training script: transformers, PEFT, bitsandbytes and TRL's SFTTrainer, knob for knob what was planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from planner.errors import InvalidRecipeError
from planner.recipe import Recipe
from planner.render.terminal import printable
from planner.stack import Behaviours, Stack, behaviours
from planner.value import NamedTuple

if TYPE_CHECKING:
    from planner.dtypes import DType

KINDS = ("trl",)

_TORCH = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}
_LEARNING_RATES = {"full": "2e-5", "lora": "2e-4", "qlora": "2e-4"}
_NO_NAME = {
    "adamw_torch_foreach": 'torch.optim.AdamW, {"lr": arguments.learning_rate, "foreach": True}',
    "adamw_32bit": 'bitsandbytes.optim.AdamW, {"lr": arguments.learning_rate, "optim_bits": 32}',
    "adafactor_torch": 'torch.optim.Adafactor, {"lr": arguments.learning_rate}',
    "sgd_momentum": 'torch.optim.SGD, {"lr": arguments.learning_rate, "momentum": 0.9}',
}
"""Optimizers that `TrainingArguments.optim` has no name for."""


class Planned(NamedTuple):
    """
    What a script is written for.

    Attributes:
        model: A Hub id or a path.
        recipe: Every knob resolved.
        stack: The versions.
        card: The card's name.
        command: The command that plans it.
        peak: The predicted peak, in words.
    """

    model: str
    recipe: Recipe
    stack: Stack
    card: str
    command: str
    peak: str


def text(planned: Planned, kind: str = "trl") -> str:
    """
    The script.

    Args:
        planned: What it is written for.
        kind: Whose trainer runs it.

    Raises:
        InvalidRecipeError: There is no such kind, or the kind cannot run the recipe.
    """
    recipe = planned.recipe
    if kind not in KINDS:
        raise InvalidRecipeError(f"the script's kind is {kind}; it must be one of {', '.join(KINDS)}", hint="pass --emit trl")
    if recipe.entry_point != "trl":
        raise InvalidRecipeError(
            f"entry_point is `{recipe.entry_point}`; a trl script trains by SFTTrainer", hint="leave --entry-point out"
        )
    if not planned.stack.at_least("trl", 1, 0):
        raise InvalidRecipeError(
            f"stack has TRL {planned.stack.versions['trl']}; scripts are written for TRL 1.0 and later", hint="pass --stack latest"
        )
    known = behaviours(planned.stack, recipe)
    if known.has_fused_head and recipe.loss == "full":
        raise InvalidRecipeError("loss is `full`, but SFTTrainer of this stack always computes it in chunks", hint="leave --loss out")
    parts = [_head(planned), _imports(recipe), _arguments(planned), _load(recipe)]
    parts += [_adapters(recipe), _config(recipe, known), _run(recipe, known)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(planned: Planned) -> Iterator[str]:
    versions = {name: version for name, version in planned.stack.versions.items() if name != "accelerate"}
    yield "#!/usr/bin/env python"
    yield '"""'
    yield f"{_plain(planned.model)} on one {_plain(planned.card)}: planned to peak at {planned.peak}."
    yield ""
    yield f"Planned with: {_plain(planned.command)}"
    yield "Written for:  " + ", ".join(f"{name} {version}" for name, version in versions.items())
    yield ""
    yield "    python train.py --dataset data.jsonl --output-dir out"
    yield ""
    yield "A dataset is a Hub id, or a .jsonl, .json, .csv, .parquet or .txt file, with a column `text`, `messages`, or `prompt` and"
    yield "`completion`. Samples are cut to the planned length; shorter ones need less memory."
    yield '"""'


def _imports(recipe: Recipe) -> Iterator[str]:
    yield "import argparse"
    yield "from pathlib import Path"
    yield ""
    if recipe.optim == "adamw_32bit":
        yield "import bitsandbytes"
    yield "import torch"
    yield "from datasets import load_dataset"
    peft = [*(["LoraConfig"] if recipe.method != "full" else []), *(["prepare_model_for_kbit_training"] if recipe.kbit_prepare else [])]
    if peft:
        yield f"from peft import {', '.join(peft)}"
    yield f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if recipe.is_quantized else ''}"
    yield "from trl import SFTConfig, SFTTrainer"
    yield ""
    yield "ON_CARD = torch.cuda.is_available()  # without one, the script can be tried on the CPU, slowly and in fp32"
    yield 'FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}'
    yield ""


def _arguments(planned: Planned) -> Iterator[str]:
    yield ""
    yield "def parse():"
    yield "    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)"
    yield f'    parser.add_argument("--model", default={planned.model!r})'
    yield '    parser.add_argument("--dataset", required=True, help="a Hub id, or a file")'
    yield '    parser.add_argument("--output-dir", default="out")'
    yield '    parser.add_argument("--max-steps", type=int, default=-1, help="optimizer steps; -1 is one pass over the data")'
    yield f'    parser.add_argument("--learning-rate", type=float, default={_LEARNING_RATES[planned.recipe.method]})'
    yield "    return parser.parse_args()"
    yield ""
    yield ""
    yield "def dataset(name):"
    yield "    if Path(name).is_file():"
    yield '        return load_dataset(FORMATS[Path(name).suffix], data_files=name, split="train")'
    yield '    return load_dataset(name, split="train")'
    yield ""


def _load(recipe: Recipe) -> Iterator[str]:
    yield ""
    yield "def load(name):"
    if recipe.is_quantized:
        yield "    quantization = BitsAndBytesConfig("
        if recipe.quantization == "int8":
            yield "        load_in_8bit=True,"
        else:
            yield "        load_in_4bit=True,"
            yield f'        bnb_4bit_quant_type="{recipe.quantization}",'
            yield f"        bnb_4bit_use_double_quant={recipe.double_quant},"
            yield f"        bnb_4bit_compute_dtype={_TORCH[recipe.compute_dtype]} if ON_CARD else torch.float32,"
        yield "    )"
    yield "    model = AutoModelForCausalLM.from_pretrained("
    yield "        name,"
    yield f"        dtype={_TORCH[recipe.dtype]} if ON_CARD else torch.float32,"
    attn = '"flash_attention_2" if ON_CARD else "sdpa"' if recipe.attn == "flash_attention_2" else f'"{recipe.attn}"'
    yield f"        attn_implementation={attn},"
    if recipe.is_quantized:
        yield "        quantization_config=quantization,"
    yield "    )"
    yield "    model.config.use_cache = False"
    if recipe.kbit_prepare:
        yield "    return prepare_model_for_kbit_training("
        yield "        model,"
        yield f"        use_gradient_checkpointing={recipe.gradient_checkpointing},"
        yield f"        gradient_checkpointing_kwargs={_reentrant(recipe)},"
        yield "    )"
    else:
        yield "    return model"
    yield ""


def _adapters(recipe: Recipe) -> Iterator[str]:
    if recipe.method == "full":
        return
    yield ""
    yield "ADAPTERS = LoraConfig("
    yield f"    r={recipe.rank},"
    yield f"    lora_alpha={recipe.lora_alpha},"
    yield f"    lora_dropout={recipe.dropout},"
    yield f"    target_modules={_listed(recipe.targets)!r},"
    for name, value in (("rank_pattern", recipe.rank_pattern), ("modules_to_save", list(recipe.modules_to_save))):
        if value:
            yield f"    {name}={value!r},"
    if recipe.dora:
        yield "    use_dora=True,"
    if recipe.rslora:
        yield "    use_rslora=True,"
    yield '    bias="none",'
    yield '    task_type="CAUSAL_LM",'
    yield ")"
    yield ""


def _config(recipe: Recipe, known: Behaviours) -> Iterator[str]:
    values: dict[str, Any] = {
        "output_dir": "arguments.output_dir",
        "max_steps": "arguments.max_steps",
        "num_train_epochs": 1,
        "learning_rate": "arguments.learning_rate",
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.grad_accum,
        "max_length": recipe.seq_len,
        "packing": recipe.packing,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": "ON_CARD" if recipe.mixed_precision == "bf16" else False,
        "fp16": "ON_CARD" if recipe.mixed_precision == "fp16" else False,
        "max_grad_norm": recipe.max_grad_norm,
    }
    if recipe.packing:
        values["packing_strategy"] = '"wrapped"'
    if recipe.gradient_checkpointing:
        values["gradient_checkpointing_kwargs"] = _reentrant(recipe)
    if recipe.optim not in _NO_NAME:
        values["optim"] = f'"{recipe.optim}" if ON_CARD else "adamw_torch"'
    if recipe.loss == "liger":
        values["use_liger_kernel"] = "ON_CARD"
    elif known.has_chunked_loss and not known.has_fused_head:
        values["loss_type"] = '"chunked_nll"' if recipe.loss == "chunked" else '"nll"'
    yield ""
    yield "def config(arguments):"
    yield "    return SFTConfig("
    for name, value in values.items():
        yield f"        {name}={value},"
    yield "        use_cpu=not ON_CARD,"
    yield "        logging_steps=1,"
    yield '        report_to="none",'
    yield "    )"
    yield ""


def _run(recipe: Recipe, known: Behaviours) -> Iterator[str]:
    yield ""
    yield "def main():"
    yield "    arguments = parse()"
    yield "    tokenizer = AutoTokenizer.from_pretrained(arguments.model)"
    yield "    if tokenizer.pad_token is None:"
    yield "        tokenizer.pad_token = tokenizer.eos_token"
    yield "    trainer = SFTTrainer("
    yield "        model=load(arguments.model),"
    yield "        args=config(arguments),"
    yield "        train_dataset=dataset(arguments.dataset),"
    yield "        processing_class=tokenizer,"
    if recipe.method != "full":
        yield "        peft_config=ADAPTERS,"
    if recipe.optim in _NO_NAME:
        yield f"        optimizer_cls_and_kwargs=({_NO_NAME[str(recipe.optim)]}),"
    yield "    )"
    wanted = _cast(recipe, known.adapter_dtype)
    if wanted:
        yield f"    for parameter in trainer.model.parameters():  # TRL leaves them in {known.adapter_dtype.value}"
        yield "        if parameter.requires_grad:"
        yield f"            parameter.data = parameter.data.to({wanted})"
    yield "    trainer.train()"
    yield "    trainer.save_model()"
    yield "    if ON_CARD:"
    yield "        peak, reserved = (size / 2**30 for size in (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))"
    yield '        print(f"peak: {peak:.2f} GiB allocated, {reserved:.2f} GiB reserved")'
    yield ""
    yield ""
    yield 'if __name__ == "__main__":'
    yield "    main()"


def _cast(recipe: Recipe, left_in: DType) -> str | None:
    """What the adapters are to be cast to, where the trainer leaves them in another type."""
    if recipe.method == "full" or recipe.adapter_dtype is None or recipe.adapter_dtype == left_in.value:
        return None
    return _TORCH[recipe.adapter_dtype]


def _reentrant(recipe: Recipe) -> str:
    return f'{{"use_reentrant": {bool(recipe.use_reentrant)}}}'


def _listed(targets: str | tuple[str, ...]) -> str | list[str]:
    return targets if isinstance(targets, str) else list(targets)


def _plain(words: str) -> str:
    """Words that can stand in a docstring."""
    return printable(words).replace("\\", "/").replace('"', "'")

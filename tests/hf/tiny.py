"""Tiny runs of the real trainers on the CPU."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from planner.hf import MemoryPlanCallback

VOCAB = 96
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "max_position_embeddings": 128,
}  # fmt: skip


def model(dtype: torch.dtype = torch.bfloat16, **sizes: int) -> Any:
    """A Llama of two layers, or of other sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}, dtype=dtype, bos_token_id=1, eos_token_id=2, pad_token_id=0)).to(dtype)


def samples(lengths: tuple[int, ...] = (24, 16, 24, 20)) -> Dataset:
    """Tokenised samples of such lengths."""
    rows = [[3 + (i * 7 + j) % (VOCAB - 3) for j in range(length)] for i, length in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows, "attention_mask": [[1] * len(row) for row in rows]})


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two steps with an evaluation and a save."""
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch",
        "logging_strategy": "no", "seed": 0, **changes,
    }  # fmt: skip


def tokenizer() -> Any:
    """A tokenizer that was trained on nothing: a word is a token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{n}": n for n in range(4, VOCAB)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def train_trainer(folder: Path, callback: MemoryPlanCallback, net: Any = None, data: Any = None, **changes: Any) -> Any:
    """A run of transformers' Trainer."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = samples() if data is None else data
        trainer = Trainer(
            model=model() if net is None else net,
            args=TrainingArguments(**arguments(folder, **changes)),
            train_dataset=data,
            eval_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer(), padding=True),
            callbacks=[callback],
        )
    return trainer


def train_sft(folder: Path, callback: MemoryPlanCallback, lora: Any = None, net: Any = None, data: Any = None, **changes: Any) -> Any:
    """A run of TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = (samples() if data is None else data).remove_columns(["labels", "attention_mask"])
        return SFTTrainer(
            model=model() if net is None else net,
            args=SFTConfig(**arguments(folder, **{"max_length": 32, "bf16": False, **changes})),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer(),
            peft_config=lora,
            callbacks=[callback],
        )


def watched(**options: Any) -> tuple[MemoryPlanCallback, io.StringIO]:
    """A callback, in closed form unless told otherwise, and what it prints."""
    out = io.StringIO()
    return MemoryPlanCallback(out=out, **{"engine": "analytic", **options}), out


def quantized(folder: Path, **sizes: int) -> Any:
    """The model as bitsandbytes loads it in 4 bits, with its kernels for the CPU."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model(**sizes).save_pretrained(folder)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu", quantization_config=four_bit)

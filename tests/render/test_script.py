"""A recipe as a training script: run for real, on a tiny model on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner import recommend
from planner.dtypes import DType
from planner.errors import InvalidRecipeError
from planner.recipe import make_recipe
from planner.render.script import Planned, text
from planner.stack import LATEST, parse_stack, resolve

# what reaches every branch of the script, with TRL 1.16
RECIPES: dict[str, dict[str, Any]] = {
    "qlora": {"seq_len": 32, "batch_size": 2, "grad_accum": 2},
    "full": {"method": "full", "optim": "sgd_momentum", "packing": True, "seq_len": 32, "gradient_checkpointing": False},
    "lora": {
        "method": "lora", "dora": True, "rslora": True, "targets": ("q_proj", "v_proj"), "modules_to_save": ("lm_head",), "seq_len": 32,
        "rank_pattern": {"q_proj": 4}, "attn": "eager", "optim": "adamw_torch_foreach", "max_grad_norm": 0.5, "grad_accum": 2,
    },
    "fp16": {"mixed_precision": "fp16", "compute_dtype": "fp16", "adapter_dtype": "fp32", "kbit_prepare": False, "seq_len": 32},
    "int8": {"quantization": "int8", "attn": "flash_attention_2", "optim": "adamw_32bit", "use_reentrant": True, "seq_len": 32},
}  # fmt: skip


def planned(stack: Any = LATEST, **knobs: Any) -> Planned:
    """A recipe that is ready to be written."""
    recipe = resolve(make_recipe(**knobs), stack, DType.BF16)
    return Planned("some/model", recipe, stack, "a card", "qplan estimate some/model", "1.00 GiB allocated")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a tokenizer of words, and texts of its words."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("checkpoint")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<unk>", "</s>", *(f"w{i}" for i in range(254))])}
    words_of = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    words_of.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words_of, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    texts = (" ".join(f"w{row * i % 254}" for i in range(40)) for row in range(1, 33))
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def run(script: str, folder: Path, checkpoint: Path, *, steps: int = 2) -> list[dict[str, Any]]:
    """Run a script for a few steps on the CPU; what the trainer logged."""
    (folder / "train.py").write_text(script)
    words = ["--model", str(checkpoint), "--dataset", str(checkpoint / "data.jsonl"), "--output-dir", "out", "--max-steps", str(steps)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    import ast

    return [ast.literal_eval(line[line.index("{") :]) for line in done.stdout.splitlines() if "'loss'" in line]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "qlora" else pytest.mark.slow) for name in RECIPES])
def test_scripts_train(name, checkpoint, tmp_path):
    """Two optimizer steps each, over the libraries that are installed; the model or its adapters are saved."""
    logged = run(text(planned(**RECIPES[name])), tmp_path, checkpoint)
    saved = {path.name for path in (tmp_path / "out").iterdir()}

    assert len(logged) == 2
    assert all(float(step["loss"]) > 0 and float(step["grad_norm"]) > 0 for step in logged)
    assert ("model.safetensors" if name == "full" else "adapter_model.safetensors") in saved
    if name != "full":
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_dropout"], config["use_dora"]) == (16, 0.05, name == "lora")


@pytest.mark.slow
def test_a_recommended_recipe_trains(checkpoint, tmp_path):
    """From the model's own folder to two steps: what `qplan fit --emit trl` prints."""
    best = recommend(str(checkpoint), gpu="2GiB", seq_len=32, effective_batch=4, method="qlora", stack="latest").best

    assert len(run(best.script(), tmp_path, checkpoint)) == 2


def test_a_script_has_every_knob():
    """The numbers of the recipe stand in the calls that take them."""
    script = text(planned(**RECIPES["lora"]))

    for words in (
        "use_dora=True,", "use_rslora=True,", "target_modules=['q_proj', 'v_proj'],", "modules_to_save=['lm_head'],",
        "rank_pattern={'q_proj': 4},", 'attn_implementation="eager",', "gradient_accumulation_steps=2,", "max_length=32,",
        "max_grad_norm=0.5,", "lora_alpha=32,", "bf16=ON_CARD,", '"foreach": True',
    ):  # fmt: skip
        assert words in script
    assert "BitsAndBytesConfig" not in script
    assert "prepare_model_for_kbit_training" not in script


def test_adapters_are_cast_where_the_trainer_leaves_them_otherwise():
    """TRL casts them to bf16 over a quantised base; fp32 was planned."""
    cast = "parameter.data = parameter.data.to(torch.float32)"

    assert cast in text(planned(**RECIPES["fp16"]))
    assert cast not in text(planned(**RECIPES["qlora"]))


def test_older_losses_have_names():
    """Before the fused head a chunked loss is asked for by name, and Liger's by its own switch."""
    stack = parse_stack("trl==1.10.0")

    assert 'loss_type="chunked_nll",' in text(planned(stack, loss="chunked"))
    assert 'loss_type="nll",' in text(planned(stack, loss="full"))
    assert "use_liger_kernel=ON_CARD," in text(planned(stack, loss="liger"))


def test_names_cannot_leave_the_docstring():
    """A model's name with quotes and line ends stays a name."""
    script = text(planned()._replace(model='a"""\nimport os', command='qplan "x" \\'))

    compile(script, "train.py", "exec")
    assert "\nimport os" not in script


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"entry_point": "loop"}, "entry_point is `loop`"),
        ({"loss": "full"}, "always computes it in chunks"),
        ({"stack": parse_stack("trl==0.20.0")}, "TRL 1.0 and later"),
    ],
)
def test_what_the_trainer_cannot_run_is_refused(given, says):
    """Another entry point, a loss that it does not compute, a version that the script is not for."""
    with pytest.raises(InvalidRecipeError, match=says):
        text(planned(**given))


def test_there_is_one_kind():
    """Another is refused by name."""
    with pytest.raises(InvalidRecipeError, match="kind is axolotl"):
        text(planned(), "axolotl")

"""Stacks and behaviours against the installed libraries, and the changes between versions that were read from their sources."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from planner.dtypes import DType
from planner.errors import UnknownStackError, UnsupportedRecipeError
from planner.recipe import Recipe
from planner.stack import LATEST, PACKAGES, behaviours, detect, parse_stack, resolve


def known(stack: str = "latest", **knobs: Any) -> Any:
    """Behaviours of a stack for a recipe given by knobs."""
    return behaviours(parse_stack(stack), Recipe(**knobs))


def resolved(stack: str = "latest", checkpoint: DType = DType.BF16, **knobs: Any) -> Recipe:
    """A resolved recipe given by knobs."""
    return resolve(Recipe(**knobs), parse_stack(stack), checkpoint)


# reading a stack


def test_a_stack_is_read_with_local_labels_and_gaps() -> None:
    """
    Local labels and development versions count as their release; packages left out take the newest profile's version.
    """
    stack = parse_stack(" torch==2.14.0+cu130, Transformers==5.17.0,peft==0.19.2.dev0 ")

    assert stack.versions == {**LATEST.versions, "torch": "2.14.0+cu130", "transformers": "5.17.0", "peft": "0.19.2.dev0"}
    assert stack.at_least("torch", 2, 14)
    assert not stack.at_least("peft", 0, 20)
    assert stack.source == "as given"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("4.57.6", "in_turn"), ("5.0.0", "ahead"), ("5.3.0", "ahead"), ("5.4.0", "in_doubt"), ("5.17.0", "in_doubt"), ("5.23.0", "in_turn")],
)
def test_which_loaders_read_ahead(version: str, expected: str) -> None:
    """By the sources of 4.57.6, 5.0.0, 5.3.0, 5.4.0, 5.17.0 and 5.23.0; only what is quantised on the card is concerned."""
    assert known(f"transformers=={version}", method="qlora", quantization="nf4").reading == expected
    assert known(f"transformers=={version}", method="lora").reading == "in_turn"


@pytest.mark.parametrize(
    "text", ["", ",", "nope", "torch", "torch=2.1", "numpy==2.0", "torch==", "torch==new", "torch==2..1", "torch==2.1;rm", "==1"]
)
def test_what_is_no_stack_is_refused_with_what_is(text: str) -> None:
    """
    Unknown packages and unreadable versions are one sentence and a way out.
    """
    with pytest.raises(UnknownStackError) as caught:
        parse_stack(text)

    assert caught.value.hint


def test_absurdly_long_versions_are_refused_quickly() -> None:
    """
    A version of a million digits is refused and not printed in full.
    """
    with pytest.raises(UnknownStackError) as caught:
        parse_stack("torch==" + "9" * 10**6)

    assert len(caught.value.message) < 300


def test_detect_reads_metadata_or_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    A complete environment is itself; one without TRL is the newest profile, and says so.
    """
    for package in PACKAGES:
        (tmp_path / f"{package}-3.1.4+local.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", ["/no/such/folder", str(tmp_path)])
    assert detect().versions == dict.fromkeys(PACKAGES, "3.1.4+local")

    (tmp_path / "trl-3.1.4+local.dist-info").rmdir()
    assert detect().versions == LATEST.versions
    assert "trl is not installed" in detect().source


def test_detect_agrees_with_the_metadata_library() -> None:
    """
    The folders' names say what importlib.metadata reads inside them.
    """
    for package in PACKAGES:
        pytest.importorskip(package)

    assert detect().versions == {package: importlib.metadata.version(package) for package in PACKAGES}


def test_detecting_imports_no_library() -> None:
    """
    Reading the versions of torch and transformers leaves both unimported.
    """
    program = (
        "import sys; from planner.stack import parse_stack; parse_stack('auto');"
        "assert not {'torch', 'transformers', 'peft', 'trl', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


# what changed between versions


@pytest.mark.parametrize(
    ("stack", "knobs", "expected"),
    [
        ("latest", {"entry_point": "loop"}, True),
        ("latest", {"entry_point": "loop", "kbit_prepare": False}, False),
        ("latest", {"entry_point": "loop", "method": "lora"}, False),
        ("latest", {"entry_point": "trainer"}, False),
        ("latest", {}, False),
        ("transformers==4.48.1", {"entry_point": "trainer", "method": "full"}, True),
        ("transformers==4.57.1,trl==0.27.0", {"method": "lora"}, True),
        ("transformers==4.57.1,trl==0.28.0", {"method": "lora"}, False),
        ("transformers==4.57.1,trl==0.28.0", {}, False),
        ("transformers==4.57.1,trl==0.25.1", {}, True),
        ("transformers==5.0.0,trl==0.25.1", {}, True),
        ("transformers==5.0.0,trl==0.25.1", {"method": "lora"}, False),
    ],
)
def test_the_default_checkpointing_follows_who_enables_it_last(stack: str, knobs: dict[str, Any], expected: bool) -> None:
    """
    kbit-prepare alone leaves torch's reentrant default; trainers put their own in its place.
    """
    assert known(stack, **knobs).use_reentrant is expected


@pytest.mark.parametrize(
    ("stack", "knobs", "expected"),
    [
        ("latest", {}, "all"),
        ("trl==0.26.0", {}, "all"),
        ("trl==0.25.1", {}, "norms"),
        ("trl==0.13.0", {}, "norms"),
        ("trl==0.13.0", {"mixed_precision": "no"}, "all"),
        ("trl==0.13.0", {"quantization": "int8"}, "all"),
        ("trl==0.13.0", {"kbit_prepare": False}, "none"),
        ("trl==0.13.0", {"entry_point": "trainer"}, "all"),
        ("latest", {"method": "lora"}, "none"),
        ("latest", {"method": "full"}, "none"),
    ],
)
def test_what_kbit_prepare_leaves_in_fp32_hangs_on_trl(stack: str, knobs: dict[str, Any], expected: str) -> None:
    """
    TRL before 0.26 prepared the base itself and cast all but the norms back, for 4-bit bases under bf16.
    """
    assert known(stack, **knobs).kbit_upcast == expected


@pytest.mark.parametrize(
    ("stack", "knobs", "adapter", "magnitude"),
    [
        ("latest", {}, "bf16", "fp32"),
        ("trl==1.14.0", {}, "bf16", "bf16"),
        ("trl==0.13.0", {}, "fp32", "fp32"),
        ("latest", {"method": "lora"}, "fp32", "fp32"),
        ("latest", {"entry_point": "trainer"}, "fp32", "fp32"),
        ("latest", {"entry_point": "loop"}, "fp32", "fp32"),
    ],
)
def test_adapter_types_hang_on_the_entry_point(stack: str, knobs: dict[str, Any], adapter: str, magnitude: str) -> None:
    """
    PEFT leaves adapters in fp32; TRL from 0.26 casts them to bf16 over quantised bases, DoRA's magnitudes no longer from 1.15.
    """
    facts = known(stack, **knobs)

    assert (facts.adapter_dtype.value, facts.magnitude_dtype.value) == (adapter, magnitude)


def test_losses_and_copies_of_old_stacks() -> None:
    """
    TRL chunks the loss from 1.6 on; transformers before 4.49 shifted the logits and paid a copy of them.
    """
    assert [known(f"trl=={version}").loss for version in ("1.5.0", "1.6.0", "1.16.0")] == ["full", "chunked", "chunked"]
    assert known(entry_point="trainer").loss == known(entry_point="loop").loss == "full"
    assert [known(f"transformers=={version}").loss_extra_copies for version in ("4.48.1", "4.49.0")] == [1, 0]


def test_the_default_optimizer_hangs_on_torch_and_transformers() -> None:
    """
    Trainers take fused AdamW with torch 2.8 and transformers 4.54; a loop does not.
    """
    cases = ["latest", "torch==2.7.1", "transformers==4.53.3"]

    assert [known(case, method="lora").optim for case in cases] == ["adamw_torch_fused", "adamw_torch", "adamw_torch"]
    assert known(entry_point="loop").optim == "adamw_torch"


# resolving


def test_the_canonical_recipe_resolves_to_the_canonical_script() -> None:
    """
    Every knob of the default recipe is filled as the design's script fills it.
    """
    recipe = resolved(checkpoint=DType.FP16)

    assert None not in recipe.model_dump().values()
    assert (recipe.quantization, recipe.dtype, recipe.kbit_prepare, recipe.optim) == ("nf4", "fp16", True, "paged_adamw_8bit")
    assert (recipe.adapter_dtype, recipe.max_grad_norm, recipe.padding, recipe.loss) == ("bf16", 1.0, False, "chunked")
    assert recipe.lora_alpha == 32


def test_given_knobs_win() -> None:
    """
    A knob that the user gave is never replaced, zero and False included.
    """
    knobs: dict[str, Any] = {
        "kbit_prepare": False, "adapter_dtype": "fp16", "optim": "sgd", "max_grad_norm": 0.0, "padding": False,
        "use_reentrant": True, "loss": "full", "lora_alpha": 7, "dtype": "fp32", "batch_size": 4, "quantization": "int8",
    }  # fmt: skip
    recipe = resolved(**knobs)

    assert {name: getattr(recipe, name) for name in knobs} == knobs


def test_padding_is_assumed_for_batches_that_are_not_packed() -> None:
    """
    A mask reaches the model for batches above one, unless they are packed.
    """
    assert [resolved(**knobs).padding for knobs in ({}, {"batch_size": 2}, {"batch_size": 2, "packing": True})] == [
        False,
        True,
        False,
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stack", "knobs", "reason"),
    [
        ("latest", {"loss": "liger"}, "Liger"),
        ("latest", {"loss": "chunked", "entry_point": "trainer"}, "chunked"),
        ("trl==1.3.0", {"loss": "chunked"}, "1.4"),
        ("latest", {"method": "full", "dtype": "fp16", "mixed_precision": "fp16"}, "Attempting to unscale FP16 gradients"),
        ("latest", {"method": "full", "mixed_precision": "fp16"}, "BFloat16"),
        ("latest", {"mixed_precision": "fp16"}, "BFloat16"),
        ("latest", {"method": "lora", "mixed_precision": "fp16", "adapter_dtype": "fp16"}, "FP16 gradients"),
        ("latest", {"method": "lora", "dtype": "fp32", "mixed_precision": "no", "attn": "flash_attention_2"}, "FlashAttention"),
    ],
)
def test_what_the_stack_refuses_is_refused(stack: str, knobs: dict[str, Any], reason: str) -> None:
    """
    Combinations that raise in the real libraries carry their reason and a way out.
    """
    with pytest.raises(UnsupportedRecipeError, match=reason) as caught:
        resolved(stack, **knobs)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("stack", "knobs"),
    [
        ("trl==1.14.0", {"loss": "liger"}),
        ("latest", {"loss": "liger", "entry_point": "trainer"}),
        ("latest", {"loss": "full"}),
        ("latest", {"method": "full", "dtype": "fp32", "mixed_precision": "fp16"}),
        ("latest", {"method": "full", "dtype": "fp16", "mixed_precision": "no"}),
        ("latest", {"mixed_precision": "fp16", "entry_point": "trainer"}),
        ("latest", {"mixed_precision": "fp16", "adapter_dtype": "fp32"}),
    ],
)
def test_what_the_stack_takes_is_taken(stack: str, knobs: dict[str, Any]) -> None:
    """
    The neighbours of refused combinations pass.
    """
    assert resolved(stack, **knobs)


# against the installed libraries


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny QLoRA model after one step of a real SFTTrainer: the trainer and its arguments."""
    torch = pytest.importorskip("torch")
    transformers, peft, trl = (pytest.importorskip(name) for name in ("transformers", "peft", "trl"))
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.AutoConfig.for_model(
        "llama",
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=128,
        intermediate_size=96,
        num_key_value_heads=2,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<pad>": 2}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            device_map="cpu",
        )
        model = peft.prepare_model_for_kbit_training(model)
        arguments = trl.SFTConfig(
            output_dir=str(folder), use_cpu=True, report_to=[], max_steps=1, save_strategy="no", disable_tqdm=True
        )
        trainer = trl.SFTTrainer(
            model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"text": ["a b a", "b b"]}),
            processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="b"),
            peft_config=peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True, modules_to_save=["lm_head"]),
        )
        trainer.train()  # checkpointing is enabled only here
    return trainer, arguments


def test_trl_leaves_trainable_parameters_as_the_behaviours_say(tiny: tuple[Any, Any]) -> None:
    """
    A real SFTTrainer: adapters and saved copies in bf16, magnitudes in fp32, what kbit-prepare cast in fp32.
    """
    facts = behaviours(detect(), Recipe())
    types: dict[str, set[str]] = {
        "lora_A": set(),
        "lora_magnitude": set(),
        "modules_to_save": set(),
        "norm": set(),
        "embed": set(),
    }
    for name, p in tiny[0].model.named_parameters():
        for part, seen in types.items():
            if part in name:
                seen.add(str(p.dtype).removeprefix("torch."))
    long = {DType.BF16: "bfloat16", DType.FP32: "float32"}

    assert types["lora_A"] == {long[facts.adapter_dtype]}
    assert types["lora_magnitude"] == {long[facts.magnitude_dtype]}
    assert facts.trains_quantized_in is not None
    assert types["modules_to_save"] == {long[facts.trains_quantized_in]}
    assert types["norm"] == types["embed"] == {"float32"}


def test_trl_defaults_are_those_of_its_config(tiny: tuple[Any, Any]) -> None:
    """
    Optimizer, clipping, mixed precision, checkpointing and the fused head of a real SFTConfig and SFTTrainer.
    """
    torch = pytest.importorskip("torch")
    trainer, arguments = tiny
    facts = behaviours(detect(), Recipe())
    tokens = torch.tensor([[0, 1, 0]])
    output = trainer.model.get_base_model()(input_ids=tokens, labels=tokens, fused_lm_head=True)
    checkpointing = next(m for m in trainer.model.modules() if hasattr(m, "_gradient_checkpointing_func"))

    assert (arguments.optim.value, arguments.max_grad_norm, arguments.bf16) == (facts.optim, facts.max_grad_norm, True)
    assert checkpointing._gradient_checkpointing_func.keywords == {"use_reentrant": facts.use_reentrant}
    assert facts.has_fused_head
    assert output.get("logits") is None
    assert output.log_probs.dtype is torch.float32


def test_kbit_prepare_alone_leaves_torch_s_default_checkpointing() -> None:
    """
    prepare_model_for_kbit_training passes no use_reentrant at all, so torch's True holds in a loop.
    """
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    config = transformers.AutoConfig.for_model(
        "llama", hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128, intermediate_size=96
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.is_loaded_in_4bit = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.prepare_model_for_kbit_training(model)
        after_prepare = dict(model.model.layers[0]._gradient_checkpointing_func.keywords)
        model.gradient_checkpointing_enable()
        after_enable = dict(model.model.layers[0]._gradient_checkpointing_func.keywords)

    assert after_prepare == {}
    assert known(entry_point="loop").use_reentrant is True
    assert after_enable == {"use_reentrant": known(entry_point="loop", method="lora").use_reentrant}


def test_trainer_defaults_are_those_of_training_arguments(tmp_path: Path) -> None:
    """
    The optimizer and the clipping of a real TrainingArguments.
    """
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    facts = behaviours(detect(), Recipe(entry_point="trainer"))

    assert (arguments.optim.value, arguments.max_grad_norm) == (facts.optim, facts.max_grad_norm)


def test_accelerate_copies_half_precision_outputs_to_fp32() -> None:
    """
    A model prepared for bf16 returns fp32, as `outputs_to_fp32` says of the trainers.
    """
    torch, accelerate = pytest.importorskip("torch"), pytest.importorskip("accelerate")
    model = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(torch.nn.Linear(4, 4))

    assert model(torch.zeros(1, 4)).dtype is torch.float32
    assert known(entry_point="trainer").outputs_to_fp32
    assert not known(entry_point="trainer", mixed_precision="no").outputs_to_fp32


def test_the_grad_scaler_refuses_fp16_gradients() -> None:
    """
    torch raises, in the words that the refusal quotes, when gradients of fp16 weights are unscaled.
    """
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = torch.optim.SGD([weight])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)

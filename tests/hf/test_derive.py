"""Model and recipe read off real objects of transformers, PEFT and TRL."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

import torch
from peft import IA3Config, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, TrainingArguments
from trl import SFTConfig

from planner.catalog import find_checkpoint
from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.hf.derive import derive
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore")
LOADER = SimpleNamespace(dataset=tiny.samples((8, 30, 12)))


def arguments(tmp_path, kind=TrainingArguments, **changes):
    """Arguments of a trainer on the CPU."""
    return kind(output_dir=str(tmp_path), use_cpu=True, report_to=[], **{"optim": "adamw_torch", **changes})


def test_a_full_run_of_the_trainer(tmp_path):
    """Every knob that `TrainingArguments` has, as it was given; the spec counts what the model has."""
    net = tiny.model()
    args = arguments(
        tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=4, bf16=True, max_grad_norm=0.5, optim="paged_adamw_8bit",
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip
    run = derive(net, args, dataloader=LOADER)
    recipe = run.recipe

    assert run.spec.num_parameters == sum(p.numel() for p in net.parameters())
    assert (recipe.method, recipe.quantization, recipe.dtype, recipe.mixed_precision) == ("full", "none", "bf16", "bf16")
    assert (recipe.batch_size, recipe.seq_len, recipe.grad_accum, recipe.max_grad_norm) == (3, 30, 4, 0.5)
    assert (recipe.optim, recipe.gradient_checkpointing, recipe.use_reentrant) == ("paged_adamw_8bit", True, True)
    assert (recipe.entry_point, recipe.attn, recipe.packing) == ("trainer", "sdpa", False)


@pytest.mark.parametrize(
    ("named", "expected"), [("adamw_bnb_8bit", "adamw_8bit"), ("paged_adamw_32bit", "paged_adamw_32bit"), ("sgd", "sgd")]
)
def test_optimizers_by_their_other_names(tmp_path, named, expected):
    """As transformers spells them."""
    assert derive(tiny.model(), arguments(tmp_path, optim=named), seq_len=8).recipe.optim == expected


def test_an_optimizer_that_was_handed_over_is_noticed(tmp_path):
    """optim says AdamW, but the trainer was given SGD: planned as named, and said; momentum is read off the optimizer itself."""
    net = tiny.model()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = derive(net, arguments(tmp_path), SimpleNamespace(optimizer=sgd), seq_len=8)

    assert "the optimizer is SGD, but optim is adamw_torch" in run.notes[0]
    assert derive(net, arguments(tmp_path, optim="sgd"), sgd, seq_len=8).recipe.optim == "sgd_momentum"


def test_lora_as_peft_has_it(tmp_path):
    """Rank, alpha, dropout, DoRA, patterns; names that match layer by layer are kept as their ends."""
    config = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.1, use_dora=True, use_rslora=True, target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 4}, modules_to_save=["lm_head"], task_type="CAUSAL_LM",
    )  # fmt: skip
    recipe = derive(get_peft_model(tiny.model(), config), arguments(tmp_path), seq_len=8).recipe

    assert (recipe.method, recipe.rank, recipe.lora_alpha, recipe.dropout) == ("lora", 8, 32, 0.1)
    assert (recipe.dora, recipe.rslora, recipe.targets) == (True, True, ("q_proj", "v_proj"))
    assert (recipe.rank_pattern, recipe.modules_to_save, recipe.adapter_dtype) == ({"q_proj": 4}, ("lm_head",), "fp32")


def test_targets_of_some_layers_keep_their_whole_names(tmp_path):
    """One layer's module alone is not what its end would match."""
    config = LoraConfig(r=4, target_modules=["model.layers.0.self_attn.q_proj"])
    recipe = derive(get_peft_model(tiny.model(), config), arguments(tmp_path), seq_len=8).recipe

    assert recipe.targets == ("model.layers.0.self_attn.q_proj",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
            ),
            ("nf4", True, "bf16"),
        ),
        (BitsAndBytesConfig(load_in_4bit=True), ("fp4", False, "fp32")),
        (BitsAndBytesConfig(load_in_8bit=True), ("int8", True, "bf16")),
    ],
)
def test_quantisation_as_bitsandbytes_was_told(tmp_path, config, expected):
    """Type, nested statistics and compute type; the preparation is seen by what it upcasts."""
    net = tiny.model()
    net.config.quantization_config = config
    plain = derive(get_peft_model(net, LoraConfig(r=4, target_modules=["q_proj"])), arguments(tmp_path), seq_len=8).recipe
    net = tiny.model()
    net.config.quantization_config, net.is_loaded_in_4bit = config, True
    prepared = prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    recipe = derive(get_peft_model(prepared, LoraConfig(r=4, target_modules=["q_proj"])), arguments(tmp_path), seq_len=8).recipe

    assert (recipe.quantization, recipe.double_quant, recipe.compute_dtype) == expected
    assert (recipe.method, recipe.dtype) == ("qlora", "bf16")
    assert (plain.kbit_prepare, recipe.kbit_prepare) == (False, True)


@pytest.mark.parametrize(
    ("changes", "tokens", "packs"),
    [({"max_length": 16}, 16, False), ({"max_length": None}, 30, False), ({"max_length": 64, "packing": True}, 64, True)],
)
def test_the_longest_batch_of_sft(tmp_path, changes, tokens, packs):
    """The longest sample, at most `max_length`; packed, `max_length`."""
    recipe = derive(tiny.model(), arguments(tmp_path, SFTConfig, **changes), dataloader=LOADER).recipe

    assert (recipe.entry_point, recipe.seq_len, recipe.packing) == ("trl", tokens, packs)


def test_the_users_word_counts_before_the_samples(tmp_path):
    """seq_len as given."""
    assert derive(tiny.model(), arguments(tmp_path), dataloader=LOADER, seq_len=77).recipe.seq_len == 77


@pytest.mark.parametrize("dataset", [None, [], iter([]), [{"text": "a"}], ["a"]])
def test_unknown_lengths_are_refused_with_what_to_do(tmp_path, dataset):
    """Streams, and samples without input_ids, do not say how long they are."""
    with pytest.raises(InvalidRecipeError, match="seq_len is not known") as refused:
        derive(tiny.model(), arguments(tmp_path), dataloader=SimpleNamespace(dataset=dataset))

    assert "MemoryPlanCallback(seq_len=" in refused.value.hint


def test_what_is_not_planned_is_refused(tmp_path):
    """Other adapters, other quantisers, shards."""
    net = tiny.model()
    net.config.quantization_config = {"quant_method": "gptq"}
    sharded = arguments(tmp_path)
    sharded.deepspeed = "zero3.json"

    with pytest.raises(UnsupportedRecipeError, match="the adapter is IA3"):
        derive(get_peft_model(tiny.model(), IA3Config(task_type="CAUSAL_LM")), arguments(tmp_path), seq_len=8)
    with pytest.raises(UnsupportedRecipeError, match="quantised by gptq"):
        derive(net, arguments(tmp_path), seq_len=8)
    with pytest.raises(UnsupportedRecipeError, match="deepspeed is on"):
        derive(tiny.model(), sharded, seq_len=8)


def test_a_model_of_the_hub_has_its_id_and_one_of_a_folder_a_config(tmp_path):
    """What `from_pretrained` was given: an id is published, a folder that is here is not."""
    net = tiny.model()
    net.config._name_or_path = "Qwen/Qwen2.5-0.5B"
    published = derive(net, arguments(tmp_path), seq_len=8).spec
    net.config._name_or_path = str(tmp_path)
    local = derive(net, arguments(tmp_path), seq_len=8).spec

    assert (published.id, published.source) == (find_checkpoint("qwen/qwen2.5-0.5b").id, "hub")
    assert (local.id, local.source) == (str(tmp_path), "config")


def test_samples_of_one_length_need_no_mask(tmp_path):
    """Where all are cut to `max_length`, or are as long as each other, nothing is padded; else the longest batch may be."""
    same = SimpleNamespace(dataset=tiny.samples((20, 20, 20)))
    plain, cut = (arguments(tmp_path, SFTConfig, max_length=length, per_device_train_batch_size=2) for length in (64, 8))

    assert derive(tiny.model(), plain, dataloader=same).recipe.padding is False
    assert derive(tiny.model(), plain, dataloader=LOADER).recipe.padding is None
    assert derive(tiny.model(), cut, dataloader=LOADER).recipe.padding is False

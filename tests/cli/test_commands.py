"""What each command prints, for people and for programs."""

from __future__ import annotations

import json

import pytest

from planner import cli
from tests import fakes
from tests.test_api import CONTRACT, assert_matches

LLAMA_7B, LLAMA_70B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf"


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def printed(capsys, *arguments: str) -> str:
    """Standard output of a command that is no fault."""
    assert cli.run(arguments) in (0, 1)
    return capsys.readouterr().out


def test_estimate_json_is_the_contract(capsys):
    """The whole of standard output is one JSON document of the published fields."""
    found = json.loads(printed(capsys, "estimate", LLAMA_70B, "--rank", "16", "--gpu", "80GiB", "--stack", "latest", "--json"))

    assert_matches(CONTRACT, found)
    assert found["recipe"]["rank"] == 16
    assert found["device"]["total_bytes"] == 80 << 30


def test_estimate_passes_every_option_on(capsys):
    """What is typed is what is planned."""
    typed = {
        "--method": "lora",
        "--rank": "8",
        "--lora-alpha": "32",
        "--targets": "q_proj,v_proj",
        "--rank-pattern": "q_proj=4",
        "--modules-to-save": "lm_head",
        "--dropout": "0.1",
        "--quantization": "none",
        "--compute-dtype": "fp16",
        "--dtype": "bf16",
        "--mixed-precision": "bf16",
        "--adapter-dtype": "fp32",
        "--optim": "sgd",
        "--batch-size": "2",
        "--seq-len": "64",
        "--grad-accum": "3",
        "--max-grad-norm": "0.5",
        "--attn": "eager",
        "--loss": "full",
        "--entry-point": "trainer",
    }
    switches = (
        "--dora",
        "--rslora",
        "--no-double-quant",
        "--no-kbit-prepare",
        "--no-padding",
        "--packing",
        "--no-gradient-checkpointing",
        "--use-reentrant",
    )
    words = [word for pair in typed.items() for word in pair]
    recipe = json.loads(printed(capsys, "estimate", LLAMA_7B, *words, *switches, "--json"))["recipe"]

    assert recipe == {
        "method": "lora",
        "rank": 8,
        "lora_alpha": 32,
        "targets": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 4},
        "modules_to_save": ["lm_head"],
        "dropout": 0.1,
        "quantization": "none",
        "compute_dtype": "fp16",
        "dtype": "bf16",
        "mixed_precision": "bf16",
        "adapter_dtype": "fp32",
        "optim": "sgd",
        "batch_size": 2,
        "seq_len": 64,
        "grad_accum": 3,
        "max_grad_norm": 0.5,
        "attn": "eager",
        "loss": "full",
        "entry_point": "trainer",
        "dora": True,
        "rslora": True,
        "double_quant": False,
        "kbit_prepare": False,
        "padding": False,
        "packing": True,
        "gradient_checkpointing": False,
        "use_reentrant": True,
    }


def test_a_regular_expression_is_a_target(capsys):
    """Targets that are no names go to PEFT's matching as one expression."""
    found = json.loads(printed(capsys, "estimate", LLAMA_7B, "--targets", r".*\.(q|v)_proj", "--json"))

    assert found["recipe"]["targets"] == r".*\.(q|v)_proj"


def test_compare_json_has_a_row_a_method(capsys):
    """Sizes are bytes; the card is the smallest common one that takes it."""
    found = json.loads(printed(capsys, "compare", LLAMA_7B, "--json"))

    assert found["schema_version"] == 1
    assert [row["method"] for row in found["rows"]] == ["full", "lora", "qlora"]
    assert all(type(row["process_bytes"]) is int for row in found["rows"])


def test_gpus_json_is_the_catalogue_or_the_verdicts(capsys):
    """Without a model the cards' facts, with one a verdict beside each card."""
    cards = json.loads(printed(capsys, "gpus", "--json"))["gpus"]
    judged = json.loads(printed(capsys, "gpus", LLAMA_7B, "--rank", "8", "--json"))["gpus"]

    assert {"name", "total_bytes", "compute_capability"} <= set(cards[0])
    assert {card["name"] for card in cards} == {card["device"]["name"] for card in judged}
    assert {card["verdict"]["outcome"] for card in judged} <= {"fits", "tight", "does_not_fit"}


def test_models_json_lists_what_the_words_say(capsys):
    """Every word must occur in the id or the family."""
    found = json.loads(printed(capsys, "models", "llama-2", "70b", "--json"))["models"]

    assert [model["id"] for model in found] == [LLAMA_70B]

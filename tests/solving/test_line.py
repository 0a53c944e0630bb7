"""What a value needs at once at least: never more than the run that is simulated holds, and rising with the knob."""

from __future__ import annotations

from itertools import accumulate

import pytest

from planner import api
from planner.architecture import build_spec
from planner.device import Device
from planner.formulas.runtime import cuda_context
from planner.solving.line import Line
from planner.unrolling import unroll_history
from tests.engines.tiny import GEMMA, GPT2, LLAMA

MIXTURE = {
    **LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32,
}  # fmt: skip
WINDOWED = {**LLAMA, "model_type": "gemma2", "head_dim": 32, "num_hidden_layers": 5, "sliding_window": 48}
MODELS = {"llama": LLAMA, "gpt2": GPT2, "gemma": GEMMA, "mixture": MIXTURE, "windowed": WINDOWED}
RECIPES = {
    "qlora": {"dropout": 0.0, "stack": "latest"},
    "eager": {"method": "lora", "attn": "eager", "gradient_checkpointing": False, "dropout": 0.0, "stack": "latest"},
    "full": {"method": "full", "grad_accum": 2, "entry_point": "trainer", "optim": "adamw_torch", "stack": "latest"},
    "reentrant": {"use_reentrant": True, "quantization": "int8", "kbit_prepare": False, "dropout": 0.0, "stack": "latest"},
    "loop": {"method": "lora", "entry_point": "loop", "loss": "full", "optim": "adafactor", "dropout": 0.0, "stack": "latest"},
    "8 bits": {"method": "lora", "optim": "adamw_8bit", "dropout": 0.0, "stack": "latest"},
    "before": {"entry_point": "trainer", "targets": "q_proj,c_attn", "stack": "transformers==4.48.0,trl==0.13.0,peft==0.14.0"},
}
AXES = {"batch_size": range(1, 90), "seq_len": range(1, 260), "rank": range(1, 200), "grad_accum": range(1, 6)}
CARD = Device("a card", cuda_context((8, 0)).nbytes + (64 << 20), (8, 0))


def line(model: str, recipe: str, knob: str) -> Line:
    """Every value of a knob."""
    if model == "mixture" and recipe == "before":
        pytest.skip("experts were modules then, which no table describes")
    knobs = {"seq_len": 32, **RECIPES[recipe]}
    knobs.pop(knob, None)
    job, _ = api.plan(build_spec(MODELS[model], id=model), gpu=CARD, **knobs)
    return Line(job, CARD, knob, AXES[knob])


@pytest.mark.parametrize("knob", AXES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_a_need_is_held_by_the_run_itself(model, recipe, knob):
    """At some event of the history at least so much is alive, each storage in whole blocks: no allocator can do with less."""
    if knob == "rank" and recipe == "full":
        pytest.skip("there are no adapters")
    found = line(model, recipe, knob)
    for index in (0, 1, 2, len(found.values) // 2, len(found.values) - 1):
        history = unroll_history(found.at(index).analysis(CARD).history)
        blocks = [-(-size // 512) * 512 for size in history.sizes]
        most = max(accumulate(blocks[e] if e >= 0 else -blocks[~e] for e in history.events))

        assert found.need_bytes(index) <= most


@pytest.mark.parametrize("knob", ["batch_size", "seq_len", "rank"])
@pytest.mark.parametrize("recipe", ["qlora", "eager", "8 bits"])
@pytest.mark.parametrize("model", MODELS)
def test_needs_never_fall(model, recipe, knob):
    """From the second value on: across the padding that begins at two samples, windows, chunks of the loss, kernels, states of 8 bits."""
    found = line(model, recipe, knob)
    indices = range(1, len(found.values), 1 if knob != "rank" else 3)
    needs = [found.need_bytes(index) for index in indices]

    assert needs == sorted(needs)


def test_a_value_that_is_the_same_run_is_simulated_once():
    """Accumulation over three passes is that over two."""
    found = line("llama", "qlora", "grad_accum")

    assert found.at(1) is found.at(4)
    assert found.at(0) is not found.at(1)

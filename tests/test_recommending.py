"""Whole recipes for a card: each against the estimate that its command names, and their order against the stated preferences."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from planner import estimate, recommend
from planner.errors import InvalidRecipeError, QplanError, UnknownDeviceError
from planner.recommending import Recommendations

LLAMA_8B, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-0.6B"


def recommended(model: Any, gpu: Any, **knobs: Any) -> Recommendations:
    """The recipes of one request."""
    return recommend(model, gpu=gpu, stack="latest", **knobs)


@pytest.mark.parametrize(
    ("model", "gpu", "knobs"),
    [
        (LLAMA_8B, "t4", {}),
        (LLAMA_8B, "rtx 4090", {"seq_len": 2048}),
        (LLAMA_8B, "a100-80gb", {"seq_len": 4096, "effective_batch": 32}),
        (QWEN, "t4", {"effective_batch": 12}),
        (LLAMA_8B, "t4", {"quantization": "int8", "rank": 64}),
    ],
)
def test_every_recipe_fits_as_its_own_estimate_says(model, gpu, knobs):
    """Planned anew from its knobs it fits with room to spare, has the effective batch, and keeps what was asked for."""
    found = recommended(model, gpu, **knobs)
    asked = {name: value for name, value in knobs.items() if name != "effective_batch"}

    assert found.recipes
    for recipe in found.recipes:
        report = estimate(model, gpu=gpu, stack="latest", **recipe.knobs)
        assert report.verdict.outcome == "fits"
        assert report.verdict._replace(runs_with_expandable_segments=None) == recipe.verdict
        assert report.recipe == recipe.recipe.model_dump()
        assert recipe.recipe.batch_size * recipe.recipe.grad_accum == found.effective_batch == knobs.get("effective_batch", 16)
        assert {name: report.recipe[name] for name in asked} == asked
        assert not recipe.gives_up


def test_the_command_is_the_recipe():
    """What is typed plans what is recommended."""
    from planner.cli import options

    best = recommended(LLAMA_8B, "t4").best
    words = shlex.split(best.command)
    typed = {knob.option: knob for knob in options.KNOBS}
    knobs: dict[str, Any] = {}
    for at, word in enumerate(words):
        if word in typed:
            knob = typed[word]
            knobs[knob.name] = True if knob.read is None else knob.read(words[at + 1])
        elif word.startswith("--no-"):
            knobs[word[5:].replace("-", "_")] = False

    assert words[:3] == ["qplan", "estimate", LLAMA_8B]
    assert words[-4:] == ["--gpu", "t4", "--stack", "latest"]
    assert knobs == best.knobs


def test_the_batch_takes_the_fewest_passes_that_fit():
    """The next larger divisor of the effective batch does not leave enough room."""
    for recipe in recommended(LLAMA_8B, "t4").recipes:
        size, passes = recipe.recipe.batch_size, recipe.recipe.grad_accum
        larger = min((n for n in range(size + 1, 17) if 16 % n == 0), default=None)
        if larger:
            knobs = {**recipe.knobs, "batch_size": larger, "grad_accum": 16 // larger}
            assert size * passes == 16
            assert estimate(LLAMA_8B, gpu="t4", stack="latest", **knobs).verdict.outcome != "fits"


def test_methods_come_in_the_order_of_the_preferences():
    """On a card that takes all of them: full, then LoRA, then QLoRA; of each without checkpointing first."""
    found = recommended(LLAMA_8B, "a100-80gb", seq_len=4096)
    methods = [recipe.recipe.method for recipe in found.recipes]
    checkpointed = [recipe.recipe.gradient_checkpointing for recipe in found.recipes if recipe.recipe.method == "qlora"]

    assert methods == sorted(methods, key=["full", "lora", "qlora"].index)
    assert set(methods) == {"full", "lora", "qlora"}
    assert checkpointed == sorted(checkpointed)
    assert found.refused == {}


def test_trades_say_what_was_changed():
    """Without its trades a recipe is the least sparing one, which does not fit."""
    for recipe in recommended(LLAMA_8B, "rtx 4090", seq_len=2048).recipes:
        changed = {name: value for trade in recipe.trades for name, value in trade.knobs.items()}
        start = {name: value for name, value in recipe.knobs.items() if name not in changed}
        start |= {"batch_size": 16, "gradient_checkpointing": False}
        resolved = recipe.recipe.model_dump()

        assert {name: resolved[name] for name in changed} == changed
        assert recipe.trades
        assert estimate(LLAMA_8B, gpu="rtx 4090", stack="latest", **start).verdict.outcome != "fits"


def test_a_length_is_shortened_where_nothing_else_helps():
    """It was asked for, so it is kept while anything fits; else the trade says what became of it."""
    found = recommended(LLAMA_8B, "t4", seq_len=32768)

    assert found.recipes
    for recipe in found.recipes:
        assert recipe.gives_up
        assert recipe.recipe.seq_len < 32768
        assert any("not 32,768" in trade.price for trade in recipe.trades)


def test_what_gives_up_nothing_comes_first():
    """Recipes that learn less stand behind those that do not, whatever their method."""
    order = [recipe.gives_up for recipe in recommended("meta-llama/Llama-2-70b-hf", "a6000").recipes]

    assert order
    assert order == sorted(order)


def test_a_card_without_bf16_trains_in_fp16():
    """With adapters in fp32, since torch's GradScaler refuses others; a type that was asked for is kept."""
    for recipe in recommended(QWEN, "t4").recipes:
        assert (recipe.recipe.mixed_precision, recipe.recipe.adapter_dtype) == ("fp16", "fp32")
        assert any("no bf16" in trade.price for trade in recipe.trades)

    asked = recommended(QWEN, "t4", mixed_precision="bf16", dtype="bf16", compute_dtype="bf16", adapter_dtype="bf16", method="qlora").best
    assert asked.recipe.mixed_precision == "bf16"
    assert not any("no bf16" in trade.price for trade in asked.trades)


def test_where_nothing_fits_every_method_says_why():
    """No recipe, and a reason for each method."""
    found = recommended("meta-llama/Llama-2-70b-hf", "t4")

    assert (found.recipes, found.best) == ((), None)
    assert set(found.refused) == {"full", "lora", "qlora"}


def test_a_method_that_cannot_be_is_refused_with_the_reason():
    """A quantised base rules full fine-tuning out; the others go on."""
    found = recommended(LLAMA_8B, "rtx 4090", quantization="nf4")

    assert "quantised weights cannot be trained" in found.refused["full"]
    assert found.best is not None


def test_the_contract_is_json():
    """Sizes are integers of bytes; trades are options and their price."""
    import json

    found = json.loads(recommended(LLAMA_8B, "t4").model_dump_json())

    assert found["effective_batch"] == 16
    assert all(isinstance(recipe["verdict"]["required_bytes"], int) for recipe in found["recipes"])
    assert set(found["recipes"][0]) == {"command", "trades", "recipe", "allocated_bytes", "verdict"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"effective_batch": 0}, "effective_batch is 0"),
        ({"batch_size": 4}, "both parts of the batch are chosen"),
        ({"grad_accum": 4}, "both parts of the batch are chosen"),
        ({"ranks": 4}, "ranks is no knob"),
    ],
)
def test_requests_that_cannot_be_are_refused(given, says):
    """Each says what is wrong."""
    with pytest.raises(QplanError) as error:
        recommended(QWEN, "t4", **given)

    assert says in error.value.message
    assert isinstance(error.value, InvalidRecipeError)


def test_without_a_card_there_is_nothing_to_recommend(monkeypatch):
    """No card is named and none is here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UnknownDeviceError, match="no card is named"):
        recommend(QWEN, stack="latest")

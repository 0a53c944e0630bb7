"""Every knob, what it may be, and what the knobs may be together."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.recipe import CHOICES, KNOBS, RANGES, Recipe, make_recipe


def test_the_defaults_are_the_canonical_script():
    """NF4 with double quantisation, r=16 on all linears, SFTTrainer with bf16, checkpointing, one sample of 512 tokens."""
    recipe = Recipe()

    assert (recipe.method, recipe.rank, recipe.targets, recipe.dropout) == ("qlora", 16, "all-linear", 0.05)
    assert (recipe.is_quantized, recipe.double_quant, recipe.compute_dtype, recipe.mixed_precision) == (
        True,
        True,
        "bf16",
        "bf16",
    )
    assert (recipe.entry_point, recipe.gradient_checkpointing, recipe.tokens) == ("trl", True, 512)


@pytest.mark.parametrize(("name", "choices"), CHOICES.items())
def test_a_knob_of_few_values_takes_them_and_no_other(name, choices):
    """What is refused is told with everything that would be taken."""
    for choice in choices:
        try:
            assert getattr(make_recipe(**{name: choice}), name) == choice
        except UnsupportedRecipeError:  # the value is one; the other knobs contradict it
            continue
    with pytest.raises(InvalidRecipeError, match=f"{name} is 'nonsense'; it must be one of {', '.join(choices)}"):
        make_recipe(**{name: "nonsense"})


@pytest.mark.parametrize(("name", "bounds"), RANGES.items())
def test_a_whole_number_has_bounds(name, bounds):
    """The bounds are inside; beyond them, fractions, texts and truth values are refused."""
    low, high = bounds

    assert [getattr(make_recipe(**{name: value}), name) for value in bounds] == [low, high]
    for value in (low - 1, high + 1, 1.5, "2", True, float("nan"), [1]):
        with pytest.raises(InvalidRecipeError, match=f"{name} is .*; it must be a whole number from {low} to {high}"):
            make_recipe(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 1), ("dropout", -0.1), ("dropout", float("nan")), ("dropout", "0.1"), ("max_grad_norm", -1),
        ("max_grad_norm", "1"), ("max_grad_norm", float("inf")), ("dora", 1), ("double_quant", None),
        ("kbit_prepare", "yes"), ("targets", ""), ("targets", []),
        ("targets", ["q_proj", 3]), ("targets", None), ("modules_to_save", "lm_head"), ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", [("q_proj", 8)]), ("rank_pattern", {"q_proj": True}),
    ],
)  # fmt: skip
def test_values_that_a_knob_cannot_have(name, value):
    """Each is refused by name."""
    with pytest.raises(InvalidRecipeError, match=name):
        make_recipe(**{name: value})


def test_a_knob_that_is_none_gets_the_nearest_names():
    """A typo is answered with what was perhaps meant."""
    with pytest.raises(InvalidRecipeError, match="bacth_size is no knob") as caught:
        make_recipe(bacth_size=2)

    assert "batch_size" in caught.value.hint


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "qlora", "quantization": "none"},
        {"method": "full", "quantization": "nf4"},
        {"method": "lora", "kbit_prepare": True},
    ],
)
def test_knobs_that_contradict_each_other(knobs):
    """The refusal comes with a way out."""
    with pytest.raises(UnsupportedRecipeError) as caught:
        make_recipe(**knobs)

    assert caught.value.hint.startswith("pass --")


def test_recipes_are_values():
    """Frozen, equal and hashed by what they hold; a changed copy is checked again."""
    recipe = make_recipe(targets=["q_proj"], rank_pattern={"q_proj": 8})

    assert recipe == make_recipe(targets=("q_proj",), rank_pattern={"q_proj": 8})
    assert hash(recipe) == hash(make_recipe(targets=("q_proj",), rank_pattern={"q_proj": 8}))
    assert recipe.model_copy(update={"rank": 4}).rank == 4
    with pytest.raises(InvalidRecipeError):
        recipe.model_copy(update={"rank": 0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.rank = 2


def test_a_dump_is_json_and_makes_the_recipe_again():
    """Every knob is in it."""
    recipe = make_recipe(targets=["q_proj", "v_proj"], rank_pattern={"q_proj": 8}, max_grad_norm=0.3)
    dumped = json.loads(json.dumps(recipe.model_dump()))

    assert tuple(dumped) == KNOBS
    assert make_recipe(**{**dumped, "modules_to_save": tuple(dumped["modules_to_save"])}) == recipe

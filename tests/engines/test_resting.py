"""What rests, added up: rows, counts and the optimizer's states on and off the card."""

from __future__ import annotations

from typing import Any

import pytest

from planner.ledger import Category
from tests.engines.tiny import LLAMA, MODELS, TIED, analysed, rested

RECIPES: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "int8": {"method": "qlora", "quantization": "int8"},
    "dora": {"method": "lora", "dora": True},
    "saved": {"method": "qlora", "modules_to_save": ("lm_head",)},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_rows_add_up(model, recipe):
    """The rows that stay are the steady bytes; the transient of the preparation is not among them."""
    _, resting = rested(MODELS[model], **RECIPES[recipe])

    assert resting.steady_bytes == sum(row.nbytes for row in resting.rows if row.end == 0)
    assert all(row.nbytes % 512 == 0 for row in resting.rows)
    assert all(row.end <= resting.prepare_end for row in resting.rows)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_trained_tensors_are_those_of_the_preparation(model, recipe):
    """Elements that the optimizer walks over and elements that the preparation says are trained."""
    preparation, resting = rested(MODELS[model], **RECIPES[recipe])

    assert preparation.num_trainable_parameters == sum(count * parameter.numel for parameter, count in resting.trainables)


def test_a_tied_head_rests_once():
    """The head of a tied model has no row and no trained tensor of its own."""
    names = {row.name for row in rested(TIED, method="full")[1].rows}
    untied = {row.name for row in rested(LLAMA, method="full")[1].rows}

    assert {"lm_head: weight"} == untied - names


@pytest.mark.parametrize(
    ("plain", "paged"), [("adamw_8bit", "paged_adamw_8bit"), ("adamw_32bit", "paged_adamw_32bit"), ("lion_8bit", "paged_lion_8bit")]
)
def test_paged_states_are_outside_the_allocator(plain, paged):
    """What a paged optimizer keeps in managed memory is no row of the ledger, and is told beside it."""
    config = {**LLAMA, "hidden_size": 512, "intermediate_size": 1024}  # tensors large enough to be paged
    on_card, outside = (analysed(config, method="full", optim=name) for name in (plain, paged))

    assert on_card.paged_bytes == 0
    assert outside.paged_bytes > 0
    assert on_card.steady_bytes > outside.steady_bytes
    assert abs(on_card.steady_bytes - outside.steady_bytes - outside.paged_bytes) < 512 * 100  # blocks are rounded, pages are not


def test_int8_holds_a_byte_a_weight_and_a_scale_a_row():
    """LLM.int8: [m, k] bytes and m fp32 numbers, each in its own block."""
    _, resting = rested(LLAMA, method="qlora", quantization="int8")
    rows = {row.name: row for row in resting.rows}
    weight, scale = rows["model.layers.*.mlp.up_proj: weight"], rows["model.layers.*.mlp.up_proj: weight.SCB"]

    assert (weight.category, weight.nbytes) == (Category.PARAMETER, 3 * 320 * 128)
    assert (scale.category, scale.nbytes) == (Category.QUANT_STATE, 3 * 1536)  # 1280 bytes take three blocks


def test_trained_copies_rest_beside_what_they_copy():
    """modules_to_save keeps the frozen original."""
    _, resting = rested(LLAMA, method="lora", modules_to_save=("lm_head",))
    rows = {row.name: row for row in resting.rows}

    assert rows["lm_head: weight"].category is Category.PARAMETER
    assert rows["lm_head: trained copy"].category is Category.ADAPTER
    assert rows["lm_head: weight"].nbytes <= rows["lm_head: trained copy"].nbytes

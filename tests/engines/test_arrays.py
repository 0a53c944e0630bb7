"""Peaks by column: the same integers as one estimate at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import api
from planner import stack as stacks
from planner.device import Device
from planner.engines import analytic
from planner.engines.arrays import Peaks
from planner.engines.moments import PHASES
from planner.errors import InvalidRecipeError, QplanError, UnsupportedRecipeError
from planner.recipe import make_recipe

STACK = stacks.parse_stack("latest")
MODELS = [summary.id for summary in api.models()]
RECIPES = st.fixed_dictionaries(
    {"method": st.sampled_from(("qlora", "qlora", "lora", "full"))},
    optional={
        "attn": st.sampled_from(("eager", "sdpa", "flash_attention_2")),
        "gradient_checkpointing": st.booleans(),
        "use_reentrant": st.booleans(),
        "dropout": st.sampled_from((0.0, 0.1)),
        "optim": st.sampled_from(("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd")),
        "entry_point": st.sampled_from(("trl", "trainer", "loop")),
        "loss": st.sampled_from(("full", "chunked", "liger")),
        "grad_accum": st.sampled_from((1, 4)),
        "targets": st.sampled_from(("all-linear", "q_proj,v_proj")),
        "dora": st.booleans(),
        "padding": st.booleans(),
        "packing": st.booleans(),
        "mixed_precision": st.sampled_from(("bf16", "no")),
        "kbit_prepare": st.just(False),
    },
)
POINTS = st.lists(
    st.tuples(st.sampled_from((1, 1, 2, 3, 8, 33)), st.one_of(st.integers(1, 1600), st.sampled_from((512, 1536, 2048, 4097, 9000, 32768)))),
    min_size=1,
    max_size=8,
)  # fmt: skip


def one_by_one(spec, recipe, rank, points, capability):
    """Peak and phase of each point, as the engine has them for a single estimate."""
    device = Device("card", 80 << 30, capability)
    found = []
    for batch, length in points:
        one = recipe.model_copy(update={"rank": rank, "batch_size": batch, "seq_len": length})
        phase, size = analytic.analyse(spec, stacks.resolve(one, STACK, spec.dtype), STACK, device).ledger.high
        found.append((size, phase))
    return found


def by_column(peaks, rank, points, capability):
    """The same, by column."""
    batch, length = (np.array(values, np.int64) for values in zip(*points, strict=True))
    sizes, phases = peaks.at(rank, batch, length, capability)
    return [(int(size), PHASES[phase]) for size, phase in zip(sizes, phases, strict=True)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(MODELS),
    RECIPES,
    st.lists(st.sampled_from((1, 3, 8, 16, 64, 100, 256)), min_size=1, max_size=3),
    POINTS,
    st.sampled_from(((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0))),
)
def test_peaks_by_column_are_those_of_single_estimates(model, knobs, ranks, points, capability):
    """On random grids of random models and recipes every peak and its phase is that of one estimate, to the byte; so is a refusal."""
    spec = api.find_spec(model)
    try:
        recipe = make_recipe(**knobs)
        expected = [one_by_one(spec, recipe, rank, points, capability) for rank in ranks]
    except QplanError as refused:
        with pytest.raises(type(refused)):
            _ = [by_column(Peaks(spec, make_recipe(**knobs), STACK), rank, points, capability) for rank in ranks]
        return
    peaks = Peaks(spec, recipe, STACK)

    assert [by_column(peaks, rank, points, capability) for rank in ranks] == expected


@pytest.mark.parametrize("model", ["meta-llama/Llama-2-70b-hf", "google/gemma-2-2b", "openai-community/gpt2", "Qwen/Qwen1.5-MoE-A2.7B"])
def test_a_thousand_points_across_every_threshold(model):
    """Small and large batches in one array, where fused kernels, padding and windows begin and end, are each what one estimate says."""
    draw = random.Random(model)  # noqa: S311 - points, not secrets
    points = [(draw.choice((1, 2, 3, 64)), int(2 ** draw.uniform(0, 15))) for _ in range(250)]
    spec, recipe = api.find_spec(model), make_recipe()

    assert by_column(Peaks(spec, recipe, STACK), 16, points, (8, 0)) == one_by_one(spec, recipe, 16, points, (8, 0))


def test_what_float64_cannot_count_is_computed_in_integers():
    """Peaks beyond 2**53 bytes are those of single estimates too; beyond 2**63 there is no number, but a sentence."""
    spec, recipe = api.find_spec("meta-llama/Llama-2-7b-hf"), make_recipe(attn="eager")
    points = [(1 << 12, 1 << 16), (2, 1 << 22)]
    found = by_column(Peaks(spec, recipe, STACK), 16, points, (8, 0))

    assert found == one_by_one(spec, recipe, 16, points, (8, 0))
    assert max(size for size, _ in found) > 1 << 53
    with pytest.raises(InvalidRecipeError, match="more than 2\\*\\*63 bytes"):
        Peaks(spec, recipe, STACK).at(16, np.array([1 << 20]), np.array([1 << 26]), (8, 0))


def test_a_refusal_is_the_single_estimates():
    """A recipe that the stack refuses is refused by column with the same sentence."""
    spec, recipe = api.find_spec("Qwen/Qwen3-30B-A3B"), make_recipe()
    with pytest.raises(UnsupportedRecipeError) as by_one:
        one_by_one(spec, recipe, 16, [(1, 64)], (8, 0))
    with pytest.raises(UnsupportedRecipeError) as by_array:
        by_column(Peaks(spec, recipe, STACK), 16, [(1, 64)], (8, 0))

    assert by_array.value.message == by_one.value.message

"""A step that was recorded for one batch answers for others as a step that is run for them would."""

from __future__ import annotations

import random

import pytest

from planner import stack as stacks
from planner.api import estimate
from planner.architecture import build_spec
from planner.catalog import find_checkpoint
from planner.engines.analytic import foundation_of
from planner.engines.course import Course
from planner.engines.layout import Histories, Layouts
from planner.engines.modules import kernels_of
from planner.engines.step import run_step
from planner.extrapolation import unroll
from planner.ledger import Rows
from planner.recipe import make_recipe
from planner.unrolling import unroll_events

RECIPES = (
    {},
    {"attn": "eager", "loss": "full", "entry_point": "trainer"},
    {"method": "lora", "gradient_checkpointing": False, "dropout": 0.0},
    {"method": "full", "use_reentrant": True},
)
MODELS = (
    "meta-llama/Llama-2-70b-hf",
    "mistralai/Mistral-7B-v0.1",
    "google/gemma-2-2b",
    "openai-community/gpt2",
    "EleutherAI/pythia-6.9b",
    "Qwen/Qwen1.5-MoE-A2.7B",
)


@pytest.mark.parametrize("knobs", RECIPES, ids=lambda k: "-".join(map(str, k.values())) or "default")
@pytest.mark.parametrize("model", MODELS)
def test_a_recorded_step_equals_one_that_is_run(model: str, knobs: dict[str, object]):
    """Sizes and lifetimes agree to the byte for batches across every threshold that the step asks about."""
    found = find_checkpoint(model)
    spec, stack = build_spec(found.config, id=found.id), stacks.parse_stack("latest")
    draw = random.Random(model)  # noqa: S311 - batches, not secrets
    recorded: dict[object, Layouts] = {}
    for _ in range(12):
        batch, length = draw.choice((1, 1, 2, 3, 7)), draw.choice((1, 3, 100, 512, 1000, 1536, 2048, 4096, 5000, 9000))
        recipe = stacks.resolve(make_recipe(batch_size=batch, seq_len=length, **knobs), stack, spec.dtype)
        base = foundation_of(spec, recipe, stack)
        kernels = kernels_of(base.preparation, recipe, (8, 0))

        def run(recipe, base=base, kernels=kernels):
            return run_step(base.decoder, base.preparation, recipe, base.known, base.resting, kernels)

        layouts = recorded.setdefault((kernels, recipe.padding), Layouts(run, 3))
        layouts.num_runs = 10  # past the runs that are not recorded
        rows, spans = layouts.steps(recipe)
        plain = Rows()

        assert unroll(run(recipe), 3, plain) == spans
        assert plain.columns == rows.columns


@pytest.mark.parametrize("knobs", RECIPES, ids=lambda k: "-".join(map(str, k.values())) or "default")
@pytest.mark.parametrize("model", MODELS)
def test_a_recorded_history_equals_one_that_is_written(model: str, knobs: dict[str, object]):
    """Every column, and every event and size of the whole model, for batches across every threshold."""
    found = find_checkpoint(model)
    spec, stack = build_spec(found.config, id=found.id), stacks.parse_stack("latest")
    draw = random.Random(model)  # noqa: S311 - batches, not secrets
    recorded: dict[object, Histories] = {}
    for _ in range(8):
        batch, length = draw.choice((1, 1, 2, 3, 7)), draw.choice((1, 3, 100, 512, 1000, 1536, 2048, 4096, 5000, 9000))
        recipe = stacks.resolve(make_recipe(batch_size=batch, seq_len=length, **knobs), stack, spec.dtype)
        base = foundation_of(spec, recipe, stack)
        kernels = kernels_of(base.preparation, recipe, (8, 0))

        def write(recipe, base=base, kernels=kernels):
            return Course(spec, base.decoder, base.preparation, recipe, base.known, base.resting, kernels, 8).write()

        histories = recorded.setdefault((kernels, recipe.padding), Histories(write))
        histories.num_runs = 10  # past those that are not recorded
        other, plain = histories.history(recipe), write(recipe)

        for name in ("sizes", "events", "names", "scopes", "categories", "owners", "stretches", "flushes", "repeat", "warm_up"):
            assert getattr(other, name) == getattr(plain, name), name
        theirs, whole = unroll_events(other), unroll_events(plain)
        assert (theirs.sizes, theirs.events, theirs.stretches) == (whole.sizes, whole.events, whole.stretches)
        assert {type(size) for size in theirs.sizes} == {int}


def test_an_estimate_of_another_batch_is_that_of_a_fresh_process():
    """The third and later batches, which come from a recording, say what the first of its kind would."""
    first = [estimate("TinyLlama/TinyLlama-1.1B-Chat-v1.0", gpu="t4", batch_size=1, seq_len=n).peak for n in (64, 128, 256, 512)]
    again = [estimate("TinyLlama/TinyLlama-1.1B-Chat-v1.0", gpu="t4", batch_size=1, seq_len=n).peak for n in (512, 256, 128, 64)]

    assert first == again[::-1]

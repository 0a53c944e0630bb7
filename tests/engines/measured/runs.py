"""Small models that are really trained, each once, and the trace of the very same run."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from planner.architecture import build_spec
from planner.bookkeeping import keep_exact_books
from planner.ledger import Ledger
from planner.recipe import Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import resolve
from tests.engines.traced.runs import installed

pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from planner.engines.measured.run import Measurement, Order, measure  # noqa: E402
from planner.engines.traced import analyse_on_cpu  # noqa: E402

SIZES = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 32, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", **SIZES, "head_dim": 32, "tie_word_embeddings": True},
}


def planned(model: str, **knobs: Any) -> tuple[ModelSpec, Recipe]:
    """A spec and a resolved recipe."""
    spec = build_spec(MODELS[model], id="tiny")
    return spec, resolve(make_recipe(**{"seq_len": 64, **knobs}), installed(), spec.dtype)


def job(model: str = "llama", **knobs: Any) -> dict[str, Any]:
    """What the child is told."""
    spec, recipe = planned(model, **knobs)
    return {
        "model": {"id": "tiny", "model_type": spec.model_type, "config": spec.config}, "recipe": recipe.model_dump(), "steps": 1,
        "device": "cpu",
    }  # fmt: skip


@cache
def _measured(model: str, knobs: str) -> Measurement:
    spec, recipe = planned(model, **eval(knobs))  # noqa: S307  # written below
    return measure(Order(spec, recipe, steps=1), lambda _: None)


def measured(model: str, **knobs: Any) -> Measurement:
    """The measurement of a small model; tests that ask for the same one share it."""
    return _measured(model, repr(knobs))


@cache
def _traced(model: str, knobs: str) -> Ledger:
    spec, recipe = planned(model, **eval(knobs))  # noqa: S307  # written below
    return analyse_on_cpu(spec, recipe, installed(), every_layer=True).ledger


def traced(model: str, **knobs: Any) -> Ledger:
    """The trace of the same run on the CPU."""
    return _traced(model, repr(knobs))


def books(found: Measurement) -> Ledger:
    """The ledger of a measurement."""
    return keep_exact_books("measured", found.history)

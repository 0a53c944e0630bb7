"""Small models of a few families, and what the engine says of them."""

from __future__ import annotations

from typing import Any

from planner.architecture import build_spec
from planner.engines.analytic import Analysis, analyse, decoder_of
from planner.engines.resting import Resting, rest
from planner.ledger import Category, Phase
from planner.preparation import Preparation, prepare
from planner.recipe import Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import LATEST, behaviours, resolve

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 1000, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": None,
    "torch_dtype": "float32",
}  # fmt: skip
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 32, "tie_word_embeddings": True}
MODELS = {"llama": LLAMA, "tied": TIED, "qwen2": QWEN2, "gpt2": GPT2, "gemma": GEMMA}


def planned(config: dict[str, Any], **knobs: Any) -> tuple[ModelSpec, Recipe]:
    """A spec and a resolved recipe."""
    spec = build_spec(config, id="tiny")
    return spec, resolve(make_recipe(**{"seq_len": 64, **knobs}), LATEST, spec.dtype)


def analysed(config: dict[str, Any], **knobs: Any) -> Analysis:
    """What the engine says of a run."""
    return analyse(*planned(config, **knobs), LATEST)


def rested(config: dict[str, Any], **knobs: Any) -> tuple[Preparation, Resting]:
    """The prepared model, and what rests of it."""
    spec, recipe = planned(config, **knobs)
    preparation = prepare(spec, recipe, behaviours(LATEST, recipe))
    return preparation, rest(spec, preparation, recipe, decoder_of(spec).reaches)


def gradients(found: Analysis, phase: Phase) -> int:
    """Bytes of gradients when a phase begins."""
    begin = next(span.begin for span in found.ledger.timeline if span.phase is phase)
    return found.ledger.by_category(begin).get(Category.GRADIENT, 0)

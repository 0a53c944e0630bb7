"""The step: every trained tensor has a gradient when the optimizer begins, whatever is trained and however it is tied."""

from __future__ import annotations

from typing import Any

import pytest

from planner.errors import UnsupportedRecipeError
from planner.formulas.blocks import allocated
from planner.ledger import Category, Phase
from tests.engines.tiny import GEMMA, GPT2, LLAMA, MODELS, TIED, analysed, gradients, rested

RECIPES: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full/loop": {"method": "full", "entry_point": "loop"},
    "full/no checkpointing": {"method": "full", "gradient_checkpointing": False},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "int8": {"method": "qlora", "quantization": "int8"},
    "dora": {"method": "lora", "dora": True},
    "reentrant": {"method": "lora", "use_reentrant": True},
    "liger": {"method": "full", "entry_point": "trainer", "loss": "liger"},
    "saved norm": {"method": "lora", "modules_to_save": ("norm", "ln_f")},
}


def trained_bytes(config: dict[str, Any], **knobs: Any) -> int:
    """One gradient of its own type for every trained tensor, in blocks."""
    _, resting = rested(config, **knobs)
    return sum(count * allocated(parameter.nbytes) for parameter, count in resting.trainables)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_gradients_when_the_optimizer_begins(model, recipe, accumulation):
    """As many bytes as the trained tensors have; a tied weight has one gradient."""
    knobs = {**RECIPES[recipe], "grad_accum": accumulation}

    assert trained_bytes(MODELS[model], **knobs) == gradients(analysed(MODELS[model], **knobs), Phase.OPTIMIZER_STEP)


def test_adapters_on_token_and_position_embeddings():
    """GPT-2's wte and wpe are both embeddings that PEFT adapts."""
    knobs = {"method": "lora", "targets": ("wte", "wpe")}

    assert trained_bytes(GPT2, **knobs) == gradients(analysed(GPT2, **knobs), Phase.OPTIMIZER_STEP)


def test_dora_on_an_embedding_is_refused():
    """Its step is not known, and is not guessed."""
    with pytest.raises(UnsupportedRecipeError, match="embed_tokens"):
        analysed(LLAMA, method="lora", targets=("embed_tokens",), dora=True, dropout=0.0)


EMBEDDINGS = {"llama": "embed_tokens", "tied": "embed_tokens", "gemma": "embed_tokens", "gpt2": "wte"}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("model", EMBEDDINGS)
def test_adapter_on_the_embedding(model, checkpointing):
    """Its factors get gradients, and its bottleneck is kept for them."""
    config, name = MODELS[model], EMBEDDINGS[model]
    knobs = {"method": "lora", "targets": (name,), "gradient_checkpointing": checkpointing, "rank": 8}
    found = analysed(config, **knobs)

    assert trained_bytes(config, **knobs) == gradients(found, Phase.OPTIMIZER_STEP)
    assert any(row.name == "adapter bottleneck" for row in found.ledger.allocations)


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_adapter_on_the_head(config):
    """The trainer's full loss runs the adapter of lm_head too."""
    knobs = {"method": "lora", "targets": ("q_proj", "lm_head"), "entry_point": "trainer"}

    assert trained_bytes(config, **knobs) == gradients(analysed(config, **knobs), Phase.OPTIMIZER_STEP)


@pytest.mark.parametrize("saved", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens"), ("input_layernorm",)])
@pytest.mark.parametrize("config", [LLAMA, TIED, GEMMA], ids=["untied", "tied", "gemma"])
def test_modules_to_save(config, saved):
    """A trained copy is tied to nothing: it has a gradient of its own, and what it was copied from has none."""
    knobs = {"method": "lora", "targets": ("q_proj",), "modules_to_save": saved}

    assert trained_bytes(config, **knobs) == gradients(analysed(config, **knobs), Phase.OPTIMIZER_STEP)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_accumulated_gradients_are_alive_in_forward(method):
    """From the second micro-batch on, all of them are there when forward begins; without accumulation none is."""
    config = LLAMA
    once, more = (analysed(config, method=method, grad_accum=n) for n in (1, 4))

    assert gradients(once, Phase.FORWARD) == 0
    assert trained_bytes(config, method=method, grad_accum=4) == gradients(more, Phase.FORWARD)
    assert more.ledger.peak(Phase.FORWARD).nbytes - once.ledger.peak(Phase.FORWARD).nbytes == gradients(more, Phase.FORWARD)


def test_gradients_are_gone_after_the_step():
    """`zero_grad(set_to_none=True)`: the last step of the clock has none, nor anything else that the step made."""
    found = analysed(LLAMA, method="full", grad_accum=2)
    last = found.ledger.timeline[-1].end - 1

    assert Category.GRADIENT not in found.ledger.by_category(last)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_fused_heads_hold_no_logits(config):
    """Full logits are the most, at lengths where they matter; chunks and Liger's rows stay below them."""
    sizes = {
        loss: analysed({**config, "vocab_size": 50_000}, method="lora", loss=loss, entry_point=entry, seq_len=4096, batch_size=2)
        for loss, entry in (("full", "trainer"), ("liger", "trainer"), ("chunked", "trl"))
    }
    peaks = {loss: found.ledger.peak().nbytes for loss, found in sizes.items()}
    logits = 2 * 4096 * 50_000 * 4

    assert peaks["full"] > logits
    assert max(peaks["liger"], peaks["chunked"]) < logits


def test_a_loop_keeps_its_output():
    """The logits of a hand-written loop are alive in backward; the trainer's are not, but were copied to fp32."""
    loop, trainer = (
        analysed(LLAMA, method="lora", loss="full", entry_point=entry, use_reentrant=False, max_grad_norm=0.0)
        for entry in ("loop", "trainer")
    )
    backward = next(span.begin for span in loop.ledger.timeline if span.phase is Phase.BACKWARD)
    alive = {row.name for row in loop.ledger.live_at(backward)}

    assert any(row.category is Category.LOGITS and row.nbytes == 64 * 1000 * 2 for row in loop.ledger.live_at(backward)), alive
    assert any("way out" in row.name for row in trainer.ledger.allocations)

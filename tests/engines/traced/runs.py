"""Traces of small models, each run once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from planner.allocator import CachingAllocator
from planner.allocator.replay import replay
from planner.bookkeeping import keep_books
from planner.device import Device
from planner.dtypes import DType
from planner.history import History
from planner.ledger import Ledger, Phase
from planner.recipe import Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import Stack, parse_stack, resolve
from planner.units import GIB
from planner.unrolling import unroll_history

pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from planner.engines.traced import Trace, trace_run  # noqa: E402

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 512}
LLAMA = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {"n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 512},
    "gemma3_text": {**LLAMA, "head_dim": 16, "sliding_window": 32},
    "qwen3": {**LLAMA, "head_dim": 16, "tie_word_embeddings": True},
    "olmo": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **LLAMA,
        "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
        "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1,
    },
    "jamba": {
        **LLAMA,
        "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4,
    },
}  # fmt: skip
DEPTH = {"gpt2": "n_layer"}
A100 = Device("NVIDIA A100", 80 * GIB, (8, 0))
T4 = Device("Tesla T4", 15 * GIB, (7, 5), bf16=False)


@cache
def installed() -> Stack:
    """The versions that are traced."""
    return parse_stack("auto")


def planned(model: str, layers: int = 8, knobs: dict[str, Any] | None = None, **changes: Any) -> tuple[ModelSpec, Recipe]:
    """A spec and a resolved recipe; the spec has no table of modules, which the traced engine reads off the real model."""
    config = {**MODELS[model], DEPTH.get(model, "num_hidden_layers"): layers, **changes}
    recipe = make_recipe(**{"seq_len": 64, "dtype": "bf16", "dropout": 0.0, **(knobs or {})})
    return ModelSpec("tiny", model, config, ()), resolve(recipe, installed(), DType.BF16)


@cache
def _traced(model: str, layers: int, every_layer: bool, changes: str, device: Device, knobs: str) -> Trace:
    spec, recipe = planned(model, layers, eval(knobs), **eval(changes))  # noqa: S307  # written below
    return trace_run(spec, recipe, installed(), device, every_layer=every_layer)


def traced(
    model: str = "llama", layers: int = 8, *, every_layer: bool = False, changes: dict[str, Any] | None = None,
    device: Device = A100, **knobs: Any,
) -> Trace:  # fmt: skip
    """The trace of a small model; tests that ask for the same one share it, and do not change it."""
    return _traced(model, layers, every_layer, repr(changes or {}), device, repr(knobs))


def books(history: History) -> Ledger:
    """The ledger of a history at full depth."""
    return keep_books("traced", unroll_history(history))


def highs(history: History) -> dict[Phase, int]:
    """The peak of each phase, in bytes."""
    return {phase: nbytes for phase, (nbytes, _) in books(history).highs.items()}


def reserved(history: History) -> int:
    """The most that the allocator takes from an endless card."""
    whole = unroll_history(history)
    return replay(whole.events, whole.sizes, CachingAllocator()).peak_reserved_bytes


def sequence(history: History) -> list[int]:
    """Sizes in the order of events, negative for deaths."""
    return [history.sizes[e] if e >= 0 else -history.sizes[~e] for e in history.events]

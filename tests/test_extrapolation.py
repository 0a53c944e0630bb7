"""Running the first and the last of equal layers gives the peaks of running them all."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture import build_spec
from planner.dtypes import DType
from planner.engines.analytic import decoder_of
from planner.engines.modules import kernels_of
from planner.engines.resting import rest
from planner.engines.step import run_step
from planner.extrapolation import unroll
from planner.ledger import Ledger, Phase, Rows
from planner.preparation import prepare
from planner.recipe import make_recipe
from planner.schedule import Tape
from planner.stack import LATEST, behaviours, resolve

METHODS = {
    "full": {"method": "full", "optim": "adamw_torch"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "qlora-unprepared": {"method": "qlora", "kbit_prepare": False},
    "int8": {"method": "qlora", "quantization": "int8"},
    "dora": {"method": "lora", "dora": True, "dropout": 0.0},
}
CHECKPOINTING = {
    "none": {"gradient_checkpointing": False},
    "non-reentrant": {"gradient_checkpointing": True, "use_reentrant": False},
    "reentrant": {"gradient_checkpointing": True, "use_reentrant": True},
}


def config(layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip


def peaks(layers: int, knobs: dict[str, Any], *, singly: bool, kinds: str = "a") -> dict[Phase, int]:
    """The peak of each phase, for layers of two kinds; singly, every layer is a structure of its own, and so is run."""
    spec = build_spec(config(layers), id="tiny")
    recipe = resolve(make_recipe(seq_len=64, **knobs), LATEST, DType.BF16)
    known = behaviours(LATEST, recipe)
    preparation = prepare(spec, recipe, known)
    decoder = decoder_of(spec)
    first = decoder.layers[0]
    kind = {"a": first, "b": first._replace(mlp=first.mlp._replace(act="gelu_new"))}
    decoder = decoder._replace(layers=tuple(kind[kinds[i % len(kinds)]] for i in range(layers)))
    if singly:
        decoder = decoder._replace(layers=tuple(layer._replace() for layer in decoder.layers))
    resting = rest(spec, preparation, recipe, lambda name: True)
    tape = run_step(decoder, preparation, recipe, known, resting, kernels_of(preparation, recipe, (8, 0)))
    rows = Rows()
    spans = unroll(tape, 0, rows)
    return {phase: peak.nbytes for phase, peak in Ledger("test", rows, spans).peaks.items()}


@pytest.mark.parametrize("layers", [2, 3, 6])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("entry_point", ["trl", "loop"])
def test_first_and_last_give_the_peaks_of_all(entry_point, accumulation, method, checkpointing, layers):
    """To the byte in every phase."""
    knobs = {"entry_point": entry_point, "grad_accum": accumulation, **METHODS[method], **CHECKPOINTING[checkpointing]}

    assert peaks(layers, knobs, singly=True) == peaks(layers, knobs, singly=False)


@pytest.mark.parametrize("kinds", ["ab", "aabbbb", "abbbbb", "bbbbba", "aab"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_layers_of_two_kinds(method, checkpointing, kinds):
    """The kinds may alternate, or follow each other, in any proportion."""
    knobs = {**METHODS[method], **CHECKPOINTING[checkpointing]}

    assert peaks(6, knobs, singly=True, kinds=kinds) == peaks(6, knobs, singly=False, kinds=kinds)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_sums_that_are_not_made_in_place(method, monkeypatch):
    """The same where gradients are never added in place."""
    monkeypatch.setattr(Tape, "default_in_place", False)
    knobs = {**METHODS[method], **CHECKPOINTING["none"]}

    assert peaks(5, knobs, singly=True) == peaks(5, knobs, singly=False)


def test_allocations_are_rounded_one_by_one():
    """Each storage takes whole blocks of 512 bytes, what the layers between leave behind included."""
    spec = build_spec(config(6), id="tiny")
    recipe = resolve(make_recipe(seq_len=64, method="full", gradient_checkpointing=False), LATEST, DType.BF16)
    known = behaviours(LATEST, recipe)
    preparation = prepare(spec, recipe, known)
    resting = rest(spec, preparation, recipe, lambda name: True)
    tape = run_step(decoder_of(spec), preparation, recipe, known, resting, kernels_of(preparation, recipe, (8, 0)))
    rows = Rows()
    unroll(tape, 10, rows)

    assert all(size % 512 == 0 for size in rows.sizes)
    assert min(rows.begins) >= 10
    assert all(begin <= end for begin, end in zip(rows.begins, rows.ends, strict=True))

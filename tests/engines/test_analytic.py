"""The ledger as a whole: its phases, its books, its traps, and that nothing is remembered wrongly."""

from __future__ import annotations

import pytest

from planner.architecture import build_spec, family_of
from planner.device import Device
from planner.dtypes import DType
from planner.engines.analytic import analyse, decoder_of
from planner.errors import UnsupportedModelError
from planner.ledger import Category, Phase
from planner.stack import LATEST
from planner.units import GIB
from planner.value import replace
from tests.engines.tiny import LLAMA, MODELS, analysed, planned


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model", MODELS)
def test_phases_follow_each_other(model, method):
    """Prepare, forward, backward, optimizer step share out the clock; no row ends after it, none is negative."""
    ledger = analysed(MODELS[model], method=method).ledger
    spans = ledger.timeline
    order = list(dict.fromkeys(span.phase for span in spans))

    assert order == [Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP]
    assert [0, *(span.end for span in spans[:-1])] == [span.begin for span in spans]
    assert max(ledger.rows.ends) == spans[-1].end
    assert min(ledger.rows.sizes) >= 0
    assert Category.UNATTRIBUTED not in ledger.rows.categories


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_what_rests_is_alive_at_both_ends_of_a_step(method):
    """The first step of forward and the last of the clock hold the steady bytes, and little else."""
    found = analysed(LLAMA, method=method)
    ledger = found.ledger
    last = ledger.timeline[-1].end - 1

    assert min(ledger.curve[ledger.timeline[1].begin :]) >= found.steady_bytes
    assert ledger.curve[last] - found.steady_bytes <= 64 * 8 * 3 + 512


def test_answers_do_not_depend_on_what_was_asked_before():
    """The same run twice, with others in between that share its foundation."""
    first = analysed(LLAMA, seq_len=128, batch_size=2).ledger
    for knobs in ({"seq_len": 64}, {"batch_size": 4}, {"attn": "eager"}, {"padding": True}, {"grad_accum": 3}):
        analysed(LLAMA, **knobs)
    again = analysed(LLAMA, seq_len=128, batch_size=2).ledger

    assert first.allocations == again.allocations
    assert first.timeline == again.timeline


def test_more_of_anything_is_no_less():
    """Peaks grow with the batch, the sequence and the rank."""
    base = {"method": "lora", "seq_len": 128, "batch_size": 2, "rank": 8, "padding": True}
    peak = analysed(LLAMA, **base).ledger.peak().nbytes
    for change in ({"seq_len": 256}, {"batch_size": 4}, {"rank": 32}):
        assert analysed(LLAMA, **{**base, **change}).ledger.peak().nbytes > peak


def test_cards_choose_kernels_and_workspaces():
    """Hopper's cuBLAS workspaces are four times as large; Turing has no flash attention."""
    spec, recipe = planned(LLAMA)
    turing, ampere, hopper = (
        analyse(spec, recipe, LATEST, Device("card", 80 * GIB, capability, bf16=True)) for capability in ((7, 5), (8, 0), (9, 0))
    )
    workspaces = [
        sum(row.nbytes for row in found.ledger.allocations if row.name.startswith("cuBLAS")) for found in (turing, ampere, hopper)
    ]

    assert workspaces == [2 * 8_519_680, 2 * 8_519_680, 2 * 33_554_432]


def test_upcasts_are_traps():
    """kbit-prepare's fp32 copies of head and embeddings are told with their bytes."""
    found = {trap.name: trap.nbytes for trap in analysed(LLAMA, method="qlora").traps}

    assert 1000 * 128 * 2 == found["fp32 upcast of the head"] == found["fp32 upcast of the embeddings"]
    assert not any("upcast" in trap.name for trap in analysed(LLAMA, method="qlora", kbit_prepare=False).traps)


def test_counts():
    """Quantised and trained elements, and the bytes of the download."""
    found = analysed(LLAMA, method="qlora", rank=4, targets=("q_proj",))
    layer = 128 * 128 * 2 + 2 * 128 * 64 + 3 * 128 * 320

    assert 3 * layer == found.num_quantized_parameters
    assert found.num_trainable_parameters == 3 * 4 * (128 + 128)
    assert found.download_bytes == build_spec(LLAMA, id="tiny").num_parameters * DType.BF16.num_bytes


def test_a_step_that_is_not_known_is_refused():
    """A family without a decoder names what it would need."""
    unknown = next((name for name in ("mllama", "nemotron_h", "gemma3n", "jamba") if family_of(name).decoder is None), None)
    if unknown is None:
        pytest.skip("every family's step is known")

    with pytest.raises(UnsupportedModelError, match="it needs "):
        decoder_of(replace(build_spec(LLAMA, id="tiny"), model_type=unknown))

"""Real steps on the CPU: against the trace, the closed form, the CPU's own allocator, and what may go wrong in each phase."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from planner.engines.analytic import decoder_of
from planner.engines.resting import rest
from planner.formulas.blocks import BLOCK_BYTES
from planner.ledger import Category, Ledger, Phase
from planner.preparation import prepare
from planner.stack import behaviours
from planner.units import round_up
from planner.value import replace
from tests.engines.measured.runs import MODELS, books, measured, planned, traced
from tests.engines.traced.runs import installed

torch = pytest.importorskip("torch")

from planner.architecture import build_spec  # noqa: E402
from planner.engines.measured.realness import NotReal  # noqa: E402
from planner.engines.measured.run import Order, measure  # noqa: E402
from planner.engines.measured.tracker import Full  # noqa: E402

METHODS: dict[str, dict[str, Any]] = {"lora": {"method": "lora"}, "qlora": {}}
RESTING = (Category.PARAMETER, Category.QUANT_STATE, Category.ADAPTER)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_every_phase_is_as_it_is_traced(model: str, method: str) -> None:
    """Peaks of all phases, category by category: the trace computed none of the numbers that the measurement did."""
    found, expected = books(measured(model, **METHODS[method])), traced(model, **METHODS[method])
    peak = found.peak()

    assert abs(expected.peak().nbytes - peak.nbytes) * 100 <= peak.nbytes  # the promise
    assert {phase: p[2:] for phase, p in expected.peaks.items()} == {phase: p[2:] for phase, p in found.peaks.items()}  # the fact
    assert set(found.peaks) >= {Phase.LOAD, Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP, Phase.EVALUATION}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_what_rests_is_what_both_engines_say(model: str, method: str) -> None:
    """Before the first step: parameters, statistics and adapters, each a block, as the closed form counts them and the trace sees them."""
    spec, recipe = planned(model, **METHODS[method])
    alive, also = (rests(ledger) for ledger in (books(measured(model, **METHODS[method])), traced(model, **METHODS[method])))
    preparation = prepare(spec, recipe, behaviours(installed(), recipe))
    closed: Counter[Category] = Counter()
    for row in rest(spec, preparation, recipe, decoder_of(spec).reaches).rows:
        if row.end == 0 and row.category in RESTING:
            closed[row.category] += row.nbytes

    assert closed == alive == also
    assert alive[Category.ADAPTER] > 0


def rests(ledger: Ledger) -> Counter[Category]:
    """What is alive when the first forward begins, in blocks of a card's allocator, which is how the closed form counts."""
    at = next(span.begin for span in ledger.timeline if span.phase is Phase.FORWARD)
    found: Counter[Category] = Counter()
    for a in ledger.live_at(at - 1):
        if a.category in RESTING:
            found[a.category] += round_up(a.nbytes, BLOCK_BYTES)
    return found


@pytest.mark.parametrize(
    "knobs",
    [
        {"quantization": "int8"},
        {"quantization": "fp4", "double_quant": False, "kbit_prepare": False, "batch_size": 2},
        {"method": "full", "optim": "adamw_torch", "entry_point": "trainer"},
        {"method": "lora", "attn": "eager", "loss": "full", "entry_point": "loop", "gradient_checkpointing": False, "grad_accum": 2},
    ],
)
def test_other_recipes_are_as_they_are_traced(knobs: dict[str, Any]) -> None:
    """The peaks of all phases, to the byte."""
    found, expected = books(measured("llama", **knobs)), traced("llama", **knobs)

    assert expected.highs.keys() == found.highs.keys()
    assert {p: h[0] for p, h in expected.highs.items()} == {p: h[0] for p, h in found.highs.items()}


def test_a_step_is_real() -> None:
    """Losses are those of an untrained model, about ln(512), and the steps change them."""
    losses = measured("llama").losses

    assert len(losses) == 2  # a step that warms up, and one that counts
    assert all(abs(loss - 6.24) < 0.5 for loss in losses)
    assert len(set(losses)) > 1


def test_the_processors_allocator_has_no_more_than_kernels_scratch_beside_it() -> None:
    """PyTorch's own profiler, in a run without any mode: a step's highest point is the tracker's, but for what kernels take inside."""
    from torch.profiler import ProfilerActivity, profile

    from planner.engines.measured.run import stand, surroundings
    from planner.engines.measured.tracker import Tracker
    from planner.engines.running.blueprint import draw

    spec, recipe = planned("llama", method="lora")
    order = Order(spec, recipe, steps=1)
    with surroundings():
        from contextlib import ExitStack

        with ExitStack() as stack:
            books_ = Tracker("cpu", {})  # its books are kept for names alone: it is no active mode
            _, training = stand(order, draw(spec, recipe, every_layer=True), books_, stack)
            books_.check = None
            training.step()
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                training.step()
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for size in sizes:
        now += size
        highest = max(highest, now)
    ledger = books(measured("llama", method="lora"))
    rest_ = ledger.curve[max(s.end for s in ledger.timeline if s.phase is Phase.OPTIMIZER_STEP) - 1]
    tracked = max(ledger.highs[phase][0] for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP)) - rest_

    assert tracked <= highest + 4096
    assert highest - tracked < 0.02 * tracked


@pytest.mark.parametrize("phase", [Phase.LOAD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP])
def test_memory_can_run_out_in_each_phase(phase: Phase) -> None:
    """A ceiling one byte below a phase's peak, where the phases before stay below it: it says where, how much, and what was alive."""
    knobs: dict[str, Any] = {
        Phase.LOAD: {"method": "full", "seq_len": 1, "optim": "sgd", "entry_point": "trainer"},
        Phase.FORWARD: {"method": "lora", "gradient_checkpointing": False, "loss": "full", "seq_len": 64, "entry_point": "trainer"},
        Phase.BACKWARD: {},
        Phase.OPTIMIZER_STEP: {"method": "full", "seq_len": 4, "optim": "adamw_torch", "entry_point": "trainer"},
    }[phase]
    ledger = traced("llama", **knobs)
    spec, recipe = planned("llama", **knobs)
    limit = ledger.highs[phase][0] - 1
    with pytest.raises(Full) as error:
        measure(Order(spec, recipe, steps=1, limit_bytes=limit), lambda _: None)
    full = error.value

    assert full.requested_bytes is not None
    assert full.allocated_bytes <= limit < full.allocated_bytes + full.requested_bytes
    assert sum(full.by_category.values()) == full.allocated_bytes
    assert phase is full.phase


def test_a_model_without_numbers_is_told() -> None:
    """A norm of a negative variance: the loss is nan, and no memory of it is reported."""
    spec, recipe = planned("llama")
    broken = build_spec({**MODELS["llama"], "rms_norm_eps": -1e9}, id="tiny")

    with pytest.raises(NotReal, match="the loss is nan in forward 1"):
        measure(Order(broken, recipe, steps=1), lambda _: None)
    assert spec.model_type == broken.model_type


def test_phases_are_told_as_they_come() -> None:
    """Each begins, then ends; steps follow each other, with an evaluation and a save behind them."""
    spec, recipe = planned("llama", method="lora")
    told: list[Any] = []
    measure(Order(spec, recipe, steps=1), told.append)
    step = ["forward", "backward", "optimizer_step"]

    assert ["load", "prepare", *step, *step, "evaluation", "save"] == [m["phase"] for m in told if m["begins"]]
    assert [m["phase"] for m in told if m["begins"]] == [m["phase"] for m in told if not m["begins"]]
    assert replace(Order(spec, recipe), steps=1).weights == "synthetic"

"""Steps: what each optimizer keeps, where, and what every further step leaves as it is."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas import optimizer as formula
from planner.formulas.optimizer import MAP_BYTES, VARIANTS, Parameter
from planner.history import History
from planner.ledger import Category, Phase
from planner.recipe import Optimizer
from planner.stack import behaviours
from tests.engines.traced.runs import books, installed, planned, traced

torch = pytest.importorskip("torch")

from planner.engines.running.blueprint import draw  # noqa: E402
from planner.engines.running.building import build  # noqa: E402
from planner.engines.running.training import Training  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402

RANK = 2048
"""Large enough for every rule of bitsandbytes: 8-bit states from 4,096 elements on, paged ones from 100,000."""
SHAPES = [(RANK, 64), (64, RANK), (RANK, 64), (32, RANK)]


def alive(history: History, category: Category) -> dict[str, int]:
    """Bytes of a category that live at the end, by name."""
    gone = {~e for e in history.events if e < 0}
    found: dict[str, int] = {}
    for i, size in enumerate(history.sizes):
        if i not in gone and history.categories[i] is category:
            found[history.names[i]] = found.get(history.names[i], 0) + size
    return found


@pytest.mark.parametrize("name", typing.get_args(Optimizer))
def test_states_are_the_formulas(name: str) -> None:
    """Every optimizer of a recipe runs; what it keeps on the card and in managed memory is what its formula says."""
    knobs = {"method": "lora", "entry_point": "loop", "targets": ("q_proj", "v_proj"), "rank": RANK, "optim": name, "adapter_dtype": "fp32"}
    trace = traced("llama", 1, **knobs)
    states = [s for shape in SHAPES for s in formula.states(VARIANTS[name], Parameter(shape, DType.FP32))]
    kept = alive(trace.history, Category.OPTIMIZER_STATE)
    maps = {what: size for what, size in kept.items() if what.startswith("qmap")}

    assert sum(s.device_bytes for s in states) == sum(kept.values()) - sum(maps.values())
    assert sum(s.managed_bytes for s in states) == trace.paged_bytes
    assert (trace.paged_bytes > 0) is name.startswith("paged")
    assert {MAP_BYTES} >= set(maps.values())


def test_no_optimizer_is_left_out() -> None:
    """The states of each are tested above."""
    assert set(typing.get_args(Optimizer)) <= set(VARIANTS)


def runs_of(history: History) -> list[Phase]:
    """The phases in their order, each once for every time that the run comes into it."""
    phases = [s.phase for s in history.stretches]
    return [phase for i, phase in enumerate(phases) if not i or phases[i - 1] is not phase]


P = Phase
STEP = [P.FORWARD, P.BACKWARD, P.OPTIMIZER_STEP]


@pytest.mark.parametrize("entry_point", ["trl", "trainer", "loop"])
def test_phases_follow_each_other(entry_point: str) -> None:
    """Loading, preparing, two steps and an evaluation; a save copies to the host, and makes nothing on the card."""
    history = traced("llama", 1, entry_point=entry_point).history

    assert [P.LOAD, P.PREPARE, *STEP, *STEP, P.EVALUATION] == runs_of(history)


@pytest.mark.parametrize("entry_point", ["trl", "loop"])
def test_gradients_are_accumulated(entry_point: str) -> None:
    """Two micro-batches a step; the first one's gradients are all there while the second runs, and gone behind the update."""
    trace = traced("llama", 1, entry_point=entry_point, grad_accum=2, optim="sgd")
    history, ledger = trace.history, books(trace.history)
    halves = [P.FORWARD, P.BACKWARD]
    begins = [s.begin for i, s in enumerate(ledger.timeline) if s.phase is P.FORWARD and ledger.timeline[i - 1].phase is not P.FORWARD]
    gradients = [ledger.by_category(begin).get(Category.GRADIENT, 0) for begin in begins]
    _, recipe = planned("llama", 1, {"entry_point": entry_point})
    trained = trace.num_trainable_parameters * {"fp32": 4, "bf16": 2}[str(recipe.adapter_dtype)]

    assert [P.LOAD, P.PREPARE, *(2 * [*halves, *halves, P.OPTIMIZER_STEP]), P.EVALUATION] == runs_of(history)
    assert [0, trained, 0, trained] == gradients
    assert ledger.by_category(len(history.events) - 1).get(Category.GRADIENT, 0) == 0


def test_clipping_is_part_of_the_update() -> None:
    """Norms are stacked in the optimizer's phase where clipping is on, and nowhere else."""
    for norm, expected in ((1.0, {P.OPTIMIZER_STEP}), (0.0, set())):
        history = traced("llama", 1, max_grad_norm=norm).history
        births = {e for e in history.events if e >= 0 and history.names[e].startswith("aten.stack")}
        phases = {s.phase for s in history.stretches if births & set(history.events[s.begin : s.end])}

        assert expected == phases


def test_a_loop_keeps_its_output_and_batch() -> None:
    """When backward ends, a hand-written loop still has its logits and its batch; a trainer has neither."""
    kept = {}
    for entry_point in ("trainer", "loop"):
        ledger = books(traced("llama", 1, entry_point=entry_point, loss="full", mixed_precision="no", padding=True).history)
        end = next(s.begin for s in ledger.timeline if s.phase is P.OPTIMIZER_STEP)
        live = ledger.by_category(end)
        kept[entry_point] = live.get(Category.LOGITS, 0), live.get(Category.INPUT, 0)

    assert kept == {"trainer": (0, 0), "loop": (64 * 128 * 4, 3 * 64 * 8)}  # the head's input is fp32


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"method": "full", "optim": "adamw_torch"},
        {"method": "lora", "entry_point": "loop", "optim": "paged_adamw_8bit", "gradient_checkpointing": False},
    ],
)
def test_every_further_step_is_the_second(knobs: dict[str, Any]) -> None:
    """The third step's births and deaths are the second's, and leave as much; so does the evaluation."""
    spec, recipe = planned("llama", 2, knobs)
    known = behaviours(installed(), recipe)
    with recording((8, 0)) as recorder:
        blueprint = draw(spec, recipe, every_layer=True)
        training = Training(build(blueprint, recipe, known, recorder), recipe, known, recorder, blueprint.instances)
        history = recorder.history
        marks, steady = [], []
        for run in (training.step, training.step, training.step, training.evaluate, training.save):
            begin = len(history.events)
            run()
            marks.append([history.sizes[e] if e >= 0 else -history.sizes[~e] for e in history.events[begin:]])
            steady.append(sum(history.sizes[i] for i in recorder.live.values()))

    assert marks[1] == marks[2]
    assert steady[1] == steady[2] == steady[3] == steady[4]
    assert marks[4] == []


def test_states_appear_in_the_first_step() -> None:
    """And stay: none is born later."""
    ledger = books(traced("llama", 1, optim="adamw_torch").history)
    steps = [s.end for i, s in enumerate(ledger.timeline) if s.phase is P.OPTIMIZER_STEP]
    states = [ledger.by_category(end - 1).get(Category.OPTIMIZER_STATE, 0) for end in steps]

    assert states[0] > 0
    assert set(states) == {states[0]}


@pytest.mark.parametrize(("padding", "packing", "inputs"), [(True, False, 3), (False, False, 3), (False, True, 2)])
def test_a_batch_has_a_mask_unless_it_is_packed(padding: bool, packing: bool, inputs: int) -> None:
    """Ids and labels, and a mask where a collator gives one: int64 numbers of batch by tokens."""
    history = traced("llama", 1, padding=padding, packing=packing, batch_size=2).history
    sizes = [size for size, category in zip(history.sizes, history.categories, strict=True) if category is Category.INPUT]

    assert [2 * 64 * 8] * (3 * inputs) == sizes

"""The closed form's history: three instances against all of them, and its books against the ledger's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest

from planner.architecture import build_spec
from planner.dtypes import DType
from planner.engines import course as courses
from planner.engines.analytic import analyse, decoder_of
from planner.engines.course import Course
from planner.engines.modules import kernels_of
from planner.engines.resting import rest
from planner.formulas.workspace import cublas_workspace
from planner.history import History
from planner.ledger import Category, Phase
from planner.preparation import prepare
from planner.recipe import make_recipe
from planner.repetition import Repetition
from planner.stack import LATEST, behaviours, resolve
from planner.unrolling import NotRepeatable, unroll_history
from tests.engines.tiny import GPT2, LLAMA, planned

DEEP = {**LLAMA, "num_hidden_layers": 7}
MODELS: dict[str, dict[str, Any]] = {
    "llama": DEEP,
    "gpt2": {**GPT2, "n_layer": 6},
    "gemma2": {**DEEP, "model_type": "gemma2", "head_dim": 32, "num_hidden_layers": 9, "sliding_window": 16},
    "olmo2": {**DEEP, "model_type": "olmo2"},
    "mixture": {
        **DEEP, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32,
    },
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "qlora": {"method": "qlora", "dropout": 0.0},
    "reentrant": {"method": "qlora", "dropout": 0.0, "use_reentrant": True},
    "int8": {"method": "qlora", "dropout": 0.0, "quantization": "int8", "gradient_checkpointing": False, "optim": "adafactor_torch"},
    "eager": {"method": "lora", "dropout": 0.0, "attn": "eager", "batch_size": 2},
    "full": {"method": "full", "gradient_checkpointing": False, "optim": "adamw_torch"},
    "accumulating": {"method": "full", "grad_accum": 3, "entry_point": "loop", "optim": "adafactor"},
}


class _EveryLayer(courses.InOrder):
    """A step in which each instance is run."""

    def schedule(self, input_needs_grad: bool) -> Any:
        runs = super().schedule(input_needs_grad)
        start, period, count = self.repeats
        self.repeats = Repetition(0, period, 0)
        firsts = range(start, start + period * count, period)
        self.instances = tuple(range(first, first + period) for first in firsts)
        return [runs[0], *((i, 1, layers) for i, layers in enumerate(self.instances)), runs[-1]]


def history(config: dict[str, Any], knobs: dict[str, Any]) -> History:
    """What the engine writes down."""
    spec = build_spec(config, id="tiny")
    recipe = resolve(make_recipe(**{"seq_len": 32, **knobs}), LATEST, DType.BF16)
    known = behaviours(LATEST, recipe)
    preparation, decoder = prepare(spec, recipe, known), decoder_of(spec)
    resting = rest(spec, preparation, recipe, decoder.reaches)
    return Course(spec, decoder, preparation, recipe, known, resting, kernels_of(preparation, recipe, (8, 0)), cublas_workspace(8)).write()


def spelled(found: History) -> list[tuple[Any, ...]]:
    """Births in order, and between two of them what died, whatever its order: an allocator cannot tell."""
    words: list[tuple[Any, ...]] = []
    dead: list[tuple[Any, ...]] = []
    number: dict[int, int] = {}
    for event in found.events:
        if event >= 0:
            words += [("dies", *sorted(dead))] * bool(dead)
            dead = []
            number[event] = len(number)
            words.append((found.sizes[event], found.names[event], found.scopes[event], found.categories[event]))
        else:
            dead.append((number.pop(~event),))
    return [*words, ("dies", *sorted(dead))]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_three_instances_stand_for_all(model, recipe, monkeypatch):
    """Unrolled, the history is the one in which every layer was run: size, name and module of every birth, and each death."""
    three = history(MODELS[model], RECIPES[recipe])
    monkeypatch.setattr(courses, "InOrder", _EveryLayer)
    whole = history(MODELS[model], RECIPES[recipe])

    assert three.repeat >= 4
    assert whole.repeat == 0
    assert len(three.events) < len(whole.events)
    assert spelled(unroll_history(three)) == spelled(whole)
    assert unroll_history(three).flushes == whole.flushes


def live(found: History) -> list[int]:
    """Bytes alive after each event, each storage in blocks of 512."""
    blocks = [-(-size // 512) * 512 for size in found.sizes]
    return list(accumulate(blocks[e] if e >= 0 else -blocks[~e] for e in found.events))


@pytest.mark.parametrize("recipe", ["qlora", "reentrant", "eager", "full"])
@pytest.mark.parametrize("model", ["llama", "gpt2", "olmo2"])
def test_peaks_of_the_second_step_are_the_ledgers(model, recipe):
    """Two ways to the same bytes: rows of a few layers, and every event of every layer. Remainders of blocks are the ledger's alone."""
    spec, knobs = planned(MODELS[model], **{"seq_len": 32, **RECIPES[recipe]})
    found = analyse(spec, knobs, LATEST)
    whole = unroll_history(found.history)
    curve = live(whole)
    remainders = sum(row.nbytes for row in found.ledger.allocations if row.name.startswith("remainders"))
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        stretches = [s for s in whole.stretches if s.phase is phase]
        peak = max(max(curve[s.begin : s.end], default=0) for s in stretches[len(stretches) // 2 :])

        assert abs(peak + remainders - found.ledger.highs[phase][0]) <= 2048, phase


def test_states_are_born_once_and_stay():
    """In the first step's optimizer, one after the other; nothing else outlives a step but what was loaded and the workspaces."""
    found = unroll_history(history(DEEP, {"method": "full", "optim": "adamw_torch", "gradient_checkpointing": False}))
    alive: set[int] = set()
    for event in found.events:
        (alive.add if event >= 0 else alive.discard)(event if event >= 0 else ~event)
    categories = [found.categories[storage] for storage in alive]
    weights = categories.count(Category.PARAMETER)

    assert categories.count(Category.OPTIMIZER_STATE) == 2 * weights
    assert categories.count(Category.WORKSPACE) == 2
    assert set(categories) == {Category.PARAMETER, Category.OPTIMIZER_STATE, Category.WORKSPACE, Category.BUFFER}


def test_the_optimizer_walks_over_what_is_trained():
    """As many states as the resting table counts, of the same bytes."""
    spec, recipe = planned(DEEP, method="lora", optim="adamw_torch")
    found = analyse(spec, recipe, LATEST)
    whole = unroll_history(found.history)
    states = sum(-(-whole.sizes[i] // 512) * 512 for i, c in enumerate(whole.categories) if c is Category.OPTIMIZER_STATE)

    assert states == sum(row.nbytes for row in found.ledger.allocations if row.category is Category.OPTIMIZER_STATE)


def test_where_three_do_not_stand_for_all_every_layer_is_run(monkeypatch):
    """The same events, without a repetition."""

    def refuse(found: History) -> None:
        raise NotRepeatable

    whole = unroll_history(history(DEEP, RECIPES["qlora"]))
    monkeypatch.setattr(courses, "unroll_events", refuse)
    found = history(DEEP, RECIPES["qlora"])

    assert found.repeat == 0
    assert [found.sizes[e] if e >= 0 else None for e in found.events] == [whole.sizes[e] if e >= 0 else None for e in whole.events]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_another_cards_workspaces_are_all_that_differs(model):
    """On a card where cuBLAS takes 32 MiB, the history of one where it takes less is the one that is written there, with those sizes."""
    spec, recipe = planned(MODELS[model], **RECIPES["qlora"])
    known = behaviours(LATEST, recipe)
    preparation, decoder = prepare(spec, recipe, known), decoder_of(spec)
    resting, kernels = rest(spec, preparation, recipe, decoder.reaches), kernels_of(preparation, recipe, (8, 0))
    small, large = (Course(spec, decoder, preparation, recipe, known, resting, kernels, size).write() for size in (8 << 20, 32 << 20))
    found = small.with_workspaces(32 << 20)

    assert [large.names[i] for i in large.workspaces] == [f"cuBLAS workspace of the {thread} thread" for thread in ("forward", "autograd")]
    assert (found.sizes, found.events, found.workspaces) == (large.sizes, large.events, large.workspaces)
    assert small.sizes != large.sizes
    assert small.with_workspaces(8 << 20) is small
    assert (unroll_history(found).sizes, unroll_history(found).events) == (unroll_history(large).sizes, unroll_history(large).events)


def test_orders_of_loading_share_the_step():
    """Where every layer is run for several paces, the step is run once for all, and each history is the one that runs its own."""
    spec, recipe = planned(DEEP, **RECIPES["qlora"])
    known = behaviours(LATEST, recipe)
    preparation, decoder = prepare(spec, recipe, known), decoder_of(spec)
    resting, kernels = rest(spec, preparation, recipe, decoder.reaches), kernels_of(preparation, recipe, (8, 0))
    kept: list[courses.InOrder] = []

    def share(_: object, run: Callable[[], courses.InOrder]) -> courses.InOrder:
        if not kept:
            kept.append(run())
        return kept[0]

    for pace in (0, 25, 50):
        shared, own = (Course(spec, decoder, preparation, recipe, known, resting, kernels, 8, *more).write(pace) for more in ((share,), ()))
        assert shared.model_dump() == own.model_dump()
    assert len(kept) == 1
